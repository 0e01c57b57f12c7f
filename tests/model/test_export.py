"""Pairs of programs of torch.export: loaded with --trust-code alone, and then a VAE like another."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vaeaudit
from vaeaudit import BernoulliProbabilities, GaussianLikelihood, Point
from vaeaudit.errors import AdapterError, CheckpointError, ContractError, TrustError
from vaeaudit.model.registry import open_model

SHAPE, LATENTS = (1, 3, 4), 2


class Networks(nn.Module):
    def __init__(self, *layers: nn.Module, halves: bool = False) -> None:
        super().__init__()
        self.net, self.halves = nn.Sequential(*layers), halves

    def forward(self, values: Tensor) -> Any:
        given = self.net(values)
        return tuple(given.chunk(2, 1)) if self.halves else given


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Networks, Networks]:
    """A folder of two programs, and the networks that they were."""
    folder = tmp_path_factory.mktemp("export")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Networks(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4), halves=True)
        decoder = Networks(nn.Linear(LATENTS, 8), nn.Tanh(), nn.Linear(8, 12), nn.Unflatten(1, SHAPE))
    for name, network, like in (("encoder", encoder, torch.rand(2, *SHAPE)), ("decoder", decoder, torch.rand(2, 2))):
        saved(folder / f"{name}.pt2", network, like)
    return folder, encoder, decoder


def saved(file: Path, network: nn.Module, like: Tensor, **more: Any) -> None:
    rows = {"dynamic_shapes": ({0: torch.export.Dim("batch", min=1)},)}
    torch.export.save(torch.export.export(network.eval(), (like,), **(more or rows)), file)


def test_a_program_is_loaded_with_trust_alone(pair: tuple[Path, Networks, Networks]) -> None:
    for name in (pair[0], pair[0] / "encoder.pt2"):
        with pytest.raises(TrustError, match=r"so it was not loaded; .* --trust-code"):
            vaeaudit.load(name)
        assert open_model(name, trust_code=True).adapter.name == "export"


def test_the_command_takes_the_flag(pair: tuple[Path, Networks, Networks], command: Callable[..., Any]) -> None:
    torch.save(torch.rand(6, *SHAPE), "val.pt")
    doctor = ("doctor", pair[0], "--data", "val.pt", "--format", "json")
    refused = command(*doctor)
    assert refused.code == 4 and refused.err.count("\n") == 1 and "--trust-code" in refused.err
    Path("encoder.pt2").write_bytes(b"damaged")
    damaged = command("doctor", "encoder.pt2", "--data", "val.pt", "--trust-code")
    assert damaged.code == 2 and damaged.err.count("\n") == 1  # and nothing of what torch logs
    found = json.loads(command(*doctor, "--trust-code").out)
    assert found["model"]["adapter"]["name"] == "export" and len(found["model"]["files"]) == 2


def test_weights_are_held_against_those_of_a_program_with_trust_alone(command: Callable[..., Any]) -> None:
    both = nn.Sequential(OrderedDict(encoder=nn.Linear(2, 2), decoder=nn.Linear(2, 2)))
    saved(Path("both.pt2"), both, torch.rand(2, 2))
    save_file(both.state_dict(), "both.safetensors")
    weighed = ("weights", "both.safetensors", "--against", "both.pt2")
    assert (command(*weighed).code, command(*weighed, "--trust-code").code) == (4, 0)


def test_a_program_is_tried_and_converted_with_trust_alone(
    pair: tuple[Path, Networks, Networks], command: Callable[..., Any]
) -> None:
    for arguments in (("adapters", "--for", pair[0]), ("convert", pair[0], "out.safetensors")):
        assert command(*arguments).code == 4
    assert "export" in command("adapters", "--for", pair[0], "--trust-code").out
    refused = command("convert", pair[0], "out.safetensors", "--trust-code")
    assert refused.said(2, "is a program, which its tensors alone do not give; keep the pair")


def test_it_keeps_the_contract_and_is_the_networks(
    pair: tuple[Path, Networks, Networks], keeps_the_contract: Callable[..., None]
) -> None:
    folder, encoder, decoder = pair
    vae: Any = vaeaudit.load(folder, trust_code=True)
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    mean, logvar = encoder(x)
    q = vae.encode(x)
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.log_stddev, logvar / 2)
    torch.testing.assert_close(vae.decode(mean).logits, decoder(mean))
    keeps_the_contract(vaeaudit.load(folder, trust_code=True, dtype=torch.float64), x.double())


def test_every_check_goes_as_the_table_says(
    pair: tuple[Path, Networks, Networks], goes_as_the_table_says: Callable[..., None]
) -> None:
    goes_as_the_table_says("`export`", open_model(pair[0], trust_code=True))


def test_options_say_what_programs_do_not(pair: tuple[Path, Networks, Networks]) -> None:
    x = torch.rand(3, *SHAPE)
    for options, kind in (
        ({"likelihood": "gaussian", "stddev": 0.1, "range": [-1, 1]}, GaussianLikelihood),
        ({"likelihood": "probabilities", "spread": "log_stddev"}, BernoulliProbabilities),
        ({"spread": "none"}, vaeaudit.BernoulliLogits),
    ):
        vae: Any = vaeaudit.load(pair[0], trust_code=True, **options)
        q = vae.encode(x)
        assert isinstance(q, Point) == (options.get("spread") == "none") and type(vae.prior) is type(q)
        assert type(vae.decode(q.mean)) is kind
    log_stddev = vaeaudit.load(pair[0], trust_code=True, spread="log_stddev").encode(x).log_stddev  # type: ignore[attr-defined]
    torch.testing.assert_close(log_stddev, pair[1](x)[1])


def test_programs_that_give_something_else_are_told(pair: tuple[Path, Networks, Networks]) -> None:
    vae: Any = vaeaudit.load(pair[0], trust_code=True)
    vae.decoder = nn.Linear(LATENTS, 13)
    with pytest.raises(ContractError, match=r"gives \[13\] an item, where \[1, 3, 4\] was expected"):
        vae.decode(torch.zeros(1, LATENTS))
    del vae.encoder
    vae.encoder = lambda x: {"mean": x, "logvar": x}
    with pytest.raises(ContractError, match="gives a dict, where tensors were expected"):
        vae.encode(torch.zeros(1, *SHAPE))


def test_programs_that_do_not_fit_are_told_in_one_sentence(
    pair: tuple[Path, Networks, Networks], tmp_path: Path
) -> None:
    folder, encoder, _ = pair
    decoder = (folder / "decoder.pt2").read_bytes()
    (tmp_path / "encoder.pt2").write_bytes((folder / "encoder.pt2").read_bytes())
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*decoder\.pt2"):
        vaeaudit.load(tmp_path, trust_code=True)
    (tmp_path / "decoder.pt2").write_bytes(decoder[:100])
    with pytest.raises(CheckpointError, match=r"decoder\.pt2 is no program that torch .* can load"):
        vaeaudit.load(tmp_path, trust_code=True)
    (tmp_path / "decoder.pt2").write_bytes(decoder)
    saved(tmp_path / "encoder.pt2", encoder, torch.rand(2, *SHAPE), strict=False)
    with pytest.raises(AdapterError, match=r"takes inputs of 2x1x3x4, where any number of items of one size"):
        vaeaudit.load(tmp_path, trust_code=True)
    with pytest.raises(AdapterError, match=r"was told input_shape \[1, 28, 28\], but the encoder takes \[1, 3, 4\]"):
        vaeaudit.load(folder, trust_code=True, input_shape=[1, 28, 28])
