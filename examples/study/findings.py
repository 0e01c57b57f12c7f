"""Every figure of docs/findings.md, from the folder in which `make study` left models, reports and results.csv.

    python examples/study/findings.py study

A line a figure: that of the first models, that of the second, and the change with its interval over trainings and items
together. What has no metric of its own is taken from the values behind the reports: how an attack on a pair ends beside
a perfect one, and how margins of items go with other figures of them.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from scipy import stats
from train import MODEL

import vaeaudit
from vaeaudit.report.forms.study import shown
from vaeaudit.report.results import Figure, read_results
from vaeaudit.report.study import Point, curves
from vaeaudit.stats.levels import Levelled, levelled, of_items

Array = NDArray[np.float64]
DRAWS = 64  # of z, for each item
Side = tuple[str, dict[str, str]]  # the audit, and the settings of the model

LATENT = [f"attack.latent.{name}" for name in ("delta.mean", "curve_area.median", "target_nll.median")]
OUTPUT = [f"attack.output.{name}" for name in ("delta.mean", "curve_area.median", "target_nll.median")]
PAIRS = [f"attack.latent.{name}" for name in ("kl_at_0.mean", "share.mean", "perfect_nll.median", "above_nll.median")]
PAIRS += [f"attack.latent.{name}" for name in ("target_error.median", "perfect_error.median", "above_error.median")]
RATES = [f"attack.latent.success.{name}" for name in ("target", "ignore_target", "classifier_accuracy")]
NOISE = [f"noise.s{at}.{name}.median" for at in ("0.25", "0.5", "1") for name in ("degradation", "log_likelihood")]
CAPPED = [f"attack.damage.l2-2.{name}.median" for name in ("damage", "degradation", "relative_degradation")]
UNITS = ["latents.elbo.mean", "latents.kl.mean", "latents.active_units.kl"]
LAYERS = [f"latents.{name}" for name in ("layer1.kl.mean", "layer2.kl.mean", "layer2.active_units.kl")]
WEIGHTS = ["weights.encoder.l2", "weights.decoder.l2"]
SCALE = ["encoder.stddev.mean", "encoder.jacobian.mean"]
MARGINS = ["margin.min_r.median", *(f"margin.r4.{name}.median" for name in ("empirical", "frobenius", "whitened"))]


def mlp(system: str = "beta-VAE", data: str = "mnist", **settings: str) -> dict[str, str]:
    """The settings of a model of C appendix F; those that are not named are the VAE's."""
    plain = {"beta": "1", "gamma": "0", "depth": "1", "latents": "20", "tau": "0", "weight_decay": "0"}
    return {"system": system, "data": data, **plain, **settings}


def chain(depth: str = "1", beta: str = "1", system: str = "Seatbelt-VAE", latents: str = "6") -> dict[str, str]:
    """Those of a hierarchical VAE on the shapes; of one layer it is the beta-TCVAE."""
    return mlp(system, "shapes", depth=depth, beta=beta, latents=latents)


def joint(system: str = "JointVAE", gamma: str = "1", weight_decay: str = "0") -> dict[str, str]:
    """Those of a JointVAE on MNIST; gamma = 1 without capacities is the VAE, S's entangled model."""
    return mlp(system, gamma=gamma, weight_decay=weight_decay, latents="10")


LONGER = "JointVAE, 6 epochs"
JOINT = {
    "entangled JointVAE": joint(),
    "decayed JointVAE": joint(weight_decay="0.0001"),
    "entangled JointVAE, 6 epochs": joint(LONGER),
    "disentangled JointVAE, 6 epochs": joint(LONGER, "30"),
}
VAE = mlp()
OTHERS = {
    "FactorVAE": mlp("FactorVAE", gamma="7"),
    "beta-VAE of controlled capacity": mlp("controlled-capacity VAE", gamma="30"),
}
MNIST = {"beta-TCVAE": mlp("beta-TCVAE", beta="8"), "beta-VAE": mlp(beta="8"), "offset VAE": mlp(tau="1")}


def compared() -> Iterator[tuple[str, Sequence[str], dict[str, str], dict[str, str], Sequence[str]]]:
    """Title, audits, first and second models, and metrics, of all that the page compares."""
    vae = VAE
    for name, model in {**MNIST, "decayed VAE": mlp(weight_decay="0.0001")}.items():
        yield f"MNIST, VAE to {name}", ("targets",), vae, model, [*LATENT, *PAIRS, *RATES, *SCALE]
        yield f"MNIST, VAE to {name}", ("rest",), vae, model, [*CAPPED, *NOISE, *UNITS, *WEIGHTS]
        yield f"MNIST, VAE to {name}", ("damage",), vae, model, CAPPED
        yield f"MNIST, VAE to {name}", ("margin",), vae, model, MARGINS
    for name, model in {"beta-TCVAE": MNIST["beta-TCVAE"], "beta-VAE": MNIST["beta-VAE"]}.items():
        yield f"MNIST, VAE to {name}", ("output",), vae, model, OUTPUT
    for name, model in OTHERS.items():
        yield f"MNIST, VAE to {name}", ("rest", "units"), vae, model, [*NOISE, *UNITS, *WEIGHTS]
    tc, factor = MNIST["beta-TCVAE"], OTHERS["FactorVAE"]
    yield "MNIST, beta-TCVAE to FactorVAE", ("rest", "units"), tc, factor, [*NOISE, *UNITS, *WEIGHTS]
    of_class = [*RATES, *LATENT, *PAIRS, *SCALE]
    yield "MNIST, JointVAE, entangled to decayed", ("classes",), joint(), joint(weight_decay="0.0001"), of_class
    longer = joint(LONGER)
    yield "MNIST, JointVAE, 3 to 6 epochs", ("classes",), joint(), longer, of_class
    yield "MNIST, JointVAE, entangled to disentangled", ("classes",), longer, joint(LONGER, "30"), of_class
    for first, second in (("both", "mean"), ("both", "std"), ("std", "mean")):
        yield f"MNIST, damage on {first} to {second}", (first, second), vae, vae, ["attack.damage.l2-10.damage.median"]
    for first, second in (("both", "mean"), ("none", "std")):
        audits = f"both through {first}", f"both through {second}"
        yield f"MNIST, attack on both, through {first} to {second}", audits, vae, vae, ["damage.median"]
    deep = [*LATENT, *PAIRS, "attack.latent.first_kl.median", *NOISE, *UNITS, *LAYERS, *WEIGHTS, "mig.chen"]
    for beta in ("1", "4"):
        yield f"shapes, beta {beta}, depth 1 to 2", ("hierarchy",), chain(beta=beta), chain("2", beta), deep
    for depth in ("1", "2"):
        yield f"shapes, depth {depth}, beta 1 to 4", ("hierarchy",), chain(depth), chain(depth, "4"), deep
    for beta in ("1", "4"):
        tcdlgm = chain("2", beta, "beta-TCDLGM")
        yield f"shapes, beta {beta}, depth 1 to 2, beta-TCDLGM", ("hierarchy",), chain(beta=beta), tcdlgm, deep
    one, four = (chain("2", beta, "beta-TCDLGM") for beta in ("1", "4"))
    yield "shapes, depth 2, beta 1 to 4, beta-TCDLGM", ("hierarchy",), one, four, deep
    for beta in ("1", "4"):
        for depth in ("1", "2"):
            yield f"shapes, beta {beta}, depth {depth} to 3", ("hierarchy",), chain(depth, beta), chain("3", beta), deep
    three = [*deep, "latents.layer3.kl.mean", "latents.layer3.active_units.kl"]
    yield "shapes, depth 3, beta 1 to 4", ("hierarchy",), chain("3"), chain("3", "4"), three
    plain, told = chain("2", system="DLGM"), [*NOISE, *UNITS, *LAYERS, *WEIGHTS]
    yield "shapes, depth 1 to 2, DLGM", ("hierarchy", "layers"), chain(), plain, told
    free = chain("2", system="beta-TCDLGM")
    yield "shapes, DLGM to beta-TCDLGM of beta 1", ("layers", "hierarchy"), plain, free, told
    yield "shapes, 6 to 24 latents", ("hierarchy", "factors"), chain(), chain(latents="24"), [*UNITS, "mig.chen"]
    one, eight = (mlp(data="fashion", beta=beta) for beta in ("1", "8"))
    yield "Fashion, beta 1 to 8", ("fashion",), one, eight, [*CAPPED, *NOISE, *UNITS, *WEIGHTS]
    factor = [f"attack.latent.success.factor{where}" for where in ("", "_at_source", "_at_target")]
    factor += ["attack.latent.progress.median", *LATENT, *PAIRS[-3:]]
    yield "shapes, depth 1, beta 1 to 4, on posX", ("factor",), chain(), chain(beta="4"), factor
    one, single = chain("2", "4"), [*LATENT, *PAIRS[-3:]]
    for layer in ("first", "top"):
        yield f"shapes, depth 2, beta 4, all layers to the {layer}", ("hierarchy", layer), one, one, single


def pairs(report: Path, figure: Figure) -> Iterator[Figure]:
    """What the metrics of a latent attack do not tell of its pairs, as figures of the model that ``figure`` is of.

    kl_at_0: the data term at d = 0. share: the objective, averaged over lambda, as a share of it. perfect: -log p of
    the target, and the distance to it, at the smallest lambda, where posteriors match. above: what the attack shown has
    beyond that.
    """
    rows: dict[int, list[dict[str, float]]] = {}
    for row in json.loads((report / "items.json").read_text(encoding="utf-8"))["attack.latent"]:
        rows.setdefault(int(row["pair"]), []).append(row)
    found: dict[str, list[float]] = {}
    for _, unsorted in sorted(rows.items()):
        of_pair = sorted(unsorted, key=lambda row: row["lam"])
        first, last, chosen = of_pair[0], of_pair[-1], next(row for row in of_pair if row["chosen"])
        start = last["data_term"] if last["norm"] == 0 else math.nan
        values = {"kl_at_0.mean": start, "share.mean": float(np.mean([row["objective"] for row in of_pair])) / start}
        for name in ("nll", "error"):
            values[f"perfect_{name}.median"] = first[f"target_{name}"]
            values[f"above_{name}.median"] = chosen[f"target_{name}"] - first[f"target_{name}"]
        for name, value in values.items():
            found.setdefault(f"attack.latent.{name}", []).append(value)
    yield from _figures(found, figure)


def parts(report: Path, figure: Figure) -> Iterator[Figure]:
    """What the distortions that damage by mean and deviation together do by each of them alone (C fig. 4)."""
    vae = vaeaudit.load(report.parents[1] / MODEL)
    with safe_open(report / "adversarial.safetensors", "pt") as file:
        attacked, distortion = (file.get_tensor(f"damage.{name}")[:, 0] for name in ("adversarial", "distortion"))
    with torch.no_grad():
        clean, moved = vae.encode(attacked - distortion), vae.encode(attacked)
        assert isinstance(clean, vaeaudit.DiagonalGaussian)
        assert isinstance(moved, vaeaudit.DiagonalGaussian)
        still = vae.decode(clean.mean).mean.flatten(1)
        noise = torch.randn(DRAWS, *clean.mean.shape, generator=torch.Generator().manual_seed(0))
        ways = {"both": moved, "mean": clean.with_mean_of(moved), "std": moved.with_mean_of(clean), "none": clean}
        for name, q in ways.items():
            recs = torch.stack([vae.decode(q.sample(eta)).mean.flatten(1) for eta in noise])
            damage = torch.linalg.vector_norm(recs - still, dim=2).mean(0)
            of = replace(figure, settings={**figure.settings, "audit": f"both through {name}"})
            yield from _figures({"damage.median": damage.tolist()}, of)


def _figures(found: dict[str, list[float]], figure: Figure) -> Iterator[Figure]:
    """Values of items, by the name of their metric, as figures of the model that ``figure`` is of."""
    for name, values in found.items():
        q = 0.5 if name.endswith("median") else None
        whole = float(of_items(np.array(values), q))
        for item, value in [(None, whole), *enumerate(values)]:
            yield replace(figure, metric=name, item=item, value=value, low=None, high=None, n=None, q=q, doubt="")


class Found:
    """What a study found, by the settings of models."""

    def __init__(self, folder: Path) -> None:
        """Read results.csv of ``folder``, and what lies behind its attacks."""
        figures = read_results([folder / "results.csv"])
        for one in [figure for figure in figures if figure.item is None]:
            if one.metric == "attack.latent.delta.mean":
                figures += pairs(_report(folder, one), one)
            if one.metric == "attack.damage.l2-10.damage.median" and one.settings["audit"] == "both":
                figures += parts(_report(folder, one), one)
        self._of: dict[tuple[str, frozenset[tuple[str, str]]], list[Figure]] = {}
        for one in figures:
            self._of.setdefault((one.metric, frozenset(one.settings.items())), []).append(one)

    def of(self, side: Side, metric: str, place: str = "") -> list[Figure]:
        """The figures of a metric, as of a system whose one setting is the place."""
        audit, model = side
        there = self._of.get((metric, frozenset({**model, "audit": audit}.items())), [])
        return [replace(figure, settings={"place": place}) for figure in there]

    def change(self, first: Side, second: Side, metric: str) -> tuple[Point, Point] | None:
        """The two and the change between them; None where one is not there."""
        sides = [self.of(side, metric, str(place)) for place, side in enumerate((first, second))]
        if not all(sides):
            return None
        (curve,) = curves([*sides[0], *sides[1]], "place")
        return curve.points[0], curve.points[1]

    def further(self, first: Sequence[Side], second: Sequence[Side], metric: str) -> Levelled | None:
        """By how much more the second pair of sides differs than the first; of means and of single numbers alone."""
        groups = []
        for pair in (first, second):
            a, b = (self.matrix(side, metric) for side in pair)
            if not len(a) or a.shape != b.shape:
                return None
            groups.append(b - a)
        return levelled(groups)

    def matrix(self, side: Side, metric: str) -> Array:
        """(seeds, items) of the values of one metric; (seeds,) of one that has none of items."""
        rows: dict[str, dict[int, float]] = {}
        figures = self.of(side, metric)
        for one in figures:
            if one.item is not None:
                rows.setdefault(one.seed, {})[one.item] = one.value
        if not rows:
            return np.array([one.value for one in sorted(figures, key=lambda one: one.seed)])
        return np.array([[of_seed[item] for item in sorted(of_seed)] for _, of_seed in sorted(rows.items())])


def _report(folder: Path, figure: Figure) -> Path:
    """Where the study put the report that a figure is from."""
    s = figure.settings
    names = ("beta", "gamma", "depth", "latents", "tau", "weight_decay")
    parts = [s["system"].replace(" ", "_"), s["data"], *(f"{n}{float(s[n]):g}" for n in names), f"seed{figure.seed}"]
    return folder / "-".join(parts) / s["audit"] / "report"


def by_class(folder: Path, figures: Sequence[Figure]) -> Iterator[str]:
    """Of the attacks on each class, over all trainings: how many reached the target's class and left the source's."""
    counts: dict[str, list[Array]] = {}
    for one in figures:
        report = json.loads((_report(folder, one) / "report.json").read_text(encoding="utf-8"))
        (classes,) = (attack["classes"] for attack in report["attacks"])
        for name in ("reached", "left", "valid"):
            counts.setdefault(name, []).append(np.array(classes[name]).sum(1))
    reached, left, valid = (np.sum(counts[name], 0).tolist() for name in ("reached", "left", "valid"))
    for number, told in enumerate(zip(reached, left, valid, strict=True)):
        yield "class {} | reached {}, left {} of {}".format(number, *told)


def correlated(x: Array, y: Array) -> str:
    """Spearman's correlation over the items of a model, its mean over models (models, items) and its interval.

    That is over trainings and items together, as of any other figure, and ends at -1 and 1.
    """
    n = x.shape[1]
    drawn = np.random.default_rng(0).integers(n, size=(999, n))
    each, again = _ranked(x, y), np.mean([_ranked(a[drawn], b[drawn]) for a, b in zip(x, y, strict=True)], 0)
    parts = [(each.var(ddof=1) / len(each), len(each) - 1), (float(again.var()) * n / (n - 1), n - 1)]
    variance = sum(part for part, _ in parts)
    half = 0.0
    if variance > 0:
        freedom = variance**2 / sum(part**2 / count for part, count in parts)
        half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    low, high = max(-1.0, each.mean() - half), min(1.0, each.mean() + half)
    return f"{each.mean():.3g} [{low:.3g}, {high:.3g}] over {len(each)} x {n}"


def _ranked(x: Array, y: Array) -> Array:
    """Spearman's correlation of each row."""
    x, y = (stats.rankdata(one, axis=1) for one in (x, y))
    x, y = (one - one.mean(1, keepdims=True) for one in (x, y))
    return np.asarray((x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1)))


def margins(found: Found, models: dict[str, dict[str, str]], audit: str) -> Iterator[str]:
    """How empirical margins of items go with the estimate of theorem 1, and with what an attack costs them."""
    for name, sides in (("all", list(models.values())), *((name, [model]) for name, model in models.items())):
        empirical, estimate = (
            np.concatenate([found.matrix(("margin", one), f"margin.r4.{kind}.median") for one in sides])
            for kind in ("empirical", "frobenius")
        )
        lost = np.concatenate([found.matrix((audit, one), CAPPED[2]) for one in sides])
        for what, other in (("estimate of theorem 1", estimate), ("relative degradation", lost)):
            yield f"{name}: margin with {what}: rank {correlated(empirical, other)}, Pearson's of all " + (
                f"{np.corrcoef(empirical.ravel(), other.ravel())[0, 1]:.2f}"
            )
        yield (
            f"{name}: margin over estimate: median {np.median(empirical / estimate):.3g}, least "
            f"{(empirical / estimate).min():.3g}, of {empirical.size}"
        )


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description="Print the figures of docs/findings.md.")
    parser.add_argument("folder", type=Path, help="what study.py was given as --out")
    folder = parser.parse_args().folder
    found = Found(folder)
    for title, audits, first, second, metrics in compared():
        for metric in metrics:
            points = found.change((audits[0], first), (audits[-1], second), metric)
            if points is None:
                continue
            a, b = points
            doubt = f", in doubt {a.doubted} and {b.doubted}" if a.doubted or b.doubted else ""
            sizes = f"{a.figure.seeds} and {b.figure.seeds} x {b.figure.items}"
            change = shown(b.change) if b.change else "none"
            print(f"{title} | {metric} | {shown(a.figure)} -> {shown(b.figure)} | {change} | {sizes}{doubt}")
    one, two = ([("hierarchy", chain(depth, beta)) for beta in ("1", "4")] for depth in ("1", "2"))
    for metric in ("latents.elbo.mean", "noise.s0.5.degradation.mean", "noise.s1.degradation.mean", *WEIGHTS):
        if more := found.further(one, two, metric):
            print(f"shapes, beta 1 to 4, depth 2 beyond depth 1 | {metric} | {shown(more)}")
    for name, model in JOINT.items():
        settings = {**model, "audit": "classes"}
        figures = [one for one in found.of(("classes", model), RATES[0]) if not math.isnan(one.value)]
        rates = [replace(one, settings=settings) for one in figures]  # of those that a classifier can judge
        for line in by_class(folder, rates) if rates else ():
            print(f"{name} | {line}")
    for line in margins(found, {"VAE": VAE, **MNIST}, "rest"):
        print(line)


if __name__ == "__main__":
    main()
