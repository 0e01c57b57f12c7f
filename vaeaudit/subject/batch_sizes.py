"""Does a model take batches of every size? What an item gives must not depend on how many stand beside it."""

import torch
from torch import Tensor, nn

from vaeaudit.errors import ContractError, VaeauditError, clipped, listed, told
from vaeaudit.model.conditions import model_of, under
from vaeaudit.model.contract import check_contract
from vaeaudit.model.memory import ran_out
from vaeaudit.model.vae import VAE
from vaeaudit.subject.finding import Finding, Verdict

_SIZES = (1, 2, 3)  # of batches that every model must take


def refused(vae: VAE, x: Tensor) -> Finding | None:
    """What a model does on batches of some sizes while it takes others; None where it takes them all.

    Raises :class:`ContractError` for what :func:`check_contract` finds, and what the model raises on every batch.
    """
    fault: Exception | None = None
    try:
        check_contract(under(vae, slice(2)), x[:2])
    except VaeauditError:
        raise
    except Exception as error:  # the adapter is the user's code
        fault = error
    found = _refused_sizes(vae, x)
    if found is None and fault is not None:
        raise fault
    return found


def _refused_sizes(vae: VAE, x: Tensor) -> Finding | None:
    """What a model does on batches of some sizes while it takes others; None where it takes them all.

    Raises what the model raises where it takes none, and :class:`ContractError` where it takes it when it is run again.
    """
    failed, errors = {}, []
    sizes = [size for size in _SIZES if size <= len(x)]

    @torch.no_grad()
    def run(size: int) -> tuple[Tensor, Tensor]:
        of_some = under(vae, slice(size))
        latents = of_some.encode(x[:size]).mean
        return latents, of_some.decode(latents).mean

    def runs(size: int) -> bool:
        try:
            run(size)
        except Exception:
            return False
        return True

    for size in sizes:
        try:
            latents, mean = run(size)
        except Exception as error:  # the adapter is the user's code
            if ran_out(error):
                continue
            if runs(size):
                raise ContractError(
                    f"the model raised {told(error)}, and not when it was run again on those items; see its adapter"
                ) from error
            errors.append(error)
            failed[size] = f"raised {type(error).__name__}: {clipped(' '.join(str(error).split()))}"
        else:
            if size == 1 and (latents.shape[:1] != (1,) or mean.shape != x[:1].shape):  # squeezed
                failed[size] = f"gave latents {tuple(latents.shape)} and a decoder mean {tuple(mean.shape)}"
    if len(errors) == len(sizes):
        raise errors[0]
    if not failed:
        return None
    taken = next(size for size in sizes if size not in failed)
    size, reason = next(iter(failed.items()))
    takes = f"the model takes a batch of {taken}, but on one of {size} it {reason}: what an item gives must not depend"
    return Finding("rows apart", Verdict.FAIL, f"{takes} on its batch{batch_statistics(vae)}")


def batch_statistics(vae: VAE) -> str:
    """Layers that take the statistics of the batch, as words to go on with."""
    model = model_of(vae)
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    names = [
        name
        for name, layer in modules
        if isinstance(layer, nn.modules.batchnorm._NormBase)
        and not isinstance(layer, nn.modules.instancenorm._InstanceNorm)
        and (layer.training or layer.running_mean is None)
    ]
    if not names:
        return "; is a batch size written into the model, or does a squeeze() without an axis or a layer mix the items?"
    return f"; batch normalisation without running statistics ({listed(names)}): train with them, or normalise by item"
