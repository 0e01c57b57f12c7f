"""A file of tensors is ranked among adapters by its names, converted, and given a first adapter of its own."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vaeaudit
from vaeaudit.model.registry import open_model
from vaeaudit.model.starting import starting_adapter

EXAMPLE = Path(__file__).parents[2] / "examples" / "shapes-beta1.safetensors"
Tensors = dict[str, Tensor]


def of_pytorch_examples(weights: Tensors) -> Tensors:
    """The projection under the names of the VAE of pytorch/examples; its sigmoid is nearly linear there."""
    names = {"encoder.shared.0": "fc1", "encoder.mean.0": "fc21", "encoder.logvar.0": "fc22"}
    names |= {"decoder.0": "fc3", "decoder.2": "fc4"}
    named = {f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": w for name, w in weights.items()}
    return named | {"fc4.weight": 4 * named["fc4.weight"], "fc4.bias": torch.zeros_like(named["fc4.bias"])}


def test_the_first_adapter_of_a_plain_fully_connected_vae_works_as_it_stands(command: Any, projection: Any) -> None:
    torch.save({"state_dict": of_pytorch_examples(projection.weights()), "epoch": 3}, "vae.pt")
    np.save("val.npy", projection.images())
    assert command("adapters", "--for", "vae.pt", "-o", "my_adapter.py").code == 0
    written = Path("my_adapter.py").read_text()
    code = [line for line in written.splitlines() if line and not line.startswith("#")]
    assert len(code) <= 20
    assert max(map(len, written.splitlines())) <= 120
    done = command("doctor", "vae.pt", "--adapter", "my_adapter.py:open", "--data", "val.npy")
    assert done.code == 0, done


class Convolutional(nn.Module):
    """As of the VanillaVAE that many training codes have: blocks of convolution, normalisation and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        widths = [2, 4, 6]

        def block(layer: nn.Module, width: int) -> nn.Sequential:
            return nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU())

        self.encoder = nn.Sequential(*(block(nn.Conv2d(i, o, 3, 2, 1), o) for i, o in pairwise(widths)))
        self.fc_var, self.fc_mu = nn.Linear(6 * 9, 5), nn.Linear(6 * 9, 5)
        self.decoder_input = nn.Linear(5, 6 * 9)
        self.decoder = nn.Sequential(block(nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), 4))
        self.final_layer = nn.Sequential(*block(nn.ConvTranspose2d(4, 4, 3, 2, 1, 1), 4), nn.Conv2d(4, 2, 3, 1, 1))


def opened(tensors: Tensors, folder: Path) -> Any:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "vae.safetensors")
    (folder / "mine.py").write_text(starting_adapter(tensors))
    return vaeaudit.load(folder / "vae.safetensors", f"{folder / 'mine.py'}:open")


def test_the_first_adapter_of_a_convolutional_vae_is_its_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x, z = Convolutional(), torch.rand(3, 2, 12, 12), torch.randn(3, 5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    net.eval()
    vae = opened({f"model.{name}": tensor for name, tensor in net.state_dict().items()}, tmp_path)
    assert vae.input_shape == (2, 12, 12)
    with torch.no_grad():
        features, q = net.encoder(x).flatten(1), vae.encode(x)
        torch.testing.assert_close(q.mean, net.fc_mu(features))
        torch.testing.assert_close(2 * q.log_stddev, net.fc_var(features))
        decoded = net.final_layer(net.decoder(net.decoder_input(z).relu().unflatten(1, (6, 3, 3))))
        torch.testing.assert_close(vae.decode(z).logits, decoded)


@pytest.mark.parametrize("double", [False, True])
def test_the_first_adapter_finds_the_order_whatever_the_names(double: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"z.0": (7, 3), "z.10": (8, 7), "a": (6, 5), "z.2": (7, 7), "z.12": (5, 8)}
    sizes |= {"both": (6, 6)} if double else {"log_var": (3, 6), "mean": (3, 6)}
    made = {name: nn.Linear(inputs, outputs) for name, (outputs, inputs) in sizes.items()}
    vae = opened({f"{n}.{kind}": w for n, layer in made.items() for kind, w in layer.state_dict().items()}, tmp_path)
    x, z = torch.rand(2, 5), torch.randn(2, 3)
    hidden = made["a"](x).relu()
    mean, logvar = made["both"](hidden).chunk(2, 1) if double else (made["mean"](hidden), made["log_var"](hidden))
    torch.testing.assert_close(vae.encode(x).mean, mean)
    torch.testing.assert_close(2 * vae.encode(x).log_stddev, logvar)
    hidden = made["z.10"](made["z.2"](made["z.0"](z).relu()).relu()).relu()
    torch.testing.assert_close(vae.decode(z).logits, made["z.12"](hidden))


def test_of_what_is_not_told_a_skeleton_is_given_and_names_become_no_code() -> None:
    hostile = {"a'): import os #.weight": torch.ones(2, 2), "b\nimport os.weight": torch.ones(2), "w": torch.ones(3)}
    code = starting_adapter(hostile)
    compile(code, "starting.py", "exec")
    assert "NotImplementedError" in code
    assert not any(line.strip().startswith("import os") for line in code.splitlines())


def test_adapters_are_ranked_by_the_names_that_fit(tmp_path: Path, command: Callable[..., Any]) -> None:
    weights = load_file(EXAMPLE)
    save_file({f"module.{name}": tensor for name, tensor in weights.items()}, tmp_path / "wrapped.safetensors")
    done = command("adapters", "--for", "wrapped.safetensors")
    assert done.code == 0
    assert "vaeaudit doctor wrapped.safetensors --adapter mlp --data DATA" in done.out
    del weights["decoder.0.bias"]
    save_file(weights, tmp_path / "lacking.safetensors")
    lacking = json.loads(command("adapters", "--for", "lacking.safetensors", "--format", "json").out)
    first = lacking["adapters"][0]
    assert first["name"] == "mlp"
    assert first["share"] == pytest.approx(len(weights) / (len(weights) + 1))
    assert "missing: decoder.0.bias" in first["why"]
    assert lacking["starting_adapter"].startswith("from torch import nn")


# convert


def test_a_converted_model_opens_by_itself_as_the_same_model(tmp_path: Path, command: Callable[..., Any]) -> None:
    weights = {f"model.{name}": tensor for name, tensor in load_file(EXAMPLE).items()}
    torch.save({"state_dict": weights, "ema": {name: t + 1 for name, t in weights.items()}}, tmp_path / "last.ckpt")
    named = ("last.ckpt#state_dict", "out.safetensors", "--adapter", "mlp", "--option", "input_shape=[1, 28, 28]")
    done = command("convert", *named)
    assert (done.code, "adapter = mlp" in done.out) == (0, True)
    with safe_open("out.safetensors", "pt") as file:
        assert file.metadata()["vaeaudit.input_shape"] == "[1, 28, 28]"
        assert set(file.keys()) == {name.removeprefix("model.") for name in weights}
    ours = open_model("out.safetensors")
    assert ours.state_sha256 == open_model(named[0], "mlp", {"input_shape": [1, 28, 28]}).state_sha256
    assert command("convert", *named).said(2, "out.safetensors is there already, and no model is ever replaced")
    assert command("convert", "out.safetensors", "out.pt").said(2, "OUT must be a name that ends in .safetensors")


def test_a_model_that_would_open_otherwise_once_converted_is_refused(
    tmp_path: Path, command: Callable[..., Any], projection: Any
) -> None:
    projection.fill(tmp_path)
    (tmp_path / "read.py").write_text(
        "import torch, vaeaudit\nfrom vaeaudit_adapters.mlp import open as mlp\n"
        "def open(checkpoint, config):\n"
        "    vae = mlp(checkpoint, config)\n"
        "    vae.decoder[0].bias.data += len(checkpoint.path.stem)\n"
        "    return vae\n"
    )
    facts = [
        f"--option={name.removeprefix('vaeaudit.')}={v}" for name, v in projection.facts.items() if "ad" not in name
    ]
    converted = command("convert", "vae.safetensors", "other.safetensors", "--adapter", "read.py:open", *facts)
    assert converted.said(2, "vae.safetensors would open as another model once it was other.safetensors")
    assert not Path("other.safetensors").exists()
