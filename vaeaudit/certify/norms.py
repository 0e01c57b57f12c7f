"""Upper bounds of the norms of matrices and convolutions, from Gram matrices in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Above the rounding of a Gram matrix in float64 and of its eigenvalues: half of terms * rank * 1.1e-16 of the norm.
ROUNDING = 1e-9
CHUNK = 2**22  # elements of an intermediate at once


def spectral_norm(matrices: Tensor) -> Tensor:
    """Upper bounds of the largest singular values of (..., rows, columns): from the smaller Gram matrix."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    return gram_norm(matrices @ matrices.mH if wide else matrices.mH @ matrices)


def gram_norm(gram: Tensor) -> Tensor:
    """An upper bound of ||A|| for ``gram`` = A A^T (..., n, n)."""
    largest: Tensor = torch.linalg.eigvalsh(gram)[..., -1]
    return (1 + ROUNDING) * largest.clamp(min=0).sqrt()


def joint_norm(grams: list[Tensor], bounds: list[float]) -> Tensor:
    """Of [L_1 A_1, ..., L_s A_s] (u_1, ..., u_s) over all ||u_i|| <= 1, from each A_i A_i^T (..., n, n)."""
    norms = [gram_norm(gram) for gram in grams]
    weighted = torch.stack([norm * bound for norm, bound in zip(norms, bounds, strict=True)])
    if len(grams) == 1:
        return weighted[0]
    least = torch.finfo(torch.float64).tiny
    units = [gram / norm.square().clamp(min=least)[..., None, None] for gram, norm in zip(grams, norms, strict=True)]
    crossed = torch.linalg.vector_norm(weighted, dim=0) * gram_norm(torch.stack(units).sum(0))
    return torch.minimum(weighted.sum(0), crossed)


def symbol_norm(
    weight: Tensor, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int = 1
) -> float:
    """An upper bound of the norm of a convolution with any zero padding, of any number of dimensions.

    ``weight`` (out, in / groups, *kernel), ``size`` that of the input's map. With zero padding it is a part of the
    circular convolution on a torus of at least size + (kernel - 1) dilation, where nothing wraps around: keeping every
    stride-th row adds up ``stride`` frequencies, so its norm is the largest of the matrices
    [W(f), W(f + N / stride), ...] / sqrt(stride), where N is a multiple of the stride (after Sedghi, Gupta & Long 2019,
    whose torus of the map's own size gives no bound for zero padding).
    """
    taps = _grid(weight.shape[2:], weight.device) * torch.tensor(dilation, device=weight.device)
    reach = [n + (k - 1) * d for n, k, d in zip(size, weight.shape[2:], dilation, strict=True)]
    coarse = [math.ceil(n / s) for n, s in zip(reach, stride, strict=True)]
    torus = torch.tensor([n * s for n, s in zip(coarse, stride, strict=True)], device=weight.device)
    # A real kernel has the same matrix, conjugate, at the opposite frequency: half of the last axis tells all.
    frequencies = _grid([*coarse[:-1], coarse[-1] // 2 + 1], weight.device)
    aliases = _grid(stride, weight.device) * torch.tensor(coarse, device=weight.device)
    kernels = weight.reshape(groups, -1, weight.shape[1], len(taps)).to(torch.complex128) / math.sqrt(len(aliases))
    largest = weight.new_zeros(())
    size_of_one = len(aliases) * max(len(taps), weight.numel() // len(taps))
    for part in torch.split(frequencies, max(1, CHUNK // size_of_one)):
        # Whole turns are taken off in integers, where they are exact.
        turns = ((part[:, None, None] + aliases[:, None]) * taps % torus).double().div(torus).sum(-1)
        symbol = torch.einsum("fat,goit->fgoia", torch.polar(torch.ones_like(turns), 2 * math.pi * turns), kernels)
        largest = torch.maximum(largest, spectral_norm(symbol.flatten(3)).max())
    return float(largest)


def _grid(sizes: Sequence[int], device: torch.device) -> Tensor:
    """All index vectors of an array of these sizes, (cells, dimensions)."""
    axes = torch.meshgrid(*(torch.arange(n, device=device) for n in sizes), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes], dim=1)
