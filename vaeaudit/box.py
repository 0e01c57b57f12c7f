"""The range of a model's inputs as tensors: the box that attacks keep to."""

from torch import Tensor

from vaeaudit.ranges import Range, intervals


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
