"""A graph that is being looked at: which groups are open, what it is coloured by, what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import exports, picture, saved
from mlxbench_kernel.graph.colours import Colour, Named
from mlxbench_kernel.graph.cost import Cost, cost
from mlxbench_kernel.graph.hierarchy import ROOT, Hierarchy
from mlxbench_kernel.graph.layout import lay_out
from mlxbench_kernel.graph.merging import State
from mlxbench_kernel.graph.model import Graph, Phase, Status
from mlxbench_kernel.graph.peak import Prediction, predict
from mlxbench_kernel.graph.scene import Scene
from mlxbench_kernel.graph.search import path, search
from mlxbench_kernel.units import format_bytes, quantity, ratio

Rows = list[tuple[str, str]]

NAMED: tuple[Named, ...] = ("kind", "module", "bytes", "dtype", "device")
UNITS = {"time": "s", "flops": "FLOP", "peak": "B"}
MOST_ALIVE = 200
OPEN_AT_MOST = 100_000  # boxes, when all groups are opened at once


class Explorer:
    """What a view asks, and what is typed in a notebook without one.

    Parameters
    ----------
    graph
        The graph.
    values
        More that is known of nodes, by what to call it: float64 [nodes], as ``time``.
    states : int8 [nodes]
        Of two graphs in one, as `GraphDiff.merged` gives them, what became of each node.
    note
        One more sentence for the summary.
    """

    def __init__(
        self,
        graph: Graph,
        values: Mapping[str, NDArray[np.float64]] | None = None,
        states: NDArray[np.int8] | None = None,
        note: str = "",
    ) -> None:
        self.graph = graph
        self.hierarchy = Hierarchy(graph)
        self.opened = self.hierarchy.start()
        self._values = dict(values or {})
        self._states = states
        self._note = note
        self._by = self.colours()[0]
        self._scene: Scene | None = None

    @property
    def title(self) -> str:
        """What was captured."""
        return self.graph.title or "graph"

    @cached_property
    def cost(self) -> Cost:
        """FLOPs and bytes."""
        return cost(self.graph)

    @cached_property
    def prediction(self) -> Prediction:
        """The memory that evaluating it will take."""
        return predict(self.graph)

    @cached_property
    def summary(self) -> str:
        """One line: how large it is, what it costs, what it will take."""
        graph = self.graph
        computed = int((graph.primitive != 0).sum())
        held = f" of {format_bytes(self.prediction.baseline)}" if graph.complete else ""
        operations = f"{computed:,} operation{'' if computed == 1 else 's'}"
        parts = [f"{operations}, {graph.nodes - computed:,} inputs and constants{held}"]
        called = [graph.collective(node) for node in np.flatnonzero(self._is_collective).tolist()]
        parts += [f"{called.count(name)} × {name}" for name in dict.fromkeys(called)]
        if not graph.complete:
            parts.append("names and edges only: the native module is missing")
        elif self._states is None:  # two in one cost nothing that anybody would pay
            flops = f"{quantity(int(self.cost.flops.sum()))}FLOP"
            left_out = self.cost.left_out()
            parts.append(f"{flops} ({left_out})" if left_out else flops)
            how = "predicted as on a CPU" if graph.device.any() else "predicted"
            parts.append(f"peak {format_bytes(self.prediction.peak)} more than now ({how})")
        return " · ".join([*parts, *filter(None, (graph.hint, self._note))])

    @cached_property
    def _is_collective(self) -> NDArray[np.bool_]:
        graph = self.graph
        which = [graph.collective(int(np.argmax(graph.primitive == number))) != ""
                 for number in range(len(graph.primitives))]  # fmt: skip
        return np.array(which, np.bool_)[graph.primitive]

    # -- what is open ----------------------------------------------------------

    def scene(self) -> Scene:
        """What is seen now."""
        if self._scene is None:
            self._scene = lay_out(
                self.graph, self.hierarchy, self.opened, self._colour(), UNITS.get(self._by, "")
            )
        return self._scene

    def toggle(self, item: int) -> None:
        """Open a closed group, or close an open one. `item` is -1 - its number."""
        self._change({*self.opened} ^ {self._group(item)})

    def open_all(self) -> None:
        """Open all groups.

        Raises
        ------
        UsageError
            Too many boxes would be seen.
        """
        if self.graph.nodes > OPEN_AT_MOST:
            raise UsageError(
                f"{self.graph.nodes:,} nodes are too many to be drawn at once: open groups one by "
                "one, or search"
            )
        self._change(set(range(len(self.hierarchy))))

    def close_all(self) -> None:
        """Close all groups."""
        self._change({ROOT})

    def reveal(self, item: int) -> None:
        """Open what is around a node, so that it is seen."""
        if item >= 0:
            self._change({*self.opened, *self.hierarchy.around(item)})

    def shown(self, item: int) -> int:
        """The item that a node is seen in: itself, a closed group, or the user of a constant."""
        return int(self.hierarchy.visible(self.opened).item_of[item]) if item >= 0 else item

    def _change(self, opened: set[int]) -> None:
        self.opened = opened
        self._scene = None

    @staticmethod
    def _group(item: int) -> int:
        if item >= 0:
            raise UsageError("a single node cannot be opened")
        return -1 - item

    # -- colours ----------------------------------------------------------------

    def colours(self) -> list[str]:
        """What boxes can be coloured by."""
        known = ["flops", "peak"] if self.graph.complete else []
        states = [] if self._states is None else ["difference"]
        return [*states, *self._values, *NAMED, *known]

    def colour(self, by: str) -> None:
        """Colour boxes by one of `colours`."""
        if by not in self.colours():
            raise UsageError(f"there is no colour by {by!r}, only {', '.join(self.colours())}")
        self._by = by
        self._scene = None

    def _colour(self) -> Colour:
        if self._by in self._values:
            return self._values[self._by]
        if self._by == "difference" and self._states is not None:
            return self._states
        if self._by == "flops":
            return self.cost.flops.astype(np.float64)
        if self._by == "peak":
            alive = np.zeros(self.graph.nodes)
            for array, size in self.prediction.alive(self.prediction.at):
                alive[self.graph.node[array]] += size
            return alive
        return next(name for name in NAMED if name == self._by)

    # -- details -----------------------------------------------------------------

    def label(self, item: int) -> str:
        """What stands on a box."""
        return self.graph.label(item) if item >= 0 else self.hierarchy.title[-1 - item]

    def details(self, item: int) -> Rows:
        """Rows of a label and a text."""
        return self._of_node(item) if item >= 0 else self._of_group(-1 - item)

    def _of_node(self, node: int) -> Rows:
        graph = self.graph
        name = graph.primitive_name(node)
        scope = graph.scopes[graph.scope[node]]
        rows: Rows = [("operation", name)] if name else [("input", graph.name(node) or "constant")]
        if node in graph.fused:
            rows.append(("fused", " → ".join(graph.fused[node])))
        rows.append(("arguments", graph.arguments_text(node)))
        for number, array in enumerate(graph.outputs_of(node)):
            label = "output" if len(graph.outputs_of(node)) == 1 else f"output {number}"
            size = format_bytes(int(graph.nbytes[array])) if graph.complete else ""
            named = graph.names.get(array, "")
            rows.append((label, "  ".join(x for x in (graph.describe(array), size, named) if x)))
        array = graph.outputs_of(node)[0]
        if graph.complete:
            status = Status(int(graph.status[array]))
            rows.append(("evaluated", "no" if status == Status.UNSCHEDULED else "yes"))
        if name:
            device = "gpu" if graph.device[node] else "cpu"
            rows.append(("device", f"{device}, stream {graph.stream[node]}"))
        rows.append(("module", f"{scope.path}  {scope.kind}".strip()))
        if name:
            rows.append(("phase", Phase(int(graph.phase[node])).name.lower()))
        if name and graph.complete:
            rows += _cost_rows(self.cost, np.array([node]))
        if self._states is not None:
            rows.append(("difference", State(int(self._states[node])).name.lower()))
        rows += [(by, _value(by, values[node])) for by, values in self._values.items()]
        return [(label, text) for label, text in rows if text]

    def _of_group(self, group: int) -> Rows:
        hierarchy, graph = self.hierarchy, self.graph
        nodes = hierarchy.nodes_in(group)
        computed = nodes[graph.primitive[nodes] != 0]
        rows: Rows = [
            ("group", hierarchy.title[group]),
            ("class", hierarchy.kind[group]),
            ("path", hierarchy.path[group]),
            ("operations", f"{len(computed):,}"),
        ]
        for phase in Phase:
            count = int((graph.phase[computed] == phase).sum())
            if 0 < count < len(computed):
                rows.append((phase.name.lower(), f"{count:,}"))
        if graph.complete:
            rows += _cost_rows(self.cost, nodes)
        if self._states is not None:
            times = np.bincount(self._states[nodes], minlength=len(State)).tolist()
            became = [f"{times[state]:,} {state.name.lower()}" for state in State if times[state]]
            rows.append(("difference", ", ".join(became)))
        rows += [(by, _value(by, values[nodes].sum())) for by, values in self._values.items()]
        names, counts = np.unique(graph.primitive[computed], return_counts=True)
        most = sorted(zip(counts.tolist(), names.tolist(), strict=True), reverse=True)[:8]
        rows += [("mostly", ", ".join(f"{n} × {graph.primitives[name]}" for n, name in most))]
        return [(label, text) for label, text in rows if text]

    def neighbours(self, item: int) -> tuple[list[int], list[int]]:
        """The nodes that an item needs, and those that need it."""
        graph = self.graph
        if item >= 0:
            users = [graph.users_of(array) for array in graph.outputs_of(item)]
            after = np.unique(np.concatenate(users)).tolist() if users else []
            return list(dict.fromkeys(graph.node[graph.inputs_of(item)].tolist())), after
        inside = np.zeros(graph.nodes, np.bool_)
        inside[self.hierarchy.nodes_in(-1 - item)] = True
        into = inside[graph.targets] & ~inside[graph.sources]
        out = inside[graph.sources] & ~inside[graph.targets]
        return np.unique(graph.sources[into]).tolist(), np.unique(graph.targets[out]).tolist()

    def search(self, text: str) -> list[int]:
        """The nodes that a text finds, see `search.search`."""
        return search(self.graph, text, self._states)

    def path(self, a: int, b: int) -> list[int]:
        """The nodes of a shortest way between two; empty without one."""
        return path(self.graph, a, b)

    # -- memory ------------------------------------------------------------------

    def timeline(self) -> Prediction | None:
        """The memory while it is evaluated; None where shapes are not known, or of two graphs."""
        if not self.graph.complete or self._states is not None:
            return None
        return self.prediction if len(self.prediction.order) else None

    def alive(self, at: int) -> tuple[str, list[tuple[int, str]]]:
        """What is alive at an index of the order of evaluation: a headline, and nodes with texts.

        The largest arrays come first; no more than `MOST_ALIVE` of them.
        """
        prediction, graph = self.prediction, self.graph
        found = prediction.alive(at)
        said = (
            f"{format_bytes(int(prediction.timeline[at]))} more than now at operation {at + 1:,} "
            f"of {len(prediction.order):,}: {len(found):,} arrays"
        )
        if len(found) > MOST_ALIVE:
            said += f", of which these are the {MOST_ALIVE} largest"
        rows = []
        for array, size in found[:MOST_ALIVE]:
            node = int(graph.node[array])
            where = graph.scopes[graph.scope[node]].path
            rows.append((node, f"{format_bytes(size)}  {self.label(node)}  {where}".rstrip()))
        return said, rows

    # -- to take away ------------------------------------------------------------

    def text(self, item: int | None) -> str:
        """An item, or all of it, as text."""
        nodes: Sequence[int] | None = None
        if item is not None:
            nodes = [item] if item >= 0 else self.hierarchy.nodes_in(-1 - item).tolist()
        return exports.to_text(self.graph, nodes)

    def export(self, kind: str) -> str:
        """The contents of a file: svg (all that is open), dot or json (the whole graph)."""
        if kind == "svg":
            return picture.svg(self.scene(), self.title, most=None, summary=self.summary)
        return exports.to_dot(self.graph) if kind == "dot" else saved.to_json(self.graph)

    def picture(self, name: str = "", focus: int | None = None) -> str:
        """What is open now as SVG, of a size for a page, with what is in `focus` outlined.

        `name` is as in `picture.svg`.
        """
        shown = None if focus is None else self.shown(focus)
        return picture.svg(self.scene(), self.title, name=name, summary=self.summary, focus=shown)


def _cost_rows(found: Cost, nodes: NDArray[np.integer]) -> Rows:
    flops, moved = int(found.flops[nodes].sum()), int((found.read + found.written)[nodes].sum())
    said, left_out = quantity(flops).strip(), found.left_out(nodes.tolist())
    if left_out:
        said = f"{said}; {left_out}" if flops else left_out
    rows = [("FLOPs", said), ("memory traffic", format_bytes(moved))]
    if flops and moved:
        rows.append(("intensity", f"{ratio(flops / moved)} FLOP/byte"))
    return rows


def _value(by: str, value: float) -> str:
    return f"{quantity(value)}{UNITS.get(by, '')}".strip()
