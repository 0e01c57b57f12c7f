"""A change of log p as a share of log p, where that has a meaning."""

import torch
from torch import Tensor

NEAR_ZERO = 1.0  # nats


def near_zero(base: Tensor, error: Tensor | None = None) -> Tensor:
    """Where |log p| is too near 0 for a share of it: below 1 nat, or below its own Monte Carlo standard error.

    A density has no zero of its own: rescaled data move log p by a constant, and an item's through 0. A tenth of a nat
    lost there is any multiple of it, and the figure to read is the loss in nats.
    """
    scale = torch.full_like(base, NEAR_ZERO)
    return base.abs() < (scale if error is None else torch.fmax(scale, error))


def share_of(change: Tensor, base: Tensor, error: Tensor | None = None) -> Tensor:
    """|change| / |base|, NaN where the base is near 0; ``change`` broadcasts against ``base`` and its ``error``."""
    share = change.abs() / base.abs()
    return torch.where(near_zero(base, error), torch.nan, share)


def remark(base: Tensor, error: Tensor | None, relative: str, absolute: str) -> tuple[str, ...]:
    """What must be known of the metrics ``relative`` where the base of some items is near 0: one sentence, or none."""
    near = int(near_zero(base, error).sum())
    if not near:
        return ()
    return (
        f"|log p(x|z)| of {near} of {base.numel()} items is below {NEAR_ZERO:g} nat, or its own Monte Carlo error, "
        f"so that a share of it tells nothing: {relative} leaves them out and is in doubt; read {absolute}, in nats",
    )
