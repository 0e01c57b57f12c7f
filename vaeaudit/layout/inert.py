"""Text from outside, such as a tensor's name in a file, as it may be shown: what it holds is seen and does nothing.

Every form of a result or message passes its texts through :func:`visible` where they enter it, and then through what
escapes the form's own marks (Jinja2 for HTML, :mod:`vaeaudit.report.forms.literal` for Markdown, and so on).
"""

import re

# Control characters, line ends among them, half surrogate pairs, line separators, marks that turn the direction of
# writing, letters without a shape, non-characters: XML cannot hold some, and the rest would let a name show as another,
# break a line, or move a terminal's cursor.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe"
    "\uffff\U000e0000-\U000e007f]"
)
# What the logs of GitHub, Azure and TeamCity obey: "::error::" and its like where a line begins, of which wrapping may
# make one at every space; "##[error]", "##vso[...]" anywhere.
_COMMAND = re.compile(r"(?<!\S):(?=:)|(?<=#)#(?=\w*\[)")


def visible(text: str) -> str:
    r"""``text`` with what cannot be seen or stored, and what a log would obey, written as escapes such as \\x1b."""
    shown = _HIDDEN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
    return _COMMAND.sub(lambda found: f"\\x{ord(found.group()):02x}", shown)


def one_line(text: str, most: int | None = None) -> str:
    """``text`` made visible, every run of spaces as one, cut after ``most`` characters."""
    line = " ".join(visible(text).split())
    return line if most is None or len(line) <= most else line[: most - 1] + "…"
