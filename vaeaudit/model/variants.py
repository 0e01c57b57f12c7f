"""A model in another form that should give the same: another precision, compilation, memory format, tiles or slices."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from vaeaudit.errors import ConfigError, UnsupportedError, VaeauditError, listed, told
from vaeaudit.model.chain import GaussianChain, Layer
from vaeaudit.model.conditions import Conditioned, conditioned_as, model_of, under
from vaeaudit.model.memory import ran_out
from vaeaudit.model.vae import VAE, DiagonalGaussian, Hierarchical, Likelihood, Posterior
from vaeaudit.model.variant import Variant

T = TypeVar("T")
_TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Running:
    """A model as it is run for a comparison: ``encode`` and ``decode`` take and give what its reference does.

    Args:
        vae: the model.
        dtype: what its inputs and latents are cast to.
        variant: what else is changed of it, which must have been done to ``vae`` where it is of its weights.
        device: where it runs.
        fine: the precision that posteriors and likelihoods are given in.

    Raises what the model raises as :class:`UnsupportedError` which names the variant.
    """

    def __init__(
        self,
        vae: VAE,
        dtype: torch.dtype,
        variant: Variant,
        device: torch.device,
        fine: torch.dtype = torch.float64,
    ) -> None:
        self.vae, self.dtype, self.variant, self.device = vae, dtype, variant, device
        self.fine = fine
        compiled = "compile" in variant.switches
        self._encode: Callable[[Tensor], Posterior] = torch.compile(vae.encode) if compiled else vae.encode
        self._mean: Callable[[Tensor], Tensor] = torch.compile(self._eager_mean) if compiled else self._eager_mean

    def of_items(self, items: Tensor | slice) -> "Running":
        """The same for rows that belong to these items."""
        vae = under(self.vae, items)
        return self if vae is self.vae else Running(vae, self.dtype, self.variant, self.device, self.fine)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Posterior:
        """q(z|x) in the fine precision; the layers of a chain are run as the rest of the model is."""
        q = self._run(self._encode, self._cast(x))
        if isinstance(q, GaussianChain):
            q = GaussianChain(q.first, tuple(partial(self._layer, layer) for layer in q.upper))
        return in_precision(q, self.fine)

    @torch.no_grad()
    def _layer(self, layer: Layer, z: Tensor) -> DiagonalGaussian:
        return in_precision(self._run(layer, z.to(self.dtype)), self.fine)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The decoder's mean, in the precision that it comes in."""
        return self._run(self._mean, self._cast(z))

    @torch.no_grad()
    def likelihood(self, z: Tensor) -> Likelihood:
        """p(x|z), from what the decoder gives, in the fine precision."""
        return in_precision(self._run(self.vae.decode, self._cast(z)), self.fine)

    @torch.no_grad()
    def conditional_priors(self, z: Tensor) -> tuple[Posterior, ...]:
        """p(z^i|z^(i+1)) of each layer of a hierarchical model, likewise."""
        assert isinstance(self.vae, Hierarchical)
        return in_precision(self._run(self.vae.conditional_priors, self._cast(z)), self.fine)

    def first_not_finite(self, x: Tensor, z: Tensor | None = None) -> str | None:
        """The name of the first module whose output is NaN or infinite where ``x`` is encoded, or ``z`` decoded.

        "" where every module's is finite, so that it arises outside of them; None for a model that is no module.
        """
        model = model_of(self.vae)
        if not isinstance(model, nn.Module):
            return None
        found: list[str] = []
        hooks = [
            module.register_forward_hook(_watching(name or type(module).__name__, found))
            for name, module in model.named_modules()
        ]
        try:
            with torch.no_grad():
                if z is None:
                    self._run(self.vae.encode, self._cast(x))
                else:
                    self._run(self._eager_mean, self._cast(z))
        finally:
            for hook in hooks:
                hook.remove()
        return found[0] if found else ""

    def _eager_mean(self, z: Tensor) -> Tensor:
        return self.vae.decode(z).mean

    def _cast(self, values: Tensor) -> Tensor:
        values = values.to(self.dtype)
        channels_last = "channels-last" in self.variant.switches and values.ndim == 4
        return values.contiguous(memory_format=torch.channels_last) if channels_last else values

    def _run(self, function: Callable[[Tensor], T], values: Tensor) -> T:
        context: AbstractContextManager[object] = nullcontext()
        if self.variant.autocast:
            context = torch.autocast(self.device.type, dtype=_TYPES[self.variant.autocast])
        try:
            with context:
                return function(values)
        except (VaeauditError, KeyboardInterrupt):
            raise
        except Exception as error:  # an operation without this precision here, no compiler, an adapter that casts
            if ran_out(error):
                raise
            name = self.variant.name or "the other model"
            raise UnsupportedError(f"{name} cannot run on {self.device}: the model raised {told(error)}") from error


def _watching(name: str, found: list[str]) -> Callable[[nn.Module, object, object], None]:
    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        if not found and any(not bool(tensor.isfinite().all()) for tensor in _tensors(output)):
            found.append(name)

    return hook


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for one in output:
            yield from _tensors(one)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from _tensors(getattr(output, field.name))


def varied(vae: VAE, variant: Variant, dtype: torch.dtype, device: torch.device) -> Running:
    """A copy of ``vae``, whose inputs are of ``dtype``, in another form.

    Raises :class:`UnsupportedError` where the model offers no such form; the message says which it offers.
    """
    model = model_of(vae)
    if not isinstance(model, nn.Module):
        raise UnsupportedError(
            f"no {variant.name} of a model that is no torch.nn.Module, since its weights are not known; open another "
            "form of it by its adapter, with --against"
        )
    if isinstance(vae, Conditioned) and "compile" in variant.switches:
        raise UnsupportedError("no compile of a conditional model, which would be compiled anew for each batch")
    other = copy.deepcopy(model)
    wanted = _TYPES[variant.dtype] if variant.dtype else dtype
    other.to(dtype=wanted)
    if "channels-last" in variant.switches:
        if not any(parameter.ndim == 4 for parameter in other.parameters()):
            raise UnsupportedError(
                "no channels-last of a model without 4-dimensional weights: it has no images to lay out otherwise"
            )
        other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name in ("tiling", "slicing"):
        if name in variant.switches:
            _enable(other, name)
    return Running(conditioned_as(vae, other, wanted), wanted, variant, device)


def _enable(vae: nn.Module, name: str) -> None:
    """Call enable_tiling() or enable_slicing() of the model, or of what is in it."""
    offering = [module for module in vae.modules() if callable(getattr(module, f"enable_{name}", None))]
    if not offering:
        offers = [what for what in ("tiling", "slicing") for m in vae.modules() if hasattr(m, f"enable_{what}")]
        told_offers = listed(dict.fromkeys(offers)) if offers else "neither tiling nor slicing"
        raise UnsupportedError(f"no {name}: the model has no enable_{name}(); it offers {told_offers}")
    getattr(offering[0], f"enable_{name}")()


def in_precision(q: T, dtype: torch.dtype) -> T:
    """A posterior or likelihood with its tensors, and those of its parts, in ``dtype``; anything else as it is."""
    if isinstance(q, Tensor):
        return q.to(dtype) if q.is_floating_point() else q  # type: ignore[return-value]
    if isinstance(q, tuple):
        return type(q)(in_precision(one, dtype) for one in q)
    if dataclasses.is_dataclass(q) and not isinstance(q, type):
        names = [field.name for field in dataclasses.fields(q) if field.init]
        return dataclasses.replace(q, **{name: in_precision(getattr(q, name), dtype) for name in names})
    return q


def check_alike(vae: VAE, other: VAE, x: Tensor, x_other: Tensor) -> None:
    """Raise :class:`ConfigError` unless both take the same inputs, in the same range, and have latents alike."""
    shapes = [tuple(one.input_shape) for one in (vae, other)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"the model takes inputs of {_sizes(shapes[0])} and the other of {_sizes(shapes[1])}, so that they cannot "
            "be given the same items; name one of the same inputs"
        )
    with torch.no_grad():
        sides = ((under(vae, slice(1)), x), (under(other, slice(1)), x_other))
        latents = [tuple(one.encode(given).mean.shape[1:]) for one, given in sides]
    if latents[0] != latents[1]:
        raise ConfigError(
            f"the model has latents of {_sizes(latents[0])} and the other of {_sizes(latents[1])}, so that their "
            "decoders cannot be given the same; compare two such models' reports with `vaeaudit compare`"
        )


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
