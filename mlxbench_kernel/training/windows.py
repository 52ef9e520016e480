"""What conditions remember of the steps before: medians and best values of the last n."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

_FEW = 5  # values before which there is no telling what is usual


class Usual:
    """The median of the last `n` finite values; None before the fifth, or the nth where n < 5."""

    def __init__(self, n: float = 50) -> None:
        self._n = int(n)
        self._few = min(self._n, _FEW)
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def look(self, value: float) -> float | None:
        """The median before this value, which then counts."""
        values = self._sorted
        count = len(values)
        median = None
        if count >= self._few:
            half = count // 2
            median = values[half] if count % 2 else (values[half - 1] + values[half]) / 2
        if math.isfinite(value):
            if count == self._n:
                del values[bisect_left(values, self._recent.popleft())]
            self._recent.append(value)
            insort(values, value)
        return median


class Spike:
    """Whether a value is above `by` times the median of the 50 before; None as in `Usual`."""

    def __init__(self, by: float = 2) -> None:
        self._by = by
        self._usual = Usual()

    def look(self, value: float) -> bool | None:
        usual = self._usual.look(value)
        if usual is None:
            return None
        # The same as by * usual, but above what is usual where that is negative.
        return value > usual + (self._by - 1) * abs(usual)


class Plateau:
    """Whether the lowest of the last `n` values is not lower than the lowest before.

    To count, it has to be lower by the share `by` of that. None until there are more than n values;
    NaN is never the lowest.
    """

    def __init__(self, n: float = 200, by: float = 0.001) -> None:
        self._n = int(n)
        self._by = by
        self._seen = 0
        self._recent: deque[float] = deque()
        self._before = math.inf
        # The lowest of the last n, and what will be it when those before have left.
        self._lowest: deque[tuple[int, float]] = deque()

    def look(self, value: float) -> bool | None:
        if math.isnan(value):
            value = math.inf
        lowest, recent = self._lowest, self._recent
        while lowest and lowest[-1][1] >= value:
            lowest.pop()
        lowest.append((self._seen, value))
        recent.append(value)
        self._seen += 1
        if len(recent) <= self._n:
            return None
        self._before = min(self._before, recent.popleft())
        if lowest[0][0] < self._seen - self._n:
            lowest.popleft()
        before = self._before
        needed = before - self._by * abs(before) if math.isfinite(before) else before
        return not lowest[0][1] < needed
