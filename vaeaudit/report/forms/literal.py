"""Text in Markdown that is shown to the letter: no heading, list, link, image, mention, HTML or cell's end within it.

A report's texts are plain: what in them looks like Markdown came from outside. Only the writers of Markdown set marks.
"""

import re

from vaeaudit.layout.inert import one_line

_MOST = 2_000  # characters of one text
# Backslashes where they would escape something; what opens emphasis, strikes out, marks code; ends of links' texts;
# signs at the end of a heading, which would close it.
_MARKS = r"\\(?=[!-/:-@\[-`{-~]|$)|`|[*~](?=\S|$)|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|#(?=#*$)"
_INLINE = re.compile(_MARKS)
_CELL = re.compile(rf"{_MARKS}|\|")
_ALT = re.compile(rf"{_MARKS}|[\[\]]")
# What begins a heading, a list, a rule, a quotation, a box to tick or the address of a link.
_BEGINS = re.compile(r"(?:#{1,6}|[-+])(?=\s|$)|[-=](?=[-=\s]*$)|[>\[]")
_NUMBERED = re.compile(r"(\d{1,9})([.)])(?=\s|$)")


def inline(text: str) -> str:
    """Text within a line."""
    return _escaped(text, _INLINE)


def cell(text: str) -> str:
    """Text as a table's cell."""
    return _escaped(text, _CELL)


def alt(text: str) -> str:
    """Text that stands for an image, between its square brackets."""
    return _escaped(text, _ALT)


def block(text: str) -> str:
    """Text with which a paragraph or the item of a list begins."""
    line = inline(text)
    if _BEGINS.match(line):
        return f"\\{line}"
    return _NUMBERED.sub(r"\1\\\2", line, count=1) if _NUMBERED.match(line) else line


def code(text: str) -> str:
    """A name, within a line or cell: in backticks where it holds nothing that could end them, else as it is."""
    line = one_line(text, _MOST)
    return f"`{line}`" if line and not re.search(r"[`|$<>&]", line) else cell(text)


def _escaped(text: str, marks: re.Pattern[str]) -> str:
    line = re.sub(r"&(?=[#\w])", "&amp;", one_line(text, _MOST)).replace("<", "&lt;")
    line = marks.sub(r"\\\g<0>", line)
    line = line.replace("$", "&#36;").replace("://", "&#58;//").replace("www.", "www&#46;")
    return re.sub(r"@+", r"`\g<0>`", line)  # no mention, no address: within code neither is looked for
