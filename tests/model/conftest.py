"""What every adapter must do: keep the contract, and let every check run or have it refused as docs/models.md says."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vaeaudit import Concrete, DiagonalGaussian, GaussianChain
from vaeaudit.audit.run import works_of
from vaeaudit.checks.registry import OURS
from vaeaudit.checks.weights.stored import open_weights
from vaeaudit.data.items import fit
from vaeaudit.data.sources import read
from vaeaudit.errors import InputError
from vaeaudit.model.contract import check_contract
from vaeaudit.model.registry import LoadedModel
from vaeaudit.model.vae import VAE, Joint, Posterior
from vaeaudit.progress import always
from vaeaudit.settings.sections import (
    AttackSettings,
    DataSettings,
    EquivalenceSettings,
    LatentsSettings,
    MarginSettings,
    ModelSettings,
    NoiseSettings,
    Settings,
)
from vaeaudit.subject.opened import Subject, bound
from vaeaudit.subject.plausibility import Plausibility

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
MODES = ("latent", "output", "damage")
# What data that are no images, or too small ones, do not have, of whatever model.
OF_IMAGES = ("are no images of one or three channels", "needs images of at least 11 pixels")

Cells = dict[str, tuple[str, list[str]]]  # "yes", "in part" or "no", and the reasons, by check


@pytest.fixture(scope="session")
def keeps_the_contract() -> Callable[..., None]:
    """Asserts all that the contract says of a model of float64, given items of its data, and leaves it in float32."""

    def keeps(vae: Any, x: Tensor, *, steps: bool = False) -> None:
        """``steps``: it is a step function somewhere, whose gradient is another one's."""
        assert not vae.training and not any(weight.requires_grad for weight in vae.parameters())
        check_contract(vae, x)
        q = vae.encode(x)
        z = q.sample(torch.ones((1, len(x), *q.noise_shape), dtype=x.dtype))[0]
        decoded = vae.decode(z)
        # Determinism and rows apart, to the last bits, of which some classes of a library keep those of float32.
        assert torch.equal(vae.encode(x).mean, q.mean) and torch.equal(vae.decode(z).mean, decoded.mean)
        near = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(vae.encode(x[1:2]).mean[0], q.mean[1], **near)
        torch.testing.assert_close(vae.decode(z[1:2]).mean[0], decoded.mean[1], **near)
        torch.testing.assert_close(vae.decode(z[1:2]).log_prob(x[1:2])[0], decoded.log_prob(x)[1], **near)
        assert q.mean.dtype == vae.prior.mean.dtype == decoded.mean.dtype == x.dtype
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(vae.decode(vae.encode(leaf).mean).mean[0].sum(), leaf)
        assert gradient.isfinite().all() and (gradient[0] != 0).any() and (gradient[1:] == 0).all()
        if not steps:
            _has_the_slope_of_finite_differences(vae, x)
        _has_the_kl_of_its_draws(q, vae.prior)
        mean = q.mean.detach()
        vae.to(torch.float32)
        again = vae.encode(x.float()).mean
        assert again.dtype == vae.prior.mean.dtype == vae.decode(again).mean.dtype == torch.float32
        torch.testing.assert_close(again.double(), mean, rtol=1e-3, atol=1e-3)

    return keeps


def _has_the_slope_of_finite_differences(vae: VAE, x: Tensor) -> None:
    at, direction = 0.5 * x[:1], x[1:2]

    def value(t: Tensor | float) -> Tensor:
        q = vae.encode(at + t * direction)
        z = q.sample(torch.full((1, 1, *q.noise_shape), 0.5, dtype=x.dtype))[0]
        return z.square().sum() + vae.decode(z).mean.sum()

    t = torch.zeros((), dtype=x.dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(value(t), t)
    # Some classes round to float32 on the way, others are so curved that a long step does not tell the slope.
    with torch.no_grad():
        steps = [float((value(h) - value(-h)) / (2 * h) / slope) for h in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)]
    assert min(abs(step - 1) for step in steps) < 0.05, steps


@torch.no_grad()
def _has_the_kl_of_its_draws(q: Posterior, prior: Posterior, draws: int = 500) -> None:
    """Part by part, where there is one in closed form."""
    for part, of in zip(q.parts, prior.parts, strict=True) if isinstance(q, Joint) else ((q, prior),):
        generator = torch.Generator().manual_seed(0)
        if isinstance(part, Concrete):  # of which the KL is that of the classes
            log_ratio = part.log_probabilities - of.log_probabilities
            classes = torch.multinomial(part.mean, draws, replacement=True, generator=generator)
            terms = log_ratio.gather(1, classes).T
            spread = ((part.mean * log_ratio.square()).sum(1) - part.kl(of).square()).clamp(min=0).sqrt()
        elif type(part) is type(of) and isinstance(part, DiagonalGaussian | GaussianChain):
            noise = torch.randn((draws, *part.mean.shape), generator=generator, dtype=part.mean.dtype)
            z = part.sample(noise)
            terms = torch.stack([part.log_prob(one) - of.log_prob(one) for one in z])
            spread = terms.std(0)
        else:
            continue
        assert ((part.kl(of) - terms.mean(0)).abs() <= 5 * spread / draws**0.5 + 1e-9).all()


@pytest.fixture(scope="session")
def table() -> Mapping[str, Cells]:
    """The table of docs/models.md: what each check does with each kind of model, the reasons as quoted below it."""
    text = PAGE[PAGE.index("| model | attack ") :]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text[: text.index("\n\n")].splitlines()]
    notes = {
        m[1]: re.findall(r'"([^"]+)"', m[2]) for m in re.finditer(r"^(\d+)\. ((?:.+\n)+?)(?=\d+\. |\n)", text, re.M)
    }

    def cell(said: str) -> tuple[str, list[str]]:
        answer, *numbers = re.split(r"\s*<sup>|,\s*|</sup>", said)
        return answer, [" ".join(quoted.split()) for number in numbers if number for quoted in notes[number]]

    return {row[0]: dict(zip(lines[0][1:], map(cell, row[1:]), strict=True)) for row in lines[2:]}


@pytest.fixture(scope="session")
def goes_as_the_table_says(
    table: Mapping[str, Cells],
    tmp_path_factory: pytest.TempPathFactory,
    search_loosely: Callable[[pytest.MonkeyPatch], None],
) -> Callable[..., None]:
    """Asserts that every check does with a model what a row of the table says."""

    def goes(
        row: str,
        model: LoadedModel,
        parts: Sequence[str] = ("certified", "empirical"),
        checks: Sequence[str] = tuple(check.name for check in OURS),
    ) -> None:
        """``parts``: of margins, of which the empirical one decodes some thousand draws."""
        for check in checks:
            answer, quoted = table[row][check]
            with pytest.MonkeyPatch.context() as patch:
                search_loosely(patch)
                found, reasons = _carried_out(check, model, tmp_path_factory.mktemp("data"), parts)
            assert found == answer, (check, reasons)
            assert all(any(text in reason for text in quoted) for reason in reasons), (check, reasons)
            assert all(any(text in reason for reason in reasons) for text in quoted), (check, reasons)

    return goes


def _carried_out(check: str, model: LoadedModel, folder: Path, parts: Sequence[str]) -> tuple[str, list[str]]:
    """Whether a check of ours runs on four items of noise, and the reasons of what is refused of it."""
    (row,) = [one for one in OURS if one.name == check]
    vae = model.vae
    low, high = np.clip(vae.range or (-1.0, 1.0), -3, 3)
    values = np.random.default_rng(0).uniform(low, high, size=(4, *vae.input_shape)).astype(np.float32)
    values = values.round() if vae.range == (0.0, np.inf) else values  # counts
    factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    np.savez(folder / "noise.npz", images=values, latents_classes=factors, labels=np.array([0, 1, 1, 0]))
    settings = Settings(
        model=ModelSettings(
            path=str(model.checkpoint.path),
            adapter=model.adapter.name,
            options=dict(model.options),
            trust_code=model.checkpoint.trusted,
        ),
        data=DataSettings(source=str(folder / "noise.npz")),
        margin=MarginSettings(r=(1e-3,), items=1, draws=20, effort="fast", parts=tuple(parts)),
        noise=NoiseSettings(sigmas=(0.1,), draws=2),
        equivalence=EquivalenceSettings(variants=("dtype=float64",), items=2, draws=1),
        latents=LatentsSettings(traverse=1),
    )
    data = fit(read(folder / "noise.npz"), input_shape=tuple(vae.input_shape), data_range=vae.range)
    model = replace(model, vae=bound(vae, data, torch.float32, torch.device("cpu")))
    ran, reasons = 0, []
    for mode in MODES if check == "attack" else (None,):
        if mode is not None:
            few = AttackSettings(modes=(mode,), pairs=1, lambdas=1, restarts=0, caps=(0.5,), max_evaluations=11)
            few = few if mode == "damage" else few.model_copy(update={"max_evaluations": 1})
            settings = settings.model_copy(update={"attack": few})
        subject = Subject(
            settings, torch.device("cpu"), torch.float32, model, data, np.arange(4), Plausibility((), {}, 4), ""
        )
        try:
            works = works_of(row, partial(open_weights, settings) if row.of_file else subject)
            skipped = [record.skipped for record in (work(always) for work in works.values())]
            ran += 1
        except InputError as error:
            skipped = [{check: str(error)}]
        told = [why for one in skipped for why in one.values()]
        reasons += [why for why in told if not any(text in why for text in OF_IMAGES) and not why.startswith("as ")]
    return ("yes" if not reasons else "in part" if ran else "no"), reasons
