"""The objectives of examples/study against values that are summed up one by one, and their gradients."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

STUDY = Path(__file__).parents[2] / "examples" / "study"
N, ITEMS = 5, 40  # of the batch and of all training data


@pytest.fixture
def objectives(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(STUDY)
    import objectives

    return objectives


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.syspath_prepend(STUDY)
    from networks import untrained
    from table import Row

    def made(**row: Any) -> Any:
        shape = (1, 32, 32) if row.get("adapter") == "jointvae" else (1, 2, 3)
        settings = {"system": "any", "objective": "any", "data": "any", "latents": 3, "width": 7} | row
        return untrained(Row(**settings), shape)[0].double().eval()

    return made


def batch(model: Any, noise: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(N, *model.input_shape, generator=generator, dtype=torch.float64)
    return x, torch.randn(N, noise, generator=generator, dtype=torch.float64)


def distortion(model: Any, x: Tensor, z: Tensor) -> float:
    """-log p(x|z), pixel by pixel."""
    p = model.decode(z).mean.flatten().tolist()
    each = (a * math.log(b) + (1 - a) * math.log(1 - b) for a, b in zip(x.flatten().tolist(), p, strict=True))
    return -sum(each) / N


def kl_to_standard(q: Any) -> float:
    pairs = zip(q.mean.flatten().tolist(), q.stddev.flatten().tolist(), strict=True)
    return sum((s**2 + m**2 - 1) / 2 - math.log(s) for m, s in pairs) / N


def total_correlation(q: Any, z: Tensor, sampling: str) -> float:
    """One draw, one latent and one row of q after another."""
    mean, stddev, z = q.mean.tolist(), q.stddev.tolist(), z.tolist()
    total = 0.0
    for i in range(N):
        others = 1 / (N * ITEMS) if sampling == "weighted" else (ITEMS - 1) / (ITEMS * (N - 1))
        weight = [1 / ITEMS if j == i and sampling == "stratified" else others for j in range(N)]
        density = [[norm.pdf(a, m, s) for a, m, s in zip(z[i], mean[j], stddev[j], strict=True)] for j in range(N)]
        joint = sum(w * math.prod(row) for w, row in zip(weight, density, strict=True))
        marginals = [sum(w * row[d] for w, row in zip(weight, density, strict=True)) for d in range(len(z[i]))]
        total += math.log(joint) - sum(map(math.log, marginals))
    return total / N


def derivative_fits(model: Any, loss: Callable[[], Tensor]) -> bool:
    """Whether the gradient along a random direction of all parameters is that of finite differences."""
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    gradient = torch.autograd.grad(loss(), parameters, allow_unused=True)
    along = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True) if g is not None)
    ends, kept = [], [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for step in (1e-6, -1e-6):
            for p, of, d in zip(parameters, kept, direction, strict=True):
                p.copy_(of + step * d)
            ends.append(loss().item())
        for p, of in zip(parameters, kept, strict=True):
            p.copy_(of)
    return along == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-6)


def test_a_vae_and_a_beta_vae_minimise_distortion_and_a_weighted_kl(objectives: Any, network: Any) -> None:
    model = network(tau=0.3)
    x, noise = batch(model, 3)
    q = model.encode(x)
    assert q.stddev.min().item() > 0.3
    d, kl = distortion(model, x, q.sample(noise)), kl_to_standard(q)
    assert objectives.vae(model, x, noise).item() == pytest.approx(d + kl, abs=1e-6)
    assert objectives.beta_vae(model, x, noise, beta=4).item() == pytest.approx(d + 4 * kl, abs=1e-6)
    assert derivative_fits(model, lambda: objectives.beta_vae(model, x, noise, beta=4))


@pytest.mark.parametrize("capacity", [0.0, 25.0])
def test_controlled_capacity_pulls_the_kl_towards_it_from_either_side(
    objectives: Any, network: Any, capacity: float
) -> None:
    model = network()
    x, noise = batch(model, 3)
    q = model.encode(x)
    wanted = distortion(model, x, q.sample(noise)) + 30 * abs(kl_to_standard(q) - capacity)

    def loss() -> Tensor:
        found: Tensor = objectives.controlled_capacity_vae(model, x, noise, gamma=30, capacity=capacity)
        return found

    assert loss().item() == pytest.approx(wanted, abs=1e-6)
    assert derivative_fits(model, loss)


def test_a_joint_vae_has_a_capacity_for_each_kind_of_latent(objectives: Any, network: Any) -> None:
    model = network(adapter="jointvae")
    x, noise = batch(model, 13)
    q = model.encode(x)
    gaussian, categorical = q.parts
    kl_c = sum(p * math.log(p * 10) for p in categorical.mean.flatten().tolist()) / N
    off = abs(kl_to_standard(gaussian) - 1.5) + abs(kl_c - 0.5)

    def loss() -> Tensor:
        found: Tensor = objectives.joint_vae(model, x, noise, gamma=3, capacity=1.5, categorical_capacity=0.5)
        return found

    assert loss().item() == pytest.approx(distortion(model, x, q.sample(noise)) + 3 * off, abs=1e-6)
    assert derivative_fits(model, loss)


@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
def test_a_beta_tcvae_weighs_the_total_correlation_alone(objectives: Any, network: Any, sampling: str) -> None:
    model = network()
    x, noise = batch(model, 3)
    q = model.encode(x)
    z = q.sample(noise)
    zs, ms, ss = (t.flatten().tolist() for t in (z, q.mean, q.stddev))
    kl = sum(norm.logpdf(a, m, s) - norm.logpdf(a) for a, m, s in zip(zs, ms, ss, strict=True)) / N
    wanted = distortion(model, x, z) + kl + 5 * total_correlation(q, z, sampling)

    def loss() -> Tensor:
        found: Tensor = objectives.beta_tcvae(model, x, noise, beta=6, items=ITEMS, sampling=sampling)
        return found

    assert loss().item() == pytest.approx(wanted, abs=1e-6)
    assert derivative_fits(model, loss)


def test_stratified_weights_are_those_of_a_mean_over_all_items(objectives: Any) -> None:
    """Of a batch that is all the data, the estimate is the exact mixture's."""
    from vaeaudit import DiagonalGaussian

    q = DiagonalGaussian(torch.randn(ITEMS, 2, dtype=torch.float64), torch.zeros(ITEMS, 2, dtype=torch.float64))
    z = q.sample(torch.randn(ITEMS, 2, dtype=torch.float64))
    log_q = torch.distributions.Normal(q.mean, 1.0).log_prob(z.unsqueeze(1))
    exact = log_q.sum(2).logsumexp(1) - log_q.logsumexp(1).sum(1) + math.log(ITEMS)
    assert objectives.total_correlation(q, z, ITEMS, "stratified").item() == pytest.approx(float(exact.mean()))


def test_a_factor_vae_adds_the_log_ratio_of_its_discriminator(objectives: Any, network: Any) -> None:
    model = network()
    x, noise = batch(model, 3)
    torch.manual_seed(0)
    discriminator = nn.Linear(3, 2).double()
    q = model.encode(x)
    z = q.sample(noise)
    ratio = sum(a - b for a, b in discriminator(z).tolist()) / N

    def loss() -> Tensor:
        found: Tensor = objectives.factor_vae(model, x, noise, gamma=7, discriminator=discriminator)
        return found

    assert loss().item() == pytest.approx(distortion(model, x, z) + kl_to_standard(q) + 7 * ratio, abs=1e-6)
    assert derivative_fits(model, loss)
    other = torch.randn(N, 3, dtype=torch.float64)
    orders = torch.rand(N, 3).argsort(0)
    shuffled = torch.tensor([[other[orders[i, j], j] for j in range(3)] for i in range(N)])

    def of(rows: Tensor, answer: int) -> float:
        return sum(
            math.log(math.exp(r[answer]) / (math.exp(r[0]) + math.exp(r[1]))) for r in discriminator(rows).tolist()
        )

    told = objectives.discriminator_loss(discriminator, z, other, orders)
    assert told.item() == pytest.approx(-(of(z, 0) + of(shuffled, 1)) / (2 * N), abs=1e-6)
    assert derivative_fits(discriminator, lambda: objectives.discriminator_loss(discriminator, z, other, orders))


@pytest.mark.parametrize("objective", ["beta_tcdlgm", "seatbelt_vae"])
def test_hierarchies_sum_their_layers_and_weigh_the_total_correlation_of_the_top(
    objectives: Any, network: Any, objective: str
) -> None:
    model = network(adapter="hierarchical", depth=3, objective=objective)
    widths = model.widths
    assert widths == [24, 12, 6]
    assert model.taken == (42 if objective == "seatbelt_vae" else 24)
    x, noise = batch(model, 42)
    below, used, layers = model.encode(x).first, 0, []
    for place, width in enumerate(widths):
        z = below.sample(noise[:, used : used + width])
        layers.append((below, z))
        used += width
        below = model.encode(x).upper[place](z) if place < 2 else below
    z = torch.cat([draw for _, draw in layers], 1)
    kls = []
    for (q, draw), p in zip(layers, model.conditional_priors(z), strict=True):
        p_mean, p_stddev = p.mean.expand_as(draw), p.stddev.expand_as(draw)
        rows = (t.flatten().tolist() for t in (draw, q.mean, q.stddev, p_mean, p_stddev))
        kls.append(sum(norm.logpdf(a, m, s) - norm.logpdf(a, n, t) for a, m, s, n, t in zip(*rows, strict=True)) / N)
    d, tc = distortion(model, x, z), total_correlation(*layers[-1], "weighted")
    assert objectives.dlgm(model, x, noise).item() == pytest.approx(d + sum(kls), abs=1e-6)
    penalised = getattr(objectives, objective)
    weights = {"beta": 3, "items": ITEMS}
    assert penalised(model, x, noise, **weights).item() == pytest.approx(d + sum(kls) + 2 * tc, abs=1e-6)
    assert derivative_fits(model, lambda: penalised(model, x, noise, **weights))
    free = sorted(kls)[1] + 0.01  # of which two layers have less
    wanted = d + sum(max(kl, free) for kl in kls) + 2 * tc
    assert wanted > d + sum(kls) + 2 * tc + 1e-3  # some of them count

    def held() -> Tensor:
        found: Tensor = penalised(model, x, noise, **weights, free_bits=free)
        return found

    assert held().item() == pytest.approx(wanted, abs=1e-6)
    assert derivative_fits(model, held)
