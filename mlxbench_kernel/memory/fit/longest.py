"""The largest number that something still fits with."""

from __future__ import annotations

from collections.abc import Callable


def largest(left: Callable[[int], int], most: int, step: int) -> int:
    """The largest of ``step``, ``2 * step``, … and `most` for which something is left.

    Parameters
    ----------
    left
        Bytes that are left with a number; falls as that grows, about evenly, so that few numbers
        have to be tried.
    most
        The largest that is looked at.
    step
        How exactly it is found. Below it, 1 is tried too.

    Returns
    -------
    int
        0 where not even 1 fits.
    """
    if left(most) >= 0:
        return most
    low, high = 0, -(-most // step)
    if left(1) < 0:
        return 0
    at_low, at_high = left(1), left(most)
    halve = False
    while high - low > 1:
        guess = low + int((high - low) * at_low / (at_low - at_high))
        if halve:
            guess = (low + high) // 2
        tried = min(max(guess, low + 1), high - 1)
        before = high - low
        found = left(tried * step)
        if found >= 0:
            low, at_low = tried, found
        else:
            high, at_high = tried, found
        halve = not halve and high - low > before // 2
    return max(low * step, 1)
