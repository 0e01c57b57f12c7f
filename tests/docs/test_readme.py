"""What README says is so: its options exist and its examples run as they stand."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import vaeaudit
from vaeaudit.settings.config import resolve

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INTERFACE = ROOT.parent / "shared" / "INTERFACE.md"
SHAPES = ROOT / "examples" / "shapes.npz"
COMMANDS = ("audit", "compare", "report", "init", "attack", "margin", "noise", "weights", "latents", "mig", "doctor")
# Named by INTERFACE.md for commands and policies that are still to come, and torchrun's own.
TO_COME = {"--trust-code", "--variant", "--for", "--verify", "--shard", "--standalone", "--nproc-per-node"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


Command = Callable[..., Any]  # `Outcome` of conftest.py


def test_the_readme_stays_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) < 250


@pytest.mark.skipif(not INTERFACE.is_file(), reason="the interface page of ../shared is not here")
def test_every_option_that_the_interface_names_exists_or_is_to_come(command: Command) -> None:
    named = options(INTERFACE.read_text(encoding="utf-8")) - {"--help", "--version"} - TO_COME
    assert named <= set().union(*(options(command(name, "--help").out) for name in COMMANDS))


def test_the_adapters_of_the_readme_are_the_installed_ones() -> None:
    from vaeaudit.model.adapters import adapter_names

    listed = README[README.index("| adapter | family |") :].split("\n\n")[0]
    names = " ".join(line.split(" | ")[0] for line in listed.splitlines()[2:])
    assert set(adapter_names()) == set(re.findall(r"`(\w+)`", names))


def test_the_configuration_of_the_readme_is_valid(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    (tmp_path / "vaeaudit.toml").write_text(text, encoding="utf-8")
    settings = resolve({}, tmp_path / "vaeaudit.toml").settings
    assert settings.model.options == {"activation": "tanh"}
    assert settings.model.path == str(tmp_path / "vae.safetensors")
    assert settings.data.resize == "bilinear"
    assert settings.attack.similarity == "kl"
    (listed,) = re.findall(r'similarity = "kl"   # or (.*)', text)
    for name in listed.split(", "):
        assert resolve({"attack.similarity": (name, "README")}, None).settings.attack.similarity == name


def trained(source: str) -> torch.nn.Module:
    """The README's own model, trained for a second on the bundled images."""
    namespace: dict[str, object] = {}
    exec(compile(source, "my_adapter.py", "exec"), namespace)
    kind = namespace["MyVAE"]
    assert isinstance(kind, type)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae: torch.nn.Module = kind()
        x = torch.from_numpy(np.load(SHAPES)["imgs"]).float().div(255).flatten(1)
        adam = torch.optim.Adam(vae.parameters(), lr=3e-3)
        for _ in range(300):
            q = vae.encode(x)  # type: ignore[operator]
            logits = vae.decode(q.sample(torch.randn_like(q.mean))).logits  # type: ignore[operator]
            loss = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + q.kl(vae.prior).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
    return vae


def test_the_adapter_of_the_readme_audits_a_model_as_it_stands(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = next(block for block in blocks("python") if block.startswith("# my_adapter.py"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # on which an adapter puts its folder
    Path("my_adapter.py").write_text(source, encoding="utf-8")
    Path("val.npz").write_bytes(SHAPES.read_bytes())
    vae = trained(source)
    save_file(vae.state_dict(), "vae.safetensors")
    (line,) = [line for block in blocks("sh") for line in block.splitlines() if "my_adapter.py:open" in line]
    _, *arguments = shlex.split(line)
    short = ("--pairs", "2", "--lambdas", "3", "--max-evaluations", "3000")
    done = command(*arguments, *short, "--format", "json")
    report = json.loads(done.out)
    assert (done.code, report["verdict"]) == (0, "ungated"), report["warnings"]
    assert report["model"]["adapter"]["source"] == "file my_adapter.py"
    for name in ("report.json", *report["files"].values()):
        assert name in README

    torch.manual_seed(0)
    save_file(type(vae)().state_dict(), "vae.safetensors")  # untrained: not the model that it claims to be
    done = command(*arguments)
    assert done.code == 5
    assert "verdict: inconclusive" in done.out


def test_the_python_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(block for block in blocks("python") if "vaeaudit.load(" in block)
    generator = torch.Generator().manual_seed(0)
    sizes = {"encoder.shared.0": (5, 4), "encoder.mean.0": (2, 5), "encoder.logvar.0": (2, 5), "decoder.0": (5, 2)}
    tensors = {}
    for name, (outputs, inputs) in {**sizes, "decoder.2": (4, 5)}.items():
        tensors[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator)
        tensors[f"{name}.bias"] = torch.randn(outputs, generator=generator)
    monkeypatch.chdir(tmp_path)
    save_file(tensors, "vae.safetensors")
    x, x_t = torch.rand(2, 3, 4, generator=generator)
    namespace: dict[str, object] = {"x": x, "x_t": x_t}
    exec(source, namespace)
    result = namespace["result"]
    assert isinstance(result, vaeaudit.AttackResult)
    capped = namespace["capped"]
    assert isinstance(capped, vaeaudit.CappedResult)
    assert capped.damage.shape == (3, 2)
    assert result.sweep.norm.shape == result.target_error.shape == (3, 50)
