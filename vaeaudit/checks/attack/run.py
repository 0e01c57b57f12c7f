"""The attack check from settings to record: the pairs, every mode, and whether it succeeded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from vaeaudit.attacks.modes import MODES
from vaeaudit.attacks.objectives import Objective
from vaeaudit.attacks.rungs import rungs
from vaeaudit.attacks.sweep import geometric_lambdas
from vaeaudit.checks.attack import pairs as choice
from vaeaudit.checks.attack.capped import CappedResult, capped_attack
from vaeaudit.checks.attack.classifier import Judge, judge
from vaeaudit.checks.attack.entry import ClassTableEntry
from vaeaudit.checks.attack.measure import AttackResult, attack
from vaeaudit.checks.attack.pairs import Pairs
from vaeaudit.checks.attack.record import (
    attack_drawings,
    attack_entry,
    attack_rows,
    capped_drawings,
    capped_entry,
    capped_rows,
    class_entry,
    limit_warnings,
    sign_warnings,
    signs,
)
from vaeaudit.checks.attack.success import class_success, factor_success, summarise_classes, summarise_factor
from vaeaudit.checks.attack.summarise import summarise, summarise_capped, summarise_likeness
from vaeaudit.checks.record import Record, Work, without_pictures
from vaeaudit.checks.relative import remark
from vaeaudit.errors import UnsupportedError, VaeauditError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.conditions import under
from vaeaudit.model.ranges import widths
from vaeaudit.model.vae import VAE
from vaeaudit.progress import GoOn
from vaeaudit.stats.estimates import Measurement
from vaeaudit.subject.inputs import require_finite_outputs
from vaeaudit.subject.opened import Subject

_DRAWN = 4.0  # draws of the decoder in an evaluation
_SETTLE = 0.75  # of the evaluations that a problem may take; most settle before, and one costs several rows
_OPTIMAL = 2.0**20  # lambda above which d = 0 is optimal for most models
_L2_CAPS = (0.5, 1.0, 2.0)
_LINF_CAPS = (2 / 255, 8 / 255, 16 / 255)  # of the range; the budgets of attacks on latent-diffusion encoders


def cost(subject: Subject, unit: str) -> float:
    """About how many rows the model is given in the mode that ``unit`` names, forward and back."""
    asked = subject.settings.attack
    mode, evaluations = MODES[unit.removeprefix("attack.")], asked.max_evaluations * (len(asked.pair) or asked.pairs)
    rows = (_DRAWN if mode.decodes else 1.0) * evaluations
    if not mode.swept:
        return rows * (len(asked.caps) or len(_L2_CAPS)) * max(1, len(mode.members))
    lambdas = geometric_lambdas(asked.lambdas)
    between = [rung for rung in rungs(lambdas, asked.max_evaluations) if rung < _OPTIMAL]
    return _SETTLE * rows * (len(lambdas) + len(between))


def works(subject: Subject) -> dict[str, Work]:
    """The attack in each mode that the settings name, by name; all of the same pairs."""
    chosen = cache(partial(_choose, subject))
    return {f"attack.{mode}": partial(_run, subject, mode, chosen) for mode in subject.settings.attack.modes}


@dataclass(frozen=True, eq=False)
class _Chosen:
    """What all modes attack, and what names the classes of reconstructions."""

    pairs: Pairs
    x: Tensor
    x_t: Tensor
    judged: Judge | None


def _choose(subject: Subject) -> _Chosen:
    """Raises what the settings ask and the data or the model do not give, in any mode, before the first runs."""
    pairs = _pairs(subject)
    x, x_t = subject.images(pairs.sources), subject.images(pairs.targets)
    vae = subject.vae(pairs.sources)
    rows = RowBatches(subject.batch_size or RowBatches.automatic(vae.input_shape, x.device).size)
    for points, items in ((x, pairs.sources), (x_t, pairs.targets)):
        require_finite_outputs(vae, points, rows, items)
    _try(subject, vae, x, x_t)
    return _Chosen(pairs, x, x_t, _judge(subject, pairs))


def _run(subject: Subject, mode: str, choose: Callable[[], _Chosen], go_on: GoOn) -> Record:
    chosen = choose()
    pairs, x, x_t = chosen.pairs, chosen.x, chosen.x_t
    if not MODES[mode].swept:
        return _of_caps(subject, pairs, _capped(subject, mode, x, x_t, pairs, go_on))
    result = _attack(subject, mode, x, x_t, pairs, go_on)
    return _of_sweep(subject, pairs, result, chosen.judged)


def _of_sweep(subject: Subject, pairs: Pairs, result: AttackResult, judged: Judge | None) -> Record:
    name, acknowledged = result.mode, subject.settings.doctor.acknowledge
    success, faults, classes = _success(subject, pairs, result, judged)
    entry = attack_entry(subject, result, pairs, classes)
    return Record(
        [entry],
        summarise(result) | success,
        (*sign_warnings(result, pairs, acknowledged), *faults, *limit_warnings(result)),
        without_pictures("attack", subject.data),
        interrupted=result.interrupted,
        signs=signs(result, acknowledged),
        rows={f"attack.{name}": attack_rows(result, pairs)},
        tensors={f"{name}.adversarial": result.sweep.adversarial, f"{name}.distortion": result.sweep.distortion},
        about={"pairs": list(pairs), "lambdas": result.sweep.lambdas.tolist()},
        drawings=attack_drawings(entry, result, subject.data.picture_shape),
    )


def _of_caps(subject: Subject, pairs: Pairs, result: CappedResult) -> Record:
    likeness, skipped = _likeness(subject, result)
    entry, name = capped_entry(subject, result, pairs), f"relative degradation of the {result.mode} attack"
    acknowledged = subject.settings.doctor.acknowledge
    near = remark(result.zero_nll, None, name, "degradation")
    return Record(
        [entry],
        summarise_capped(result) | likeness,
        (*sign_warnings(result, pairs, acknowledged), *near),
        {**skipped, **without_pictures("attack", subject.data)},
        interrupted=result.interrupted,
        signs=signs(result, acknowledged),
        rows={f"attack.{result.mode}": capped_rows(result, pairs)},
        tensors={
            f"{result.mode}.adversarial": result.capped.adversarial,
            f"{result.mode}.distortion": result.capped.distortion,
        },
        about={"pairs": list(pairs), "caps": result.capped.caps.tolist()},
        drawings=capped_drawings(entry, result, subject.data.picture_shape),
    )


def _try(subject: Subject, vae: VAE, x: Tensor, x_t: Tensor) -> None:
    """Raise what the settings ask and the model does not give, before anything runs."""
    chosen, vae = subject.settings.attack, under(vae, slice(1))
    with torch.no_grad():
        noise = x.new_zeros((1, 1, *vae.encode(x[:1]).noise_shape))
    for mode in chosen.modes:
        objective = Objective(mode, chosen.similarity, chosen.on, chosen.ref, chosen.layers or None)
        if objective.row.latents:
            continue
        try:
            with torch.no_grad():
                objective.data_term(vae, x[:1], x_t[:1], noise)(
                    x[:1], torch.zeros(1, dtype=torch.long, device=x.device)
                )
        except UnsupportedError as error:  # raised by the posterior, which knows no options
            if chosen.on != "both" or chosen.layers:
                raise
            means = "similarity" in objective.row.takes
            needs = "--similarity mean needs the means alone" if means else "--mode damage needs no KL"
            raise UnsupportedError(f"no {mode} attack by {chosen.similarity}: {error}; {needs}") from error


def _attack(subject: Subject, mode: str, x: Tensor, x_t: Tensor, pairs: Pairs, go_on: GoOn) -> AttackResult:
    chosen = subject.settings.attack
    return attack(
        subject.vae(pairs.sources),
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
    width = min(filter(math.isfinite, widths(subject.data.range)), default=1.0)  # of the narrowest channel
    usual = _L2_CAPS if chosen.norm == "l2" else tuple(width * cap for cap in _LINF_CAPS)
    return capped_attack(
        subject.vae(pairs.sources),
        x,
        mode,
        x_t if MODES[mode].targeted else None,
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
    if asked.pair:  # of a draw, any item of the data may be named
        n = None if subject.picked else subject.n
        return choice.given(subject.data, [choice.parse(text) for text in asked.pair], n=n)
    if asked.vary is not None:
        found = choice.by_factor(subject.chosen, asked.vary, asked.pairs, seed=seed)
    else:
        choose = choice.by_label if asked.pairing == "label" else choice.at_random
        found = choose(subject.chosen, asked.pairs, seed=seed)
    sources, targets = (tuple(subject.items[list(places)].tolist()) for places in (found.sources, found.targets))
    return replace(found, sources=sources, targets=targets)


def _places(subject: Subject, items: Sequence[int]) -> list[int]:
    """Where these items stand among those of the subject."""
    places: list[int] = np.searchsorted(subject.items, items).tolist()
    return places


def _judge(subject: Subject, pairs: Pairs) -> Judge | None:
    """What names the classes of reconstructions, where pairs were chosen by them."""
    labels = subject.chosen.labels
    if subject.settings.attack.pairing != "label" or labels is None:
        return None
    return judge(
        subject.vae(subject.items.tolist()),
        subject.at,
        labels,
        attacked=_places(subject, [*pairs.sources, *pairs.targets]),
        seed=subject.settings.run.seed,
        batch_size=subject.batch_size,
    )


def _success(
    subject: Subject, pairs: Pairs, result: AttackResult, judged: Judge | None
) -> tuple[dict[str, Measurement], tuple[str, ...], ClassTableEntry | None]:
    """Whether an attack succeeded at each pair's chosen lambda: metrics, what is wrong with them, and its classes."""
    reconstruction, prefix = result.at_chosen(result.reconstruction), f"attack.{result.mode}"
    data, factors = subject.data, subject.chosen.factors
    if judged is not None and data.labels is not None:
        sources, targets = data.labels[list(pairs.sources)], data.labels[list(pairs.targets)]
        classes = class_success(judged.classifier, reconstruction, result.source_reconstruction, sources, targets)
        faults = (judged.fault,) if judged.fault else ()
        metrics = summarise_classes(classes, judged, prefix=prefix)
        return metrics, (*judged.warnings, *faults), class_entry(classes.table, judged.how)
    if pairs.factor is not None and factors is not None:
        found = factor_success(
            reconstruction,
            result.source_reconstruction,
            result.target_reconstruction,
            result.target,
            _places(subject, pairs.targets),
            subject.at,
            factors.classes,
        )
        return summarise_factor(found, prefix=prefix), (found.fault,) if found.fault else (), None
    return {}, (), None


def _likeness(subject: Subject, result: CappedResult) -> tuple[dict[str, Measurement], dict[str, str]]:
    """MS-SSIM where the mode tells it of images, or why there is none."""
    if not result.objective.row.likeness or len(subject.model.vae.input_shape) != 3 or subject.data.range is None:
        return {}, {}
    try:
        return summarise_likeness(result, subject.data.range), {}
    except VaeauditError as error:
        return {}, {f"attack.{result.mode}.ms_ssim": str(error)}
