"""An audit from settings to report: the checks, in order, with what went wrong told apart from what was found.

Nothing here prints or writes files; the command line renders what this returns.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeaudit import pairs as choice
from vaeaudit.attacks.objectives import Objective
from vaeaudit.attacks.term import GoOn
from vaeaudit.checks.attack import AttackResult, attack
from vaeaudit.checks.capped import CAPPED_MODES, CappedResult, capped_attack
from vaeaudit.checks.classifier import Judge, judge
from vaeaudit.checks.margin import margin, usual_radius
from vaeaudit.checks.plausibility import Verdict
from vaeaudit.checks.success import class_success, factor_success, summarise_classes, summarise_factor
from vaeaudit.config import Resolved
from vaeaudit.draws import uniform
from vaeaudit.pairs import Pairs
from vaeaudit.record import Outcome, write_down
from vaeaudit.record_margin import Margins
from vaeaudit.report.model import Report
from vaeaudit.subject import Subject

_L2_CAPS = (0.5, 1.0, 2.0)
_LINF_CAPS = (2 / 255, 8 / 255, 16 / 255)  # of the range; the budgets of attacks on latent-diffusion encoders


@dataclass(frozen=True, eq=False)
class Audit:
    """A report with the tensors it speaks of, pairs of item numbers included; ``fault`` is what ended it early."""

    report: Report
    pairs: Pairs
    attacks: tuple[AttackResult, ...]
    capped: tuple[CappedResult, ...]
    margins: tuple[Margins, ...]
    fault: BaseException | None


def run_attack(subject: Subject, resolved: Resolved, argv: Sequence[str], go_on: GoOn) -> Audit:
    """The attack check in every mode that the settings name, and its report.

    An error in a check ends the audit with verdict "error" and what was measured before it.
    """
    started = time.monotonic()
    settings = subject.settings
    outcomes: list[Outcome] = []
    capped: list[CappedResult] = []
    skipped: dict[str, str] = {}
    fault: BaseException | None = None
    pairs = Pairs((), (), "none")
    failed = [f.name for f in subject.plausibility.findings if f.verdict is Verdict.FAIL]
    if failed:
        reason = f"the model did not pass: {', '.join(failed)}"
        skipped = {f"attack.{mode}": reason for mode in settings.attack.modes}
    else:
        pairs = _pairs(subject)
        x, x_t = subject.images(pairs.sources), subject.images(pairs.targets)
        _try(subject, x, x_t)
        try:
            judged = _judge(subject, pairs)
            for mode in settings.attack.modes:
                if mode in CAPPED_MODES:
                    capped.append(_capped(subject, mode, x, x_t, pairs, go_on))
                    continue
                result = _attack(subject, mode, x, x_t, pairs, go_on)
                outcomes.append(_outcome(subject, pairs, result, judged))
        except (Exception, SystemExit) as error:  # the adapter is the user's code: it must not read as a finding
            fault = error
    seconds = time.monotonic() - started
    taken = {"attack": seconds}
    report = write_down(subject, resolved, argv, pairs, outcomes, capped, [], skipped, fault, taken)
    return Audit(report, pairs, tuple(outcome.result for outcome in outcomes), tuple(capped), (), fault)


def run_margin(subject: Subject, resolved: Resolved, argv: Sequence[str], go_on: GoOn) -> Audit:
    """The margin check of randomly drawn items, and its report; errors as in :func:`run_attack`."""
    started = time.monotonic()
    chosen, vae, seed = subject.settings.margin, subject.model.vae, subject.settings.run.seed
    margins: list[Margins] = []
    skipped: dict[str, str] = {}
    fault: BaseException | None = None
    nothing = Pairs((), (), "none")
    failed = [f.name for f in subject.plausibility.findings if f.verdict is Verdict.FAIL]
    if failed:
        skipped = {"margin": f"the model did not pass: {', '.join(failed)}"}
    else:
        order = uniform(subject.n, seed=seed, check="margin.items", item=0).argsort(kind="stable")
        items = sorted(order[: chosen.items].tolist())
        how = f"{len(items)} of {subject.n}, drawn at random"
        x, auto = subject.images(items), None
        try:
            radii = [radius for radius in chosen.r if not isinstance(radius, str)]
            if len(radii) < len(chosen.r):
                size = subject.batch_size
                auto = usual_radius(vae, x, 2.0, m=chosen.m, seed=seed, items=items, batch_size=size)
                radii.append(auto)
            result = margin(
                vae,
                x,
                radii,
                m=chosen.m,
                sigma=chosen.sigma,
                data_range=subject.data.range,
                boxed=chosen.boxed,
                level=chosen.level,
                family_wise=chosen.family_wise,
                draws=chosen.draws,
                parts=chosen.parts,
                seed=seed,
                batch_size=subject.batch_size,
                items=items,
                go_on=go_on,
            )
            margins.append(Margins(result, tuple(items), how, auto))
        except (Exception, SystemExit) as error:  # the adapter is the user's code: it must not read as a finding
            fault = error
    taken = {"margin": time.monotonic() - started}
    report = write_down(subject, resolved, argv, nothing, [], [], margins, skipped, fault, taken)
    return Audit(report, nothing, (), (), tuple(margins), fault)


def _try(subject: Subject, x: Tensor, x_t: Tensor) -> None:
    """Raise what the settings ask and the model does not give, before anything runs."""
    chosen, vae = subject.settings.attack, subject.model.vae
    with torch.no_grad():
        noise = x.new_zeros((1, 1, *vae.encode(x[:1]).noise_shape))
    for mode in chosen.modes:
        objective = Objective(
            "damage" if mode == "worst" else mode, chosen.similarity, chosen.on, chosen.ref, chosen.layers or None
        )
        if mode != "latent-side":
            objective.data_term(vae, x[:1], x_t[:1], noise)


def _attack(subject: Subject, mode: str, x: Tensor, x_t: Tensor, pairs: Pairs, go_on: GoOn) -> AttackResult:
    chosen = subject.settings.attack
    return attack(
        subject.model.vae,
        x,
        x_t,
        mode,
        lambdas=chosen.lambdas,
        similarity=chosen.similarity,
        on=chosen.on,
        layers=chosen.layers or None,
        penalty=chosen.penalty,
        restarts=chosen.restarts,
        data_range=subject.data.range,
        seed=subject.settings.run.seed,
        max_evaluations=chosen.max_evaluations,
        batch_size=subject.batch_size,
        items=pairs.sources,
        go_on=go_on,
    )


def _capped(subject: Subject, mode: str, x: Tensor, x_t: Tensor, pairs: Pairs, go_on: GoOn) -> CappedResult:
    """The sources of the pairs attacked under caps, with their targets where the mode has any."""
    chosen = subject.settings.attack
    low, high = subject.data.range or (0.0, 1.0)
    usual = _L2_CAPS if chosen.norm == "l2" else tuple((high - low) * cap for cap in _LINF_CAPS)
    return capped_attack(
        subject.model.vae,
        x,
        mode,
        x_t if mode == "worst" else None,
        caps=chosen.caps or usual,
        norm=chosen.norm,
        similarity=chosen.similarity,
        on=chosen.on,
        ref=chosen.ref,
        data_range=subject.data.range,
        seed=subject.settings.run.seed,
        max_evaluations=chosen.max_evaluations,
        batch_size=subject.batch_size,
        items=pairs.sources,
        go_on=go_on,
    )


def _pairs(subject: Subject) -> Pairs:
    """The pairs that the settings ask for."""
    asked, seed = subject.settings.attack, subject.settings.run.seed
    if asked.pair:
        return choice.given(subject.data, [choice.parse(text) for text in asked.pair], n=subject.n)
    if asked.vary is not None:
        return choice.by_factor(subject.data, asked.vary, asked.pairs, n=subject.n, seed=seed)
    choose = choice.by_label if asked.pairing == "label" else choice.at_random
    return choose(subject.data, asked.pairs, n=subject.n, seed=seed)


def _judge(subject: Subject, pairs: Pairs) -> Judge | None:
    """What names the classes of reconstructions, where pairs were chosen by them."""
    labels = subject.data.labels
    if subject.settings.attack.pairing != "label" or labels is None:
        return None
    return judge(
        subject.model.vae,
        subject.images,
        labels[: subject.n],
        attacked={*pairs.sources, *pairs.targets},
        seed=subject.settings.run.seed,
        batch_size=subject.batch_size,
    )


def _outcome(subject: Subject, pairs: Pairs, result: AttackResult, judged: Judge | None) -> Outcome:
    """An attack with whether it succeeded, at each pair's chosen lambda."""
    reconstruction, prefix = result.at_chosen(result.reconstruction), f"attack.{result.mode}"
    data = subject.data
    if judged is not None and data.labels is not None:
        sources, targets = data.labels[list(pairs.sources)], data.labels[list(pairs.targets)]
        classes = class_success(judged.classifier, reconstruction, result.source_reconstruction, sources, targets)
        faults = (judged.fault,) if judged.fault else ()
        metrics = summarise_classes(classes, judged, prefix=prefix)
        return Outcome(result, metrics, (*judged.warnings, *faults), classes.table, judged.how)
    if pairs.factor is not None and data.factors is not None:
        success = factor_success(
            reconstruction,
            result.source_reconstruction,
            result.target_reconstruction,
            result.target,
            pairs.targets,
            subject.images,
            data.factors.classes[: subject.n],
        )
        return Outcome(result, summarise_factor(success, prefix=prefix), (success.fault,) if success.fault else ())
    return Outcome(result)
