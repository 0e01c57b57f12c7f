"""`vaeaudit attack`: how far an input must move to be encoded as another."""

from typing import Annotated

import typer

from vaeaudit.cli.checking import carry_out
from vaeaudit.cli.command import Asked, Key, takes
from vaeaudit.cli.options import CHECK


@takes(*CHECK)
def command(
    asked: Asked,
    mode: Annotated[
        list[str] | None,
        Key("attack.modes"),
        typer.Option(
            metavar="NAME",
            help="What is attacked: latent, output, damage, untargeted, latent-side or worst; repeatable. "
            "[default: latent]",
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        Key("attack.pairs"),
        typer.Option(metavar="N", help="Source and target pairs. [default: 10]"),
    ] = None,
    pairing: Annotated[
        str | None,
        Key("attack.pairing"),
        typer.Option(
            metavar="NAME",
            help="Pairs at random, or of different label, with success rates. [default: random]",
        ),
    ] = None,
    vary: Annotated[
        str | None,
        Key("attack.vary"),
        typer.Option(
            metavar="FACTOR",
            help="Pairs that differ in this one factor of the data, with success and progress.",
        ),
    ] = None,
    pair: Annotated[
        list[str] | None,
        Key("attack.pair"),
        typer.Option(metavar="SOURCE:TARGET", help="A pair itself, by item numbers; repeatable."),
    ] = None,
    lambdas: Annotated[
        int | None,
        Key("attack.lambdas"),
        typer.Option(metavar="N", help="Values of lambda from 2^-20 to 2^20. [default: 50]"),
    ] = None,
    similarity: Annotated[
        str | None,
        Key("attack.similarity"),
        typer.Option(
            metavar="NAME",
            help="kl, reverse-kl, symmetric-kl, mean, sample or wasserstein. [default: kl]",
        ),
    ] = None,
    on: Annotated[
        str | None,
        Key("attack.on"),
        typer.Option(
            metavar="NAME",
            help="What of the posterior the perturbation reaches: mean, std or both. [default: both]",
        ),
    ] = None,
    layers: Annotated[
        list[int] | None,
        Key("attack.layers"),
        typer.Option(
            metavar="N", help="Layer of a hierarchical posterior to compare, from 1; repeatable. [default: all]"
        ),
    ] = None,
    penalty: Annotated[
        str | None,
        Key("attack.penalty"),
        typer.Option(metavar="NAME", help="l2 (the norm) or l2sq (its square). [default: l2]"),
    ] = None,
    cap: Annotated[
        list[float] | None,
        Key("attack.caps"),
        typer.Option(
            metavar="C",
            help="Largest norm of the distortion in damage, untargeted, latent-side and worst; repeatable. "
            "[default: 0.5 1 2; for linf 2/255, 8/255, 16/255 of the range]",
        ),
    ] = None,
    norm: Annotated[
        str | None,
        Key("attack.norm"),
        typer.Option(metavar="NAME", help="Norm of the cap: l2 or linf. [default: l2]"),
    ] = None,
    ref: Annotated[
        str | None,
        Key("attack.ref"),
        typer.Option(
            metavar="NAME",
            help="What damage is measured from: reconstruction or input. [default: reconstruction]",
        ),
    ] = None,
    restarts: Annotated[
        int | None,
        Key("attack.restarts"),
        typer.Option(
            metavar="N",
            help="Points between source and target to search from besides the source. [default: 1]",
        ),
    ] = None,
    max_evaluations: Annotated[
        int | None,
        Key("attack.max_evaluations"),
        typer.Option(
            metavar="N",
            help="Model evaluations for one problem, refining one lambda or one item and cap; up to four times as many "
            "where it still gains. [default: 600]",
        ),
    ] = None,
) -> int:
    """Search small input changes that mislead the model.

    Every pair is attacked for all lambda, or every item under caps; the report says what it took and what it did.
    """
    return carry_out(["attack"], asked)
