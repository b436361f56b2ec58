"""Values in other people's files: numbers, flags and texts to quote in a message."""

from __future__ import annotations


def quote(value: object) -> str:
    """A value as a message may hold it: in one line, escaped, and short."""
    text = repr(value)  # which escapes what is not printable
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse_number(value: object) -> float:
    """A number, or the text of one. Raises ValueError for anything else, booleans included."""
    if type(value) is float:  # the usual case, millions of times
        return value
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)) or "_" in str(value):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{quote(value)} is not a number") from None


def parse_flag(value: object) -> bool:
    """A flag written as 0, 1, false, true, or the text of one; None and "" are false.

    Raises ValueError for anything else.
    """
    if value is None or value is False or value == 0:
        return False
    text = str(value).strip().casefold() if isinstance(value, (str, int, float)) else value
    if text in ("", "0", "0.0", "false", "no"):
        return False
    if text in ("1", "1.0", "true", "yes"):
        return True
    raise ValueError(f"{quote(value)} is neither 0 nor 1")
