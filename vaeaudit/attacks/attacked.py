"""What attacks hand out: the best distortion of every item over lambda or under caps, for signs and reports."""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

PENALTIES = ("l2", "l2sq")


def penalise(norm: Tensor, penalty: str) -> Tensor:
    """pen(d) of ||d||_2: itself (`l2`) or its square (`l2sq`)."""
    return norm if penalty == "l2" else norm.square()


@dataclass(frozen=True, eq=False, kw_only=True)
class Attacked:
    """The best of each of P items in each of its K problems, as failure signs judge it.

    ``adversarial`` (P, K, *shape), inside the box. (P, K): ``data_term`` there; ``norm`` of the distortion; ``status``
    (:class:`Status`); ``recent``, what the search has gained in the last half of its evaluations, of refining alone in
    a sweep that fronts have followed, infinite where nothing tells. ``zero_data_term`` (P,) is the data term at d = 0.
    """

    adversarial: Tensor
    data_term: Tensor
    norm: Tensor
    status: Tensor
    recent: Tensor
    zero_data_term: Tensor

    @property
    def penalty_term(self) -> Tensor:
        """What is added to the data term, (P, K)."""
        return torch.zeros_like(self.data_term)

    @property
    def objective(self) -> Tensor:
        """What is minimised, (P, K)."""
        return self.data_term + self.penalty_term

    @property
    def radius(self) -> Tensor:
        """The norm at which a distortion is judged, (P, K): its own where nothing caps it."""
        return self.norm


@dataclass(frozen=True, eq=False, kw_only=True)
class Searched(Attacked):
    """What a search hands out; its problems are values of lambda, or caps.

    ``distortion`` (P, K, *shape): ``adversarial`` is x + d to the bit. (P, K): ``evaluations``, rows of the model;
    ``further``, whether it was searched on, because it could still gain at its first limit. ``interrupted`` tells that
    the search was told to stop.
    """

    distortion: Tensor
    evaluations: Tensor
    further: Tensor
    interrupted: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class Sweep(Searched):
    """Best distortion of each pair (P) and lambda (L); ``norm`` is ||d||_2.

    ``penalty`` names pen(d); ``floor`` is a lower bound of the data term, None where there is none. ``followed`` (P,)
    tells which pairs fronts have followed to smaller lambda; fronts do not go on from what is found at larger ones.
    """

    lambdas: Tensor
    followed: Tensor
    penalty: str
    floor: float | None = None

    @property
    def penalty_term(self) -> Tensor:
        """lambda pen(d), (P, L)."""
        return self.lambdas * penalise(self.norm, self.penalty)

    @property
    def chosen(self) -> Tensor:
        """Index of the lambda to show for each pair, (P,); see :func:`just_better_than_mean`."""
        return just_better_than_mean(self.data_term)


@dataclass(frozen=True, eq=False, kw_only=True)
class Capped(Searched):
    """Best distortion of each item (I) under each of the ``caps`` (C,), float64, on the norm ``norm_name``.

    ``adversarial`` is nowhere further from x than the cap (see :func:`vaeaudit.attacks.ball.settle`), ``norm``,
    float64, is how far it is, and ``data_term`` is at most that at d = 0 and at most that under any smaller cap.
    """

    caps: Tensor
    norm_name: str

    @property
    def radius(self) -> Tensor:
        """The cap, (I, C)."""
        return self.caps.to(self.data_term).expand_as(self.data_term)


_Kind = TypeVar("_Kind", bound=Searched)


def joined(parts: list[_Kind]) -> _Kind:
    """What was found for groups of items as one."""
    of_items = [field.name for field in fields(Searched) if field.name != "interrupted"]
    of_items += ["followed"] if isinstance(parts[0], Sweep) else []
    whole: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in of_items}
    return replace(parts[0], interrupted=any(part.interrupted for part in parts), **whole)


def just_better_than_mean(data_term: Tensor) -> Tensor:
    """Index of the largest data term below the mean over lambda, (P, L) -> (P,).

    Gondim-Ribeiro et al. 2018 show the attack "just better than the mean"; penalised objectives are not
    comparable across lambda, so the data term alone is meant. Where all are equal, the first is taken.
    """
    below = data_term < data_term.mean(1, keepdim=True)
    return torch.where(below, data_term, -torch.inf).argmax(1)
