"""Is this the model it claims to be? Asked on real data before any other check.

A wrong activation, a missing sigmoid, a wrong layout of mean and log-variance or a wrong data range loads
without an error and gives figures that look like figures. What follows finds the coarse ones out: each finding
has a verdict, and an audit of a model that does not pass them all gets none. A near miss passes, such as GELU for
ReLU, or a log-variance read as the logarithm of the standard deviation: the losses are there to be compared with
those of training.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from scipy import stats as distributions
from torch import Tensor, nn

from vaeaudit import stats
from vaeaudit.batches import RowBatches
from vaeaudit.checks.contract import check_contract
from vaeaudit.divergence import Density, closed_form, layers_to_prior, to_prior
from vaeaudit.draws import noise_set
from vaeaudit.errors import DataError, NonFiniteError, UnsupportedError
from vaeaudit.stats import Measurement
from vaeaudit.vae import VAE, Chain, DiagonalGaussian, Hierarchical, Likelihood, Posterior

_LEVEL = 0.999  # of the test against the mean image: a sound model must not fail it by chance
_PROBED = 8  # items for the checks that need a backward pass or a second run


class Verdict(StrEnum):
    """Of one finding. UNSURE and FAIL leave the audit without a verdict."""

    PASS = "pass"
    UNSURE = "unsure"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One question, its answer in words, and what to look at where the answer is bad."""

    name: str
    verdict: Verdict
    message: str


@dataclass(frozen=True)
class Plausibility:
    """All findings, and the model's losses on the items, in nats (z = the mean; ``kl`` to the prior)."""

    findings: tuple[Finding, ...]
    losses: dict[str, Measurement]
    items: int

    @property
    def passed(self) -> bool:
        """Whether every finding passed."""
        return all(finding.verdict is Verdict.PASS for finding in self.findings)


def examine(vae: VAE, x: Tensor, *, seed: int = 0, batch_size: int | None = None) -> Plausibility:
    """Try the model on real items ``x`` (n, *input_shape), n >= 2.

    Raises:
        DataError: fewer than two items, or all items equal: there is no mean image to compare with.
        ContractError: what :func:`check_contract` finds.
        NonFiniteError: NaN or infinite means.
    """
    if len(x) < 2 or bool((x == x[:1]).all()):
        raise DataError(f"at least two different items are needed to try the model, but {len(x)} came, all equal")
    rows = RowBatches.automatic(vae.input_shape, x.device) if batch_size is None else RowBatches(batch_size)
    check_contract(vae, x[:2])
    noise = _noise(vae, x, seed)

    @torch.no_grad()
    def run(part: Tensor, eta: Tensor) -> tuple[Tensor, ...]:
        posterior = vae.encode(part)
        likelihood = vae.decode(posterior.mean)
        drawn = vae.decode(posterior.sample(eta))
        return (
            likelihood.mean,
            -likelihood.log_prob(part)
            if _proper(likelihood, part)
            else torch.full_like(part.flatten(1)[:, 0], torch.nan),
            _kl(vae, posterior, eta),
            (likelihood.mean - part).square().flatten(1).mean(1),
            (drawn.mean - part).square().flatten(1).mean(1),
            posterior.mean.flatten(1),
            (posterior.sample(eta) != posterior.mean).flatten(1).any(1),
        )

    mean, nll, kl, error, drawn_error, latents, varies = rows.map(run, x, noise)
    _check_finite(mean, latents)
    with torch.no_grad():
        posterior = vae.encode(x[:2])
        likelihood, how = vae.decode(posterior.mean), _how(vae, posterior)
    probes = x[:: max(1, len(x) // _PROBED)][:_PROBED]  # spread: data are often stored class by class
    findings = [
        _evaluation_mode(vae),
        _deterministic(vae, probes),
        _independent_rows(vae, probes),
        _divergence(kl, varies, how),
        _range(likelihood, mean, x),
        _beats_mean_image("reconstruction", error, x),
        _beats_mean_image("reconstruction of a draw", drawn_error, x),
        _gradients(vae, probes),
        _log_variance(vae, x, rows),
    ]
    of_kl = stats.mean(kl.tolist(), unit="nats", direction="none")
    losses = {
        "reconstruction": stats.mean(nll.tolist(), unit="nats", direction="none"),
        "kl": replace(of_kl, estimator=f"{of_kl.estimator}; {how}") if how else of_kl,
        "error": stats.mean(error.tolist(), unit="squared input units", direction="none"),
        "mean_image_error": stats.mean(_baseline(x).tolist(), unit="squared input units", direction="none"),
    }
    return Plausibility(tuple(findings), losses, len(x))


def _noise(vae: VAE, x: Tensor, seed: int) -> Tensor:
    with torch.no_grad():
        shape = vae.encode(x[:1]).noise_shape
    return noise_set(shape, draws=1, items=range(len(x)), seed=seed, check="plausibility", like=x)[0]


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


def _check_finite(mean: Tensor, latents: Tensor) -> None:
    for name, values in (("posterior mean", latents), ("decoder mean", mean)):
        bad = int((~values.isfinite().flatten(1).all(1)).sum())
        if bad:
            raise NonFiniteError(
                f"the {name} is NaN or infinite for {bad} of {len(values)} items; check the data's range and the "
                "checkpoint, or try --dtype float64"
            )


def _evaluation_mode(vae: VAE) -> Finding:
    training = (
        [name or "the model" for name, m in vae.named_modules() if m.training] if isinstance(vae, nn.Module) else []
    )
    if training:
        message = f"in training mode: {', '.join(training[:3])}; the adapter must not switch it back"
        return Finding("evaluation mode", Verdict.FAIL, message)
    return Finding("evaluation mode", Verdict.PASS, "no part is in training mode")


def _deterministic(vae: VAE, x: Tensor) -> Finding:
    with torch.no_grad():
        first, second = vae.encode(x), vae.encode(x)
        same = torch.equal(first.mean, second.mean) and torch.equal(
            *(_kl(vae, q).nan_to_num() for q in (first, second))
        )
        same = same and torch.equal(vae.decode(first.mean).mean, vae.decode(first.mean).mean)
    if same:
        return Finding("determinism", Verdict.PASS, "the same input gives the same output")
    return Finding("determinism", Verdict.FAIL, "the same input gives different outputs; is dropout or sampling on?")


def _independent_rows(vae: VAE, x: Tensor) -> Finding:
    @torch.no_grad()
    def run(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = vae.encode(part)
        kl = _kl(vae, posterior)
        # What is not finite is told of apart.
        return posterior.mean, torch.where(kl.isfinite(), kl, 0.0), vae.decode(posterior.mean).mean

    def change(together: Tensor, alone: Tensor) -> float:
        return float((together - alone).abs().max() / together.abs().max().clamp(min=1))

    together, alone = run(x), RowBatches(1).map(run, x)
    gap = max(change(a, b) for a, b in zip(together, alone, strict=True))
    message = f"an item's posterior and reconstruction change by {gap:.1e} (relative) with the items beside it"
    # Far above the rounding that another batch size brings, in any precision.
    limit = torch.finfo(x.dtype).eps ** 0.5
    return Finding("rows apart", Verdict.PASS if gap <= limit else Verdict.FAIL, message)


def _divergence(kl: Tensor, varies: Tensor, how: str) -> Finding:
    """A posterior without spread has no finite KL, and none is asked of it; nor of one without densities."""
    name = "KL to the prior"
    if not bool(varies.any()):
        return Finding(name, Verdict.PASS, "none: the encoder is deterministic")
    if how.endswith("none"):
        return Finding(name, Verdict.PASS, how)
    bad = int((~kl.isfinite()).sum())
    if bad:
        told = f"NaN or infinite for {bad} of {len(kl)} items: standard deviations that are not finite, or 0?"
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


def _baseline(x: Tensor) -> Tensor:
    """Squared error of the mean image, per element, (n,).

    The mean of these very items: no constant image does better on them, so a collapsed model never passes. Were
    each item left out of its own mean, the mean image itself would seem to beat the mean image.
    """
    return (x - x.mean(0, keepdim=True)).square().flatten(1).mean(1)


def _beats_mean_image(name: str, error: Tensor, x: Tensor) -> Finding:
    """Paired t test of the squared errors: better than the mean image, worse, or not to be told apart."""
    baseline = _baseline(x)
    gain = (baseline - error).double()
    n = len(gain)
    half = float(distributions.t.ppf(0.5 + _LEVEL / 2, n - 1)) * float(gain.std()) / n**0.5
    centre = float(gain.mean())
    told = f"mean squared error {float(error.mean()):.4g}, of the mean image {float(baseline.mean()):.4g}"
    rounding = torch.finfo(x.dtype).eps ** 0.5 * float(baseline.mean())
    if centre - half > rounding:
        return Finding(name, Verdict.PASS, told)
    advice = "wrong layout of mean and log-variance, activation, range or resizing, or a collapsed model?"
    if centre + half < 0:
        return Finding(name, Verdict.FAIL, f"{told}: worse; {advice}")
    return Finding(name, Verdict.UNSURE, f"{told}: not better beyond chance on {n} items; {advice}")


def _gradients(vae: VAE, x: Tensor) -> Finding:
    """Gradient of the encoder with respect to its input: present, finite, nowhere zero throughout."""
    leaf = x.clone().requires_grad_(True)
    with torch.enable_grad():
        posterior = vae.encode(leaf)
        value = posterior.mean.square().sum()
    if not value.requires_grad:
        return Finding(
            "gradients", Verdict.FAIL, "the encoder is cut off from its input (detached): no attack can see it"
        )
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
    if gradient is None:
        return Finding(
            "gradients", Verdict.FAIL, "the encoder is cut off from its input (detached): no attack can see it"
        )
    norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    if not bool(norms.isfinite().all()):
        return Finding("gradients", Verdict.FAIL, "gradients of the encoder are NaN or infinite")
    zero = int((norms == 0).sum())
    if zero:
        return Finding("gradients", Verdict.FAIL, f"zero for {zero} of {len(x)} items: a saturated or rounded layer?")
    return Finding("gradients", Verdict.PASS, f"finite and not zero on {len(x)} items")


def _log_variance(vae: VAE, x: Tensor, rows: RowBatches) -> Finding:
    """Log-variances that tie at their extreme were clamped there, and a clamp has no gradient.

    Items that the data repeat tie throughout, so the ties of items with one and the same mean count once.
    """

    @torch.no_grad()
    def run(part: Tensor) -> tuple[Tensor, Tensor]:
        posterior = vae.encode(part)
        assert isinstance(posterior, DiagonalGaussian)
        return 2 * posterior.log_stddev.flatten(1), posterior.mean.flatten(1)

    with torch.no_grad():
        first = vae.encode(x[:1])
    if not isinstance(first, DiagonalGaussian):
        return Finding("log-variance", Verdict.PASS, f"{type(first).__name__} has none")
    values, means = rows.map(run, x)
    span = f"between {float(values.min()):.4g} and {float(values.max()):.4g}"
    if bool(values.isnan().any()):
        return Finding("log-variance", Verdict.FAIL, f"NaN for {int(values.isnan().any(1).sum())} of {len(x)} items")
    values = values[:, (values != values[:1]).any(0)]  # a unit that never changes ties by design, not by a clamp
    if not values.numel():
        return Finding("log-variance", Verdict.PASS, f"{span}, the same for every item")
    low, high = float(values.min()), float(values.max())
    for edge in (low, high):
        tied = (values == edge).sum(1)  # (n,) latents of each item at the edge
        of = means[tied > 0]
        if int(tied.max()) > 1 or not bool((of == of[0]).all()):
            share = float(tied.sum()) / values.numel()
            return Finding(
                "log-variance",
                Verdict.UNSURE,
                f"{span}, {share:.1%} exactly at {edge:.4g}: clamped there, so an attack sees no gradient through it",
            )
    return Finding("log-variance", Verdict.PASS, f"{span}, none clamped")
