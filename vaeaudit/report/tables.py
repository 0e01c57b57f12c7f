"""The rows of a report's tables, shared by the terminal and Markdown so that they cannot disagree."""

from vaeaudit.report.model import (
    AttackEntry,
    CappedEntry,
    ClassTableEntry,
    MarginEntry,
    MetricEntry,
    PlausibilityEntry,
)

Table = tuple[list[str], list[list[str]]]  # headers, rows

# What the columns of the attack table mean, for readers of the report.
LEGEND = {
    "pair": "source → target, as item numbers of the data",
    "λ": "weight of the distortion, chosen so that the data term is just better than its mean over all λ",
    "‖d‖": "length of the distortion that was found",
    "data": "the data term: what the attack minimises besides the length",
    "penalty": "λ pen(d)",
    "total": "data + penalty, the objective",
    "-log p": "of the target under z ~ q(z|x*), before → after the attack, in nats",
    "to target": "‖x_t - rec(x*)‖, before → after the attack (floor: what the target's own reconstruction has)",
    "own": "‖x* - rec(x*)‖, how badly the adversarial input itself is reconstructed",
    "signs": "failure signs: the figures of a pair with one support no verdict",
}
# What the columns of the table of an attack under caps mean.
CAPPED_LEGEND = {
    "item": "number of the item in the data (of its target, where an attack has one)",
    "cap": "largest norm that the distortion may have",
    "‖d‖": "norm of the distortion that was found",
    "damage": "E ‖g(z) - ref‖ over draws that no search has seen, at d = 0 → under attack",
    "-log p": "-log p(x|z*) of the clean input over the same draws, in nats, at d = 0 → under attack",
    "by": "the attack that found it",
    "signs": "failure signs: the figures of an item with one support no verdict",
}
# What the metrics of an attack mean, by the part of their name between mode and statistic.
METRICS = {
    "delta": "objective, data + λ pen(d), averaged over all λ; in nats it also grows as posteriors narrow",
    "data_term": "the data term at the λ shown for the pair",
    "distortion": "‖d‖ there",
    "target_nll": "-log p(x_t|z) there",
    "target_error": "‖x_t - rec(x*)‖ there",
    "curve_area": "area under the distortion curve between its ends d = 0 and d = x_t - x, as a share: "
    "0 where any touch turns the model, near 1 where it yields only to the target itself",
    "success.target": "of the pairs whose rec(x) has the source's class, the share whose rec(x*) has the target's",
    "success.ignore_target": "share of those whose rec(x*) has any other class than the source's",
    "success.classifier_accuracy": "share of held-out reconstructions that the classifier names rightly",
    "success.factor": "share of pairs where the image of the data nearest to rec(x*) has the target's value of the "
    "varied factor and the source's of all others",
    "success.factor_at_source": "the same at rec(x), without an attack",
    "success.factor_at_target": "the same at rec(x_t), after a perfect one",
    "damage": "E ‖g(z) - ref‖ under the named cap, over draws that no search has seen",
    "degradation": "log p(x|z) - log p(x|z*) there, in nats",
    "relative_degradation": "the same as a share of |log p(x|z)|, which depends on the likelihood's constants",
    "ms_ssim_input": "multi-scale structural similarity of x and x*: 1 where the attack cannot be seen",
    "ms_ssim_reconstruction": "that of rec(x) and rec(x*): 1 where the attack changes nothing",
    "progress": "1 - ‖rec(x*) - x_t‖ / ‖rec(x) - x_t‖: 0 where nothing changes, 1 at the target",
}


# What the columns of the margin table mean.
MARGIN_LEGEND = {
    "item": "number of the item in the data",
    "min r": "least r that holds the item's own draws, unperturbed (upper confidence value), in output units",
    "p0": "share of draws within r, unperturbed (lower confidence bound, on which certificate and estimates rest)",
    "certified": "lower bound of the margin: no distortion shorter than this takes the item out of r (by which proof): "
    "propagation of linear bounds through the encoder, its linear region around the item, or its Lipschitz constants",
    "pathwise": "another lower bound, with a confidence of its own: how far each draw stays within r by the Lipschitz "
    "constants of encoder and decoder, and their quantile; n/a where there are none",
    "Frobenius, spectral, whitened": "first-order estimates: what the margin would be if the encoder were linear; they "
    "are no bounds and may lie outside the two that are",
    "empirical": "upper bound of the margin: a distortion of this length was seen to take the item out of r",
}
# What the metrics of margins mean, by quantity.
MARGIN_METRICS = {
    "min_r": "least r for which an item is r-robust unperturbed",
    "certified": "lower bound of the margin; its share is that of items certified at all, its mean a bound of E R",
    "pathwise": "another lower bound of the margin, from how far each draw stays within r",
    "frobenius": "min sigma (Phi^-1(p) - Phi^-1(m)) / ||J||_F, theorem 1 as printed: an estimate",
    "spectral": "the same with ||J||_2",
    "whitened": "(Phi^-1(p) - Phi^-1(m)) / ||D^-1 J||_2, the sharpest of the three",
    "empirical": "upper bound of the margin",
    "not_robust_unperturbed": "items that leave r by their own draws",
    "censored": "items that nothing broke",
}


def number(value: float | None, digits: int = 4) -> str:
    """So many significant digits; "n/a" for what is not a finite number."""
    return "n/a" if value is None else f"{value:.{digits}g}"


def interval(metric: MetricEntry, digits: int = 4) -> str:
    """The interval as "[low, high]", or "n too small" where the sample gives none."""
    return "n too small" if metric.ci is None else "[{}, {}]".format(*(number(end, digits) for end in metric.ci))


def attack_table(attack: AttackEntry) -> Table:
    """One row a pair, at its chosen lambda."""
    rows = [
        [
            f"{pair.source} → {pair.target}",
            number(pair.lam),
            number(pair.norm),
            number(pair.data_term),
            number(pair.penalty),
            number(pair.objective),
            f"{number(pair.target_nll_unattacked)} → {number(pair.target_nll)}",
            f"{number(pair.target_error_unattacked)} → {number(pair.target_error)} ({number(pair.target_error_floor)})",
            number(pair.own_error),
            "; ".join(sign.split(":")[0] for sign in pair.signs) or "none",
        ]
        for pair in attack.pairs
    ]
    return list(LEGEND), rows


def margin_table(margins: MarginEntry) -> Table:
    """One row an item."""
    rows = [
        [
            str(item.item),
            f"{number(item.min_r)} ({number(item.min_r_upper)})",
            f"{number(item.p0)} ({number(item.p_low)})",
            number(item.certified) + ("" if item.by == "none" else f" ({item.by})"),
            number(item.pathwise),
            ", ".join(number(value) for value in (item.frobenius, item.spectral, item.whitened)),
            f"> {number(item.largest)} tried" if item.censored else number(item.empirical),
        ]
        for item in margins.items
    ]
    return list(MARGIN_LEGEND), rows


def asked(margins: MarginEntry) -> str:
    """What a margin is of, in a sentence."""
    box = f"x + d in [{margins.box[0]:g}, {margins.box[1]:g}]" if margins.box else "no box"
    if margins.deterministic:
        return (
            f"r = {margins.r:.6g}, {box} for the empirical margin; the encoder is deterministic, so that this "
            "probability is 0 or 1, the bounds are sure, and m, sigma and draws play no part; the estimates are "
            f"r / ||J|| of g(mu(x)), with nothing to whiten; items: {margins.chosen}"
        )
    level = f"{margins.level:.4g}" + (" for all bounds, items and radii together" if margins.family_wise else " each")
    return (
        f"r = {margins.r:.6g}, m = {margins.m:g}, sigma {margins.sigma}, {box} for the empirical margin; "
        f"confidence of the bounds {level}; {margins.draws} draws an item; items: {margins.chosen}"
    )


def metric_table(metrics: dict[str, MetricEntry], digits: int = 4) -> Table:
    """One row a metric, with its interval and, where it is one of robustness, which way is more robust."""
    directed = any(m.direction != "none" for m in metrics.values())
    rows = [
        [
            name,
            number(m.value, digits),
            interval(m, digits),
            m.unit,
            *([m.direction.replace("none", "")] if directed else []),
            str(m.n) + (f" ({m.nonfinite} not finite)" if m.nonfinite else ""),
        ]
        for name, m in metrics.items()
    ]
    level = next((f"{m.level:.0%} interval" for m in metrics.values()), "interval")
    return ["metric", "value", level, "unit", *(["more robust"] if directed else []), "n"], rows


def finding_table(plausibility: PlausibilityEntry) -> Table:
    """One row a finding."""
    return ["question", "answer", "seen"], [[f.name, f.verdict, f.message] for f in plausibility.findings]


def capped_table(attack: CappedEntry) -> Table:
    """One row an item and cap."""
    rows = [
        [
            str(item.item) + ("" if item.target is None else f" ({item.target})"),
            number(cap.cap),
            number(cap.norm),
            f"{number(item.damage_unattacked)} → {number(cap.damage)}",
            f"{number(item.nll_unattacked)} → {number(cap.nll)}",
            cap.by,
            "; ".join(sign.split(":")[0] for sign in item.signs) or "none",
        ]
        for item in attack.items
        for cap in item.caps
    ]
    return list(CAPPED_LEGEND), rows


def maximised(attack: CappedEntry) -> str:
    """What an attack under a cap makes as large as it can, as a formula."""
    reached = {"both": "", "mean": " (through its mean alone)", "std": " (through its standard deviation alone)"}
    ref = "g(mu(x))" if attack.ref == "reconstruction" else "x"
    damage = f"E ‖g(z) - {ref}‖, z ~ q(z|x + d){reached[attack.on]}"
    return {
        "damage": damage,
        "untargeted": f"{attack.similarity}(q(z|x + d), q(z|x)){reached[attack.on]}",
        "latent-side": "‖g(mu(x) + d) - g(mu(x))‖",
        "worst": f"{damage}, the worst of {', '.join(attack.members)}",
    }[attack.mode]


def class_table(classes: ClassTableEntry) -> Table:
    """One row a class of source: of each class of target "reached, left / valid" attacks."""
    rows = [
        [
            str(name),
            *(
                f"{reached}, {left} / {valid}" if attacked else "-"
                for reached, left, valid, attacked in zip(*(counts[i] for counts in of), strict=True)
            ),
        ]
        for of in [(classes.reached, classes.left, classes.valid, classes.attacked)]
        for i, name in enumerate(classes.classes)
    ]
    return ["source \\ target", *map(str, classes.classes)], rows


def minimised(attack: AttackEntry) -> str:
    """The objective of an attack as a formula."""
    pen = "‖d‖" if attack.penalty == "l2" else "‖d‖²"
    reached = {"both": "", "mean": " (its mean alone)", "std": " (its standard deviation alone)"}[attack.on]
    layers = f", layers {', '.join(map(str, attack.layers))}" if attack.layers else ""
    terms = {
        "latent": f"{attack.similarity}(q(z|x + d){reached}, q(z|x_t)){layers}",
        "output": f"KL(q(z|x + d) || p(z)) - E log p(x_t|z) over z ~ q(z|x + d){reached}",
    }
    return f"{terms[attack.mode]} + λ {pen}"


def ends(attack: AttackEntry) -> str:
    """How the problems of an attack ended, in a sentence."""
    problems = len(attack.pairs) * len(attack.lambdas)
    told = ", ".join(f"{count} {message}" for message, count in attack.statuses.items())
    zero = f"d = 0 is the best found for {attack.zero_optimal}"
    return f"{problems} problems: {told}; {zero}; {attack.evaluations:,} evaluations"
