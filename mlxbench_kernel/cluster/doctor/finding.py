"""One thing that the doctor found."""

from __future__ import annotations

from dataclasses import dataclass

MARKS = {True: "✓", False: "✗", None: "·"}


@dataclass(frozen=True)
class Finding:
    """What was looked at, and how it is.

    Attributes
    ----------
    host
        Its name in the hostfile, or "this machine".
    what
        The thing, in two or three words.
    good
        Whether it is as it should be; None where that depends on what is wanted.
    detail
        How it is.
    fix
        What to type, "" for nothing.
    """

    host: str
    what: str
    good: bool | None
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{MARKS[self.good]} {self.host:<14} {self.what:<18} {self.detail}"
        return f"{line} → {self.fix}" if self.fix else line
