"""Is this the model it claims to be? Asked on real data before any other check.

A wrong activation, a missing sigmoid, a wrong layout of mean and log-variance or a wrong data range loads
without an error and gives figures that look like figures. What follows finds the coarse ones out: each finding
has a verdict, and an audit of a model of which one fails gets none. A near miss passes, such as GELU for
ReLU, or a log-variance read as the logarithm of the standard deviation: the losses are there to be compared with
those of training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vaeaudit.errors import DataError, UnsupportedError, listed
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.box import range_of
from vaeaudit.model.conditions import model_of, under
from vaeaudit.model.divergence import Density, closed_form, layers_to_prior, to_prior
from vaeaudit.model.families import gaussian_part, without_gradient
from vaeaudit.model.memory import ran_out
from vaeaudit.model.vae import VAE, Chain, GaussianLikelihood, Hierarchical, Likelihood, Posterior
from vaeaudit.stats import estimates
from vaeaudit.stats.draws import noise_set
from vaeaudit.stats.estimates import Measurement
from vaeaudit.subject import batch_sizes, latent_scale, sureness
from vaeaudit.subject.baselines import Baseline
from vaeaudit.subject.finding import Finding as Finding
from vaeaudit.subject.finding import Verdict as Verdict
from vaeaudit.subject.inputs import numbered, require_finite
from vaeaudit.subject.sensitivity import gradients

_PROBED = 8  # items for the checks that need a backward pass or a second run


@dataclass(frozen=True)
class Plausibility:
    """All findings, and the model's losses on the items, in nats (z = the mean; ``kl`` to the prior)."""

    findings: tuple[Finding, ...]
    losses: dict[str, Measurement]
    items: int

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the findings that failed: with any, no figure of the model means anything."""
        return tuple(finding.name for finding in self.findings if finding.verdict is Verdict.FAIL)


def examine(
    vae: VAE, x: Tensor, *, seed: int = 0, batch_size: int | None = None, items: Sequence[int] | None = None
) -> Plausibility:
    """Try the model on real items ``x`` (n, *input_shape), n >= 2, numbered by ``items``, from 0 on where None.

    Of a model that takes batches of some sizes only, nothing else is asked.

    Raises:
        DataError: fewer than two items, or all items equal: there is no mean image to compare with.
        ContractError: what :func:`vaeaudit.model.contract.check_contract` finds.
        NonFiniteError: NaN or infinite means, with the numbers of the items.
    """
    if len(x) < 2 or bool((x == x[:1]).all()):
        raise DataError(
            f"at least two different items are needed to try the model, but the {len(x)} that came are all equal; give "
            "data that vary"
        )
    rows = RowBatches.automatic(vae.input_shape, x.device) if batch_size is None else RowBatches(batch_size)
    items = list(range(len(x)) if items is None else items)
    refused = batch_sizes.refused(vae, x)
    if refused is not None:
        return Plausibility((_evaluation_mode(vae), refused), {}, len(x))
    noise = _noise(vae, x, items, seed)
    baseline = Baseline(x, items, range_of(vae))
    number = torch.arange(len(x), device=x.device)

    @torch.no_grad()
    def run(part: Tensor, eta: Tensor, item: Tensor) -> tuple[Tensor, ...]:
        of_part = under(vae, item)
        posterior = of_part.encode(part)
        likelihood = of_part.decode(posterior.mean)
        drawn = of_part.decode(posterior.sample(eta))
        proper, none = _proper(likelihood, part), torch.full_like(part.flatten(1)[:, :1], torch.nan)
        return (
            likelihood.mean,
            -likelihood.log_prob(part) if proper else none[:, 0],
            sureness.without_items(likelihood, part, baseline.mean) if proper else none.expand(-1, 2),
            sureness.steepness(likelihood, part) if proper else none[:, 0],
            _kl(vae, posterior, eta),
            *baseline.errors(likelihood.mean, part),
            *baseline.errors(drawn.mean, part),
            posterior.mean.flatten(1),
            _spread(posterior, eta),
            drawn.mean[compared[item]],
            *([latent_scale.moments(posterior)] if scaled else []),
        )

    scaled, stated = hasattr(vae, "latent_scale"), getattr(vae, "latent_scale", None)
    compared = torch.zeros_like(number, dtype=torch.bool)
    compared[baseline.compared] = True
    mean, nll, without, rising, kl, raw, error, drawn_raw, drawn_error, latents, varies, drawn, *moments = rows.map(
        run, x, noise, number
    )
    require_finite("posterior mean", latents, items)
    require_finite("decoder mean", mean, items)
    with torch.no_grad():
        of_two = under(vae, slice(2))
        posterior = of_two.encode(x[:2])
        likelihood, how = of_two.decode(posterior.mean), _how(vae, posterior)
    again, slopes = _of_few(vae, x, items, seed)
    findings = [
        _evaluation_mode(vae),
        *again,
        _divergence(kl, varies, items, how),
        _range(likelihood, mean, x),
        baseline.finding("reconstruction", raw, error, mean[baseline.compared]),
        # Of a posterior that tells little of an item a draw may come out as the mean image does.
        baseline.finding("reconstruction of a draw", drawn_raw, drawn_error, drawn, unseen=Verdict.UNSURE),
        sureness.finding(nll, without, raw, baseline.raw, rising, isinstance(likelihood, GaussianLikelihood)),
        slopes,
        _log_variance(vae, x, rows, items),
        *(latent_scale.finding(one, stated) for one in moments),
    ]
    # One draw's log ratio of densities may be negative, where the KL itself is not.
    of_kl = estimates.mean(
        kl.tolist(), unit="nats", direction="none", support=estimates.ANY if how else estimates.NOT_NEGATIVE
    )
    losses = {
        "reconstruction": estimates.mean(nll.tolist(), unit="nats", direction="none"),
        "kl": replace(of_kl, estimator=f"{of_kl.estimator}; {how}") if how else of_kl,
        "error": estimates.mean(
            raw.tolist(), unit="squared input units", direction="none", support=estimates.NOT_NEGATIVE
        ),
        "mean_image_error": estimates.mean(
            baseline.raw.tolist(), unit="squared input units", direction="none", support=estimates.NOT_NEGATIVE
        ),
    }
    return Plausibility(tuple(findings), losses, len(x))


def _noise(vae: VAE, x: Tensor, items: Sequence[int], seed: int) -> Tensor:
    with torch.no_grad():
        shape = under(vae, slice(1)).encode(x[:1]).noise_shape
    return noise_set(shape, draws=1, items=items, seed=seed, check="plausibility", like=x)[0]


def _kl(vae: VAE, posterior: Posterior, noise: Tensor | None = None) -> Tensor:
    """KL to the prior, (batch,); infinite where the family has none, as a point has.

    Without a closed form the log ratio of densities at one draw, that of ``noise`` (batch, *noise_shape) or of none; of
    a chain over all its layers.
    """
    mean = posterior.mean
    eta = mean.new_zeros((len(mean), *posterior.noise_shape)) if noise is None else noise
    try:
        if isinstance(posterior, Chain) and isinstance(vae, Hierarchical):
            return layers_to_prior(posterior, vae, eta)
        return to_prior(posterior, vae.prior, lambda: posterior.sample(eta)[None]).value
    except UnsupportedError:
        return torch.full_like(mean.flatten(1)[:, 0], torch.inf)


def _how(vae: VAE, posterior: Posterior) -> str:
    """How the KL is had, in words, where it has no closed form; "" where it has."""
    layered = isinstance(posterior, Chain) and isinstance(vae, Hierarchical)
    if not layered and closed_form(posterior, vae.prior) is not None:
        return ""
    known = layered or (isinstance(posterior, Density) and isinstance(vae.prior, Density))
    return "no closed form, so " + ("estimated from one draw of each item" if known else "none")


def _proper(likelihood: Likelihood, x: Tensor) -> bool:
    """Whether log p exists: means or data outside the support are told as a finding, not as an exception."""
    return likelihood.support is None or all(_within(values, likelihood.support) for values in (likelihood.mean, x))


def _within(values: Tensor, support: tuple[float, float]) -> bool:
    return bool(((values >= support[0]) & (values <= support[1])).all())


def _evaluation_mode(vae: VAE) -> Finding:
    model = model_of(vae)
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    training = [name or "the model" for name, m in modules if m.training]
    if training:
        message = f"in training mode: {listed(training, 3)}; the adapter must not switch it back"
        return Finding("evaluation mode", Verdict.FAIL, message)
    return Finding("evaluation mode", Verdict.PASS, "no part is in training mode")


def _of_few(vae: VAE, x: Tensor, items: Sequence[int], seed: int) -> tuple[tuple[Finding, Finding], Finding]:
    """What a second run and a backward pass tell, of as many of a few items as fit into memory, at least two."""
    places = range(0, len(x), max(1, len(x) // _PROBED))[:_PROBED]  # data are often stored class by class
    while True:
        at = torch.tensor(places, device=x.device)
        of_probes, probes = under(vae, at), x[at]
        try:
            return _run_again(of_probes, probes), gradients(of_probes, probes, [items[place] for place in places], seed)
        except Exception as error:  # the adapter is the user's code
            if not ran_out(error) or len(places) <= 2:
                raise
        places = places[: max(2, len(places) // 2)]


def _run_again(vae: VAE, x: Tensor) -> tuple[Finding, Finding]:
    """Whether the model gives the same for the same inputs once more, and for each of them alone."""

    def run(part: Tensor, item: Tensor) -> tuple[Posterior, Likelihood]:
        of_part = under(vae, item)
        posterior = of_part.encode(part)
        return posterior, of_part.decode(posterior.mean)

    def told(posterior: Posterior, likelihood: Likelihood) -> tuple[Tensor, ...]:
        kl = _kl(vae, posterior)
        # What is not finite is told of apart.
        return posterior.mean.clone(), torch.where(kl.isfinite(), kl, 0.0), likelihood.mean.clone()

    number = torch.arange(len(x), device=x.device)
    with torch.no_grad():
        returned = run(x, number)
        first, second = told(*returned), told(*run(x, number))
        alone = RowBatches(1).map(lambda *one: told(*run(*one)), x, number)
        run(x.flip(0), number.flip(0))  # other values of the same shape, which a buffer kept by shape would take
        kept = _same(first, told(*returned))
    return _deterministic(first, second, kept), _independent_rows(vae, first, alone, x.dtype)


def _same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    """To the bit, and of one shape and dtype; NaN is the same as NaN."""

    def alike(a: Tensor, b: Tensor) -> bool:
        return (a.shape, a.dtype) == (b.shape, b.dtype) and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)

    return all(alike(a, b) for a, b in zip(first, second, strict=True))


def _deterministic(first: tuple[Tensor, ...], second: tuple[Tensor, ...], kept: bool) -> Finding:
    if not kept:
        message = "what the model returned changes when it is called again; return new tensors, not a buffer used again"
        return Finding("determinism", Verdict.FAIL, message)
    if any(bool(values.isnan().any()) for values in (*first, *second)):  # of items that gave none before
        message = "the same input gives NaN at some calls alone; is memory read that was never written (torch.empty)?"
        return Finding("determinism", Verdict.FAIL, message)
    if _same(first, second):
        return Finding("determinism", Verdict.PASS, "the same input gives the same output")
    return Finding("determinism", Verdict.FAIL, "the same input gives different outputs; is dropout or sampling on?")


def _independent_rows(vae: VAE, together: tuple[Tensor, ...], alone: tuple[Tensor, ...], dtype: torch.dtype) -> Finding:
    def change(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().max() / a.abs().max().clamp(min=1))

    gaps = [change(a, b) for a, b in zip(together, alone, strict=True)]
    if any(map(math.isnan, gaps)):
        message = "an item's posterior or reconstruction is NaN or infinite in one batch and not in another"
        return Finding("rows apart", Verdict.FAIL, message)
    gap = max(gaps)
    message = f"an item's posterior and reconstruction change by {gap:.1e} (relative) with the items beside it"
    # Far above the rounding that another batch size brings, in any precision.
    if gap <= torch.finfo(dtype).eps ** 0.5:
        return Finding("rows apart", Verdict.PASS, message)
    return Finding(
        "rows apart", Verdict.FAIL, f"{message}: they depend on its batch{batch_sizes.batch_statistics(vae)}"
    )


def _spread(posterior: Posterior, noise: Tensor) -> Tensor:
    """Items (batch,) whose posterior has a spread: a standard deviation that is not 0, or else a draw that moves."""
    part = gaussian_part(posterior)
    moves = (posterior.sample(noise) != posterior.mean).flatten(1).any(1)
    return moves if part is None else moves | (part.log_stddev.exp() > 0).expand_as(part.mean).flatten(1).any(1)


def _divergence(kl: Tensor, varies: Tensor, items: Sequence[int], how: str) -> Finding:
    """A posterior without spread has no finite KL, and none is asked of it; nor of one without densities."""
    name = "KL to the prior"
    if not bool(varies.any()):
        return Finding(name, Verdict.PASS, "none: the encoder is deterministic")
    if how.endswith("none"):
        return Finding(name, Verdict.PASS, how)
    bad = [item for item, finite in zip(items, kl.isfinite().tolist(), strict=True) if not finite]
    if bad:
        of = f"{len(bad)} of {len(kl)} items, {numbered(bad)}"
        told = f"NaN or infinite for {of}: means or standard deviations that are not finite, or far too large, or 0?"
        return Finding(name, Verdict.FAIL, f"{told}; check the data's range and the checkpoint, or try --dtype float64")
    return Finding(name, Verdict.PASS, f"finite for {len(kl)} items" + (f"; {how}" if how else ""))


def _range(likelihood: Likelihood, mean: Tensor, x: Tensor) -> Finding:
    low, high = float(mean.min()), float(mean.max())
    data = f"data in [{float(x.min()):.4g}, {float(x.max()):.4g}]"
    message = f"{data}, reconstructions in [{low:.4g}, {high:.4g}]"
    support = likelihood.support
    if support is not None and not _within(mean, support):
        wanted = f"outside [{support[0]:g}, {support[1]:g}]"
        return Finding("range", Verdict.FAIL, f"{message}: {wanted}; is a sigmoid missing?")
    if support is not None and not _within(x, support):
        needed = f"the likelihood needs data in [{support[0]:g}, {support[1]:g}]"
        return Finding("range", Verdict.FAIL, f"{message}: {needed}; check the range")
    return Finding("range", Verdict.PASS, message)


def _log_variance(vae: VAE, x: Tensor, rows: RowBatches, items: Sequence[int]) -> Finding:
    """Log-variances that tie at their extreme, and have no gradient there, were clamped.

    Items that the data repeat tie throughout, so the ties of items with one and the same mean count once.
    """

    @torch.no_grad()
    def run(part: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        posterior = gaussian_part(under(vae, item).encode(part))
        assert posterior is not None
        return 2 * posterior.log_stddev.flatten(1), posterior.mean.flatten(1)

    with torch.no_grad():
        first = under(vae, slice(1)).encode(x[:1])
    if gaussian_part(first) is None:
        return Finding("log-variance", Verdict.PASS, f"{type(first).__name__} has none")
    values, means = rows.map(run, x, torch.arange(len(x), device=x.device))
    span = f"between {float(values.min()):.4g} and {float(values.max()):.4g}"
    bad = [item for item, wrong in zip(items, values.isnan().any(1).tolist(), strict=True) if wrong]
    if bad:
        return Finding("log-variance", Verdict.FAIL, f"NaN for {len(bad)} of {len(x)} items, {numbered(bad)}")

    @torch.enable_grad()
    def still(part: Tensor, item: Tensor, chosen: Tensor) -> tuple[Tensor]:
        leaf = part.detach().requires_grad_(True)
        q = gaussian_part(under(vae, item).encode(leaf))
        assert q is not None
        return (without_gradient(q.log_stddev.flatten(1), chosen, leaf),)

    # A unit that never changes ties by design, not by a clamp, and so do units that share one scale.
    every, changing = values, (values != values[:1]).any(0)
    values = torch.unique(every[:, changing], dim=1)
    if not values.numel():
        return Finding("log-variance", Verdict.PASS, f"{span}, the same for every item")
    low, high = float(values.min()), float(values.max())
    for edge in (low, high):
        tied = (values == edge).sum(1)  # (n,) latents of each item at the edge
        if _together(tied, means):
            some = tied.nonzero().squeeze(1)
            tied[some] *= rows.map(still, x[some], some, (every[some] == edge) & changing)[0]
        if _together(tied, means):
            at = f"{int(tied.sum()):,} of {values.numel():,} exactly at {edge:.4g}"
            return Finding(
                "log-variance",
                Verdict.UNSURE,
                f"{span}, {at}: clamped there, so an attack sees no gradient through it",
            )
    return Finding("log-variance", Verdict.PASS, f"{span}, none clamped")


def _together(tied: Tensor, means: Tensor) -> bool:
    """Whether several latents of an item, or items of several means (n, ...), are among those that ``tied`` (n,)."""
    of = means[tied > 0]
    return int(tied.max()) > 1 or not bool((of == of[:1]).all())
