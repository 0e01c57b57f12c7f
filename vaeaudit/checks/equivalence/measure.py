"""The equivalence check: a reference and another form of it on the same items, latents and noise, in one process.

The encoders are compared by their posteriors, the decoders on the reference's latents (z = the mean, and keyed draws),
and both together by the reconstructions at each one's own mean. Beside them stand what two draws of z do to the same
items, and the reference run again.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from vaeaudit.attacks.similarity import layer_terms
from vaeaudit.checks.compared import Compared
from vaeaudit.checks.equivalence.metrics import DECODER, END, SHIFT
from vaeaudit.errors import ConfigError, UnsupportedError
from vaeaudit.model.batches import RowBatches, line_of, lines_of
from vaeaudit.model.families import FullGaussian, gaussian_part
from vaeaudit.model.ranges import Range
from vaeaudit.model.vae import Chain, Posterior
from vaeaudit.model.variants import Running
from vaeaudit.progress import GoOn, Progress, always
from vaeaudit.stats.draws import noise_set
from vaeaudit.subject.encodings import Images, count_of, numbers_of
from vaeaudit.subject.inputs import box_of, check_items, require_finite

_AGAIN = 64  # items of which the reference is run again


@dataclass(frozen=True, eq=False)
class Located:
    """Where NaN and infinity come from: in the ``encoder`` or ``decoder`` of which item, and the first ``module``.

    "" where no module gives any, so that they arise between them; None where there are no modules.
    """

    side: str
    item: int
    module: str | None


@dataclass(frozen=True, eq=False)
class VariantResult:
    """How far one variant is from the reference, of I items: (I,) by metric, float64 on the CPU.

    What is NaN or infinite counts as infinitely far. ``nonfinite`` (I,) tells of which items that was, and ``located``
    where it came from, at most once for the encoder and the decoder. ``shift`` (I, channels) is the mean difference of
    the decoders at z = the mean, signed.
    """

    values: Mapping[str, Tensor]
    nonfinite: Tensor
    located: tuple[Located, ...]
    shift: Tensor


@dataclass(frozen=True, eq=False)
class EquivalenceResult:
    """How far the variants, by name, are from the reference on the same ``items``.

    ``scale`` gives (I,) for each figure: the difference between two draws of z under the reference; empty for fewer
    than two ``draws``. ``control`` is the largest difference, of latents or outputs, where the reference runs again on
    the first ``again`` items. ``left_out`` tells why figures are not there, by name, ``ranged`` whether differences are
    in units of the range or, where that is not known, of the input. ``failed`` tells why a variant could not be run.
    ``interrupted``: these are only the first items.
    """

    items: tuple[int, ...]
    draws: int
    variants: Mapping[str, VariantResult]
    failed: Mapping[str, str]
    scale: Mapping[str, Tensor]
    control: float
    again: int
    ranged: bool
    left_out: Mapping[str, str]
    seed: int
    interrupted: bool


class _Side:
    """What a variant gave, batch by batch, and where it first was not finite."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.located: dict[str, Located] = {}

    def locate(
        self, side: str, running: Running, bad: Tensor, keys: Sequence[int], x: Tensor, z: Tensor | None = None
    ) -> None:
        if side in self.located or not bool(bad.any()):
            return
        place = int(bad.nonzero()[0])
        row = slice(place, place + 1)
        module = running.of_items(row).first_not_finite(x[row], None if z is None else z[row])
        self.located[side] = Located(side, keys[place], module)


@torch.no_grad()
def equivalence(
    reference: Running,
    variants: Mapping[str, Running],
    x: Tensor | Images,
    *,
    n: int | None = None,
    items: Sequence[int] | None = None,
    draws: int = 2,
    picture: tuple[int, ...] | None = None,
    data_range: Range | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    go_on: GoOn = always,
) -> EquivalenceResult:
    """Compare other forms of a model with it.

    Args:
        reference: the model, as it is run.
        variants: the other forms by name, which take the same inputs and latents; see
            :func:`vaeaudit.model.variants.check_alike`.
        x: the items, (I, *input_shape), or what gives those of given numbers.
        n: how many items; all of a tensor where None.
        items: their numbers, which key the draws; 0 to n - 1 where None.
        draws: of the reference's z for each item, on which the decoders are compared beside z = the mean.
        picture: the shape in which an item is an image, (H, W), (C, H, W) or (H, W, C); the model's where None.
        data_range: [lo, hi] of the items; the model's own where None.
        seed: of every random draw.
        batch_size: most rows given to a model at once; by size where None.
        go_on: asked between batches; on False the items done so far are returned.

    Raises:
        ConfigError: no variant; fewer than no draws; no items or no ``n`` for a callable.
        DataError: items that are not the model's, or outside the range.
        NonFiniteError: the reference gives NaN or infinity.
        UnsupportedError: no variant can be run.
    """
    of_function = items is not None and not isinstance(x, Tensor)
    numbers = numbers_of(items, count_of(x, len(items or ()) if n is None and of_function else n))
    vae = reference.vae
    box, shape = box_of(vae, data_range), tuple(vae.input_shape)
    if draws < 0 or not variants:
        raise ConfigError(
            f"a model is compared with one variant or more, on 0 draws of z or more, but {len(variants)} variants and "
            f"{draws} draws came"
        )
    first = x[:1] if isinstance(x, Tensor) else x(numbers[:1])
    check_items(vae, first, box, "items")
    measure = _Differences(Compared.of(shape, picture, box, first))
    sides = {name: _Side(running) for name, running in variants.items()}
    failed, ran = dict[str, str](), set[str]()
    rows = RowBatches.automatic(shape, first.device) if batch_size is None else RowBatches(batch_size)

    def of_items(index: Tensor) -> tuple[Tensor, ...]:
        keys = [numbers[place] for place in index.tolist()]
        part = x[index[0] : index[-1] + 1] if isinstance(x, Tensor) else x(keys)
        check_items(vae, part, box, "items")
        of_part = reference.of_items(index)
        q = of_part.encode(part)
        mean = q.mean.to(part.dtype)
        latents, noise = [mean], q.mean.new_zeros(1, len(part), *q.noise_shape)
        if draws:
            noise = noise_set(q.noise_shape, draws=draws, items=keys, seed=seed, check="equivalence", like=q.mean)
            latents += [q.sample(eta).to(part.dtype) for eta in noise]
        outputs = [of_part.decode(z) for z in latents]
        for output in outputs:
            require_finite("reconstruction of the reference", output, keys)
        control = [0.0, 0]
        if not int(index[0]):  # of the first items, before anything else runs
            some, code = part[:_AGAIN], mean[:_AGAIN]  # both times alike: sums may depend on the number of rows
            first_few = reference.of_items(index[:_AGAIN])
            one, again = ((first_few.encode(some).mean, first_few.decode(code)) for _ in range(2))
            control[:] = max(float((one[0] - again[0]).abs().max()), measure.largest(one[1], again[1])), len(some)
        found: dict[str, Tensor] = {}
        for name, side in sides.items():
            if name in failed:
                continue
            try:
                of_side = _compared(side, side.running.of_items(index), measure, part, keys, q, noise, latents, outputs)
                found |= {f"{name} {key}": of for key, of in of_side.items()}
                ran.add(name)
            except UnsupportedError as error:
                if name in ran:
                    raise
                failed[name] = str(error)
        if len(failed) == len(sides):
            raise UnsupportedError("; ".join(failed.values()))
        if draws > 1:
            found |= {f" {key}": of for key, of in measure(outputs[1], outputs[2]).items()}
            found[f" {SHIFT.name}"] = _shift(q, latents[1] - latents[2])
        located = {name: [astuple(one) for one in side.located.values()] for name, side in sides.items()}
        told = {"columns": list(found), "failed": failed, "control": control, "located": located}
        return *found.values(), line_of(told)

    given = rows.map(
        of_items,
        torch.arange(len(numbers)),
        go_on=lambda left, of: go_on(Progress("comparing", left, of)),
        kept="equivalence",
    )
    *values, lines = given
    told = lines_of(lines)
    if any(part["columns"] != told[0]["columns"] for part in told):  # where processes did them, each saw its own
        raise UnsupportedError("; ".join({name: why for part in told for name, why in part["failed"].items()}.values()))
    failed = told[0]["failed"]
    done = len(values[0])
    by_name = dict(zip(told[0]["columns"], values, strict=True))
    return EquivalenceResult(
        items=tuple(numbers[:done]),
        draws=draws,
        variants={
            name: _result(name, [part["located"][name] for part in told], by_name)
            for name in sides
            if name not in failed
        },
        failed=failed,
        scale={name[1:]: of for name, of in by_name.items() if name.startswith(" ")},
        control=told[0]["control"][0],
        again=told[0]["control"][1],
        ranged=measure.compared.low is not None,
        left_out=measure.left_out,
        seed=seed,
        interrupted=done < len(numbers),
    )


def _result(name: str, located: Sequence[Sequence[Sequence[Any]]], columns: Mapping[str, Tensor]) -> VariantResult:
    """One variant out of all ``columns``, and where each batch was not finite first."""
    own = {key.removeprefix(f"{name} "): of for key, of in columns.items() if key.startswith(f"{name} ")}
    shift, nonfinite = own.pop("shift"), own.pop("nonfinite")
    first: dict[str, Located] = {}
    for one in (Located(*given) for part in located for given in part):
        first.setdefault(one.side, one)
    return VariantResult(own, nonfinite > 0, tuple(first.values()), shift)


def _compared(
    side: _Side,
    running: Running,
    measure: "_Differences",
    x: Tensor,
    keys: Sequence[int],
    q: Posterior,
    noise: Tensor,
    latents: Sequence[Tensor],
    outputs: Sequence[Tensor],
) -> dict[str, Tensor]:
    """All figures of one variant on a batch, by metric; "nonfinite" (b,) and "shift" (b, channels) beside them."""
    other = running.encode(x)
    bad_encoder = ~other.mean.isfinite().flatten(1).all(1)
    given_spread, spread = _log_stddev(other), _log_stddev(q)
    found: dict[str, Tensor] = {}
    if given_spread is not None and spread is not None:
        bad_encoder |= ~given_spread.isfinite().all(1)
        found["encoder.log_stddev"] = (given_spread - spread).abs().amax(1)
    side.locate("encoder", running, bad_encoder, keys, x)
    with suppress(UnsupportedError):  # of points there is none
        found |= {"encoder.kl": _kl(q, other, noise), "encoder.kl_back": _kl(other, q, noise)}
    found[SHIFT.name] = _shift(q, other.mean - q.mean)
    found = {name: values.nan_to_num(math.inf, math.inf, math.inf) for name, values in found.items()}
    bad = bad_encoder
    worst: dict[str, Tensor] = {}
    shift = None
    for z, output in zip(latents, outputs, strict=True):
        given = running.decode(z)
        wrong = ~given.isfinite().flatten(1).all(1)
        side.locate("decoder", running, wrong, keys, x, z)
        bad = bad | wrong
        shift = measure.shift(given, output) if shift is None else shift
        for name, values in measure(given, output).items():
            farther = torch.minimum if name in ("psnr", "ssim") else torch.maximum
            worst[name] = farther(worst.get(name, values), values)
    found |= {f"{DECODER}.{name}": values for name, values in worst.items()}
    end = running.decode(other.mean.to(latents[0].dtype))
    bad = bad | ~end.isfinite().flatten(1).all(1)
    found |= {f"{END}.{name}": values for name, values in measure(end, outputs[0]).items()}
    assert shift is not None
    return {name: values.double().cpu() for name, values in found.items()} | {
        "nonfinite": bad.double().cpu(),
        "shift": shift,
    }


def _kl(q: Posterior, p: Posterior, noise: Tensor) -> Tensor:
    """KL(q || p), (b,); of chains the coupled one of all layers, as those above the first are other functions too."""
    return layer_terms(q, p, noise).sum(0) if isinstance(q, Chain) and isinstance(p, Chain) else q.kl(p)


def _log_stddev(q: Posterior) -> Tensor | None:
    """That of each Gaussian latent, (b, latents), of a chain's upper layers given the mean below; None without any."""
    if isinstance(q, FullGaussian):
        stddev: Tensor = torch.linalg.vector_norm(q.cholesky, dim=2)
        return stddev.log()
    if isinstance(q, Chain):
        layers = [_log_stddev(layer) for layer in q.conditionals(q.mean.new_zeros(1, len(q.mean), *q.noise_shape))]
        known = [layer for layer in layers if layer is not None]
        return torch.cat(known, 1) if len(known) == len(layers) else None
    part = gaussian_part(q)
    return None if part is None else part.log_stddev.flatten(1)


def _shift(q: Posterior, gap: Tensor) -> Tensor:
    """The largest of a gap of latents, in units of their standard deviations where the posterior has them, (b,)."""
    size, spread = gap.double().abs().flatten(1).nan_to_num(math.inf, math.inf), _log_stddev(q)
    if spread is not None and spread.shape == size.shape:
        size = torch.where(size > 0, size / spread.exp(), 0.0)  # nothing is no shift, whatever the deviation
    return size.amax(1)


class _Differences:
    """The figures of two outputs, (b,) each, in units of the range where it is known."""

    def __init__(self, compared: Compared) -> None:
        self.compared = compared
        self.left_out = {name: why for name, why in compared.left_out.items() if name in ("psnr", "share_off", "ssim")}

    def __call__(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        a, b = _finer(a, b)
        size = self.compared.scaled(a - b).abs().nan_to_num(math.inf, math.inf)
        found = {"largest_difference": size.amax(1), "mean_difference": size.mean(1)}
        found |= self.compared.in_range(size, size.square().mean(1))
        if likeness := self.compared.likeness(b, a):
            found["ssim"] = likeness["ssim"].nan_to_num(-math.inf)
        return {name: values.double().cpu() for name, values in found.items()}

    def largest(self, a: Tensor, b: Tensor) -> float:
        """Of all values."""
        a, b = _finer(a, b)
        return float(self.compared.scaled(a - b).abs().max())

    def shift(self, a: Tensor, b: Tensor) -> Tensor:
        """The mean difference by channel of pictures, or of all values, (b, channels), signed, in input units."""
        a, b = _finer(a, b)
        if self.compared.picture is None:
            return (a - b).flatten(1).mean(1, keepdim=True).double().cpu()
        return self.compared.bias(a - b)


def _finer(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the finer of their precisions."""
    kind = torch.promote_types(a.dtype, b.dtype)
    return a.to(kind), b.to(kind)
