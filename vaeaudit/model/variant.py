"""What is changed of a model in another form of it, by name; torch is not needed to read one."""

import re
from dataclasses import dataclass

_TYPES = ("float64", "float32", "bfloat16", "float16")
_HALF = ("bfloat16", "float16")
_SWITCHES = ("compile", "channels-last", "tiling", "slicing")
EXPECTED = (
    f"dtype={'|'.join(_TYPES)}, autocast={'|'.join(_HALF)}, {', '.join(f'{name}=true' for name in _SWITCHES)}, or "
    "several of them joined by +"
)


@dataclass(frozen=True)
class Variant:
    """What is changed of a model; ``switches`` are of compile, channels-last, tiling and slicing."""

    dtype: str | None = None
    autocast: str | None = None
    switches: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """From "dtype=bfloat16" or "channels-last=true+autocast=float16"; raises ValueError, which tells what it is.

        Commas join as well, but those between texts of a list cannot be told from them.
        """
        found: dict[str, str] = {}
        for part in re.split("[+,]", text):
            name, _, value = (side.strip() for side in part.partition("="))
            name = name.replace("_", "-")
            values = {"dtype": _TYPES, "autocast": _HALF}.get(name, ("true",) * (name in _SWITCHES))
            if not values or name in found:
                raise ValueError(EXPECTED)
            if value not in values:
                raise ValueError(f"{name}={'|'.join(values)}")
            found[name] = value
        return cls(found.get("dtype"), found.get("autocast"), tuple(name for name in _SWITCHES if name in found))

    @property
    def name(self) -> str:
        """Short, for names of metrics: "bfloat16", "autocast-float16+compile"."""
        parts = [self.dtype, self.autocast and f"autocast-{self.autocast}", *self.switches]
        return "+".join(filter(None, parts))
