"""Reconstructions in a report: their entries, and how they are shown."""

from collections.abc import Sequence

from pydantic import Field

from vaeaudit.checks.reconstruction.metrics import METRICS, OF_ITEMS
from vaeaudit.layout.entry import Entry, FileHash, MetricEntry, Number
from vaeaudit.layout.section import Section, Shown, Table, number, with_interval
from vaeaudit.stats.metric import meanings

WORST, SPREAD = "worst reconstructions", "distribution of reconstructions"  # figures
SHOWN = 30  # groups and features in a table; the report's metrics tell the worst of all
# What the columns of the tables mean.
LEGEND = {
    "figure": "of each item; of draws of z, the mean over an item's draws",
    "mean": "over items, with its interval; of PSNR it is the mean of PSNR, not the PSNR of the mean error",
    "median": "over items, with its order-statistic interval",
    "tail": "the quantile that 5% of all items are worse than, likewise: what to expect of items like these",
    "worst": "of these items, and which: a fact about them, no estimate",
}
BIAS_LEGEND = {
    "channel": "of the picture, counted from 0; brightness is the mean over channels",
    "mean error": "mean over positions and items of rec(x) - x, signed, in input units, with its interval: a bias, "
    "which errors of both signs do not make",
}
GROUP_LEGEND = {
    "group": "the items of one label, or of one class of a factor; the worst first, and none of a single item",
    "items": "how many it has",
    "mean": "over the items of a group, with intervals that hold for all groups at once (Bonferroni)",
}
FEATURE_LEGEND = {
    "feature": "its place in an item; the worst first",
    "scaled error": "root mean square error in units of the feature's standard deviation over items, with intervals "
    "that hold for all features at once; 1 is what the mean item alone would give",
}


FID_LEGEND = {
    "distance": "FID, biased upwards by an amount that depends on n: never compared with one of another n; or KID",
    "value": "0 for equal distributions; KID is unbiased, so that it may be negative, and has an interval",
    "n": "items: all, and of KID the first 5000 at most",
}


class QualityEntry(Entry):
    """One figure of items, at the mean or over draws; null where a statistic has no meaning."""

    name: str
    of: str = Field(description="mean: at z = the mean; draws: each item's mean over its draws.")
    mean: MetricEntry
    median: MetricEntry
    tail: MetricEntry | None
    worst: MetricEntry | None
    worst_item: int | None = Field(description="Number of the item that is worst.")


class GroupEntry(Entry):
    """The mean of one group of items."""

    by: str
    group: str
    n: int
    mean: Number
    ci: tuple[float, float] | None


class FeatureEntry(Entry):
    """The error of one feature in its standard deviations; null for one that does not vary."""

    feature: int
    value: Number
    ci: tuple[float, float] | None


class NetworkEntry(Entry):
    """A network that judged images, of a file that the user named."""

    file: FileHash
    size: tuple[int, int] = Field(description="Height and width to which images are resized.")
    channels: int
    fid: MetricEntry | None = Field(None, description="Of the features of all items; null of a network of distances.")
    kid: MetricEntry | None = None


class ReconstructionEntry(Entry):
    """How like their inputs the reconstructions are."""

    n: int
    chosen: str = Field(description="How the items were chosen.")
    draws: int
    route: str = Field(description="How log p is computed; figures of two routes are never compared.")
    scales: int | None = Field(description="Of MS-SSIM, of which figures of other numbers of scales differ.")
    qualities: list[QualityEntry]
    bias: list[MetricEntry] = Field(description="Mean of rec(x) - x, of each channel and at last of all together.")
    grouped: str = Field(description="The figure whose means over groups are told.")
    groups: list[GroupEntry] = Field(description="The worst, at most 30.")
    of_groups: int
    alone: int = Field(description="Groups of a single item, which were left out.")
    features: list[FeatureEntry] = Field(description="The worst, at most 30.")
    of_features: int
    networks: list[NetworkEntry] = Field([], description="By which LPIPS, and FID and KID, were computed.")
    level: float

    def section(self) -> Section:
        """How the figures are shown."""
        complete = self.chosen == f"all {self.n}" or self.chosen.startswith(f"{self.n} of ")
        done = "" if complete else f", of which {self.n} were done"
        draws = f"{self.draws} draw{'s' * (self.draws != 1)} of z an item" if self.draws else "no draws of z"
        caption = f"reconstructions of {self.n} items ({self.chosen}{done})"
        tables = [Shown(f"{caption}, at z = the mean", self._table("mean"), LEGEND)]
        if self.draws:
            tables.append(Shown(f"of {draws}", self._table("draws"), LEGEND))
        if len(self.bias) > 1:
            tables.append(Shown("colour bias, at z = the mean", self._bias(), BIAS_LEGEND))
        if self.groups:
            largest = f", the worst {len(self.groups)} of {self.of_groups}" if self.of_groups > len(self.groups) else ""
            caption = f"mean {self.grouped} by group, at z = the mean{largest}"
            tables.append(Shown(caption, self._groups(), GROUP_LEGEND, numbers_from=2))
        if self.features:
            largest = f", the worst {len(self.features)} of {self.of_features}" * (
                self.of_features > len(self.features)
            )
            tables.append(Shown(f"errors by feature, at z = the mean{largest}", self._features(), FEATURE_LEGEND))
        if distances := _distances(self.networks):
            caption = "features of inputs and reconstructions, at z = the mean"
            tables.append(Shown(caption, (list(FID_LEGEND), distances), FID_LEGEND))
        remarks = [
            "SSIM: Gaussian window of 11 pixels and standard deviation 1.5, K1 = 0.01, K2 = 0.03, mean over channels "
            f"and the positions where the window lies inside the image; MS-SSIM: {self.scales} of 5 scales."
        ] * (self.scales is not None)
        remarks += [
            f"{'LPIPS' if one.fid is None else 'FID and KID'}: the network {one.file.path} (SHA-256 "
            f"{one.file.sha256[:12]}…) of images in [0, 1], clamped, of {one.size[0]}x{one.size[1]}, resized "
            "(bilinear, antialiased) if of another size. Figures of another network or size are other figures."
            for one in self.networks
        ]
        if self.alone:
            remarks.append(f"{self.alone} group{'s' * (self.alone > 1)} of one item left out: one item is no group.")
        return Section(
            "Reconstruction",
            "How like its input is what the model makes of it? At z = the mean of q(z|x), and where z is drawn from "
            f"it: {draws}; {self.route}.",
            tables,
            remarks,
            figures={
                WORST: "The items that are reconstructed worst: input, reconstruction, and the error rec(x) - x, blue "
                "where the reconstruction is too low and red where it is too high",
                SPREAD: "How the figures of items are distributed, at z = the mean and of draws; dashed lines are the "
                "medians, and the dotted line is what 5% of the items are worse than",
            },
            meanings=meanings(METRICS),
            headlines={
                "reconstruction.psnr.median": "PSNR that half of the items reach",
                "reconstruction.scaled_error.feature_worst": "error of the worst feature",
                "reconstruction.mse.median": "squared error that half of the items keep to",
            },
        )

    def _table(self, of: str) -> Table:
        rows = [
            [
                _named(quality.name),
                _shown(quality.mean),
                _shown(quality.median),
                _shown(quality.tail),
                "" if quality.worst is None else f"{number(quality.worst.value, 3)} (item {quality.worst_item})",
            ]
            for quality in self.qualities
            if quality.of == of
        ]
        return list(LEGEND), rows

    def _bias(self) -> Table:
        names = [*map(str, range(len(self.bias) - 1)), "brightness"]
        return list(BIAS_LEGEND), [[name, _shown(one)] for name, one in zip(names, self.bias, strict=True)]

    def _groups(self) -> Table:
        rows = [[f"{one.by} {one.group}", str(one.n), with_interval(one.mean, one.ci)] for one in self.groups]
        return list(GROUP_LEGEND), rows

    def _features(self) -> Table:
        return list(FEATURE_LEGEND), [[str(one.feature), with_interval(one.value, one.ci)] for one in self.features]


def _distances(networks: Sequence[NetworkEntry]) -> list[list[str]]:
    return [
        [name, _shown(metric), str(metric.n)]
        for one in networks
        for name, metric in (("FID", one.fid), ("KID", one.kid))
        if metric is not None
    ]


_UNITS = {metric.name: metric.unit for metric in OF_ITEMS}


def _named(name: str) -> str:
    words = {
        "psnr": "PSNR",
        "ssim": "SSIM",
        "ms_ssim": "MS-SSIM",
        "lpips": "LPIPS",
        "mse": "MSE",
        "share_off": "off by > 1/255",
    }
    unit = {"dB": ", dB", "nats": ", nats"}.get(_UNITS.get(name, ""), "")
    return words.get(name, name.replace("_", " ")) + unit


def _shown(metric: MetricEntry | None) -> str:
    return "" if metric is None else with_interval(metric.value, metric.ci)
