"""Rows of measures in NumPy columns that grow, so that many steps are cheap to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

# What was not measured is a NaN with bits of its own, as R's NA: a loss that is NaN was measured.
_ABSENT_BITS = np.uint64(0x7FF8_0000_0000_07A2)
_ABSENT = _ABSENT_BITS.view(np.float64)
_FIRST_CAPACITY = 256


class Rows:
    """Rows of one branch, a column for each name."""

    def __init__(self) -> None:
        self.count = 0
        # When each row was appended, counted over all branches.
        self.orders = np.zeros(_FIRST_CAPACITY, np.int64)
        self.columns = {"step": np.full(_FIRST_CAPACITY, _ABSENT)}

    @classmethod
    def of(cls, orders: NDArray[np.int64], columns: Mapping[str, NDArray[np.float64]]) -> Rows:
        """Rows with these columns, ``step`` among them; both are kept as they are."""
        found = cls()
        found.count, found.orders, found.columns = len(orders), orders, dict(columns)
        return found

    def append(self, order: int, record: Mapping[str, float]) -> None:
        count, columns = self.count, self.columns
        if count == len(self.orders):
            more = max(count, _FIRST_CAPACITY)
            absent = np.full(more, _ABSENT)
            for name, column in columns.items():
                columns[name] = np.concatenate([column, absent])
            # Last, as an interrupt may come before: longer columns are no harm.
            self.orders = np.concatenate([self.orders, np.zeros(more, np.int64)])
        for name, value in record.items():
            try:
                columns[name][count] = value
            except KeyError:
                columns[name] = np.full(len(self.orders), _ABSENT)
                columns[name][count] = value
        self.orders[count] = order
        self.count = count + 1

    def extend(self, order: int, records: Sequence[Mapping[str, float]]) -> None:
        """As `append` for each of them; their orders are in a row."""
        for names, group in groupby(records, key=lambda record: record.keys()):
            alike = list(group)
            first, columns = self.count, self.columns
            end = first + len(alike)
            if len(alike) == 1 or end > len(self.orders) or not names <= columns.keys():
                for number, record in enumerate(alike, order):
                    self.append(number, record)
            else:
                for name in names:
                    columns[name][first:end] = [record[name] for record in alike]
                self.orders[first:end] = range(order, order + len(alike))
                self.count = end
            order += len(alike)

    def place(self, step: float) -> int:
        """Where the first row of this step or a later one is."""
        return int(np.searchsorted(self.columns["step"][: self.count], step))

    def after(self, cursor: int) -> int:
        """Where the first row is that was appended after a cursor."""
        return int(np.searchsorted(self.orders[: self.count], cursor))

    def part(self, first: int, end: int) -> dict[str, NDArray[np.float64]]:
        return {name: column[first:end].copy() for name, column in self.columns.items()}

    def at(self, places: NDArray[np.int64]) -> Rows:
        """The rows at some places, with what they take now."""
        columns = {name: column[places] for name, column in self.columns.items()}
        return Rows.of(self.orders[places], columns)

    def cut(self, count: int) -> None:
        for column in self.columns.values():
            column[count : self.count] = _ABSENT
        self.count = count


def measured(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where there is a value, be it NaN."""
    there: NDArray[np.bool_] = values.view(np.uint64) != _ABSENT_BITS
    return there


def records_of(columns: Mapping[str, NDArray[np.float64]], count: int) -> list[dict[str, float]]:
    """Rows as dicts, without what was not measured."""
    records: list[dict[str, float]] = [{} for _ in range(count)]
    for name, column in columns.items():
        there = np.flatnonzero(measured(column))
        for row, value in zip(there.tolist(), column[there].tolist(), strict=True):
            records[row][name] = value
    return records


def extremes(values: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Where the lowest, the highest and the first non-finite of each `size` neighbours are."""
    missing = -len(values) % size
    # The last value again: the first of equals is taken, so none of those that are added.
    table = np.concatenate([values, np.repeat(values[-1:], missing)]).reshape(-1, size)
    finite = np.isfinite(table)
    first = np.arange(len(table)) * size
    found = [
        first + np.where(finite, table, np.inf).argmin(axis=1),
        first + np.where(finite, table, -np.inf).argmax(axis=1),
    ]
    if not finite.all():
        some = ~finite.all(axis=1)
        found.append((first + finite.argmin(axis=1))[some])
    return np.unique(np.concatenate(found))
