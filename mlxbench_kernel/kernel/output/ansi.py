"""Colours and other escape sequences of terminals (ECMA-48) in text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

RESET = "\x1b[0m"
# Fixed colours of the 256-colour table, readable on white and on black; JupyterLab, VS Code,
# nbconvert and terminals all know them, while "dim" (2) is ignored by JupyterLab and nbconvert.
GRAY = "\x1b[38;5;244m"
BLUE = "\x1b[38;5;32m"
ORANGE = "\x1b[38;5;166m"
RED = "\x1b[31m"

_ESCAPE = re.compile(r"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")


def strip(text: str) -> str:
    """Text without its escape sequences."""
    return _ESCAPE.sub("", text)


def closed(text: str) -> str:
    """Text that leaves no colour on behind its end."""
    return text + RESET if "\x1b" in text and not text.endswith(RESET) else text


@lru_cache(maxsize=4096)
def restyle(style: str, parameters: str) -> str:
    """The style in force after one more "select graphic rendition" sequence.

    Parameters
    ----------
    style
        One such sequence that stands for the style so far, "" for none.
    parameters
        The numbers of the new one, as ``"1;31"``.

    Returns
    -------
    str
        One sequence for the new style, "" for none.
    """
    before = style[2:-1].split(";") if style else []
    codes = iter(before + (parameters or "0").split(";"))
    slots: dict[str, str] = {}
    for text in codes:
        if not text.isdigit():
            text = "0" if text == "" else "-1"
        code = int(text)
        if code == 0:
            slots.clear()
        elif code <= 9:
            slots[str(code)] = text
        elif code == 22:
            slots.pop("1", None)
            slots.pop("2", None)
        elif 23 <= code <= 29:
            slots.pop(str(code - 20), None)
        elif 30 <= code <= 37 or 90 <= code <= 97:
            slots["foreground"] = text
        elif 40 <= code <= 47 or 100 <= code <= 107:
            slots["background"] = text
        elif code in (38, 48):
            slots["foreground" if code == 38 else "background"] = _extended(text, codes)
        elif code == 39:
            slots.pop("foreground", None)
        elif code == 49:
            slots.pop("background", None)
    return f"\x1b[{';'.join(slots.values())}m" if slots else ""


def _extended(code: str, codes: Iterator[str]) -> str:
    """``38;5;n`` or ``38;2;r;g;b``, taking the numbers that belong to it."""
    form = next(codes, "5")
    numbers = [next(codes, "0") for _ in range(3 if form == "2" else 1)]
    return ";".join([code, form, *numbers])
