"""Which figures an audit with given settings can give, so that a misspelt threshold is told before hours are spent."""

import re

from vaeaudit.checks.registry import checks
from vaeaudit.errors import ConfigError, clipped, nearest
from vaeaudit.settings.sections import Settings


def check_names(settings: Settings) -> None:
    """Raise :class:`ConfigError` for a threshold, or a metric to compare, that these settings cannot give."""
    known = checks()
    patterns = [pattern for name, one in known.items() for pattern in one.load(one.possible)(getattr(settings, name))]
    plain = [pattern.replace("\\", "") for pattern in patterns if not re.search(r"[(\[]|\\d", pattern)]
    spoken = [(name, f'[checks."{name}"]') for name in settings.checks]
    spoken += [(name, f"baseline.min_effect.{name}") for name in settings.baseline.min_effect]
    spoken += [(name, "baseline.metrics") for name in settings.baseline.metrics]
    for name, where in spoken:
        check = name.partition(".")[0]
        if check not in known:
            raise ConfigError(
                f"{where}: there is no check '{clipped(check)}'{nearest(check, known)}; the name of a figure "
                f"begins with {', '.join([*known][:-1])} or {[*known][-1]}"
            )
        if not any(re.fullmatch(pattern, name) for pattern in patterns):
            raise ConfigError(
                f"{where}: an audit with these settings gives no such figure{nearest(name, plain)}; a "
                "report of it lists those that it gives"
            )
