"""The modes of the attack, one row each: all that the rest of vaeaudit knows of a mode.

A new mode is a row here and the function that it names. Rows hold import paths and words alone, so that settings and
help texts know the modes without the weight of torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vaeaudit.attacks.term import DataTerm

_DAMAGE = "E ‖g(z) - {ref}‖, z ~ q(z|x + d){reached}"


@dataclass(frozen=True)
class Mode:
    """What an attack minimises, and what follows for those who run it, measure it and write it down.

    ``data_term`` names a function of model and items, as "module:function"; ``takes`` are the keywords it is given
    besides: "x_t", a target for each item; "noise", draws, which may be None where ``mean_alone`` says so; and options
    of :class:`vaeaudit.attacks.objectives.Objective`. ``swept`` modes run over all lambda, the others under caps.
    ``formula`` is the data term, or what is maximised under a cap, for readers; in braces the options, what of the
    posterior is ``reached``, and ``members``. ``search`` tells what a better search does to the figure that it is
    after: it "lowers" the objective, "raises" the damage, or neither. ``unit`` is that of the data term, None for that
    of the similarity, and ``floor`` a lower bound of it, None where there is none. ``decodes``: a point runs through
    the decoder once for each draw. ``latents``: it is the latents that are moved, not the input. ``likeness``: how
    alike images look before and after is told. ``members`` are the attacks, a mode with its similarity, of which the
    worst is taken for each item; the first of them is what the data term is.
    """

    name: str
    data_term: str
    takes: tuple[str, ...]
    formula: str
    search: Literal["lowers", "raises", "none"]
    swept: bool = False
    unit: str | None = "input units"
    floor: float | None = None
    decodes: bool = False
    mean_alone: bool = False
    latents: bool = False
    likeness: bool = False
    members: tuple[str, ...] = ()

    @property
    def function(self) -> "Callable[..., DataTerm]":
        """What ``data_term`` names."""
        module, _, name = self.data_term.partition(":")
        found: Callable[..., DataTerm] = getattr(import_module(module), name)
        return found

    @property
    def targeted(self) -> bool:
        """Whether each item needs a target x_t."""
        return "x_t" in self.takes or any(MODES[member.partition(" ")[0]].targeted for member in self.members)


_ROWS = (
    Mode(
        "latent",
        "vaeaudit.attacks.objectives:latent",
        ("x_t", "noise", "similarity", "on", "layers"),
        "{similarity}(q(z|x + d){reached}, q(z|x_t)){layers}",
        search="lowers",
        swept=True,
        unit=None,
        floor=0.0,
    ),
    Mode(
        "output",
        "vaeaudit.attacks.objectives:output",
        ("x_t", "noise", "on"),
        "KL(q(z|x + d) || p(z)) - E log p(x_t|z) over z ~ q(z|x + d){reached}",
        search="lowers",
        swept=True,
        unit="nats",
        decodes=True,
    ),
    Mode(
        "damage",
        "vaeaudit.attacks.objectives:damage",
        ("noise", "ref", "on"),
        _DAMAGE,
        search="raises",
        decodes=True,
        mean_alone=True,
    ),
    Mode(
        "untargeted",
        "vaeaudit.attacks.objectives:untargeted",
        ("noise", "similarity", "on", "layers"),
        "{similarity}(q(z|x + d), q(z|x)){reached}",
        search="none",  # of its damage, which is beside what it is after
        unit=None,
        likeness=True,
    ),
    Mode(
        "latent-side",
        "vaeaudit.attacks.objectives:latent_side",
        (),
        "‖g(mu(x) + d) - g(mu(x))‖",
        search="raises",
        latents=True,
    ),
    Mode(
        "worst",
        "vaeaudit.attacks.objectives:damage",
        ("noise", "ref", "on"),
        f"{_DAMAGE}, the worst of {{members}}",
        search="raises",
        decodes=True,
        mean_alone=True,
        members=("damage", "latent kl", "latent reverse-kl", "output"),
    ),
)
MODES = {row.name: row for row in _ROWS}


def names(*, swept: bool | None = None) -> tuple[str, ...]:
    """Names of the modes: of all, or of those over all lambda (True) or under caps (False)."""
    return tuple(row.name for row in MODES.values() if swept in (None, row.swept))
