"""How ranks are named: ``0-2,5``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache


def format_ranks(ranks: Iterable[int]) -> str:
    """Ranks as compact ranges: ``[0, 1, 2, 5]`` gives ``"0-2,5"``.

    Parameters
    ----------
    ranks
        Ranks in any order; repeated ones count once.

    Returns
    -------
    str
        Ranges separated by commas, "" for no ranks.
    """
    spans: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def ranks_in(mask: int) -> list[int]:
    """Ranks of a bit mask, ascending; bit r stands for rank r."""
    return [rank for rank in range(mask.bit_length()) if mask >> rank & 1]


@lru_cache(maxsize=4096)
def label(mask: int) -> str:
    """The mark of the ranks in a bit mask, as ``[0-2,5]``."""
    return f"[{format_ranks(ranks_in(mask))}]"
