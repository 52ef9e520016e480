"""What was measured of the steps of one rank: bounded, and read while it grows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.training.columns import Rows, extremes, measured, records_of

Row = tuple[str, dict[str, float]]  # a branch, and the record of one of its steps
Sample = tuple[str, int, dict[str, NDArray[np.float32]]]  # a branch, a step, measures [parameters]

_NEIGHBOURS = 4  # rows of which the extreme ones stay
_WAITING = 32  # additions that wait until somebody reads: to enter many at once is faster


class History:
    """Records of the steps of one rank, by branch. One thread may append while others read.

    Parameters
    ----------
    most
        Rows that are kept over all branches. Beyond, the older three quarters are thinned where
        they are densest: of four neighbours, those with the lowest, the highest and the first
        non-finite loss stay. The first and the last row of a branch stay in any case.
    """

    def __init__(self, most: int = 200_000) -> None:
        self._most = most
        self._next = 0
        self._received = 0  # rows before this one are another rank's
        self._branches: dict[str, Rows] = {}
        self._waiting: list[tuple[str, list[dict[str, float]]]] = []
        self._lock = Lock()

    def append(self, branch: str, record: Mapping[str, float]) -> None:
        """Add a step to a branch.

        Steps rise within a branch: what it had of this step and later ones is forgotten, so a copy
        that is fed from `since` is right again once steps are taken after going back.

        Parameters
        ----------
        branch
            Its name; a new one begins.
        record
            What was measured, ``step`` among it.
        """
        self.extend(branch, [record])

    def extend(self, branch: str, records: Sequence[Mapping[str, float]]) -> None:
        """Add steps that follow one another, each as `append` does."""
        with self._lock:
            if records:
                self._waiting.append((branch, [dict(each) for each in records]))
            if len(self._waiting) >= _WAITING:
                self._enter()

    def _enter(self) -> None:
        """Enter what waits; that stays until it is entered, so an interrupt loses nothing."""
        waiting = self._waiting
        while waiting:
            branch, given = waiting[0]
            records, entered = list(given), 1
            for other, more in waiting[1:]:
                if other != branch or more[0]["step"] <= records[-1]["step"]:
                    break
                records += more
                entered += 1
            if (rows := self._branches.get(branch)) is None:
                rows = self._branches[branch] = Rows()
            step = records[0]["step"]
            if rows.count and step <= rows.columns["step"][rows.count - 1]:
                rows.cut(rows.place(step))
            rows.extend(self._next, records)
            self._next += len(records)
            del waiting[:entered]
            if sum(each.count for each in self._branches.values()) > self._most:
                self._thin()

    def truncate(self, branch: str, step: int) -> None:
        """Forget what a branch has after a step."""
        with self._lock:
            self._enter()
            if rows := self._branches.get(branch):
                rows.cut(rows.place(step + 1))

    def drop(self, branch: str) -> None:
        """Forget a branch."""
        with self._lock:
            self._enter()
            self._branches.pop(branch, None)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._waiting.clear()
            self._branches.clear()

    def give(self, without: Collection[str] = ()) -> dict[str, Any]:
        """All that is kept, for `receive` of another one.

        Parameters
        ----------
        without
            Measures that are left out.
        """
        with self._lock:
            self._enter()
            branches = {
                branch: (
                    rows.orders[: rows.count].copy(),
                    {
                        name: values
                        for name, values in rows.part(0, rows.count).items()
                        if name not in without
                    },
                )
                for branch, rows in self._branches.items()
            }
            return {"next": self._next, "whole": not without, "branches": branches}

    def receive(self, given: Mapping[str, Any]) -> None:
        """Have what another one gave instead of what is kept."""
        with self._lock:
            self._waiting.clear()
            self._next = given["next"]
            self._received = 0 if given["whole"] else self._next
            self._branches = {
                branch: Rows.of(*columns) for branch, columns in given["branches"].items()
            }

    def is_received(self, cursor: int) -> bool:
        """Whether the rows that `since` gives for this cursor were measured by another rank."""
        return cursor < self._received

    def add_missing(self, branch: str, record: Mapping[str, float]) -> None:
        """Add a step that another rank has measured, unless there is this one or a later one."""
        if self.last(branch).get("step", -1) < record["step"]:
            self.append(branch, record)

    def last(self, branch: str) -> dict[str, float]:
        """The last record of a branch; {} where there is none."""
        with self._lock:
            self._enter()
            rows = self._branches.get(branch)
            if rows is None or not rows.count:
                return {}
            columns = rows.part(rows.count - 1, rows.count)
        return records_of(columns, 1)[0]

    def names(self, branch: str | None = None) -> list[str]:
        """What was measured in a branch, or in any, in the order in which it first was."""
        with self._lock:
            self._enter()
            branches = self._branches.values() if branch is None else [self._branches.get(branch)]
            return list(dict.fromkeys(name for rows in branches if rows for name in rows.columns))

    def since(self, cursor: int, most_rows: int = 5000) -> tuple[int, list[Row]]:
        """Rows that were appended after a cursor and are still kept.

        Parameters
        ----------
        cursor
            What this gave before; 0 for all that is kept.
        most_rows
            Rows at most; the others come with the next call.

        Returns
        -------
        tuple
            The next cursor, and branch and record of each row, in the order of appending. What
            was received comes without what was appended after it.
        """
        found: list[tuple[str, NDArray[np.int64], dict[str, NDArray[np.float64]]]] = []
        with self._lock:
            self._enter()
            new = {
                branch: rows.orders[: rows.count][rows.after(cursor) :][:most_rows]
                for branch, rows in self._branches.items()
            }
            orders = np.sort(np.concatenate([*new.values(), np.empty(0, np.int64)]))[:most_rows]
            received = self._received if cursor < self._received else None
            if received is not None:
                orders = orders[orders < received]
            if not orders.size:
                return received or cursor, []
            after = int(orders[-1]) + 1
            for branch, rows in self._branches.items():
                first, end = rows.after(cursor), rows.after(after)
                if first < end:
                    found.append((branch, rows.orders[first:end].copy(), rows.part(first, end)))
        ordered = [
            (order, (branch, record))
            for branch, own, columns in found
            for order, record in zip(own.tolist(), records_of(columns, len(own)), strict=True)
        ]
        ordered.sort(key=lambda pair: pair[0])
        return after, [row for _, row in ordered]

    @property
    def end(self) -> int:
        """The cursor after all that was appended."""
        with self._lock:
            self._enter()
            return self._next

    def series(
        self, branch: str, name: str, points: int = 2000
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A measure over the steps of a branch, thinned for a picture.

        Parameters
        ----------
        branch, name
            What to give; a branch or name that is not there has no points.
        points
            Points at most (5 or more). The first and the last point stay, and the minimum, the
            maximum and the first non-finite value of each of equally long parts.

        Returns
        -------
        tuple of float64 [n]
            Steps, and values at them.
        """
        with self._lock:
            self._enter()
            rows = self._branches.get(branch)
            if rows is None or name not in rows.columns:
                return np.empty(0), np.empty(0)
            steps = rows.columns["step"][: rows.count].copy()
            values = rows.columns[name][: rows.count].copy()
        there = measured(values)
        if not there.all():
            steps, values = steps[there], values[there]
        if len(steps) <= points:
            return steps, values
        each = 2 if np.isfinite(values).all() else 3
        parts = max((points - 2) // each, 1)
        kept = extremes(values, -(-len(values) // parts))
        kept = np.union1d(kept, [0, len(values) - 1])
        return steps[kept], values[kept]

    def _thin(self) -> None:
        orders = np.sort(np.concatenate([r.orders[: r.count] for r in self._branches.values()]))
        recent = int(orders[len(orders) * 3 // 4])
        for branch, rows in self._branches.items():
            # From the second row to what is recent, or to the last row, in whole groups.
            older = min(rows.after(recent), rows.count - 1) - 1
            end = 1 + older // _NEIGHBOURS * _NEIGHBOURS
            if end <= 1:
                continue
            groups = rows.columns["step"][1:end].reshape(-1, _NEIGHBOURS)
            spans = groups[:, -1] - groups[:, 0]
            kept = np.repeat(spans > np.median(spans), _NEIGHBOURS)
            kept[extremes(rows.columns.get("loss", rows.columns["step"])[1:end], _NEIGHBOURS)] = (
                True
            )
            there = np.concatenate([[0], 1 + np.flatnonzero(kept), np.arange(end, rows.count)])
            self._branches[branch] = rows.at(there)  # at once, where an interrupt comes


@dataclass(frozen=True)
class _Sample:
    order: int
    branch: str
    step: int
    values: dict[str, NDArray[np.float32]]


class ParameterHistory:
    """Measures of each parameter at sampled steps. One thread may append while others read.

    Parameters
    ----------
    names
        Of the parameters, in the order of the values.
    most
        Samples that are kept over all branches; for one more, one of the older half goes, where
        they are densest.
    """

    def __init__(self, names: Sequence[str], most: int = 400) -> None:
        self.names = tuple(names)
        self._most = most
        self._next = 0
        self._received = 0  # samples before this one are another rank's
        self._samples: list[_Sample] = []
        self._lock = Lock()

    def append(self, branch: str, step: int, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Add a sample; those of this step and later ones in its branch are forgotten.

        Parameters
        ----------
        branch, step
            Where it was taken.
        values : float32 [parameters] each
            By measure, as ``grad_norm``; copied.
        """
        own = {name: np.array(value, np.float32) for name, value in values.items()}
        for value in own.values():
            value.flags.writeable = False  # readers get these arrays
        with self._lock:
            self._forget_from(branch, step)
            self._samples.append(_Sample(self._next, branch, step, own))
            self._next += 1
            if len(self._samples) > self._most:
                self._thin()

    def truncate(self, branch: str, step: int) -> None:
        """Forget what a branch has after a step."""
        with self._lock:
            self._forget_from(branch, step + 1)

    def drop(self, branch: str) -> None:
        """Forget a branch."""
        with self._lock:
            self._samples = [each for each in self._samples if each.branch != branch]

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._samples = []

    def give(self, without: Collection[str] = ()) -> dict[str, Any]:
        """All that is kept, for `receive` of another one; without some measures."""
        with self._lock:
            samples = [
                (
                    each.order,
                    each.branch,
                    each.step,
                    {name: x for name, x in each.values.items() if name not in without},
                )
                for each in self._samples
            ]
            return {"next": self._next, "whole": not without, "samples": samples}

    def receive(self, given: Mapping[str, Any]) -> None:
        """Have what another one gave instead of what is kept."""
        with self._lock:
            self._next = given["next"]
            self._received = 0 if given["whole"] else self._next
            self._samples = [_Sample(*each) for each in given["samples"]]

    def is_received(self, cursor: int) -> bool:
        """As `History.is_received`."""
        return cursor < self._received

    def add_missing(
        self, branch: str, step: int, values: Mapping[str, NDArray[np.float32]]
    ) -> None:
        """Add what another rank has measured, unless there is a sample of this step or a later."""
        if max(self.samples(branch), default=-1) < step:
            self.append(branch, step, values)

    def since(self, cursor: int, most_samples: int = 100) -> tuple[int, list[Sample]]:
        """Samples that were appended after a cursor and are still kept, as `History.since`."""
        received = self._received if cursor < self._received else None
        with self._lock:
            found = [
                each
                for each in self._samples
                if each.order >= cursor and (received is None or each.order < received)
            ][:most_samples]
        after = found[-1].order + 1 if found else received or cursor
        return after, [(each.branch, each.step, dict(each.values)) for each in found]

    def samples(self, branch: str) -> list[int]:
        """The steps of a branch of which there are samples, in order."""
        with self._lock:
            return [each.step for each in self._samples if each.branch == branch]

    def get(self, branch: str, step: int, measure: str) -> NDArray[np.float32] | None:
        """A measure of all parameters at a step, read-only; None where it is not kept."""
        with self._lock:
            for each in self._samples:
                if each.branch == branch and each.step == step:
                    return each.values.get(measure)
        return None

    def _thin(self) -> None:
        samples = self._samples

        def gap(place: int) -> int:  # that there would be without it
            return samples[place + 1].order - samples[place - 1].order

        del samples[min(range(1, len(samples) // 2), key=gap, default=0)]

    def _forget_from(self, branch: str, step: int) -> None:
        self._samples = [
            each for each in self._samples if each.branch != branch or each.step < step
        ]
