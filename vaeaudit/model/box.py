"""The range of a model's inputs as tensors: the box that attacks keep to."""

from torch import Tensor

from vaeaudit.model.ranges import Range, as_range, diameter, intervals
from vaeaudit.model.vae import VAE


def range_of(vae: VAE) -> Range | None:
    """The model's range, whatever sequences it is written in; raises ValueError for what is none."""
    return None if vae.range is None else as_range(vae.range)


def bounds(box: Range | None, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest values of an item of ``shape``, infinite where there is no bound, like ``like``.

    They broadcast against (..., *shape): (1 or channels, 1, ...).
    """
    low, high = zip(*intervals(box), strict=True)
    form = (-1, *[1] * (len(shape) - 1))
    return like.new_tensor(low).reshape(form), like.new_tensor(high).reshape(form)


def flat_bounds(box: Range | None, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """The same of every element of an item, (1, elements), for points that are flat."""
    low, high = (ends.expand(shape).reshape(1, -1) for ends in bounds(box, shape, like))
    return low, high


def largest_norm(vae: VAE, x: Tensor, box: Range | None) -> float:
    """The box's diameter, without a box that of the model's range; where that is not finite 10, or four longest items.

    Of ``x`` (items, *input_shape). From a norm of 10 Camuto et al.'s algorithm 2 steps down.
    """
    longest = (4 * x.flatten(1).norm(dim=1)).tolist()
    return diameter(box or range_of(vae), tuple(x.shape[1:]), max([10.0, *longest]))
