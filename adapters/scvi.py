"""SCVI of scvi-tools (Lopez et al. 2018): counts of genes, with the batch of each cell as its label.

As scvi-tools 1.4 computes it, in evaluation mode: log1p before the encoder, a variance of exp(v) + 1e-4, and counts of
mean exp(library) softmax(...). A library size that is observed belongs to a cell's condition, as its batch does: a
distortion of the counts leaves it. Its model.pt holds more than tensors: docs/models.md says how to convert it.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from vaeaudit import Checkpoint, DiagonalGaussian, NegativeBinomialLikelihood, Product, ZeroInflatedLikelihood
from vaeaudit.errors import AdapterError, DataError

from .opening import Options, filled, read_options

# The weights check asks: prefixes of the names of tensors.
WEIGHT_PARTS = {
    "encoder": ("z_encoder.",),
    "decoder": ("decoder.", "px_r"),
    "neither": ("l_encoder.", "library_log_means", "library_log_vars"),
}
SCALE, FIRST = "decoder.px_scale_decoder.0.weight", "decoder.px_decoder.fc_layers.Layer 0.0.weight"


class ScviOptions(Options):
    """What tensors do not tell; scvi-tools calls them gene_likelihood, n_batch and log_variational."""

    likelihood: Literal["zinb", "nb"]
    batches: PositiveInt
    log1p: bool = True


class Layers(nn.Sequential):
    """Linear layers by the names of scvi-tools, each with a ReLU, after batch normalisation where it has one."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        super().__init__()
        while (weight := tensors.get(f"{prefix}.Layer {len(self)}.0.weight")) is not None:
            width = len(weight)
            normed = f"{prefix}.Layer {len(self)}.1.weight" in tensors
            layers = [nn.Linear(weight.shape[1], width), *([nn.BatchNorm1d(width, eps=0.001)] * normed), nn.ReLU()]
            self.add_module(f"Layer {len(self)}", nn.Sequential(*layers))

    def of(self, hidden: Tensor, batch: Tensor) -> Tensor:
        """The hidden units, with the ``batch`` (cells, batches) beside the input of each layer that takes it."""
        layer: Any
        for layer in self:
            hidden = layer(hidden if layer[0].in_features == hidden.shape[1] else torch.cat([hidden, batch], 1))
        return hidden


class Scvi(nn.Module):
    """SCVI, freshly initialised. A condition is the log of the library size and the batch, (cells, 1 + batches)."""

    range = (0.0, float("inf"))
    z_encoder: Any
    l_encoder: Any
    decoder: Any
    library_log_means: Tensor
    library_log_vars: Tensor

    def __init__(self, options: ScviOptions, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.options = options
        genes, width = tensors[SCALE].shape
        self.latents, self.input_shape = len(tensors["z_encoder.mean_encoder.weight"]), (genes,)
        self.batches = options.batches if options.batches > 1 else 0  # a batch that is the only one is no input
        self.condition_shape: tuple[int, ...] = () if self.batches else (0,)
        for name, size in (("z_encoder", self.latents), ("l_encoder", 1)):
            layers = Layers(tensors, f"{name}.encoder.fc_layers")
            heads = {f"{head}_encoder": nn.Linear(width, size) for head in ("mean", "var")}
            self.add_module(name, nn.ModuleDict({"encoder": nn.ModuleDict({"fc_layers": layers}), **heads}))
        decoder = nn.ModuleDict({"fc_layers": Layers(tensors, "decoder.px_decoder.fc_layers")})
        heads = {f"px_{head}_decoder": nn.Linear(width, genes) for head in ("r", "dropout")}
        scale = nn.Sequential(nn.Linear(width, genes))
        self.decoder = nn.ModuleDict({"px_decoder": decoder, "px_scale_decoder": scale, **heads})
        if "px_r" in tensors:  # else the dispersion is of each cell
            self.px_r = nn.Parameter(torch.empty(tensors["px_r"].shape))
        if "library_log_means" in tensors:  # else the library size is observed
            for name in ("library_log_means", "library_log_vars"):
                self.register_buffer(name, torch.empty(1, 1))

    @property
    def prior(self) -> DiagonalGaussian | Product:
        """N(0, I), and of the log of a library size that is not observed its own."""
        standard = DiagonalGaussian.standard((self.latents,), like=self.decoder["px_r_decoder"].weight)
        if not hasattr(self, "library_log_means"):
            return standard
        return Product((standard, DiagonalGaussian(self.library_log_means, 0.5 * self.library_log_vars.log())))

    def condition(self, x: Tensor, batch: Tensor) -> Tensor:
        """The log of the library size and the batch of clean cells, (cells, 1 + batches)."""
        library = x.sum(1, keepdim=True).log()
        if not self.batches:
            return library
        if not 0 <= int(batch.min()) <= int(batch.max()) < self.batches:
            raise DataError(f"labels must be the numbers of batches, 0 to {self.batches - 1}, as the model has them")
        return torch.cat([library, F.one_hot(batch, self.batches).to(x)], 1)

    def encode(self, x: Tensor, c: Tensor) -> DiagonalGaussian | Product:
        """q(z|x, c), (cells, genes) -> (cells, latents), and q(l|x, c) where the library size is not observed."""
        counts = torch.log1p(x) if self.options.log1p else x
        q = self._posterior(self.z_encoder, counts, c)
        return Product((q, self._posterior(self.l_encoder, counts, c))) if hasattr(self, "library_log_means") else q

    def _posterior(self, encoder: Any, x: Tensor, c: Tensor) -> DiagonalGaussian:
        hidden = encoder["encoder"]["fc_layers"].of(x, c[:, 1:])
        variance = encoder["var_encoder"](hidden).exp() + 1e-4
        return DiagonalGaussian(encoder["mean_encoder"](hidden), 0.5 * variance.log())

    def decode(self, z: Tensor, c: Tensor) -> NegativeBinomialLikelihood | ZeroInflatedLikelihood:
        """p(x|z, c), (cells, latents) -> (cells, genes)."""
        library = z[:, self.latents :] if hasattr(self, "library_log_means") else c[:, :1]
        hidden = self.decoder["px_decoder"]["fc_layers"].of(z[:, : self.latents], c[:, 1:])
        log_mean = library + self.decoder["px_scale_decoder"](hidden).log_softmax(1)
        log_r = self.px_r if hasattr(self, "px_r") else self.decoder["px_r_decoder"](hidden)
        log_r = c[:, 1:] @ log_r.T if hasattr(self, "px_r") and log_r.ndim == 2 else log_r.expand_as(log_mean)
        counts = NegativeBinomialLikelihood(log_mean, log_r)
        if self.options.likelihood == "nb":
            return counts
        return ZeroInflatedLikelihood(counts, self.decoder["px_dropout_decoder"](hidden))


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether its tensors have the names of SCVI."""
    return {SCALE, "z_encoder.mean_encoder.weight", "l_encoder.mean_encoder.weight"} <= checkpoint.tensors.keys()


def open(checkpoint: Checkpoint, config: Mapping[str, object]) -> Scvi:
    """Open an SCVI; ``config`` holds fields of :class:`ScviOptions`.

    Raises:
        AdapterError: an option is missing, unknown or bad; or what this adapter does not know of SCVI.
        CheckpointError: tensors are missing, left over or of another shape.
    """
    tensors = checkpoint.tensors
    if not recognises(checkpoint):
        raise AdapterError(f"{checkpoint.path} has no tensors of an SCVI, such as {SCALE}; name another adapter")
    options = read_options(ScviOptions, config, "scvi")
    build = partial(Scvi, options, tensors)
    rates, means = tensors.get("px_r"), tensors.get("library_log_means")
    if means is not None and means.numel() > 1:
        raise AdapterError("adapter 'scvi' knows a latent library size of one batch only, as its prior is the batch's")
    model = filled(build, tensors)
    beside = tensors[FIRST].shape[1] - model.latents
    if beside != model.batches:  # nothing in the tensors tells the columns of a covariate from those of batches
        raise AdapterError(
            f"the decoder takes {beside} numbers beside the latents, where {model.batches} were expected for batches = "
            f"{options.batches}; adapter 'scvi' knows no other covariates, nor batches that are embedded"
        )
    if rates is not None and rates.ndim == 2 and rates.shape[1] != model.batches:
        raise AdapterError("adapter 'scvi' knows dispersion by gene, gene-batch and gene-cell, not by gene-label")
    return model
