"""`vaeaudit margin`: how far an input may move before its reconstruction leaves radius r."""

from typing import Annotated

from vaeaudit.cli.checking import carry_out
from vaeaudit.cli.command import Asked, Setting, takes
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
        Setting(
            "margin.r",
            "R|auto",
            "Radius in output units that the reconstruction must stay within; repeatable. [default: auto, "
            "twice the median of the least that could hold]",
            read=_radii,
        ),
    ] = None,
    items: Annotated[int | None, Setting("margin.items", "N", "Items, drawn at random. [default: 20]")] = None,
    m: Annotated[
        float | None, Setting("margin.m", "P", "More than this probability must stay within r. [default: 0.5]")
    ] = None,
    sigma: Annotated[
        str | None,
        Setting(
            "margin.sigma",
            "NAME",
            "Whether the posterior's noise is frozen at the input or follows it in full. [default: frozen]",
        ),
    ] = None,
    level: Annotated[float | None, Setting("margin.level", "P", "Confidence of each bound. [default: 0.95]")] = None,
    family_wise: Annotated[
        bool | None,
        Setting(
            "margin.family_wise",
            None,
            "That confidence for all bounds of all items and radii together.",
            "--family-wise",
        ),
    ] = None,
    draws: Annotated[
        int | None, Setting("margin.draws", "N", "Draws of the posterior an item. [default: 1000]")
    ] = None,
    box: Annotated[
        bool | None,
        Setting(
            "margin.boxed",
            None,
            "Whether the empirical margin stays within the data's range. [default: box]",
            "--box/--no-box",
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        Setting("margin.parts", "NAME", "Bound to compute, certified or empirical; repeatable. [default: both]"),
    ] = None,
    effort: Annotated[
        str | None,
        Setting(
            "margin.effort",
            "NAME",
            "Of certificates: fast; thorough, which certifies more in seconds an item; or boxed, within the range "
            "besides. [default: thorough]",
        ),
    ] = None,
) -> int:
    """Bound how far each item may move and stay within r.

    The bound from below is certified; the one from above is an attack that succeeded.
    """
    return carry_out(["margin"], asked)
