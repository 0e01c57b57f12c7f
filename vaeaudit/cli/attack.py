"""`vaeaudit attack`: how far an input must move to be encoded as another."""

from typing import Annotated

from vaeaudit.attacks.modes import names
from vaeaudit.cli.checking import carry_out
from vaeaudit.cli.command import Asked, Setting, takes
from vaeaudit.cli.options import CHECK


def _spoken(word: str, *, swept: bool | None = None) -> str:
    """The names of modes as a list in a sentence."""
    *first, last = names(swept=swept)
    return f"{', '.join(first)} {word} {last}"


@takes(*CHECK)
def command(
    asked: Asked,
    mode: Annotated[
        list[str] | None,
        Setting(
            "attack.modes",
            "NAME",
            f"What is attacked: {_spoken('or')}; repeatable. [default: latent]",
        ),
    ] = None,
    pairs: Annotated[int | None, Setting("attack.pairs", "N", "Source and target pairs. [default: 10]")] = None,
    pairing: Annotated[
        str | None,
        Setting(
            "attack.pairing", "NAME", "Pairs at random, or of different label, with success rates. [default: random]"
        ),
    ] = None,
    vary: Annotated[
        str | None,
        Setting(
            "attack.vary", "FACTOR", "Pairs that differ in this one factor of the data, with success and progress."
        ),
    ] = None,
    pair: Annotated[
        list[str] | None, Setting("attack.pair", "SOURCE:TARGET", "A pair itself, by item numbers; repeatable.")
    ] = None,
    lambdas: Annotated[
        int | None,
        Setting("attack.lambdas", "N", "Values of lambda from 2^-20 to 2^20; fewer cost nearly as much. [default: 50]"),
    ] = None,
    similarity: Annotated[
        str | None,
        Setting(
            "attack.similarity", "NAME", "kl, reverse-kl, symmetric-kl, mean, sample or wasserstein. [default: kl]"
        ),
    ] = None,
    on: Annotated[
        str | None,
        Setting(
            "attack.on", "NAME", "What of the posterior the perturbation reaches: mean, std or both. [default: both]"
        ),
    ] = None,
    layers: Annotated[
        list[int] | None,
        Setting(
            "attack.layers", "N", "Layer of a hierarchical posterior to compare, from 1; repeatable. [default: all]"
        ),
    ] = None,
    penalty: Annotated[
        str | None, Setting("attack.penalty", "NAME", "l2 (the norm) or l2sq (its square). [default: l2]")
    ] = None,
    cap: Annotated[
        list[float] | None,
        Setting(
            "attack.caps",
            "C",
            f"Largest norm of the distortion in {_spoken('and', swept=False)}; repeatable. "
            "[default: 0.5 1 2; for linf 2/255, 8/255, 16/255 of the range]",
        ),
    ] = None,
    norm: Annotated[str | None, Setting("attack.norm", "NAME", "Norm of the cap: l2 or linf. [default: l2]")] = None,
    ref: Annotated[
        str | None,
        Setting(
            "attack.ref", "NAME", "What damage is measured from: reconstruction or input. [default: reconstruction]"
        ),
    ] = None,
    restarts: Annotated[
        int | None,
        Setting(
            "attack.restarts",
            "N",
            "Points between source and target to search from besides the source. [default: 7]",
        ),
    ] = None,
    max_evaluations: Annotated[
        int | None,
        Setting(
            "attack.max_evaluations",
            "N",
            "Model evaluations for one problem, refining one lambda or one item and cap; up to four times as "
            "many where it still gains. [default: 600]",
        ),
    ] = None,
) -> int:
    """Search small input changes that mislead the model.

    Every pair is attacked for all lambda, or every item under caps; the report says what it took and what it did.
    """
    return carry_out(["attack"], asked)
