"""`vaeaudit margin`: how far an input may move before its reconstruction leaves radius r."""

from typing import Annotated

import typer

from vaeaudit.cli.checking import carry_out
from vaeaudit.cli.command import Asked, Key, takes
from vaeaudit.cli.options import CHECK
from vaeaudit.errors import ConfigError, clipped


def _radii(texts: list[str]) -> list[float | str]:
    """Numbers, or "auto"."""
    found: list[float | str] = []
    for text in texts:
        try:
            found.append(text if text == "auto" else float(text))
        except ValueError:
            raise ConfigError(f"--r takes a radius in output units, or auto, but '{clipped(text)}' came") from None
    return found


@takes(*CHECK)
def command(
    asked: Asked,
    r: Annotated[
        list[str] | None,
        Key("margin.r", _radii),
        typer.Option(
            metavar="R|auto",
            help="Radius in output units that the reconstruction must stay within; repeatable. [default: auto, twice "
            "the median of the least that could hold]",
        ),
    ] = None,
    items: Annotated[
        int | None,
        Key("margin.items"),
        typer.Option(metavar="N", help="Items, drawn at random. [default: 20]"),
    ] = None,
    m: Annotated[
        float | None,
        Key("margin.m"),
        typer.Option(metavar="P", help="More than this probability must stay within r. [default: 0.5]"),
    ] = None,
    sigma: Annotated[
        str | None,
        Key("margin.sigma"),
        typer.Option(
            metavar="NAME",
            help="Whether the posterior's noise is frozen at the input or follows it in full. [default: frozen]",
        ),
    ] = None,
    level: Annotated[
        float | None,
        Key("margin.level"),
        typer.Option(metavar="P", help="Confidence of each bound. [default: 0.95]"),
    ] = None,
    family_wise: Annotated[
        bool | None,
        Key("margin.family_wise"),
        typer.Option(
            "--family-wise", help="That confidence for all bounds of all items and radii together.", show_default=False
        ),
    ] = None,
    draws: Annotated[
        int | None,
        Key("margin.draws"),
        typer.Option(metavar="N", help="Draws of the posterior an item. [default: 1000]"),
    ] = None,
    box: Annotated[
        bool | None,
        Key("margin.boxed"),
        typer.Option(
            "--box/--no-box",
            help="Whether the empirical margin stays within the data's range. [default: box]",
            show_default=False,
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        Key("margin.parts"),
        typer.Option(metavar="NAME", help="Bound to compute, certified or empirical; repeatable. [default: both]"),
    ] = None,
) -> int:
    """Bound how far each item may move and stay within r.

    The bound from below is certified; the one from above is an attack that succeeded.
    """
    return carry_out(["margin"], asked)
