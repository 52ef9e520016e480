"""What is said of a condition that cannot be read: what was meant, and what may be read."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from difflib import SequenceMatcher

EXAMPLE = "loss < 0.1 and step > 50"
_MOST_NAMES = 20
# Signs of other languages, and what they are called here. `=` also gives a function its settings.
_SLIPS = (
    (r"(?<![<>=!])(?<!\bn)(?<!\bby)(?<!\bn )(?<!\bby )=(?![=<>])", "=="),
    (r"=<|≤", "<="),
    (r"=>|≥", ">="),
    (r"<>|≠", "!="),
    (r"\s*(?:&&?|\bAND\b)\s*", " and "),
    (r"\s*(?:\|\|?|\bOR\b)\s*", " or "),
    (r"(?:!(?!=)|~|\bNOT\b)\s*", "not "),
    (r"\^", "**"),
    (r"×", "*"),
    (r"(?<=\d),(?=\d)", "."),
    (r"[\u2212–]", "-"),
)
_OTHER_SIGNS = (ast.BitAnd, ast.BitOr, ast.BitXor, ast.Invert, ast.Tuple)
_UNITS = {
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "k": 1e3,
    "kB": 1e3,
    "KB": 1e3,
    "M": 1e6,
    "MB": 1e6,
    "GB": 1e9,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "%": 0.01,
}
# A percent sign before a number or a name is the remainder's.
_WITH_UNIT = re.compile(r"(\d+\.?\d*|\.\d+)\s*(?:([a-zA-Z]+)\b|(%)(?!\s*[\w(]))")
_COMPARING = re.compile(r"(<=|>=|==|!=|<|>|=)$")
_LINKING = re.compile(r"(\band|\bor|\bnot|[-+*/%&|(,])$")


def nearest_first(name: str, known: Collection[str]) -> list[str]:
    """Names, those first that are most like one that was typed: ``lr`` for learning_rate, too."""

    def likeness(other: str) -> float:
        initials = "".join(part[:1] for part in other.split("_"))
        return 1.0 if name == initials else SequenceMatcher(None, name.lower(), other).ratio()

    return sorted(known, key=likeness, reverse=True)


def listed(names: Collection[str]) -> str:
    """Names with commas; of many, the first ones and how many more there are."""
    shown = ", ".join(list(names)[:_MOST_NAMES]) or "nothing"
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def has_other_signs(body: ast.expr) -> bool:
    """Whether there is ``&``, ``|``, ``^``, ``~`` or a decimal comma: Python, but not meant so."""
    return any(isinstance(node, _OTHER_SIGNS) for node in ast.walk(body))


def meant(text: str) -> str:
    """What can be read instead, with the signs and numbers of conditions; "" where unknown."""
    other = _WITH_UNIT.sub(_number, text)
    for slip, right in _SLIPS:
        other = re.sub(slip, right, other)
    for guess in (other.strip(), other.strip() + ")"):
        try:
            body = ast.parse(guess, mode="eval").body
        except (SyntaxError, ValueError):
            continue
        if guess != text and not has_other_signs(body):
            return guess
    return ""


def unreadable(text: str, error: SyntaxError) -> str:
    """What is wrong with a text that Python's parser refuses, and what to type."""
    if end := _COMPARING.search(text):
        return f"it ends after {end[0]}: type what to compare with, as {text} 0.1"
    if end := _LINKING.search(text):
        return f"it ends after {end[0]}: type what follows, as {EXAMPLE}"
    if guess := meant(text):
        return f"type {guess}"
    at = max(min(error.offset or 1, len(text)), 1)
    return (
        f"it cannot be read at character {at}, {text[at - 1 :][:20]!r} ({error.msg}); "
        f"type an expression, as {EXAMPLE}"
    )


def _number(found: re.Match[str]) -> str:
    factor = _UNITS.get(found[2] or found[3])
    return f"{float(found[1]) * factor:.12g}" if factor else found[0]
