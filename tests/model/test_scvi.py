"""SCVI of scvi-tools opens from its tensors; its figures are those of scvi-tools, and of SciPy's distributions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats
from torch import Tensor

import vaeaudit
from vaeaudit import Conditioned
from vaeaudit.errors import AdapterError, DataError
from vaeaudit.model.registry import open_model
from vaeaudit.settings.sections import DataSettings, ModelSettings, Settings
from vaeaudit.subject.opened import prepare

GENES, LATENTS, HIDDEN, BATCHES = 6, 3, 5, 2
X = torch.tensor([[3.0, 0, 1, 12, 0, 2], [0, 5, 0, 1, 1, 40], [7, 2, 2, 0, 9, 0]], dtype=torch.float64)
BATCH = torch.tensor([0, 1, 1])


def drawn(*shape: int) -> Tensor:
    """Numbers that no library's generator decides."""
    return 0.5 * torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 1.7 + len(shape)).reshape(
        shape
    )


def state(
    batches: int = BATCHES, layers: int = 2, dispersion: str = "gene", library: bool = False
) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {}
    for prefix, count, width, beside in (
        ("z_encoder.encoder", layers, GENES, 0),
        ("l_encoder.encoder", 1, GENES, 0),
        ("decoder.px_decoder", layers, LATENTS, batches),
    ):
        for k in range(count):
            shapes[f"{prefix}.fc_layers.Layer {k}.0.weight"] = (HIDDEN, (HIDDEN if k else width) + beside)
            for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
                shapes[f"{prefix}.fc_layers.Layer {k}.{name}"] = (HIDDEN,)
    heads = {"z_encoder.mean_encoder": LATENTS, "z_encoder.var_encoder": LATENTS, "l_encoder.mean_encoder": 1}
    heads |= {"l_encoder.var_encoder": 1, "decoder.px_scale_decoder.0": GENES, "decoder.px_r_decoder": GENES}
    for head, size in (heads | {"decoder.px_dropout_decoder": GENES}).items():
        shapes |= {f"{head}.weight": (size, HIDDEN), f"{head}.bias": (size,)}
    shapes |= {"gene": {"px_r": (GENES,)}, "gene-batch": {"px_r": (GENES, batches)}, "gene-cell": {}}[dispersion]
    found = {name: drawn(*shape) for name, shape in shapes.items()}
    found |= {name: of.square() + 0.5 for name, of in found.items() if name.endswith("running_var")}
    counted = {name.replace("running_var", "num_batches_tracked"): torch.tensor(1) for name in shapes if "_var" in name}
    found |= {name: of for name, of in counted.items() if "num_batches" in name}
    if library:
        found |= {"library_log_means": drawn(1, 1) + 3, "library_log_vars": drawn(1, 1).square() + 0.2}
    return found


def opened(folder: Path, likelihood: str = "zinb", **of: Any) -> Any:
    facts = {"vaeaudit.likelihood": likelihood, "vaeaudit.batches": str(of.get("batches", BATCHES) or 1)}
    save_file(state(**of), folder / "scvi.safetensors", metadata=facts)
    return vaeaudit.load(folder / "scvi.safetensors", dtype=torch.float64)


# As module.VAE of scvi-tools 1.4.2 gives them for these tensors, at z = the mean: -log p(x|z, c) and KL.
REFERENCES = {
    "zinb": (
        {},
        (15.53237210770974, 17.58519244719176, 14.663965725757894),
        (0.5607668082955037, 0.4713749705465696, 0.510387496579322),
    ),
    "nb, dispersion by gene and batch": (
        {"likelihood": "nb", "dispersion": "gene-batch"},
        (12.997004264348469, 17.99378246056481, 14.686196620980507),
        (0.5607668082955037, 0.4713749705465696, 0.510387496579322),
    ),
    "zinb, one batch, one layer, dispersion by cell": (
        {"batches": 0, "layers": 1, "dispersion": "gene-cell"},
        (15.124844666589947, 17.8607278479348, 14.696338865287665),
        (0.6902476533161348, 0.32491602014815, 0.3720402795978655),
    ),
    "nb, a latent library size": (
        {"likelihood": "nb", "batches": 0, "library": True},
        (24.553671937304614, 76.16225956903304, 32.58118459830662),
        (10.552089270121545, 12.569791921243999, 11.502225650172074),
    ),
}


@pytest.mark.parametrize(("of", "losses", "kl"), REFERENCES.values(), ids=REFERENCES)
def test_the_figures_are_those_of_scvi_tools(
    of: dict[str, Any], losses: tuple[float, ...], kl: tuple[float, ...], tmp_path: Path
) -> None:
    model = opened(tmp_path, **of)
    vae = Conditioned(model, model.condition(X, BATCH))
    q = vae.encode(X)
    # There logarithms are of a number and 1e-8, and some buffers in float32.
    found = (-vae.decode(q.mean).log_prob(X)).tolist()
    assert found == pytest.approx(losses, rel=2e-7)
    assert q.kl(vae.prior).tolist() == pytest.approx(kl, rel=2e-7)


def test_counts_are_those_of_a_negative_binomial_of_the_library_size(tmp_path: Path) -> None:
    model = opened(tmp_path, "nb")
    c = model.condition(X, BATCH)
    counts = model.decode(torch.zeros(3, LATENTS, dtype=torch.float64), c)
    torch.testing.assert_close(counts.mean.sum(1), X.sum(1))
    torch.testing.assert_close(c[:, 0].exp(), X.sum(1))
    mean, r = counts.mean.numpy(), counts.log_r.exp().numpy()
    expected = stats.nbinom.logpmf(X.numpy(), r, r / (r + mean)).sum(1)
    np.testing.assert_allclose(counts.log_prob(X).numpy(), expected, rtol=1e-10)


def prepared(folder: Path, **arrays: Any) -> Any:
    np.savez(folder / "cells.npz", **arrays)
    settings = Settings(
        model=ModelSettings(path=str(folder / "scvi.safetensors")),
        data=DataSettings(source=str(folder / "cells.npz")),
    )
    return prepare(settings)


def test_the_batch_of_a_cell_is_its_label_and_counts_are_whole_numbers(tmp_path: Path) -> None:
    opened(tmp_path)
    subject = prepared(tmp_path, x=X.numpy(), labels=BATCH.numpy())
    assert subject.model.adapter.name == "scvi", "its tensors say what it is"
    torch.testing.assert_close(subject.model.vae.conditions[:, 1:].argmax(1), BATCH)
    for arrays, told in (
        ({"x": X.numpy()}, r"conditional and needs a label for each item, .* holds none; .* named 'labels'"),
        ({"x": X.numpy(), "labels": BATCH.numpy() + 1}, "numbers of batches, 0 to 1"),
        ({"x": np.log1p(X.numpy()), "labels": BATCH.numpy()}, "counts, but .* not whole, such as 1.386; give the"),
    ):
        with pytest.raises(DataError, match=told):
            prepared(tmp_path, **arrays)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"library_log_means": torch.zeros(1, 2), "library_log_vars": torch.ones(1, 2)}, "of one batch only"),
        ({"px_r": torch.zeros(GENES, 3)}, "not by gene-label"),
    ],
)
def test_what_is_not_known_of_scvi_is_refused_by_name(change: dict[str, Tensor], told: str, tmp_path: Path) -> None:
    save_file(state() | change, tmp_path / "scvi.safetensors")
    with pytest.raises(AdapterError, match=told):
        vaeaudit.load(tmp_path / "scvi.safetensors", likelihood="nb", batches=BATCHES)


@pytest.mark.parametrize(("batches", "beside", "expected"), [(2, 2 + 3, 2), (1, 3, 0), (5, 2, 5)])
def test_columns_of_other_covariates_are_no_batches(batches: int, beside: int, expected: int, tmp_path: Path) -> None:
    save_file(state(batches=beside), tmp_path / "scvi.safetensors", metadata={"vaeaudit.likelihood": "nb"})
    told = f"takes {beside} numbers beside the latents, where {expected} were expected for batches = {batches}; "
    with pytest.raises(AdapterError, match=told):
        vaeaudit.load(tmp_path / "scvi.safetensors", batches=batches)
    with pytest.raises(
        AdapterError, match="'scvi' needs the option batches"
    ):  # no number of batches is read off the tensors
        vaeaudit.load(tmp_path / "scvi.safetensors")


def test_the_state_of_a_module_opens_as_torch_saves_it(tmp_path: Path) -> None:
    torch.save(state() | {"pyro_param_store": {"params": {}, "constraints": {}}}, tmp_path / "weights.pt")
    model = open_model(tmp_path / "weights.pt", options={"likelihood": "nb", "batches": BATCHES})
    assert model.adapter.name == "scvi"


def test_every_check_does_with_it_what_the_page_says(goes_as_the_table_says: Any, tmp_path: Path) -> None:
    opened(tmp_path)
    goes_as_the_table_says("`scvi`", open_model(tmp_path / "scvi.safetensors"), ("certified",))
