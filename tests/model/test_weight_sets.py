"""Which tensors are the weights: one of several sets is never taken unasked, and names that wrappers give are known."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import vaeaudit
from vaeaudit.errors import AdapterError, CheckpointError, NonFiniteError
from vaeaudit.model.checkpoints import read_checkpoint
from vaeaudit.model.registry import LoadedModel, open_model
from vaeaudit.model.weight_sets import twins, unwrapped

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL, DATA = EXAMPLES / "shapes-beta1.safetensors", EXAMPLES / "shapes.npz"
SHAPE = {"input_shape": [1, 28, 28]}

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> Tensors:
    return load_file(MODEL)


@pytest.fixture(scope="module")
def averaged(weights: Tensors) -> Tensors:
    return {name: 0.5 * tensor for name, tensor in weights.items()}


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor.clone() for name, tensor in tensors.items()}


def opened(path: str | Path) -> LoadedModel:
    return open_model(path, "mlp", SHAPE)


def is_of(model: LoadedModel, tensors: Tensors) -> bool:
    assert isinstance(model.vae, nn.Module)
    state = model.vae.state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Several sets

Layout = Callable[[Tensors, Tensors], Mapping[str, object]]
NESTED: dict[str, tuple[Layout, str, str]] = {
    "an average beside": (lambda w, a: {"state_dict": w, "ema_state_dict": a}, "state_dict", "ema_state_dict"),
    "the average first": (lambda w, a: {"model_ema": a, "model": w, "epoch": 3}, "model", "model_ema"),
    "no usual key": (lambda w, a: {"net": w, "net_averaged": a}, "net", "net_averaged"),
    "deeper": (lambda w, a: {"model": w, "ema": {"shadow": a, "decay": 0.99}}, "model", "ema.shadow"),
    "in a list": (lambda w, a: {"state_dict": w, "others": [a]}, "state_dict", "others.0"),
    "wrapped": (lambda w, a: {"model": w, "ema": prefixed("module.", a)}, "model", "ema"),
    "two usual keys": (lambda w, a: {"model": w, "state_dict": a}, "model", "state_dict"),
    "averaged by torch": (
        lambda w, a: {"model": w, "ema": {**prefixed("module.", a), "n_averaged": torch.tensor(7)}}, "model", "ema",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", NESTED)
def test_of_two_sets_under_keys_one_must_be_named(
    layout: str, tmp_path: Path, weights: Tensors, averaged: Tensors
) -> None:
    make, key, other = NESTED[layout]
    file = tmp_path / "vae.ckpt"
    torch.save(make(weights, averaged), file)
    told = refusal(lambda: opened(file))
    assert "holds 2 sets of weights with the same names and shapes, under" in told
    assert f"'{key}'" in told
    assert f"'{other}'" in told
    assert "nothing says which is meant; name one, as in vae.ckpt#" in told
    for name, tensors in ((key, weights), (other, averaged)):
        model = opened(f"{file}#{name}")
        assert is_of(model, tensors)
        assert (model.checkpoint.key, model.checkpoint.source) == (name, f"{file}#{name}")


FLAT: dict[str, tuple[Callable[[Tensors, Tensors], Tensors], str, str]] = {
    "two prefixes": (lambda w, a: prefixed("model.", w) | prefixed("model_ema.", a), "model", "model_ema"),
    "within a wrapper": (
        lambda w, a: prefixed("module.model.", w) | prefixed("module.ema.", a), "module.model", "module.ema",
    ),
    "one without": (lambda w, a: w | prefixed("ema.", a), ".", "ema"),
    "with counters": (
        lambda w, a: prefixed("model.", w) | prefixed("ema.", a | {"decay": torch.tensor(0.9)}) | {"n": torch.ones(())},
        "model",
        "ema",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", FLAT)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_of_two_sets_under_prefixes_one_must_be_named(
    layout: str, suffix: str, tmp_path: Path, weights: Tensors, averaged: Tensors
) -> None:
    make, key, other = FLAT[layout]
    file = tmp_path / f"vae{suffix}"
    if suffix == ".safetensors":
        save_file(make(weights, averaged), file)
    else:
        content = make(weights, averaged)
        torch.save({"state_dict": content} if suffix == ".ckpt" else content, file)
    told = refusal(lambda: opened(file))
    assert "holds 2 sets of weights" in told
    outer = "state_dict." if suffix == ".ckpt" else ""
    assert f"'{outer}{key}'" in told
    assert f"'{outer}{other}'" in told
    for name, tensors in ((key, weights), (other, averaged)):
        if "decay" in str(sorted(make(weights, averaged))) and name == "ema":
            continue  # the adapter knows no counter
        for spelled in {name, f"{outer}{name}"}:
            assert is_of(opened(f"{file}#{spelled}"), tensors), spelled


def test_an_average_whose_names_lack_dots_is_a_set_too(weights: Tensors, averaged: Tensors) -> None:
    flat = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in averaged.items()}
    assert twins(prefixed("model.", weights) | flat) == ["model", "model_ema"]


def test_layers_that_are_alike_are_no_sets_of_weights(weights: Tensors) -> None:
    heads = {"mean.weight": torch.ones(2, 3), "logvar.weight": torch.zeros(2, 3), "body.weight": torch.ones(3, 3)}
    assert twins(heads) == []
    assert twins(weights) == []
    assert twins(prefixed("module.", weights)) == []


def test_the_same_tensors_under_two_keys_are_one_set(tmp_path: Path, weights: Tensors) -> None:
    torch.save({"model": weights, "state_dict": weights, "best": {"step": 3}}, tmp_path / "vae.pt")
    assert opened(tmp_path / "vae.pt").checkpoint.key == "state_dict"


def test_the_state_of_an_optimiser_and_sets_of_other_shapes_are_no_choice(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    adam = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    adam.step()
    smaller = {name: tensor[:1] for name, tensor in model.state_dict().items()}
    content = {"model": model.state_dict(), "optimizer": adam.state_dict(), "small": smaller}
    content["optim"] = {"exp_avg": {name: tensor + 1 for name, tensor in model.state_dict().items()}}
    torch.save(content, tmp_path / "vae.pt")
    assert read_checkpoint(tmp_path / "vae.pt").key == "model"


def test_a_checkpoint_of_lists_within_lists_is_looked_through_once(tmp_path: Path) -> None:
    nested: list[object] = [1]
    for _ in range(60):
        nested = [nested, nested]  # 2^60 of them, were each looked at
    torch.save({"model": {"w": torch.ones(2)}, "log": nested, "losses": [0.5] * 1000}, tmp_path / "vae.pt")
    assert read_checkpoint(tmp_path / "vae.pt").key == "model"


def test_a_key_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, weights: Tensors) -> None:
    torch.save({"model": weights, "ema": {"step": 3}}, tmp_path / "vae.pt")
    told = refusal(lambda: opened(f"{tmp_path}/vae.pt#modle"))
    assert "holds no tensors under 'modle' (did you mean 'model'?); there are model, decoder, encoder" in told
    told = refusal(lambda: opened(f"{MODEL}#ema"))
    assert "holds no tensors under 'ema'; there are decoder, encoder" in told


def test_dictionaries_of_other_tensors_are_offered_by_key(tmp_path: Path) -> None:
    torch.save({"enc": {"w": torch.ones(2)}, "dec": {"w": torch.ones(3)}}, tmp_path / "vae.pt")
    told = refusal(lambda: read_checkpoint(tmp_path / "vae.pt"))
    assert told.endswith("save model.state_dict() alone, or name one of its dictionaries of tensors, as in vae.pt#enc")
    assert list(read_checkpoint(f"{tmp_path}/vae.pt#dec").tensors) == ["w"]


def test_every_output_names_the_key_that_was_taken(
    weights: Tensors, averaged: Tensors, command: Callable[..., Any]
) -> None:
    torch.save({"state_dict": weights, "ema": averaged}, "vae.ckpt")
    Path("vaeaudit.toml").write_text("[model.options]\ninput_shape = [1, 28, 28]\n")
    common = ("--adapter", "mlp", "--data", DATA)
    done = command("doctor", "vae.ckpt", *common)
    assert done.said(2, "'state_dict', 'ema', as of a model and its averaged copy")
    assert "vae.ckpt#ema" in command("doctor", "vae.ckpt#ema", *common).out
    assert command("weights", "vae.ckpt#state_dict", "--adapter", "mlp", "--no-spectral", "-q").code == 0
    report = json.loads(Path("vaeaudit-report/report.json").read_text())
    assert report["model"]["file"]["path"] == "vae.ckpt#state_dict"
    for form in ("markdown", "junit", "github", "html"):
        assert "vae.ckpt#state_dict" in command("report", "vaeaudit-report", "--format", form).out, form


def test_weights_of_two_sets_are_compared_by_their_keys(
    weights: Tensors, averaged: Tensors, command: Callable[..., Any]
) -> None:
    save_file(prefixed("model.", weights) | prefixed("ema.", averaged), "vae.safetensors")
    done = command("weights", "vae.safetensors")
    assert done.said(2, "holds 2 sets of weights")
    assert command("weights", "vae.safetensors#ema", "--against", "vae.safetensors#model", "--no-spectral").code == 0
    report = json.loads(Path("vaeaudit-report/report.json").read_text())
    assert [part["change"] for part in report["weights"][0]["parts"]] == pytest.approx([-50, -50])
    assert report["weights"][0]["against"]["path"] == "vae.safetensors#model"


# What wrappers put before names

WRAPPED = ("_orig_mod.", "module.", "model.", "module._orig_mod.", "_orig_mod.module.", "net.vae.")


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_a_prefix_of_all_names_is_taken_off(prefix: str, suffix: str, weights: Tensors, tmp_path: Path) -> None:
    file, tensors = tmp_path / f"vae{suffix}", prefixed(prefix, weights)
    if suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors} if suffix == ".ckpt" else tensors, file)
    model = opened(file)
    assert is_of(model, weights)
    assert model.checkpoint.prefix == prefix


def test_a_prefix_that_was_taken_off_is_told(weights: Tensors, command: Callable[..., Any]) -> None:
    save_file(prefixed("module.", weights), "vae.safetensors")
    option = ("--option", "input_shape=[1,28,28]", "--adapter", "mlp")
    told = command("doctor", "vae.safetensors", *option, "--data", DATA).out
    assert "'module.', which a wrapper had put before them" in told
    assert command("weights", "vae.safetensors", "--against", MODEL, "--no-spectral").code == 0
    report = json.loads(Path("vaeaudit-report/report.json").read_text())
    assert report["model"]["prefix"] == "module."
    assert [part["change"] for part in report["weights"][0]["parts"]] == [0, 0]
    assert "which a wrapper had put before them" in Path("vaeaudit-report/report.md").read_text()


def test_parts_that_were_wrapped_one_by_one_are_known_too(tmp_path: Path, weights: Tensors) -> None:
    for wrapper in ("_orig_mod.", "module."):
        inside = {name.replace(".", f".{wrapper}", 1): tensor for name, tensor in weights.items()}
        save_file(inside, tmp_path / "vae.safetensors")
        model = opened(tmp_path / "vae.safetensors")
        assert is_of(model, weights)
        assert model.checkpoint.prefix == wrapper


def test_an_averaged_model_of_torch_is_opened_without_its_counter(tmp_path: Path, weights: Tensors) -> None:
    model = opened(MODEL).vae
    assert isinstance(model, nn.Module)
    torch.save(AveragedModel(model).state_dict(), tmp_path / "vae.pt")
    found = opened(tmp_path / "vae.pt")
    assert is_of(found, weights)
    assert found.checkpoint.prefix == "module."


ADAPTER = """
import torch, vaeaudit
from torch import nn
class Wrapped(nn.Module):
    input_shape, range = (3,), None
    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"encoder": nn.Linear(3, 4), "decoder": nn.Linear(2, 3)})
    @property
    def prior(self): return vaeaudit.DiagonalGaussian.standard((2,), like=self.model["decoder"].weight)
    def encode(self, x):
        mean, log = self.model["encoder"](x).chunk(2, 1)
        return vaeaudit.DiagonalGaussian(mean, log)
    def decode(self, z): return vaeaudit.GaussianLikelihood(self.model["decoder"](z), torch.tensor(0.0))
def open(checkpoint, config):
    vae = Wrapped()
    LOAD
    return vae
"""
LOADS = {
    "load_state": "vaeaudit.load_state(vae, checkpoint.tensors)",
    "load_state_dict": "vae.load_state_dict(checkpoint.tensors)",
    "by name": "[p.data.copy_(checkpoint.tensors[n]) for n, p in vae.named_parameters()]",
}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_are_tried_as_they_are_first_however_an_adapter_loads_them(
    load: str, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(ADAPTER.replace("LOAD", LOADS[load]))
    inner = {"encoder.weight": torch.rand(4, 3), "encoder.bias": torch.rand(4), "decoder.weight": torch.rand(3, 2),
             "decoder.bias": torch.rand(3)}  # fmt: skip
    save_file(prefixed(f"{prefix}model.", inner), tmp_path / "vae.safetensors")
    model = open_model(tmp_path / "vae.safetensors", f"{tmp_path}/own.py:open")
    assert model.checkpoint.prefix == prefix
    assert is_of(model, prefixed("model.", inner))


Parametrise = Callable[..., nn.Module]
NORMS: dict[str, Parametrise] = {
    "old weight norm": nn.utils.weight_norm,
    "new weight norm": nn.utils.parametrizations.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "new spectral norm": nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch deprecates the older forms
@pytest.mark.parametrize("prefix", ["", "model._orig_mod."])
@pytest.mark.parametrize("norm", NORMS)
def test_normalised_weights_are_made_plain_for_an_adapter_that_knows_those_alone(
    norm: str, prefix: str, tmp_path: Path, projection: Any
) -> None:
    torch.manual_seed(0)
    file = tmp_path / "vae.safetensors"
    projection.fill(tmp_path)
    net, plain = open_model(file).vae, {}
    assert isinstance(net, nn.Module)
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear):
            layer.weight += 0.1 * torch.randn_like(layer.weight)  # a norm of 0 would be NaN
            made = NORMS[norm](layer).train()
            made(x := torch.ones(2, layer.in_features))  # an iteration of the power method
            made.eval()(x)  # the older forms set their weight now
            plain[f"{name}.weight"] = made.weight.detach().clone()
    save_file(prefixed(prefix, net.state_dict()), file, projection.facts)
    model = open_model(file)
    assert isinstance(model.vae, nn.Module)
    for name, tensor in plain.items():
        torch.testing.assert_close(model.vae.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)
    assert model.checkpoint.prefix == prefix
    assert set(model.checkpoint.computed) == {f"{prefix}{name}" for name in plain}


def test_where_no_name_fits_the_first_fault_is_told(tmp_path: Path) -> None:
    save_file({"module.a.w": torch.ones(2, 2), "module.b.w": torch.ones(2)}, tmp_path / "vae.safetensors")
    assert "not expected: module.a.w, module.b.w" in refusal(lambda: opened(tmp_path / "vae.safetensors"))


def test_an_option_at_fault_is_told_before_names_are(tmp_path: Path, weights: Tensors, averaged: Tensors) -> None:
    for content in (prefixed("module.", weights), prefixed("model.", weights) | prefixed("ema.", averaged)):
        save_file(content, tmp_path / "vae.safetensors")
        with pytest.raises(AdapterError, match="no option 'activatoin'"):
            open_model(tmp_path / "vae.safetensors", "mlp", {"activatoin": "tanh"})


def test_an_adapter_that_fails_otherwise_is_told_by_its_first_fault(tmp_path: Path, weights: Tensors) -> None:
    (tmp_path / "own.py").write_text(
        "def open(checkpoint, config):\n    raise ValueError(len(str(list(checkpoint.tensors))))\n"
    )
    save_file(prefixed("module.", weights), tmp_path / "vae.safetensors")
    first = len(str([f"module.{name}" for name in read_checkpoint(MODEL).tensors]))
    with pytest.raises(AdapterError, match=rf"ValueError: {first} \(own\.py, line 2\)"):
        open_model(tmp_path / "vae.safetensors", f"{tmp_path}/own.py:open")


def test_prefixes_are_taken_off_part_after_part() -> None:
    tensors = {"a.b.c.w": torch.ones(2), "a.b.d.w": torch.ones(2), "count": torch.tensor(3)}
    assert [(prefix, sorted(inner)) for prefix, inner in unwrapped(tensors)] == [
        ("a.", ["b.c.w", "b.d.w"]),
        ("a.b.", ["c.w", "d.w"]),
    ]
    assert list(unwrapped({"a.w": torch.ones(2), "b": torch.ones(2)})) == []


# Models of several files


TWO = """
import vaeaudit
from vaeaudit_adapters import mlp
def open(checkpoint, config):
    both = {**checkpoint.tensors, **checkpoint.beside("decoder.safetensors").tensors}
    return mlp.open(vaeaudit.Checkpoint(checkpoint.path, both, {}), {"input_shape": [1, 28, 28]})
"""


@pytest.fixture
def two_files(tmp_path: Path, weights: Tensors) -> Path:
    for part in ("encoder", "decoder"):
        save_file({n: t for n, t in weights.items() if n.startswith(part)}, tmp_path / f"{part}.safetensors")
    (tmp_path / "two.py").write_text(TWO)
    return tmp_path


def test_the_hash_of_a_model_of_two_files_is_of_both_and_each_is_listed(two_files: Path, weights: Tensors) -> None:
    adapter = f"{two_files}/two.py:open"
    model = open_model(two_files / "encoder.safetensors", adapter)
    assert is_of(model, weights)
    assert list(model.files) == [str(two_files / f"{part}.safetensors") for part in ("encoder", "decoder")]
    again = open_model(two_files / "encoder.safetensors", adapter)
    assert (again.sha256, again.state_sha256) == (model.sha256, model.state_sha256)
    changed = {name: tensor + 1e-3 for name, tensor in weights.items() if name.startswith("decoder")}
    save_file(changed, two_files / "decoder.safetensors")
    other = open_model(two_files / "encoder.safetensors", adapter)
    assert other.checkpoint.sha256 == model.checkpoint.sha256
    assert len({model.sha256, other.sha256, model.checkpoint.sha256}) == 3
    assert other.state_sha256 != model.state_sha256


@pytest.mark.usefixtures("two_files")
def test_a_report_lists_every_file_of_a_model(command: Callable[..., Any]) -> None:
    command(
        "latents",
        "encoder.safetensors",
        "--adapter",
        "two.py:open",
        "--data",
        DATA,
        "--limit",
        20,
        "--traverse",
        0,
        "-q",
    )
    entry = json.loads(Path("vaeaudit-report/report.json").read_text())["model"]
    assert [file["path"] for file in entry["files"]] == ["encoder.safetensors", "decoder.safetensors"]
    assert len({entry["file"]["sha256"], *(file["sha256"] for file in entry["files"])}) == 3
    page = Path("vaeaudit-report/report.md").read_text()
    assert all(file["sha256"] in page for file in entry["files"])
    assert entry["state_sha256"] in page


def test_the_state_tells_of_files_that_an_adapter_reads_by_itself(two_files: Path, weights: Tensors) -> None:
    own = TWO.replace(
        'checkpoint.beside("decoder.safetensors").tensors',
        'load_file(checkpoint.path.with_name("decoder.safetensors"))',
    )
    (two_files / "own.py").write_text("from safetensors.torch import load_file\n" + own)
    first = open_model(two_files / "encoder.safetensors", f"{two_files}/own.py:open")
    save_file({n: t * 2 for n, t in weights.items() if n.startswith("decoder")}, two_files / "decoder.safetensors")
    second = open_model(two_files / "encoder.safetensors", f"{two_files}/own.py:open")
    assert first.sha256 == second.sha256
    assert first.state_sha256 != second.state_sha256


def test_a_file_beside_is_read_as_strictly_as_the_first(two_files: Path, weights: Tensors) -> None:
    checkpoint = read_checkpoint(two_files / "encoder.safetensors")
    for name in ("../decoder.safetensors", "/etc/passwd", ".."):
        assert "leads out of the folder" in refusal(lambda name=name: checkpoint.beside(name))
    assert "there is no checkpoint at" in refusal(lambda: checkpoint.beside("none.pt"))
    broken = {n: t / 0 for n, t in weights.items() if n.startswith("decoder")}
    save_file(broken, two_files / "decoder.safetensors")
    with pytest.raises(NonFiniteError, match=r"decoder\.safetensors: decoder\."):
        open_model(two_files / "encoder.safetensors", f"{two_files}/two.py:open")


def test_a_model_whose_names_fit_is_opened_as_before() -> None:
    model = open_model(MODEL)
    assert (model.checkpoint.key, model.checkpoint.prefix) == (None, "")
    assert list(model.files) == [str(MODEL)]
    assert model.sha256 == model.checkpoint.sha256 == model.files[str(MODEL)]
    assert isinstance(vaeaudit.load(MODEL), nn.Module)


def test_what_a_config_beside_the_file_says_counts_in_the_hash_of_the_model(tmp_path: Path) -> None:
    hashes = []
    for name, said in (("none", None), ("tanh", {"vaeaudit": {"activation": "tanh"}}), ("else", {"license": "mit"})):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(MODEL, folder / "vae.safetensors")
        if said is not None:
            (folder / "config.json").write_text(json.dumps(said))
        model = open_model(folder)
        hashes.append(model.sha256)
        assert len(model.files) == 1 + (name == "tanh")
    assert hashes[0] == hashes[2] != hashes[1]
