from collections.abc import Callable
from decimal import Decimal, localcontext
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from vaeaudit.attacks.modes import names
from vaeaudit.attacks.objectives import ON, Objective, damage, latent, latent_side, output, untargeted
from vaeaudit.attacks.similarity import RESIDUALS, SIMILARITIES, kl_residuals
from vaeaudit.attacks.term import Squares, Term
from vaeaudit.errors import ConfigError, UnsupportedError
from vaeaudit.model.batches import RowBatches
from vaeaudit.model.vae import DiagonalGaussian, GaussianLikelihood
from vaeaudit.optim.gauss_newton import whole
from vaeaudit.stats.draws import noise_set

ITEMS, DRAWS = 3, 4
SIMILARITY = ("kl", "reverse-kl", "symmetric-kl", "mean", "sample", "wasserstein")
EVERY = [
    *(
        Objective(mode, similarity, on)
        for mode, similarity, on in product(("latent", "untargeted"), SIMILARITY, ON)
        if (similarity, on) != ("mean", "std")  # nothing could change
    ),
    *(Objective("output", on=on) for on in ON),
    *(Objective("damage", on=on, ref=ref) for on, ref in product(ON, ("reconstruction", "input"))),
    Objective("latent-side"),
]


def name_of(objective: Objective) -> str:
    return "-".join([objective.mode, objective.similarity, objective.on, objective.ref])


every_objective = pytest.mark.parametrize("objective", EVERY, ids=name_of)


def rand(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def noise_for(width: int, draws: int = DRAWS, items: int = ITEMS, dtype: torch.dtype = torch.float64) -> Tensor:
    like = torch.zeros((), dtype=dtype)
    return noise_set((width,), draws=draws, items=range(items), seed=0, check="test", like=like)


def problem(objective: Objective, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Items, targets and other points for a small VAE of inputs (2, 3) and two latents."""
    shape = (2,) if objective.mode == "latent-side" else (2, 3)
    x, x_t, points = (rand(ITEMS, *shape, seed=seed, dtype=dtype) for seed in (1, 2, 3))
    return x, x_t, points


class Counted:
    """Another VAE, counting the rows that its encoder and its decoder are given, call by call."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.input_shape, self.range, self.prior = vae, vae.input_shape, vae.range, vae.prior
        self.encoded: list[int] = []
        self.decoded: list[int] = []

    def encode(self, x: Tensor) -> DiagonalGaussian:
        self.encoded.append(len(x))
        return self.vae.encode(x)

    def decode(self, z: Tensor) -> Any:
        self.decoded.append(len(z))
        return self.vae.decode(z)


class Point:
    """A deterministic posterior: nothing is known of it but its mean."""

    def __init__(self, mean: Tensor) -> None:
        self.mean, self.noise_shape = mean, ()

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean.expand(*noise.shape, *self.mean.shape[1:])

    def kl(self, other: "Point") -> Tensor:  # noqa: ARG002
        raise UnsupportedError("a deterministic encoder has no KL")

    def wasserstein2(self, other: "Point") -> Tensor:
        return torch.linalg.vector_norm(self.mean - other.mean, dim=1)

    def rows(self, index: Tensor) -> "Point":
        return Point(self.mean[index])


class Deterministic:
    input_shape = (3,)
    range = None

    @property
    def prior(self) -> Point:
        return Point(torch.zeros(1, 3, dtype=torch.float64))

    def encode(self, x: Tensor) -> Point:
        return Point(2 * x)

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z, torch.zeros((), dtype=z.dtype))


# Against the oracle and closed forms


def test_the_output_term_converges_to_its_closed_form(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    cases = [case for case in oracle["attacks"]["cases"] if case["kind"] == "output"]
    assert cases
    repeats = 2000
    item = torch.arange(repeats)
    for case in cases:
        numbers = oracle["models"][case["model"]]
        vae = linear_gaussian(numbers)
        x, x_t = (torch.tensor([numbers[name]], dtype=torch.float64).repeat(repeats, 1) for name in ("x", "xt"))
        # One item many times over, each with draws of its own: its terms tell their own standard error.
        data_term = output(vae, x, x_t, noise_for(2, items=repeats))
        for number in range(0, len(case["d"]), max(1, len(case["d"]) // 3)):
            points = x + torch.tensor(case["d"][number], dtype=torch.float64)
            terms = data_term(points, item)
            standard_error = float(terms.std()) / repeats**0.5
            expected = case["data_term"][number]
            assert float(terms.mean()) == pytest.approx(expected, abs=4.5 * standard_error)
            assert standard_error < 0.05 * abs(expected)


def test_damage_at_the_oracles_distortions_is_the_oracles(oracle: dict[str, Any], linear_gaussian: Any) -> None:
    repeats, item = 4000, torch.zeros(1, dtype=torch.long)
    for case in oracle["max_damage"]["cases"]:
        numbers = oracle["models"][case["model"]]
        vae = linear_gaussian(numbers)
        x = torch.tensor([numbers["x"]], dtype=torch.float64)
        tolerance = oracle["max_damage"]["tol"]
        for ref, name in (("reconstruction", "ref_recon"), ("input", "ref_x")):
            d = torch.tensor([case[f"{name}_delta"]], dtype=torch.float64)
            found = -float(damage(vae, x, None, ref)(x + d, item))
            assert found == pytest.approx(case[f"{name}_value"], rel=tolerance)
            # It is the most of any distortion of that norm, so nothing at random comes near it.
            others = torch.randn((500, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            others *= case["cap"] / torch.linalg.vector_norm(others, dim=1, keepdim=True)
            assert (-damage(vae, x, None, ref)(x + others, item.expand(500)) < found).all()
        # With noise: E||B A d + B sigma eta||^2 has a closed form, single draws have that mean square.
        many, d = x.repeat(repeats, 1), torch.tensor([case["ref_recon_delta"]], dtype=torch.float64)
        single = damage(vae, many, noise_for(2, draws=1, items=repeats))(many + d, torch.arange(repeats))
        standard_error = float(single.square().std()) / repeats**0.5
        assert float(single.square().mean()) == pytest.approx(case["mean_square_damage"], abs=4 * standard_error)
        mean = damage(vae, x, noise_for(2, draws=repeats, items=1))(x + d, item)
        assert 0 < -float(mean) < case["mean_square_damage"] ** 0.5  # Jensen


def test_latent_side_damage_of_a_linear_decoder_is_that_of_its_matrix(
    oracle: dict[str, Any], linear_gaussian: Any
) -> None:
    vae = Counted(linear_gaussian(oracle["models"]["LIN2"]))
    z, delta, item = rand(5, 2, seed=0), rand(4, 2, seed=1), torch.tensor([3, 0, 0, 4])
    found = latent_side(vae, z)(z[item] + delta, item)
    torch.testing.assert_close(found, -torch.linalg.vector_norm(delta @ vae.vae.B.T, dim=1))
    assert vae.encoded == []


def test_the_untargeted_term_has_the_adversarial_posterior_first() -> None:
    class Shift:
        """q(z|x) = N(x, (1 + x)^2)."""

        input_shape, range = (1,), None

        def encode(self, x: Tensor) -> DiagonalGaussian:
            return DiagonalGaussian(x, torch.log1p(x))

    x, points = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    item = torch.zeros(1, dtype=torch.long)
    noise = noise_for(1, items=1)
    there = 0.5 * (4 - 1 - torch.log(torch.tensor(4.0)).item() + 1)  # KL(N(1, 2^2) || N(0, 1))
    back = 0.5 * (0.25 - 1 + torch.log(torch.tensor(4.0)).item() + 0.25)  # KL(N(0, 1) || N(1, 2^2))
    for name, expected in (("kl", there), ("reverse-kl", back), ("symmetric-kl", there + back)):
        assert float(untargeted(Shift(), x, name, noise)(points, item)) == pytest.approx(-expected, rel=1e-6)


# What the perturbation reaches


@pytest.mark.parametrize("on", ON)
def test_the_perturbation_reaches_the_mean_the_standard_deviation_or_both(on: str, small_vae: Any) -> None:
    vae = small_vae()
    x, x_t, points = problem(Objective())
    noise, item = noise_for(2), torch.tensor([2, 0, 2])
    attacked, clean = vae.encode(points), vae.encode(x[item])
    q = DiagonalGaussian(
        clean.mean if on == "std" else attacked.mean, clean.log_stddev if on == "mean" else attacked.log_stddev
    )
    target, draws = vae.encode(x_t[item]), q.sample(noise[:, item])
    for name, measure in SIMILARITIES.items():
        if (name, on) == ("mean", "std"):
            continue  # refused: nothing could change
        found = latent(vae, x, x_t, name, noise, on)(points, item)
        torch.testing.assert_close(found, measure(q, target, noise[:, item]))
        found = untargeted(vae, x, name, noise, on)(points, item)
        torch.testing.assert_close(found, -measure(q, clean, noise[:, item]))
    log_prob = torch.stack([vae.decode(z).log_prob(x_t[item]) for z in draws]).mean(0)
    torch.testing.assert_close(output(vae, x, x_t, noise, on)(points, item), q.kl(vae.prior) - log_prob)
    for ref, reference in (("input", x[item]), ("reconstruction", vae.decode(clean.mean).mean)):
        gaps = torch.stack([(vae.decode(z).mean - reference).flatten(1) for z in draws])
        found = damage(vae, x, noise, ref, on)(points, item)
        torch.testing.assert_close(found, -torch.linalg.vector_norm(gaps, dim=2).mean(0))
        if on != "std":
            gap = (vae.decode(attacked.mean).mean - reference).flatten(1)
            found = damage(vae, x, None, ref, on)(points, item)
            torch.testing.assert_close(found, -torch.linalg.vector_norm(gap, dim=1))


def test_a_posterior_that_cannot_be_taken_apart_is_attacked_whole_or_refused() -> None:
    vae, x = Deterministic(), rand(2, 3, seed=0)
    noise, item = noise_set((), draws=DRAWS, items=[0, 1], seed=0, check="test", like=x), torch.arange(2)
    gap = torch.linalg.vector_norm(2 * torch.ones(3, dtype=torch.float64))
    for data_term in (untargeted(vae, x, "mean", noise), untargeted(vae, x, "sample", noise), damage(vae, x, noise)):
        torch.testing.assert_close(data_term(x + 1, item), -gap.expand(2))
    with pytest.raises(UnsupportedError, match=r"std alone needs .* which Point is not; attack both"):
        damage(vae, x, noise, on="std")
    with pytest.raises(UnsupportedError, match="no KL"):
        output(vae, x, x, noise)(x, item)


# Every objective


@every_objective
def test_the_gradient_is_that_of_finite_differences(objective: Objective, small_vae: Any) -> None:
    x, x_t, points = problem(objective)
    data_term = objective.data_term(small_vae(), x, x_t, noise_for(2))
    item = torch.tensor([1, 0, 1])
    assert torch.autograd.gradcheck(lambda points: data_term(points, item), points.requires_grad_())


@every_objective
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient_are_finite_where_the_attack_starts(
    objective: Objective, dtype: torch.dtype, small_vae: Any
) -> None:
    vae = small_vae(dtype=dtype)
    x, x_t, _ = problem(objective, dtype)
    for noise in (noise_for(2, dtype=dtype), None)[: 2 if objective.mode == "damage" and objective.on != "std" else 1]:
        leaf = x.clone().requires_grad_()
        value = objective.data_term(vae, x, x_t, noise)(leaf, torch.arange(ITEMS))
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        assert value.dtype == gradient.dtype == dtype
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        if objective.mode == "untargeted":
            assert value.abs().max() < (1e-12 if dtype == torch.float64 else 1e-5)


@every_objective
def test_the_term_of_a_point_depends_on_its_own_item_alone(objective: Objective, small_vae: Any) -> None:
    vae = small_vae()
    x, x_t, points = problem(objective)
    noise = noise_for(2)
    item = torch.tensor([2, 0, 1, 2])
    points = points[[0, 1, 2, 1]]
    found = objective.data_term(vae, x, x_t, noise)(points, item)
    assert found.shape == (4,)
    for k, i in enumerate(item.tolist()):
        one = slice(i, i + 1)
        alone = objective.data_term(vae, x[one], x_t[one], noise[:, one])(points[k : k + 1], torch.zeros(1).long())
        torch.testing.assert_close(found[k : k + 1], alone, rtol=1e-12, atol=1e-12)


@every_objective
def test_only_the_points_run_through_the_model_each_in_one_call(objective: Objective, small_vae: Any) -> None:
    vae = Counted(small_vae())
    x, x_t, points = problem(objective)
    data_term = objective.data_term(vae, x, x_t, noise_for(2))
    vae.encoded, vae.decoded = [], []
    data_term(points[:2], torch.tensor([2, 1]))
    assert vae.encoded == ([] if objective.mode == "latent-side" else [2])
    assert objective.row.decodes == (vae.decoded == [2 * DRAWS])
    assert vae.decoded == {"output": [2 * DRAWS], "damage": [2 * DRAWS], "latent-side": [2]}.get(objective.mode, [])


@every_objective
def test_nonnegative_terms_are_so_and_units_say_what_is_measured(objective: Objective, small_vae: Any) -> None:
    x, x_t, points = problem(objective)
    value = objective.data_term(small_vae(), x, x_t, noise_for(2))(points, torch.arange(ITEMS))
    assert objective.row.floor == (0.0 if objective.mode == "latent" else None)
    if objective.row.floor == 0:
        assert (value >= 0).all()
    elif objective.mode != "output":
        assert (value < 0).all()
    expected = {"output": "nats", "damage": "input units", "latent-side": "input units"}.get(objective.mode)
    assert objective.unit == (expected or ("nats" if "kl" in objective.similarity else "latent units"))
    assert objective.row.targeted == (objective.mode in ("latent", "output"))


@pytest.mark.parametrize("mode", names())
def test_another_noise_set_gives_another_estimate_of_the_same_value(mode: str, small_vae: Any) -> None:
    objective = Objective(mode, similarity="sample")
    x, x_t, points = problem(objective)
    vae, item = small_vae(), torch.arange(ITEMS)
    first, fresh = (
        objective.data_term(vae, x, x_t, noise)(points, item)
        for noise in noise_for(2, draws=8000).chunk(2)  # the first and the last half of the draws
    )
    assert (first == fresh).all() if mode == "latent-side" else (first != fresh).all()
    torch.testing.assert_close(first, fresh, rtol=0.05, atol=0.05)


# Bad input


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "latnt"}, r"no attack mode 'latnt' \(did you mean 'latent'\?\); there are latent, output"),
        ({"similarity": "KL"}, "no attack similarity 'KL'.*there are kl"),
        ({"on": "sigma"}, "no attack on 'sigma'; there are both, mean, std"),
        ({"ref": "inputs"}, "no attack ref 'inputs'.*there are reconstruction, input"),
    ],
)
def test_unknown_names_are_refused_with_the_list(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Objective(**wrong)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda vae, x: Objective("latent").data_term(vae, x, x), "'latent' needs a noise set.*at least one draw"),
        (lambda vae, x: Objective("output").data_term(vae, x, None, noise_for(2)), "'output' needs a target"),
        (lambda vae, x: Objective("damage", on="std").data_term(vae, x), "changes nothing at z = the mean"),
        (lambda vae, x: latent(vae, x, x, "mean", noise_for(2), "std"), "does not change the distance of the means"),
        (lambda vae, x: latent(vae, x, x, "kl", noise_for(2), layers=(2,)), r"from 1 to 1, .* but \[2\] was given"),
        (lambda vae, x: latent(vae, x, x, "kl", noise_for(2), on="sigma"), "no attack on 'sigma'"),
        (lambda vae, x: untargeted(vae, x, "l2", noise_for(2)), "no attack similarity 'l2'"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_one_sentence(
    build: Callable[[Any, Tensor], object], message: str, small_vae: Any
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(small_vae(), rand(ITEMS, 2, 3, seed=1))


def test_the_only_layer_may_be_named(small_vae: Any) -> None:
    vae, (x, x_t, points) = small_vae(), problem(Objective())
    item = torch.arange(ITEMS)
    for similarity in SIMILARITY:
        whole, named = (latent(vae, x, x_t, similarity, noise_for(2), layers=layers) for layers in (None, (1,)))
        assert (whole(points, item) == named(points, item)).all()


# Sums of squares


@pytest.mark.parametrize("on", ["both", "mean", "std"])
@pytest.mark.parametrize("similarity", sorted(RESIDUALS))
def test_half_the_sum_of_squared_residuals_is_the_kl(similarity: str, on: str, small_vae: Any) -> None:
    vae = small_vae()
    x, x_t, points = problem(Objective())
    data_term = latent(vae, x, x_t, similarity, noise_for(2), on)
    assert isinstance(data_term, Squares)
    item = torch.tensor([2, 0, 1])
    for at in (points, x_t[item], x[item]):  # the target's posterior matches where both are moved
        leaf = at.clone().requires_grad_()
        residuals = data_term.residuals(leaf, item)
        torch.testing.assert_close(0.5 * residuals.square().sum(1), data_term(at, item), rtol=1e-10, atol=1e-14)
        (slope,) = torch.autograd.grad(residuals.sum(), leaf)
        assert slope.isfinite().all()
    (slope,) = torch.autograd.grad(0.5 * data_term.residuals(leaf, item).square().sum(), leaf)
    (expected,) = torch.autograd.grad(data_term(leaf, item).sum(), leaf)
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_residuals_of_deviations_are_exact_from_a_match_to_far(dtype: torch.dtype) -> None:
    u = torch.tensor([0, 1e-9, -1e-5, 0.01, -0.0999, 0.0999, 0.1001, -0.1001, 1.0, -3.0, 5.0], dtype=dtype)
    q = DiagonalGaussian(torch.zeros_like(u)[:, None], u[:, None])
    residual = kl_residuals(q, DiagonalGaussian.standard((1,), u))[:, 1].double()
    with localcontext(prec=50):
        doubled = [2 * Decimal(float(v)) for v in u.double()]
        exact = [float((v.exp() - 1 - v).sqrt().copy_sign(v)) for v in doubled]
    torch.testing.assert_close(
        residual, torch.tensor(exact, dtype=torch.float64), rtol=200 * torch.finfo(dtype).eps, atol=0
    )


def test_slopes_of_a_term_are_directions_times_the_jacobian_of_its_residuals(small_vae: Any) -> None:
    x, x_t, points = problem(Objective())
    data_term = latent(small_vae(), x, x_t, "kl", noise_for(2))
    assert isinstance(data_term, Squares)
    term = Term(data_term, tuple(x.shape[1:]), RowBatches(1), first=1)
    known = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    at = (points[:2].flatten(1), torch.tensor([1, 0]))
    residuals, directions, slopes = term.slopes(*at, lambda residuals, row: known[row] * residuals[:, None])
    torch.testing.assert_close(residuals, data_term.residuals(points[:2], torch.tensor([2, 1])))
    torch.testing.assert_close(directions, known * residuals[:, None])
    rows = term.slopes(*at, whole)[2]
    for row, item in enumerate((2, 1)):
        of = torch.tensor([item])
        jacobian = torch.autograd.functional.jacobian(
            lambda at, of=of: data_term.residuals(at[None], of)[0], points[row]
        ).flatten(1)
        torch.testing.assert_close(rows[row], jacobian)
        torch.testing.assert_close(slopes[row], directions[row] @ jacobian)


def test_a_posterior_of_a_kl_of_its_own_is_no_sum_of_squares(small_vae: Any) -> None:
    class Wider(DiagonalGaussian):
        def kl(self, other: Any) -> Tensor:
            return 2 * super().kl(other)

    class Own:
        def __init__(self, vae: Any) -> None:
            self.vae, self.input_shape = vae, vae.input_shape

        def encode(self, x: Tensor) -> DiagonalGaussian:
            """A posterior that is no plain Gaussian."""
            q = self.vae.encode(x)
            return Wider(q.mean, q.log_stddev)

    x, x_t, _ = problem(Objective())
    assert not isinstance(latent(Own(small_vae()), x, x_t, "kl", noise_for(2)), Squares)
    assert not isinstance(latent(small_vae(), x, x_t, "mean", noise_for(2)), Squares)
    assert not isinstance(untargeted(small_vae(), x, "kl", noise_for(2)), Squares)
