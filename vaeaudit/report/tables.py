"""The rows of a report's tables, shared by the terminal and Markdown so that they cannot disagree."""

from vaeaudit.report.model import AttackEntry, MetricEntry, PlausibilityEntry

Table = tuple[list[str], list[list[str]]]  # headers, rows

# What the columns of the attack table mean, for readers of the report.
LEGEND = {
    "pair": "source → target, as item numbers of the data",
    "λ": "weight of the distortion, chosen so that the data term is just better than its mean over all λ",
    "‖d‖": "length of the distortion that was found",
    "data": "how unlike the target's posterior the adversarial posterior still is",
    "penalty": "λ pen(d)",
    "total": "data + penalty, the objective",
    "-log p": "of the target under z ~ q(z|x*), before → after the attack, in nats",
    "to target": "‖x_t - rec(x*)‖, before → after the attack (floor: what the target's own reconstruction has)",
    "own": "‖x* - rec(x*)‖, how badly the adversarial input itself is reconstructed",
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
        ]
        for pair in attack.pairs
    ]
    return list(LEGEND), rows


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


def ends(attack: AttackEntry) -> str:
    """How the problems of an attack ended, in a sentence."""
    problems = len(attack.pairs) * len(attack.lambdas)
    told = ", ".join(f"{count} {message}" for message, count in attack.statuses.items())
    zero = f"d = 0 is the best found for {attack.zero_optimal}"
    return f"{problems} problems: {told}; {zero}; {attack.evaluations:,} evaluations"
