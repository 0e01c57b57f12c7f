import copy
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vaeaudit.attacks.attacked import Attacked, Searched, Sweep
from vaeaudit.attacks.left import FALLS, left_to_gain, still_falling
from vaeaudit.attacks.search import Effort
from vaeaudit.attacks.signs import DIRECTIONS, Sign, Signs, signs_of
from vaeaudit.attacks.sweep import geometric_lambdas, sweep
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.chain import GaussianChain
from vaeaudit.model.registry import open_model
from vaeaudit.model.vae import DiagonalGaussian
from vaeaudit.optim.lbfgsb import Status, Stopping
from vaeaudit.stats.draws import noise_set

Encode = Callable[[Tensor], Any]
Term = Callable[[Tensor, Tensor], Tensor]
Box = tuple[float, float] | None
CAPS = (0.5, 2.0, 5.0)


def distance(points: Tensor) -> Tensor:
    return torch.linalg.vector_norm(points.flatten(2), dim=2)


def kl_to(encode: Encode, x_t: Tensor) -> Term:
    with torch.no_grad():
        target = encode(x_t)
    return lambda points, item: encode(points).kl(target.rows(item))


def look(term: Term, encode: Encode | None, x: Tensor, x_t: Tensor | None, found: Attacked, **more: Any) -> Signs:
    shape = tuple(x.shape[1:])
    directions = noise_set(shape, draws=DIRECTIONS, items=range(len(x)), seed=0, check="attack.signs", like=x)
    settings = {"box": (0.0, 1.0), "norm": "l2", "rows": RowBatches(256)} | more
    of_items = None if encode is None else lambda points, _item: encode(points)
    return signs_of(term, of_items, x, x_t, found, directions, **settings)


def as_sweep(found: Attacked, **of_sweep: Any) -> Sweep:
    nothing = torch.zeros_like(found.status)
    searched = {"distortion": found.adversarial, "evaluations": nothing, "further": nothing > 0, "interrupted": False}
    return Sweep(**vars(found), **searched, penalty="l2", followed=found.zero_data_term.isnan(), **of_sweep)


def handed_out(points: Tensor, data_term: Tensor, radius: Tensor, status: Tensor, zero: Tensor) -> Attacked:
    """What signs judge of an attack that has told nothing of its last gains."""
    return Attacked(
        adversarial=points,
        data_term=data_term,
        norm=radius,
        status=status,
        recent=torch.full_like(data_term, torch.inf),
        zero_data_term=zero,
    )


def of_points(term: Term, x: Tensor, points: Tensor, radius: Tensor) -> Attacked:
    """What an attack that ended at ``points`` (P, K, *shape) hands out."""
    items, problems = points.shape[:2]
    item = torch.arange(items)
    with torch.no_grad():
        value = term(points.flatten(0, 1), item.repeat_interleave(problems)).reshape(items, problems)
        zero = term(x, item)
    ended = torch.full_like(value, int(Status.CONVERGED), dtype=torch.long)
    return handed_out(points, value, radius, ended, zero)


def descend(term: Term, x: Tensor, start: Tensor, steps: int = 40, norm: str = "l2", box: Box = (0.0, 1.0)) -> Attacked:
    """Projected gradient descent under CAPS from ``start``, the best iterate kept: a plain attack that works."""
    caps = torch.tensor(CAPS, dtype=x.dtype) / (20 if norm == "linf" else 1)
    item = torch.arange(len(x)).repeat_interleave(len(caps))
    centre = x[:, None].expand(-1, len(caps), *x.shape[1:])
    cap = caps.reshape(-1, *(1,) * (x.ndim - 1))

    low, high = box or (-math.inf, math.inf)

    def project(points: Tensor) -> Tensor:
        d = points.clamp(low, high) - centre
        if norm == "linf":
            return centre + d.clamp(-cap, cap)
        return centre + d * (cap / over(d)).clamp(max=1)

    def over(d: Tensor) -> Tensor:
        return distance(d).clamp(min=1e-12).reshape(*d.shape[:2], *(1,) * (x.ndim - 1))

    points = project(start[:, None].expand_as(centre))
    best, least = points, torch.full(points.shape[:2], torch.inf, dtype=x.dtype)
    for step in range(steps):
        leaf = points.detach().requires_grad_(True)
        value = term(leaf.flatten(0, 1), item)
        slope = torch.zeros_like(leaf)
        if value.requires_grad:
            slope = torch.autograd.grad(value.sum(), leaf, allow_unused=True, materialize_grads=True)[0].nan_to_num()
        value = value.detach().reshape(least.shape)
        best = torch.where((value < least).reshape(over(points).shape), points, best)
        least = torch.minimum(least, value)
        way = slope.sign() if norm == "linf" else slope / over(slope)
        points = project(points - 0.5 * (1 - step / steps) * cap * way)
    return of_points(term, x, best, caps.expand(len(x), -1))


def swept(vae: Any, x: Tensor, x_t: Tensor, *, evaluations: int = 80, penalty: str = "l2", count: int = 5) -> Sweep:
    """The lambda sweep of the KL to the target."""
    return sweep(
        kl_to(vae.encode, x_t),
        x,
        x_t,
        (0.0, 1.0),
        torch.tensor(geometric_lambdas(count), dtype=x.dtype),
        penalty=penalty,
        effort=Effort(Stopping.for_dtype(x.dtype, evaluations)),
        rows=RowBatches(256),
    )


@pytest.fixture(scope="module")
def pairs(bundled_images: Tensor) -> tuple[Tensor, Tensor]:
    return bundled_images[[3, 40, 101]], bundled_images[[90, 150, 20]]


@pytest.fixture(scope="module")
def small(small_vae: Any) -> tuple[Any, Tensor, Tensor]:
    """A curved model of six inputs in float64, with sources and targets: random search is strong in six dimensions."""
    x, x_t = torch.rand(2, 4, 2, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return small_vae(), x, x_t


def shown(signs: Signs) -> list[set[Sign]]:
    return [set(signs.of(item)) for item in range(signs.measured.shape[1])]


# Masked models: the bundled one with its encoder wrapped


def clamped(low: float, high: float) -> Callable[[Any, Tensor], Any]:
    def encode(vae: Any, x: Tensor) -> Any:
        q = vae.encode(x)
        return DiagonalGaussian(q.mean, (2 * q.log_stddev).clamp(low, high) / 2)

    return encode


def noisy(vae: Any, x: Tensor) -> Any:
    q = vae.encode(x)
    return DiagonalGaussian(q.mean + 0.01 * torch.randn(q.mean.shape), q.log_stddev)


def partly_detached(vae: Any, x: Tensor) -> Any:
    q = vae.encode(x)
    return DiagonalGaussian(q.mean.detach(), q.log_stddev)


def blind_rows(vae: Any, x: Tensor) -> Any:
    seen = x.clone()
    seen[:, :, 14:] = x[:, :, 14:].detach()
    return vae.encode(seen)


def dead_background(vae: Any, x: Tensor) -> Any:
    """Units that a background of 0 leaves off, and that strokes turn on: common in convolutions with ReLU."""
    edge = torch.ones(28, 28, dtype=torch.bool)
    edge[3:-3, 3:-3] = False
    return vae.encode(torch.where(edge, 3 * (x - 0.3).relu(), x))


IDENTITY = (lambda vae, x: vae.encode(x), set[Sign]())
Z, W, C = Sign.ZERO_GRADIENT, Sign.WRONG_GRADIENT, Sign.CLAMPED
MASKED: dict[str, tuple[Callable[[Any, Tensor], Any], set[Sign]]] = {
    "healthy": IDENTITY,
    "dead background": (dead_background, set()),
    "log-variance clamped below": (clamped(-4, 20), {C}),
    "log-variance clamped above": (clamped(-30, -2), {C}),
    "log-variance clamped narrowly": (clamped(-4, -3), {C}),
    "saturated sigmoid": (lambda vae, x: vae.encode(torch.sigmoid(1e4 * (x - 0.50001))), {Z}),
    "saturated tanh": (lambda vae, x: vae.encode(0.5 + 0.5 * torch.tanh(100 * (x - 0.5))), {Z}),
    "rounded input": (lambda vae, x: vae.encode(x.round()), {Z, W}),
    "quantised input": (lambda vae, x: vae.encode((x * 255).round() / 255), {Z, W}),
    "detached": (lambda vae, x: vae.encode(x.detach()), {Z, W}),
    "half of the image detached": (blind_rows, {Z, W}),
    "mean detached": (partly_detached, {W}),
    "gradient ten times too long": (lambda vae, x: vae.encode(10 * x - 9 * x.detach()), {W}),
    "gradient half as long": (lambda vae, x: vae.encode(0.5 * x + 0.5 * x.detach()), {W}),
    "noise in the encoder": (noisy, {Sign.NOT_REPEATABLE}),
    "gradient not finite": (lambda vae, x: vae.encode(x + 0 * (x - x).square().sum().sqrt()), {Sign.NOT_FINITE}),
}
# What follows from the above: gradients that mislead make attacks weak, and noise spoils differences.
CONSEQUENCES = {
    "noise in the encoder": {Sign.WRONG_GRADIENT},
    "gradient not finite": {Sign.ZERO_GRADIENT, Sign.WRONG_GRADIENT, Sign.RANDOM},
}


@pytest.mark.parametrize("name", MASKED)
def test_each_masked_model_shows_the_signs_meant_for_it_on_every_item(
    name: str, bundled_model: Any, pairs: tuple[Tensor, Tensor]
) -> None:
    x, x_t = pairs
    wrap, meant = MASKED[name]

    def encode(points: Tensor) -> Any:
        return wrap(bundled_model, points)

    torch.manual_seed(0)  # of the noise in the encoder
    term = kl_to(encode, x_t)
    signs = look(term, encode, x, x_t, descend(term, x, (x + x_t) / 2))
    items = shown(signs)
    print(f"{name:30}", *(f"{sign}:{signs.fired[i].sum()}/{len(items)}" for i, sign in enumerate(Sign)), sep="  ")
    assert meant == set() or all(item & meant for item in items)
    assert meant <= set().union(*items)
    weak = {Sign.RANDOM} if meant & {Z, W} else set()
    assert set().union(*items) <= meant | weak | CONSEQUENCES.get(name, set())
    assert torch.equal(signs.any, torch.tensor([bool(item) for item in items]))


def test_signs_are_told_in_sentences_with_their_figures(bundled_model: Any, pairs: tuple[Tensor, Tensor]) -> None:
    x, x_t = pairs
    encode = lambda points: clamped(-4, -3)(bundled_model, points.detach())  # noqa: E731
    term = kl_to(encode, x_t)
    signs = look(term, encode, x, x_t, of_points(term, x, x_t[:, None], distance((x_t - x)[:, None])))
    assert "detached" in signs.message(Sign.ZERO_GRADIENT, 0)
    assert f"{float(signs.measured[list(Sign).index(C), 0]):.2g} of its log-variances" in signs.message(C, 0)
    for sign in Sign:
        assert "{" not in signs.message(sign, 1)


def test_an_encoder_that_does_not_see_its_input_is_no_robust_one(pairs: tuple[Tensor, Tensor]) -> None:
    x, x_t = pairs

    def encode(points: Tensor) -> DiagonalGaussian:
        nothing = 0 * points.flatten(1)[:, :10]
        return DiagonalGaussian(nothing, nothing)

    term = kl_to(encode, x_t)
    signs = look(term, encode, x, x_t, descend(term, x, x_t, steps=3))
    assert all(Z in item for item in shown(signs))
    assert "same everywhere" in signs.message(Z, 0)


# Sweeps


@pytest.mark.parametrize("penalty", ["l2", "l2sq"])
def test_a_sweep_of_a_sound_model_shows_no_sign(penalty: str, small: tuple[Any, Tensor, Tensor]) -> None:
    vae, x, x_t = small
    found = swept(vae, x, x_t, penalty=penalty)
    assert (found.radius == 0).any() or penalty == "l2sq"  # d = 0 is optimal there, with a gradient that is not zero
    signs = look(kl_to(vae.encode, x_t), vae.encode, x, x_t, found)
    assert shown(signs) == [set()] * len(x), signs.measured


def test_a_sweep_that_was_stopped_early_is_told_from_one_that_ended(small: tuple[Any, Tensor, Tensor]) -> None:
    vae, x, x_t = small
    found = swept(vae, x, x_t, evaluations=2)
    short = look(kl_to(vae.encode, x_t), vae.encode, x, x_t, found)
    assert all(Sign.NOT_CONVERGED in item for item in shown(short))
    assert "raise --max-evaluations" in short.message(Sign.NOT_CONVERGED, 0)
    # What an interruption cut off is helped by letting it end, and only what had come to its limit by a longer search.
    status = found.status.clone()
    status[0, 2] = int(Status.STOPPED)
    cut = look(kl_to(vae.encode, x_t), vae.encode, x, x_t, replace(found, status=status, interrupted=True))
    for measured in (cut, replace(cut, measured=cut.measured.new_full((9, len(x)), math.nan))):
        assert "let it end" in measured.message(Sign.NOT_CONVERGED, 0)
        assert not any("--max-evaluations" in measured.message(sign, 0) for sign in Sign)
        assert "raise --max-evaluations" in measured.message(Sign.NOT_CONVERGED, 1)
        assert not any("let it end" in measured.message(sign, 1) for sign in Sign)


def test_a_sweep_of_the_bundled_model_shows_no_sign_unless_it_stops_early(
    bundled_model: Any, pairs: tuple[Tensor, Tensor]
) -> None:
    x, x_t = (part[:1] for part in pairs)
    term = kl_to(bundled_model.encode, x_t)
    assert shown(look(term, bundled_model.encode, x, x_t, swept(bundled_model, x, x_t, count=4, evaluations=100))) == [
        set()
    ]
    short = look(term, bundled_model.encode, x, x_t, swept(bundled_model, x, x_t, evaluations=3))
    assert all(Sign.NOT_CONVERGED in item for item in shown(short))


def problem(objective: Tensor, status: Tensor, recent: Tensor | None = None, **of_sweep: Any) -> Attacked:
    nothing = torch.zeros_like(objective)
    found = handed_out(nothing[..., None], objective, nothing, status, objective[:, 0])
    found = found if recent is None else replace(found, recent=recent)
    return as_sweep(found, **of_sweep) if of_sweep else found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_what_is_left_to_gain_is_never_less_than_what_is_left(seed: int) -> None:
    # The optimum over candidates (J_i, pen_i) is the least of lines in lambda, known exactly.
    generator = torch.Generator().manual_seed(seed)
    data, pen = torch.rand(2, 20, generator=generator, dtype=torch.float64) * 10
    pen[0] = 0
    lambdas = torch.tensor(geometric_lambdas(15), dtype=torch.float64)
    optimum = (data + lambdas[:, None] * pen).amin(1)
    settled = torch.rand(15, generator=generator) < 0.4
    found = optimum + torch.where(settled, 0.0, torch.rand(15, generator=generator, dtype=torch.float64))
    status = torch.where(settled, int(Status.CONVERGED), int(Status.LIMIT))
    shuffled = torch.randperm(15, generator=generator)
    for floor in (0.0, None):
        left = left_to_gain(
            problem(found[None, shuffled], status[None, shuffled], lambdas=lambdas[shuffled], floor=floor)
        )[0]
        assert (left >= (found - optimum)[shuffled] * (1 - 1e-9) - 1e-9).all()
        assert (left[settled[shuffled]] == 0).all()


def test_what_is_left_is_bounded_by_neighbours_by_the_floor_and_by_what_was_gained_of_late() -> None:
    lambdas = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    objective = torch.tensor([[4.0, 7.0, 8.0]], dtype=torch.float64)
    ended, limit, stopped = (int(s) for s in (Status.CONVERGED, Status.LIMIT, Status.STOPPED))
    between = torch.tensor([[ended, limit, ended]])
    assert left_to_gain(problem(objective, between, lambdas=lambdas)).tolist() == [[0, 1, 0]]  # the chord is at 6
    first = torch.tensor([[limit, ended, ended]])
    assert left_to_gain(problem(objective, first, lambdas=lambdas)).tolist() == [[math.inf, 0, 0]]
    assert left_to_gain(problem(objective, first, lambdas=lambdas, floor=0.0)).tolist() == [[0.5, 0, 0]]
    last = torch.tensor([[ended, ended, limit]])
    assert left_to_gain(problem(objective, last, lambdas=lambdas)).tolist() == [[0, 0, 1]]  # at least that of 2
    recent = torch.full_like(objective, 0.25)
    assert left_to_gain(problem(objective, first, recent=recent)).tolist() == [[0.25, 0, 0]]
    # What was interrupted has not shown what it would have gained.
    assert left_to_gain(problem(objective, first * 0 + stopped, recent=recent)).tolist() == [[math.inf] * 3]


def falling(objective: Tensor, status: list[list[int]], recent: list[list[float]], **of_sweep: Any) -> Sweep:
    ended = problem(objective, torch.tensor(status), torch.tensor(recent, dtype=torch.float64), **of_sweep)
    assert isinstance(ended, Sweep)
    return ended


def test_an_objective_falls_where_it_or_one_of_a_larger_lambda_was_cut_off_falling() -> None:
    lambdas = torch.tensor([2.0, 0.5, 4.0, 1.0], dtype=torch.float64)
    objective = torch.tensor([[8.0, 3.0, 10.0, 5.0]], dtype=torch.float64)
    ended, limit, stuck = (int(s) for s in (Status.CONVERGED, Status.LIMIT, Status.STALLED))
    recent = [[0.8, 0.1, 9.0, 0.1]]
    of = {"lambdas": lambdas, "floor": 0.0}
    found = falling(objective, [[limit, limit, ended, limit]], recent, **of)
    assert still_falling(found).tolist() == [[0.1, 0.1, 0.0, 0.1]]
    assert still_falling(replace(found, floor=None)).tolist() == [[0.0] * 4]
    # What has settled follows a larger lambda that has not; what is stuck gained nothing of late.
    settled = falling(objective, [[limit, ended, ended, ended]], recent, **of)
    assert still_falling(settled).tolist() == [[0.1, 0.1, 0.0, 0.1]]
    alone = falling(objective, [[ended, limit, ended, stuck]], [[0.8, 0.15, 9.0, 0.0]], **of)
    assert still_falling(replace(found, lambdas=lambdas.square())).tolist() == [[0.0] * 4]
    assert still_falling(alone).tolist() == [[0.0, 0.15 / 3, 0.0, 0.0]]
    # Fronts do not go on from what is found at larger lambda.
    assert still_falling(replace(settled, followed=torch.tensor([True]))).tolist() == [[0.1, 0.0, 0.0, 0.0]]


def test_figures_read_where_the_objective_still_fell_carry_a_sign(
    bundled_model: Any, pairs: tuple[Tensor, Tensor]
) -> None:
    x, x_t = (part[:1] for part in pairs)
    term = kl_to(bundled_model.encode, x_t)
    found = swept(bundled_model, x, x_t, count=41, evaluations=8)
    share = float(still_falling(found)[0, int(found.chosen)])
    signs = look(term, bundled_model.encode, x, x_t, found)
    assert share > FALLS
    assert Sign.FALLING in signs.of(0)
    assert f"still fell by {share:.2g} of itself" in signs.message(Sign.FALLING, 0)
    done = replace(found, status=torch.full_like(found.status, int(Status.CONVERGED)))
    assert Sign.FALLING not in look(term, bundled_model.encode, x, x_t, done).of(0)


def test_a_capped_attack_at_its_limit_is_judged_by_what_it_gained_of_late(small: tuple[Any, Tensor, Tensor]) -> None:
    vae, x, _ = small
    term = damage(vae, x)
    found = descend(term, x, x + 0.01)
    gain = found.zero_data_term[:, None] - found.data_term
    limit = torch.full_like(found.status, int(Status.LIMIT))
    for recent, early in ((0.001 * gain, False), (0.5 * gain, True), (found.recent, True)):
        items = shown(look(term, vae.encode, x, None, replace(found, status=limit, recent=recent)))
        assert all((Sign.NOT_CONVERGED in item) is early for item in items)


# Capped attacks


def damage(vae: Any, x: Tensor) -> Term:
    """Minus the damage to the reconstruction at z = the mean: any real number, without a gradient at d = 0."""
    with torch.no_grad():
        reference = vae.decode(vae.encode(x).mean).mean

    def term(points: Tensor, item: Tensor) -> Tensor:
        gap = vae.decode(vae.encode(points).mean).mean - reference[item]
        return -torch.linalg.vector_norm(gap.flatten(1), dim=1)

    return term


def untargeted(vae: Any, x: Tensor) -> Term:
    own = kl_to(vae.encode, x)
    return lambda points, item: -own(points, item)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("make", [damage, untargeted])
@pytest.mark.parametrize("box", [(0.0, 1.0), None])
def test_a_capped_attack_of_a_sound_model_shows_no_sign_though_its_gradient_is_zero_at_the_start(
    make: Callable[[Any, Tensor], Term], norm: str, box: Box, bundled_model: Any, pairs: tuple[Tensor, Tensor]
) -> None:
    x, _ = pairs
    term = make(bundled_model, x)
    step = 0.1 * noise_set((1, 28, 28), draws=1, items=range(3), seed=1, check="start", like=x)[0]
    one, other = (descend(term, x, x + way, norm=norm, box=box) for way in (step, -step))
    better = (other.data_term < one.data_term).reshape(3, -1, 1, 1, 1)
    found = of_points(term, x, torch.where(better, other.adversarial, one.adversarial), one.radius)
    signs = look(term, bundled_model.encode, x, None, found, norm=norm, box=box)
    assert shown(signs) == [set()] * 3, signs.measured


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_attack_that_random_search_beats_is_told(
    norm: str, bundled_model: Any, pairs: tuple[Tensor, Tensor]
) -> None:
    x, x_t = pairs
    term = damage(bundled_model, x)
    good = descend(term, x, (x + x_t) / 2, norm=norm)
    weak = of_points(term, x, x[:, None] + 0.01 * (good.adversarial - x[:, None]), good.radius)
    assert shown(look(term, bundled_model.encode, x, x_t, weak, norm=norm)) == [{Sign.RANDOM}] * 3
    lazy = of_points(term, x, x[:, None].expand_as(good.adversarial), good.radius)  # never left d = 0
    assert all(Sign.RANDOM in item for item in shown(look(term, bundled_model.encode, x, x_t, lazy, norm=norm)))


def test_one_random_direction_that_beats_it_is_enough(bundled_model: Any, pairs: tuple[Tensor, Tensor]) -> None:
    # The term falls along one keyed direction alone, so that neither the target nor the gradient at d = 0 shows it.
    x, x_t = pairs
    way = noise_set((1, 28, 28), draws=4, items=range(3), seed=0, check="attack.signs", like=x)[3]

    def term(points: Tensor, item: Tensor) -> Tensor:
        d = points - x[item]
        along = torch.nn.functional.cosine_similarity(d.flatten(1), way[item].clamp(min=0).flatten(1))
        return d.square().flatten(1).sum(1) - 1e3 * along.clamp(min=0.3)

    found = of_points(term, x, x[:, None] + 0.02 * (x_t - x)[:, None], torch.full((3, 1), 5.0))
    assert all(Sign.RANDOM in item for item in shown(look(term, bundled_model.encode, x, x_t, found)))


def test_a_point_above_d_0_is_told(bundled_model: Any, pairs: tuple[Tensor, Tensor]) -> None:
    x, x_t = pairs
    term = kl_to(bundled_model.encode, x_t)
    good = descend(term, x, (x + x_t) / 2)
    worse = (x[:, None] - 0.5 * (good.adversarial - x[:, None])).clamp(0, 1)
    items = shown(look(term, bundled_model.encode, x, x_t, of_points(term, x, worse, good.radius)))
    assert all(Sign.ABOVE_ZERO in item for item in items)
    dear = 2 * good.zero_data_term.max() / good.norm.amin(0)
    paid = as_sweep(good, lambdas=dear)
    assert all(Sign.ABOVE_ZERO in item for item in shown(look(term, bundled_model.encode, x, x_t, paid)))


def test_a_point_below_d_0_on_its_own_draws_alone_is_told_by_fresh_ones(small: tuple[Any, Tensor, Tensor]) -> None:
    vae, x, x_t = small
    base = kl_to(vae.encode, x_t)
    scale = base(x, torch.arange(len(x)))
    fit_to = noise_set((2, 3), draws=1, items=range(len(x)), seed=3, check="draws", like=x)[0]
    fresh_noise = noise_set((16, 2, 3), draws=1, items=range(len(x)), seed=4, check="draws", like=x)[0]

    def drawn(points: Tensor, item: Tensor, noise: Tensor, weight: float) -> Tensor:
        d = (points - x[item]).flatten(1)
        return scale[item] * (0.2 * d.square().sum(1) + weight * (d * noise).sum(1))

    for weight, overfit in ((1.0, True), (0.0, False)):  # what the draws promise; or nothing but what is there

        def term(points: Tensor, item: Tensor, weight: float = weight) -> Tensor:
            return drawn(points, item, fit_to[item].flatten(1), weight) + (0 if weight else base(points, item))

        def fresh(points: Tensor, item: Tensor, weight: float = weight) -> Tensor:
            values = [drawn(points, item, 0.01 * fresh_noise[item, j].flatten(1), weight) for j in range(16)]
            return torch.stack(values, 1) + (0 if weight else base(points, item)[:, None])

        found = descend(term, x, (x + x_t) / 2)
        assert (found.data_term < found.zero_data_term[:, None]).all()
        for seen, wanted in ((fresh, overfit), (None, False)):
            items = shown(look(term, vae.encode, x, x_t, found, fresh=seen))
            assert all((Sign.ABOVE_ZERO in item) is wanted for item in items), seen


def test_values_that_are_not_those_of_the_points_are_told(bundled_model: Any, pairs: tuple[Tensor, Tensor]) -> None:
    x, x_t = pairs
    term = kl_to(bundled_model.encode, x_t)
    good = descend(term, x, (x + x_t) / 2)
    better = replace(good, data_term=0.9 * good.data_term)
    assert shown(look(term, bundled_model.encode, x, x_t, better)) == [{Sign.NOT_REPEATABLE}] * 3
    broken = replace(good, data_term=good.data_term + math.nan)
    assert all(Sign.NOT_FINITE in item for item in shown(look(term, bundled_model.encode, x, x_t, broken)))


# Log-variances


def clamp_signs(encode: Encode, term: Term, x: Tensor, x_t: Tensor) -> list[bool]:
    found = of_points(term, x, ((x + x_t) / 2)[:, None], distance(((x_t - x) / 2)[:, None]))
    return [C in item for item in shown(look(term, encode, x, x_t, found))]


def test_constant_collapsed_and_absent_log_variances_are_no_clamp(
    bundled_model: Any, pairs: tuple[Tensor, Tensor]
) -> None:
    x, x_t = pairs
    term = kl_to(bundled_model.encode, x_t)

    def collapsed(points: Tensor) -> DiagonalGaussian:
        q = bundled_model.encode(points)
        keep = torch.arange(q.mean.shape[1]) > 2
        return DiagonalGaussian(q.mean * keep, torch.where(keep, q.log_stddev, 0.0))

    class Other:
        mean = torch.zeros(1)

    for encode in (
        lambda points: DiagonalGaussian(bundled_model.encode(points).mean, torch.zeros(len(points), 10)),
        lambda points: clamped(-30, -10)(bundled_model, points),
        collapsed,
        lambda _: Other(),
        None,
    ):
        assert clamp_signs(encode, term, x, x_t) == [False] * 3


def test_an_offset_that_standard_deviations_tie_at_by_rounding_is_no_clamp_and_a_clamp_there_is_one(
    bundled_model: Any, pairs: tuple[Tensor, Tensor]
) -> None:
    x, x_t = pairs

    def offset(points: Tensor) -> DiagonalGaussian:
        q = bundled_model.encode(points)
        return DiagonalGaussian(q.mean, torch.logaddexp(12 * q.log_stddev, torch.tensor(math.log(0.5))))

    def floored(points: Tensor) -> DiagonalGaussian:
        q = bundled_model.encode(points)
        return DiagonalGaussian(q.mean, (12 * q.log_stddev).clamp(min=math.log(0.5)))

    values = offset(x).log_stddev
    assert ((values == values.min()).sum(1) > 1).all()
    for encode, clamp in ((offset, False), (floored, True)):
        assert clamp_signs(encode, kl_to(encode, x_t), x, x_t) == [clamp] * 3


def test_log_variances_that_always_lie_at_a_clamp_are_found_where_others_move(
    bundled_model: Any, pairs: tuple[Tensor, Tensor]
) -> None:
    x, x_t = pairs

    def pinned(points: Tensor) -> DiagonalGaussian:
        q = bundled_model.encode(points)
        used = torch.arange(q.mean.shape[1]) < 3
        return DiagonalGaussian(q.mean, torch.where(used, -8.0, q.log_stddev))

    assert clamp_signs(pinned, kl_to(pinned, x_t), x, x_t) == [True] * 3


def test_a_clamp_in_an_upper_layer_of_a_chain_is_found(small: tuple[Any, Tensor, Tensor]) -> None:
    vae, x, x_t = small
    weight = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def chain(edge: float) -> Encode:
        def upper(z: Tensor) -> DiagonalGaussian:
            return DiagonalGaussian(z @ weight, (z @ weight).clamp(min=edge))

        return lambda points: GaussianChain(vae.encode(points), (upper,))

    term = kl_to(vae.encode, x_t)
    assert clamp_signs(chain(-1e3), term, x, x_t) == [False] * len(x)
    assert all(clamp_signs(chain(5.0), term, x, x_t))


# How they are taken


def test_signs_keep_to_the_box_and_to_a_hundred_rows_an_item(bundled_model: Any, pairs: tuple[Tensor, Tensor]) -> None:
    x, x_t = pairs
    plain = kl_to(bundled_model.encode, x_t)
    found = swept(bundled_model, x, x_t, count=5, evaluations=3)
    forward, backward = [], []

    def encode(points: Tensor) -> Any:
        assert ((points >= 0) & (points <= 1)).all()
        (backward if points.requires_grad else forward).append(len(points))
        return bundled_model.encode(points)

    def term(points: Tensor, item: Tensor) -> Tensor:
        encode(points)
        return plain(points, item)

    for rows in (RowBatches(256), RowBatches(10)):
        forward.clear(), backward.clear()
        look(term, encode, x, x_t, found, rows=rows)
        assert max(forward + backward) <= rows.size
        assert sum(forward) <= 100 * len(x)
        assert sum(backward) <= 8 * len(x)


def test_signs_do_not_depend_on_the_batch_or_on_the_items_beside(small: tuple[Any, Tensor, Tensor]) -> None:
    vae, x, x_t = small
    found = swept(vae, x, x_t, evaluations=5)
    whole = look(kl_to(vae.encode, x_t), vae.encode, x, x_t, found).measured
    rows = look(kl_to(vae.encode, x_t), vae.encode, x, x_t, found, rows=RowBatches(1)).measured
    with torch.no_grad():
        kept = [field.name for field in fields(Searched) if field.name != "interrupted"]
        first = replace(found, **{name: getattr(found, name)[:2] for name in kept})
        part = look(kl_to(vae.encode, x_t[:2]), vae.encode, x[:2], x_t[:2], first).measured
    torch.testing.assert_close(rows, whole, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(part, whole[:, :2], rtol=1e-6, atol=1e-9)


def test_double_precision_tells_the_same(bundled_model: Any, pairs: tuple[Tensor, Tensor]) -> None:
    x, x_t = (part.double() for part in pairs)
    vae = copy.deepcopy(bundled_model).double()
    for wrap, meant in (MASKED["healthy"], MASKED["saturated sigmoid"], MASKED["log-variance clamped below"]):
        encode = lambda points, wrap=wrap: wrap(vae, points)  # noqa: E731
        term = kl_to(encode, x_t)
        items = shown(look(term, encode, x, x_t, descend(term, x, (x + x_t) / 2)))
        assert [item - {Sign.RANDOM} for item in items] == [meant] * 3


# Published models

SHARED = Path(__file__).parents[3] / "shared"
MNIST = SHARED / "data" / "mnist" / "train_first1000_32x32.npy"


@pytest.mark.skipif(not MNIST.is_file(), reason="the trained checkpoints and data of ../shared are not here")
@pytest.mark.parametrize("name", ["VAE_mnist", "btcvae_mnist"])
def test_published_models_show_no_sign(name: str) -> None:
    vae = open_model(SHARED / "checkpoints" / "disentangling-vae" / name / "model.pt", "burgess").vae
    data = fit(read(MNIST), input_shape=vae.input_shape, data_range=vae.range)
    x, x_t = data.batch(np.arange(0, 4)), data.batch(np.arange(100, 104))
    for term, target in ((kl_to(vae.encode, x_t), x_t), (damage(vae, x), None)):
        found = descend(term, x, (x + x_t) / 2)
        assert shown(look(term, vae.encode, x, target, found)) == [set()] * 4


# Inputs in units of their own


UNITS = 10.0 ** torch.linspace(-3, 6, 10)  # milligrams to megawatts


def unscaled(cut: slice = slice(0)) -> Encode:
    """A smooth encoder that brings its inputs to one scale first; those named by ``cut`` are detached."""
    weights = torch.randn((10, 6), generator=torch.Generator().manual_seed(3))

    def encode(points: Tensor) -> DiagonalGaussian:
        seen = points.clone()
        seen[:, cut] = points[:, cut].detach()
        mean, log_stddev = torch.tanh((seen / UNITS) @ weights / 3).chunk(2, 1)
        return DiagonalGaussian(2 * mean, log_stddev)

    return encode


@pytest.mark.parametrize(
    ("cut", "meant"),
    [
        (slice(0), set()),
        (slice(0, 5), {Sign.ZERO_GRADIENT}),
        (slice(5, None), {Sign.ZERO_GRADIENT}),
        (slice(0, None, 2), {Sign.ZERO_GRADIENT}),
    ],
)
def test_units_far_apart_are_no_wrong_gradient_and_hide_no_detached_part(cut: slice, meant: set[Sign]) -> None:
    x, x_t = torch.randn((2, 5, 10), generator=torch.Generator().manual_seed(4)) * UNITS
    encode = unscaled(cut)
    term = kl_to(encode, x_t)
    points = torch.stack([x + share * (x_t - x) for share in (0.3, 0.6)], 1)
    found = of_points(term, x, points, distance(points - x[:, None]))
    kinds = {Sign.WRONG_GRADIENT, Sign.ZERO_GRADIENT, Sign.NOT_FINITE}
    told = [item & kinds for item in shown(look(term, encode, x, x_t, found, box=None))]
    if meant:  # an item that its detached part hardly concerns shows nothing
        assert sum(item >= meant for item in told) >= 4
    else:
        assert not any(told)


# Data on the kinks of an encoder


def counting(see: Callable[[Tensor], Tensor]) -> Encode:
    """An encoder of counts, of which ``see`` shows it what it takes for their logarithms."""
    weights = torch.randn((30, 6), generator=torch.Generator().manual_seed(5)) / 3

    def encode(points: Tensor) -> DiagonalGaussian:
        mean, log_stddev = torch.tanh(see(points) @ weights).chunk(2, 1)
        return DiagonalGaussian(2 * mean, log_stddev)

    return encode


def log1p(points: Tensor) -> Tensor:
    return torch.log1p(points.clamp(min=0))


def half_gradient(points: Tensor) -> Tensor:
    return log1p(points) / 2 + log1p(points).detach() / 2


@pytest.mark.parametrize(
    ("see", "lies"),
    [
        (log1p, False),
        (lambda points: log1p(points.abs()), False),
        (half_gradient, True),
        (lambda points: log1p(points - points.detach() + points.round()), True),
        (lambda points: log1p(2 * points.detach() - points), True),
        (lambda points: torch.cat([log1p(points[:, :20]).detach(), log1p(points[:, 20:])], 1), True),
    ],
)
def test_counts_on_the_kink_of_a_clamp_are_no_wrong_gradient_and_hide_none(
    see: Callable[[Tensor], Tensor], lies: bool
) -> None:
    generator = torch.Generator().manual_seed(6)
    x, x_t = torch.poisson(torch.full((2, 10, 30), 0.6), generator=generator)
    encode = counting(see)
    term = kl_to(encode, x_t)
    points = torch.stack([x + share * (x_t - x) for share in (0.3, 0.6)], 1)
    found = of_points(term, x, points, distance(points - x[:, None]))
    told = [bool({W, Z} & item) for item in shown(look(term, encode, x, x_t, found, box=None))]
    assert any(told) is lies
    assert all(told) or see is half_gradient or not lies  # half of a gradient is near what differences see at a kink
