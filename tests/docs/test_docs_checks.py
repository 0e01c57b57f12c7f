"""What the pages on the checks, on adapters and on security say is so."""

import contextlib
import io
import json
import re
import shlex
import socket
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vaeaudit
from vaeaudit import DiagonalGaussian, GaussianChain, GaussianLikelihood
from vaeaudit.attacks.modes import names
from vaeaudit.attacks.signs import Sign
from vaeaudit.checks.attack import entry as attack_report
from vaeaudit.checks.attack.capped import capped_attack
from vaeaudit.checks.attack.classifier import Judge, LogisticRegression
from vaeaudit.checks.attack.measure import attack
from vaeaudit.checks.attack.success import ClassSuccess, FactorSuccess, summarise_classes, summarise_factor
from vaeaudit.checks.attack.summarise import summarise, summarise_capped, summarise_likeness
from vaeaudit.checks.equivalence import entry as equivalence_report
from vaeaudit.checks.equivalence.measure import EquivalenceResult, equivalence
from vaeaudit.checks.equivalence.summarise import summarise_equivalence
from vaeaudit.checks.latents import entry as latents_report
from vaeaudit.checks.latents.measure import latents
from vaeaudit.checks.latents.summarise import summarise_latents
from vaeaudit.checks.margin.entry import MARGIN_LEGEND
from vaeaudit.checks.margin.measure import margin
from vaeaudit.checks.margin.summarise import summarise_margin
from vaeaudit.checks.mig.entry import MIG_LEGEND
from vaeaudit.checks.mig.measure import mig
from vaeaudit.checks.mig.summarise import summarise_mig
from vaeaudit.checks.noise.entry import NOISE_LEGEND
from vaeaudit.checks.noise.measure import noise
from vaeaudit.checks.noise.summarise import summarise_noise
from vaeaudit.checks.reconstruction import entry as reconstruction_report
from vaeaudit.checks.reconstruction.measure import reconstruction
from vaeaudit.checks.reconstruction.metrics import GROUPED
from vaeaudit.checks.reconstruction.networks import Network
from vaeaudit.checks.reconstruction.summarise import group_means, summarise_reconstruction
from vaeaudit.checks.weights.measure import assign, weights
from vaeaudit.checks.weights.summarise import summarise_weights
from vaeaudit.errors import UnsupportedError
from vaeaudit.model.adapters import GROUP
from vaeaudit.model.contract import check_contract
from vaeaudit.model.divergence import layers_to_prior
from vaeaudit.model.vae import VAE
from vaeaudit.model.variant import Variant
from vaeaudit.model.variants import Running
from vaeaudit.stats import estimates
from vaeaudit.stats.estimates import Measurement
from vaeaudit.subject.plausibility import Verdict, examine

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHECKS = ("attack", "margin", "noise", "reconstruction", "equivalence", "weights", "latents", "mig")
HEADINGS = [
    "What it asks",
    "The formula",
    "How to read the table and the figure",
    "Metrics",
    "Settings",
    "What it cannot tell",
    "Try it",
]
LEGENDS: dict[str, list[str]] = {
    "attack": [*attack_report.LEGEND, *attack_report.CAPPED_LEGEND],
    "margin": [*MARGIN_LEGEND],
    "noise": [*NOISE_LEGEND],
    "reconstruction": [
        *reconstruction_report.LEGEND,
        *reconstruction_report.BIAS_LEGEND,
        *reconstruction_report.GROUP_LEGEND,
        *reconstruction_report.FEATURE_LEGEND,
        *reconstruction_report.FID_LEGEND,
    ],
    "equivalence": [*equivalence_report.LEGEND, *equivalence_report.FIGURE_LEGEND],
    "latents": [
        *latents_report.EVIDENCE_LEGEND,
        *latents_report.APART_LEGEND,
        *latents_report.UNITS_LEGEND,
        *latents_report.ACTIVE_LEGEND,
    ],
    "mig": [*MIG_LEGEND],
}
NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"
# What the braces of a metric's name stand for; those with commas are alternatives.
BRACES = {
    "mode": "|".join(map(re.escape, names())),
    "norm": "l2|linf",
    "estimator": "chen|hist20",
    "factor": ".+",
    "variant": r"(?!scale)[\w+-]+",
    "i": r"\d+",
    "n": r"\d+",
    "j": r"\d+",
    **dict.fromkeys(("r", "cap", "sigma"), NUMBER),
}
Metrics = Mapping[str, Measurement]
Command = Callable[..., Any]  # its exit code, stdout and stderr: code, out, err


def page(check: str) -> str:
    return (DOCS / "checks" / f"{check}.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rows(text: str) -> list[list[str]]:
    """The rows of the tables in ``text``, without their headers."""
    split = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    rules = [place for place, cells in enumerate(split) if set("".join(cells)) <= {"-", ":"}]
    return [cells for place, cells in enumerate(split) if place not in rules and place + 1 not in rules]


def pattern(name: str) -> str:
    """`margin.r{r}.{certified,empirical}.median` as a regular expression."""
    parts = re.split(r"\{(.*?)\}", name)
    braces = [BRACES.get(part) or "|".join(map(re.escape, part.split(","))) for part in parts[1::2]]
    return "".join(
        re.escape(plain) + (f"(?:{brace})" if brace else "")
        for plain, brace in zip(parts[::2], [*braces, ""], strict=True)
    )


@pytest.mark.parametrize("check", CHECKS)
def test_every_page_of_a_check_has_the_same_headings(check: str) -> None:
    assert re.findall(r"^## (.*)$", page(check), re.MULTILINE) == HEADINGS
    assert f"](../configuration.md#{check})" in section(page(check), "Settings")


class Stacked:
    """Two stochastic layers of two units each, whose second looks at the first; inputs of two numbers."""

    input_shape, range = (2,), None

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard((4,), like=torch.zeros(1))

    def encode(self, x: Tensor) -> GaussianChain:
        return GaussianChain(DiagonalGaussian(x, 0 * x - 1), (lambda z: DiagonalGaussian(z / 2, 0 * z - 1),))

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z[:, :2], torch.zeros(()))

    def conditional_priors(self, z: Tensor) -> tuple[DiagonalGaussian, ...]:
        return DiagonalGaussian(z[:, 2:], 0 * z[:, 2:]), DiagonalGaussian.standard((2,), like=z)


def of_success() -> Metrics:
    """The metrics of attacks whose pairs were chosen by label, or by one factor."""
    zero, one = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)
    hits = torch.tensor([True, False, True, True])
    classifier = LogisticRegression(torch.zeros(1, 2), torch.zeros(2), torch.arange(2))
    accuracy = estimates.proportion(99, 100, unit="share", direction="none")
    by_label = ClassSuccess(source=zero, target=one, clean=zero, adversarial=one)
    by_factor = FactorSuccess(hits, torch.rand(4), zero, ~hits, hits)
    return {
        **summarise_classes(by_label, Judge(classifier, accuracy, 0.5, ""), prefix="attack.latent"),
        **summarise_factor(by_factor, prefix="attack.output"),
    }


class Mirror:
    """A deterministic model of any shape, which gives back half of its input."""

    def __init__(self, *shape: int) -> None:
        self.input_shape, self.range = shape, (0.0, 1.0)

    @property
    def prior(self) -> DiagonalGaussian:
        return DiagonalGaussian.standard(self.input_shape, like=torch.zeros(1))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(x / 2, 0 * x - 5)

    def decode(self, z: Tensor) -> GaussianLikelihood:
        return GaussianLikelihood(z, torch.zeros(()))


def of_reconstruction() -> list[Metrics]:
    """Those of colour pictures in groups, and of vectors."""
    network = Network(lambda *images: images[0].flatten(1), 3, (2, 2), "network.pt2", "0" * 64)
    x = torch.rand(24, 3, 12, 12)
    pictures = reconstruction(Mirror(3, 12, 12), x, perceptual=network, network=network)
    halves = {"half": np.arange(24) // 12}
    groups = {of.name: group_means(of, pictures.at_mean[of.name].numpy(), halves) for of in GROUPED}
    vectors = reconstruction(Mirror(4), torch.rand(24, 4))
    return [summarise_reconstruction(pictures, groups), summarise_reconstruction(vectors)]


def of_equivalence() -> EquivalenceResult:
    """A model of colour pictures, and the same as a variant."""
    same = Running(Mirror(3, 12, 12), torch.float32, Variant(), torch.device("cpu"))
    return equivalence(same, {"bfloat16": same}, torch.rand(24, 3, 12, 12))


@pytest.fixture(scope="module")
def measured(small_vae: Any, bundled_model: Any, bundled_images: Tensor) -> dict[str, list[Metrics]]:
    """The metrics of every check on a few items, those of one run together."""
    generator = torch.Generator().manual_seed(0)
    vae, other = small_vae(), small_vae(seed=6)
    x = torch.rand(24, 2, 3, generator=generator, dtype=torch.float64)
    short = {"lambdas": 3, "max_evaluations": 40}
    seen = capped_attack(bundled_model, bundled_images[:2], "untargeted", caps=[0.1], norm="linf", max_evaluations=20)
    return {
        "attack": [
            summarise(attack(vae, x[:3], x[3:6], "latent", **short)),
            summarise(attack(vae, x[:3], x[3:6], "latent", similarity="mean", **short)),
            summarise(attack(vae, x[:3], x[3:6], "output", **short)),
            summarise(attack(Stacked(), *torch.randn(2, 1, 2, generator=generator), lambdas=1, max_evaluations=5)),
            summarise_capped(capped_attack(vae, x[:3], "latent-side", caps=[0.25, 1], max_evaluations=30)),
            summarise_capped(seen) | summarise_likeness(seen, (0.0, 1.0)),
            of_success(),
        ],
        "margin": [summarise_margin(margin(vae, x[:2], [0.75], draws=100, effort="boxed"))],
        "noise": [summarise_noise(noise(vae, x, [0.1, 1], draws=2))],
        "reconstruction": of_reconstruction(),
        "equivalence": [summarise_equivalence(of_equivalence())],
        "weights": [summarise_weights(weights(vae.state_dict(), against=other.state_dict()))],
        "latents": [
            summarise_latents(latents(vae, x)),
            summarise_latents(latents(Stacked(), torch.randn(20, 2, generator=generator), draws=2)),
        ],
        "mig": [summarise_mig(mig(vae, x, np.arange(24)[:, None] // np.array([12, 8]), names=["half", "third"]))],
    }


@pytest.mark.parametrize("check", CHECKS)
def test_the_metrics_of_a_page_are_those_that_its_check_gives(measured: dict[str, list[Metrics]], check: str) -> None:
    told = [[row[0].strip("`"), *row[1:]] for row in rows(section(page(check), "Metrics"))]
    left = {name for name, *_ in told}
    for metrics in measured[check]:
        for name, metric in metrics.items():
            fitting = [row for row in told if re.fullmatch(pattern(row[0]), name)]
            assert len(fitting) == 1, f"{name} is told by {fitting or 'no row'}"
            ((told_as, unit, robust, *_),) = fitting
            assert metric.unit in unit, name
            assert robust == {"none": "neither"}.get(metric.direction, metric.direction), name
            left.discard(told_as)
    assert not left, "these are metrics of no check"


@pytest.mark.parametrize("check", LEGENDS)
def test_a_page_explains_every_column_of_its_tables(check: str) -> None:
    told = section(page(check), "How to read the table and the figure")
    assert [name for name in LEGENDS[check] if f"`{name}`" not in told] == []


def test_the_page_on_attacks_tells_every_failure_sign_with_its_limit() -> None:
    told = {row[0]: row[2] for row in rows(section(page("attack"), "How to read the table and the figure"))}
    assert told == {str(sign): f"{sign.limit:g}" for sign in Sign}


def test_the_page_on_attacks_tells_every_mode() -> None:
    told = [row[0].strip("`") for row in rows(section(page("attack"), "The formula"))]
    assert told == [*names()]


@pytest.mark.parametrize("check", CHECKS)
def test_the_files_of_what_a_page_gives_to_try_are_there(check: str) -> None:
    (block,) = blocks(section(page(check), "Try it"), "sh")
    (line,) = block.splitlines()
    _, name, *arguments = shlex.split(line)
    assert name == check
    for argument in arguments:
        assert argument.startswith("--") or "/" not in argument or (ROOT / argument).is_file(), argument


def test_the_page_on_weights_explains_what_its_own_example_shows(command: Command, tmp_path: Path) -> None:
    (line,) = blocks(section(page("weights"), "Try it"), "sh")
    _, *arguments = shlex.split(line)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = command(*arguments, "--format", "markdown")
    assert done.code == 0
    told = section(page("weights"), "How to read the table and the figure")
    columns, _, metrics = done.out.partition("## Metrics")
    for name in re.findall(r"^- \*\*(.*?)\*\*: ", columns, re.MULTILINE):
        assert f"`{name}`" in told
    for figure in re.findall(r"\]\((.*\.png)\)", done.out):
        assert f"`{figure}`" in told
    assert "weights.encoder.l2.change" in metrics


ADAPTERS = (DOCS / "adapters.md").read_text(encoding="utf-8")
ADAPTER, OF_EXAMPLES, TRAIN, WEIGHT_PARTS, TWO_FILES, WITH_OPTION, *OTHER_KINDS = blocks(ADAPTERS, "python")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the training script of the page on adapters ran, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "my_adapter.py").write_text(ADAPTER, encoding="utf-8")
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.random.fork_rng(),
        contextlib.redirect_stdout(io.StringIO()) as out,
    ):
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        exec(compile(TRAIN, "train.py", "exec"), {"__name__": "__main__"})
    sys.modules.pop("my_adapter", None)
    return folder, out.getvalue()


@pytest.fixture
def printed(trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What that script printed, with the files that it wrote in the working directory."""
    folder, out = trained
    monkeypatch.setattr(sys, "path", [*sys.path])  # on which an adapter puts its folder
    for name in ("my_adapter.py", "vae.safetensors", "val.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return out


def test_the_adapters_of_the_page_have_at_most_twenty_lines() -> None:
    for adapter in (ADAPTER, OF_EXAMPLES):
        assert len([line for line in adapter.splitlines() if line.strip()]) <= 20


def test_the_adapter_for_the_vae_of_pytorch_examples_gives_the_loss_of_its_script(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(OF_EXAMPLES, encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    sizes = {"fc1": (400, 784), "fc21": (20, 400), "fc22": (20, 400), "fc3": (400, 20), "fc4": (784, 400)}
    state = {f"{name}.weight": 0.05 * torch.randn(size, generator=generator) for name, size in sizes.items()}
    state |= {f"{name}.bias": torch.zeros(size[0]) for name, size in sizes.items()}
    torch.save(state, tmp_path / "vae.pt")
    x = torch.rand(3, 1, 28, 28, generator=generator)
    vae = vaeaudit.load(tmp_path / "vae.pt", f"{tmp_path / 'mine.py'}:open")
    hidden = torch.relu(torch.nn.functional.linear(x.flatten(1), state["fc1.weight"]))
    mean, logvar = hidden @ state["fc21.weight"].T, hidden @ state["fc22.weight"].T
    made = torch.sigmoid(torch.relu(mean @ state["fc3.weight"].T) @ state["fc4.weight"].T)
    loss = torch.nn.functional.binary_cross_entropy(made, x.flatten(1), reduction="sum")
    loss += -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())  # as its loss_function has it
    q = vae.encode(x)
    torch.testing.assert_close((q.kl(vae.prior) - vae.decode(q.mean).log_prob(x)).sum(), loss)
    assert command("weights", "vae.pt", "--adapter", "mine.py:open").code == 0


def test_the_adapter_of_the_page_opens_the_model_of_the_page(command: Command, printed: str) -> None:
    (block,) = [block for block in blocks(ADAPTERS, "sh") if "train.py" in block]
    lines = block.splitlines()
    assert lines[0] == "python train.py"
    program, *arguments = shlex.split(lines[1])
    assert program == "vaeaudit" and arguments[0] == "doctor"
    assert command(*arguments).code == 0
    losses = json.loads(command(*arguments, "--format", "json").out)["plausibility"]["losses"]
    told = re.fullmatch(r"reconstruction (.*), KL (.*)\n", printed)
    assert told is not None
    # The page promises the same numbers, which are printed to four digits and summed in another order.
    for name, value in zip(("reconstruction", "kl"), told.groups(), strict=True):
        assert losses[name]["value"] == pytest.approx(float(value), abs=2e-4)


def test_the_option_of_the_page_is_taken_from_the_file_and_from_the_user(
    command: Command, printed: str, tmp_path: Path
) -> None:
    assert printed
    (tmp_path / "my_adapter.py").write_text(f"{ADAPTER}\n\n{WITH_OPTION}", encoding="utf-8")
    doctor = ("doctor", "vae.safetensors", "--adapter", "my_adapter.py:open", "--data", "val.npz", "--format", "json")
    done = command(*doctor)
    assert (done.code, json.loads(done.out)["model"]["options"]) == (0, {"activation": "relu"})
    given = command(*doctor, "--option", "activation=tanh")
    assert json.loads(given.out)["model"]["options"] == {"activation": "tanh"}
    assert given.code == 5  # another function than the one that was trained
    for wrong in ("activation=gelu", "layers=3"):
        refused = command(*doctor, "--option", wrong)
        assert refused.said(2, "my_adapter takes an activation, relu or tanh")


def test_the_other_examples_of_the_page_on_adapters_mean_what_it_says() -> None:
    namespace: dict[str, Any] = {}
    exec(WEIGHT_PARTS, namespace)
    names = {"enc.0.weight": "encoder", "dec.0.weight": "decoder", "discriminator.weight": "neither"}
    assert assign(names, namespace["WEIGHT_PARTS"]) == names
    _, entry = blocks(ADAPTERS, "toml")
    assert tomllib.loads(entry)["project"]["entry-points"].keys() == {GROUP}
    told = {re.match(r"`(\w+)", row[0])[1] for row in rows(section(ADAPTERS, "What the contract asks"))}  # type: ignore[index]
    asked = {name for name in vars(VAE) if not name.startswith("_")}
    assert told == asked | {"notes", "latent_scale", "resized", "recognises"}


KINDS = {
    "ranges": OTHER_KINDS[0],
    "prior": OTHER_KINDS[1],
    "layers": OTHER_KINDS[2],
    "full": OTHER_KINDS[3],
    "mixed": OTHER_KINDS[4],
    "condition": OTHER_KINDS[5],
    "point": OTHER_KINDS[6],
}


@pytest.fixture
def other_kind(trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The model of one of the further examples, opened, with weights that were drawn, and its adapter's module."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_adapter.py").write_bytes((trained[0] / "my_adapter.py").read_bytes())

    def opened(kind: str) -> Any:
        monkeypatch.delitem(sys.modules, "my_adapter", raising=False)
        Path("other.py").write_text(KINDS[kind], encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        namespace: dict[str, Any] = {"__name__": "other"}
        exec(compile(KINDS[kind], "other.py", "exec"), namespace)
        found = [value for value in namespace.values() if isinstance(value, type) and issubclass(value, nn.Module)]
        own = next(value for value in found if value.__module__ == "other")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vae = own(4, 6) if kind == "prior" else own(4)
            tensors = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in vae.state_dict().items()}
        save_file(tensors, "other.safetensors")
        return vaeaudit.load("other.safetensors", "other.py:open")

    return opened


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"condition"}))
def test_each_further_kind_of_model_on_the_page_keeps_the_contract_and_can_be_audited(
    command: Command, other_kind: Callable[[str], Any], kind: str
) -> None:
    vae = other_kind(kind)
    assert command("weights", "other.safetensors", "--adapter", "other.py:open").code == 0
    box = vae.range if kind != "ranges" else None
    x = torch.rand(6, *vae.input_shape, generator=torch.Generator().manual_seed(1))
    if box is None:
        low, high = (torch.tensor(ends).reshape(3, 1, 1) for ends in zip(*vae.range, strict=True))
        x = low + x * (high - low)
    check_contract(vae, x)
    similarity = "mean" if kind == "point" else "kl"
    found = vaeaudit.attack(vae, x[:2], x[2:4], lambdas=2, similarity=similarity, max_evaluations=20)
    assert found.sweep.distortion.isfinite().all()
    assert vaeaudit.noise(vae, x, [0.1], draws=2).log_likelihood.isfinite().all()
    assert vaeaudit.capped_attack(vae, x[:2], "damage", caps=[0.1], max_evaluations=40).damage.isfinite().all()
    finding = next(one for one in examine(vae, x).findings if one.name == "KL to the prior")
    assert finding.verdict is Verdict.PASS
    assert ("estimated" in finding.message) == (kind in ("prior", "layers"))
    if kind == "point":
        assert "deterministic" in finding.message
        return
    if kind == "full":
        with pytest.raises(UnsupportedError, match="units of a posterior of type FullGaussian are not known"):
            vaeaudit.latents(vae, x)
        with pytest.raises(UnsupportedError, match="but this model's is FullGaussian"):
            vaeaudit.margin(vae, x[:2], 4.0)
        return
    found = vaeaudit.latents(vae, x)
    assert found.kl is not None and found.elbo is not None and found.elbo.isfinite().all()
    assert len(found.layers) == (2 if kind == "layers" else 1)
    assert len(found.encodings.log_probabilities) == (1 if kind == "mixed" else 0)
    assert (found.kl_error is not None) == (kind == "prior")


def test_what_a_point_has_no_attack_for_says_which_there_is(command: Command, printed: str) -> None:
    assert printed
    Path("point.py").write_text(KINDS["point"], encoding="utf-8")
    attack = ("attack", "vae.safetensors", "--adapter", "point.py:open", "--data", "val.npz", "--pairs", "2")
    for mode, said in (("latent", "--similarity mean needs the means alone"), ("output", "--mode damage needs no KL")):
        refused = command(*attack, "--mode", mode)
        assert refused.code == 2
        assert re.match(
            rf"error: no {mode} attack by kl: .*a deterministic encoder has no KL.*; {said}\n$", refused.err
        )


def test_the_mixture_of_the_page_has_the_density_that_it_says(other_kind: Callable[[str], Any]) -> None:
    prior = other_kind("prior").prior
    each = prior.components
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    parts = torch.distributions.Independent(torch.distributions.Normal(each.mean, each.stddev), 1)
    same = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(6)), parts)
    torch.testing.assert_close(prior.log_prob(z), same.log_prob(z))


def test_the_condition_of_the_page_is_the_label_of_each_item_and_reaches_both_networks(
    command: Command, other_kind: Callable[[str], Any]
) -> None:
    model = other_kind("condition")
    x, c = torch.rand(8, *model.input_shape, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4
    vae = vaeaudit.Conditioned(model, c)
    check_contract(vae, x)
    mean, _ = model.encoder(torch.cat([x.flatten(1), torch.eye(4)[c]], 1)).chunk(2, dim=1)
    torch.testing.assert_close(vae.encode(x).mean, mean)
    assert not torch.equal(vae.decode(mean).mean, model.decode(mean, c.roll(1)).mean)
    np.savez("val.npz", images=x.numpy(), labels=c.numpy())
    doctor = ("doctor", "other.safetensors", "--adapter", "other.py:open", "--format", "json", "--data")
    losses = json.loads(command(*doctor, "val.npz").out)["plausibility"]["losses"]
    expected = -vae.decode(mean).log_prob(x).mean()
    assert losses["reconstruction"]["value"] == pytest.approx(float(expected), rel=1e-5)
    np.savez("unlabelled.npz", images=x.numpy())
    assert command(*doctor, "unlabelled.npz").said(2, "conditional and needs a label for each item")
    np.savez("odd.npz", images=x.numpy(), labels=c.numpy() / 3)
    assert command(*doctor, "odd.npz").said(2, "holds none (labels: no labels but float64, 4 of 8 of them not whole")
    np.savez("unknown.npz", images=x.numpy(), labels=c.numpy() + 7)
    assert command(*doctor, "unknown.npz").said(3, "when it was tried on the data, under conditions from 7 to 10; see")


def test_the_gumbel_noise_of_the_page_is_gumbel_noise(other_kind: Callable[[str], Any]) -> None:
    """The largest of logits with Gumbel noise is drawn with the classes' probabilities."""
    vae = other_kind("mixed")
    concrete = vae.encode(torch.rand(1, *vae.input_shape)).parts[1]
    drawn = concrete.sample(torch.randn(20000, 1, 3, generator=torch.Generator().manual_seed(0))).argmax(-1)
    shares = torch.bincount(drawn.flatten(), minlength=3) / 20000
    assert float((shares - concrete.mean[0]).abs().max()) < 4 * 0.5 / 20000**0.5


def test_the_chain_of_the_page_has_the_kl_of_its_layers(other_kind: Callable[[str], Any]) -> None:
    """The log ratio of both chains' densities, by the distributions of torch."""
    vae = other_kind("layers")
    x = torch.rand(3, *vae.input_shape, generator=torch.Generator().manual_seed(1))
    q = vae.encode(x)
    noise = torch.randn(3, *q.noise_shape, generator=torch.Generator().manual_seed(2))
    z = q.sample(noise)
    z1, z2 = z[:, :4], z[:, 4:]

    def log_prob(p: Any, value: Tensor) -> Tensor:
        return torch.distributions.Normal(p.mean, p.log_stddev.exp()).log_prob(value).sum(1)

    up, (down, top) = q.upper[0](z1), vae.conditional_priors(z)
    expected = log_prob(q.first, z1) + log_prob(up, z2) - log_prob(down, z1) - log_prob(top, z2)
    torch.testing.assert_close(layers_to_prior(q, vae, noise), expected)
    torch.testing.assert_close(q.log_prob(z), log_prob(q.first, z1) + log_prob(up, z2))


def test_the_adapter_of_the_page_for_two_files_opens_and_lists_both(
    command: Command, trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # on which an adapter puts its folder
    whole = load_file(trained[0] / "vae.safetensors")
    for part in ("encoder", "decoder"):
        save_file({name: values for name, values in whole.items() if name.startswith(part)}, f"{part}.safetensors")
    Path("two_files.py").write_text(ADAPTER + "\n\n" + TWO_FILES, encoding="utf-8")
    data = str(trained[0] / "val.npz")
    done = command(
        "doctor", "encoder.safetensors", "--adapter", "two_files.py:open", "--data", data, "--format", "json"
    )
    assert done.code == 0
    assert [Path(file["path"]).name for file in json.loads(done.out)["model"]["files"]] == [
        "encoder.safetensors",
        "decoder.safetensors",
    ]


def test_a_file_names_no_code_of_its_own_as_the_page_on_security_says(command: Command, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('this was run')\n", encoding="utf-8")
    for named in ("planted.py:open", "planted:open"):
        save_file({"decoder.0.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors", {"vaeaudit.adapter": named})
        done = command("doctor", "a.safetensors", "--data", ROOT / "examples" / "shapes.npz")
        assert done.said(2, f"names the adapter '{named}', which is not installed")


def test_doctor_writes_nothing_and_opens_no_connection_as_the_page_on_security_says(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", None)  # whoever opened one would fail
    examples = ROOT / "examples"
    assert command("doctor", examples / "shapes-beta1.safetensors", "--data", examples / "shapes.npz").code == 0
    assert [*tmp_path.iterdir()] == []
