"""Escapes for text from outside: one function for each kind of output.

Class names, file names and values of recipes may hold anything: control sequences of a terminal,
marks that reverse the direction of text, lines that look like ours, formulas.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any
from unicodedata import category

# Control, format (direction, zero width), surrogates, separators of lines and paragraphs.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Letters and marks of no width, which are of other categories.
_BLANK = set("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")


def visible(text: str, keep: str = "") -> str:
    """Text with invisible characters escaped as in JSON, `\\u001b` and `\\n`, except for `keep`."""
    if text.isascii() and text.isprintable():
        return text
    with suppress(UnicodeEncodeError):  # where a locale lacks them, names of files hold bytes
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return "".join(sign if sign in keep else _escape(sign) for sign in text)


def _escape(sign: str) -> str:
    if category(sign) not in _UNSEEN and sign not in _BLANK:
        return sign
    return "\\u007f" if sign == "\x7f" else json.dumps(sign)[1:-1]


def escape_lines(text: str) -> str:
    """A message of several lines for a terminal, indented from the second line on.

    So a name that contains a line break cannot start a line that looks like one of ours.
    """
    return visible(text, "\n").replace("\n", "\n  ")


def csv_cell(value: Any) -> Any:
    """A value for a CSV file; text that a spreadsheet would take for a formula is quoted."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")) else text


def escape_markdown(text: str) -> str:
    """Text without meaning in Markdown: no markup, list, link, mention or formula."""
    signs = r"[\\`*_\[\]<>|&#~$@]|:(?=[^\s\d])|(?<=\b[wW]{3})\.|^[-+=]"
    escaped = re.sub(signs, lambda sign: f"&#{ord(sign[0])};", visible(text))
    return re.sub(r"^(\d+)([.)])(?=\s|$)", lambda item: f"{item[1]}&#{ord(item[2])};", escaped)


def shorten(text: object, limit: int = 200) -> str:
    """Text for an error message: its first line, printable, at most `limit` characters long."""
    line = "".join(c if c.isprintable() else "?" for c in str(text).split("\n")[0])
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
