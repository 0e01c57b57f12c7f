"""Writing failure signs down: how often each was seen, what the first of each kind is, whether they count."""

from collections.abc import Container, Mapping, Sequence

from vaeaudit.attacks.signs import Sign, Signs

_CLAMP = "log-variance"  # the finding of doctor that tells of a clamp


def seen(signs: Signs) -> dict[str, int]:
    """The failure signs of a search: sign -> pairs or items that show it."""
    counts = signs.fired.sum(1).tolist()
    return {str(sign): count for sign, count in zip(Sign, counts, strict=True) if count}


def of_item(signs: Signs, item: int) -> list[str]:
    """Those of one item, in words."""
    return [f"{sign}: {signs.message(sign, item)}" for sign in signs.of(item)]


def counted(signs: Signs, acknowledged: Container[str]) -> str:
    """Those that count, with how often each was seen; empty where there is none.

    A clamp of log-variances is none where that finding of doctor is ``acknowledged``.
    """
    meant = {Sign.CLAMPED} if _CLAMP in acknowledged else set()
    items = signs.measured.shape[1]
    return ", ".join(f"'{sign}' ({n} of {items})" for sign, n in seen(signs).items() if Sign(sign) not in meant)


def warnings(signs: Signs, what: str, names: Sequence[str], acknowledged: Mapping[str, str]) -> list[str]:
    """A sentence on each sign: in how many of ``what`` it was seen, and what the first of the ``names`` shows.

    ``acknowledged`` are findings of doctor that are meant, with the reason: a clamp that is meant is no failure.
    """
    told = []
    for sign, count in seen(signs).items():
        first = int(signs.fired[list(Sign).index(Sign(sign))].nonzero()[0])
        reason = acknowledged.get(_CLAMP) if sign == Sign.CLAMPED else None
        effect = f"which is acknowledged ({reason})" if reason else "so that they support no verdict"
        told.append(
            f"failure sign '{sign}' in {count} of {len(names)} {what}, {effect}; of {names[first]}: "
            f"{signs.message(Sign(sign), first)}"
        )
    return told
