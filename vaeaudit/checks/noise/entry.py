"""Likelihoods under noise in a report: their entries, and how they are shown."""

from pydantic import Field

from vaeaudit.checks.noise.metrics import METRICS
from vaeaudit.layout.entry import Entry, MetricEntry
from vaeaudit.layout.section import Section, Shown, Table, number, with_interval
from vaeaudit.model.ranges import span_text
from vaeaudit.settings.fields import Range
from vaeaudit.stats.metric import meanings

HISTOGRAMS, CURVES = "noise histograms", "noise curves"  # figures
# What the columns of the noise table mean.
NOISE_LEGEND = {
    "s": "standard deviation of the noise, on the scale of the model's inputs; 0 is the clean input",
    "log p": "log p(x|z) of the clean input x, in nats: mean over items of their means over draws, and its interval",
    "median": "the same by medians, which single draws that explode do not carry off",
    "lost": "log p of the clean input's own draws minus that under noise: mean, and its interval",
    "median lost": "the same by medians",
    "relative": "|lost| of each item as a share of its |log p|: median. Gains count as losses, and draws alone make it "
    "larger than 0; it depends on constants of the likelihood",
    "‖rec(x+ε)-x‖": "how far the reconstruction from the noisy input is from the clean input, in input units: median",
    "‖ε‖": "how long the noise is, after clipping if there is any: median",
}


class NoiseLevelEntry(Entry):
    """All items under noise of one standard deviation; what needs noise is null for the clean items."""

    sigma: float
    log_likelihood_mean: MetricEntry
    log_likelihood_median: MetricEntry
    degradation_mean: MetricEntry | None
    degradation_median: MetricEntry | None
    relative_degradation_median: MetricEntry | None
    denoising_error_median: MetricEntry
    noise_norm_median: MetricEntry | None
    nonfinite: int = Field(description="How many of the draws' log-likelihoods are NaN or infinite.")
    sign: str | None = Field(description="Why these figures support no verdict, if they do not.")


class NoiseEntry(Entry):
    """The likelihood of clean items under noise."""

    n: int
    chosen: str = Field(description="How the items were chosen.")
    draws: int
    clip: Range | None = Field(description="What noisy inputs were clipped to, if they were.")
    route: str = Field(description="How log p is computed; figures of two routes are never compared.")
    levels: list[NoiseLevelEntry] = Field(description="The clean items first.")

    def section(self) -> Section:
        """How the figures are shown."""
        clip = f"clipped to {span_text(self.clip)}" if self.clip else "not clipped"
        complete = self.chosen == f"all {self.n}" or self.chosen.startswith(f"{self.n} of ")
        done = "" if complete else f", of which {self.n} were done"
        asked = f"{self.draws} draws of noise and latents an item; noisy inputs {clip}; {self.route}"
        signs = [level for level in self.levels if level.sign]
        most = max((level.sigma for level in self.levels), default=0.0)
        return Section(
            "Noise",
            "How well the model still explains a clean input when its encoder sees the input under Gaussian noise: "
            f"E log p(x|z), z ~ q(z|x + ε), ε ~ N(0, s²I). {asked}; items: {self.chosen}{done}.",
            [Shown("log-likelihood of clean inputs under noise", self._table(), NOISE_LEGEND, numbers_from=0)],
            ["Rows marked ! support no verdict: see the warnings."] if signs else [],
            figures={
                HISTOGRAMS: "Smoothed histograms of log p of all draws, one curve a standard deviation",
                CURVES: "Left: mean and median of log p over the standard deviation of the noise. Right: the "
                "distance of the reconstruction from the clean input, beside the norm of the noise",
            },
            meanings=meanings(METRICS),
            headlines={
                f"noise.s{most:.6g}.degradation.median": "log p lost; less is better",
                "noise.s0.log_likelihood.median": "log p(x|z) without noise",
            },
        )

    def _table(self) -> Table:
        rows = [
            [
                f"{level.sigma:.6g}" + (" !" if level.sign else ""),
                _shown(level.log_likelihood_mean),
                _value(level.log_likelihood_median),
                _shown(level.degradation_mean),
                _value(level.degradation_median),
                _value(level.relative_degradation_median),
                _value(level.denoising_error_median),
                _value(level.noise_norm_median),
            ]
            for level in self.levels
        ]
        return list(NOISE_LEGEND), rows


def _shown(metric: MetricEntry | None) -> str:
    return "" if metric is None else with_interval(metric.value, metric.ci, 4)


def _value(metric: MetricEntry | None) -> str:
    return "" if metric is None else number(metric.value)
