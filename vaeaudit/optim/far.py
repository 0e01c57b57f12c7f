"""Where a number that is read back is waited for."""

from torch import Tensor


def far(values: Tensor) -> bool:
    """Whether they lie on a GPU: there all rows are computed and some left out, where a CPU looks which it needs.

    To look, Python would wait until all that was asked of the GPU is done, in every round of a search.
    """
    return values.device.type != "cpu"
