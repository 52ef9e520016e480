"""Turns the merged output of a cell into blocks: text with labels, and rich bundles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlxbench_kernel.kernel.output import ansi
from mlxbench_kernel.kernel.output.model import CellOutput
from mlxbench_kernel.kernel.output.nodes import Node, in_rank_order
from mlxbench_kernel.kernel.output.ranks import format_ranks, label, ranks_in

BLOCK_LINES = 250
LIVE_TAIL = 200  # nodes of the end that are shown while a flood of lines comes in


@dataclass(slots=True)
class Block:
    """What one display of the front-end holds.

    Attributes
    ----------
    key
        Content to compare: two blocks with the same key look the same.
    data, metadata
        Mime bundle.
    """

    key: str
    data: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)


EMPTY = Block("", {"text/plain": ""})


class Style:
    """How the lines of one cell are labelled.

    A label is gray where all ranks of the cell agree, blue where it is some of them, orange
    for stderr. With one rank in the cluster there are no labels.

    Parameters
    ----------
    output
        Output of the cell.
    """

    def __init__(self, output: CellOutput) -> None:
        self.labelled = output.size > 1
        self._all = sum(1 << rank for rank in output.ranks)
        self._width = len(label(self._all))

    def render(self, node: Node, mask: int) -> str:
        """A text node, each of its lines behind the label of the ranks or a blank margin."""
        text = ansi.closed(node.text or "")
        stderr = node.kind == "stderr"
        if not self.labelled:
            return f"{ansi.ORANGE}{text}{ansi.RESET}" if stderr and "\x1b" not in text else text
        if "\n" in text:
            width = max(self._width, len(label(mask)))
            text = text.replace("\n", "\n" + " " * (width + 1))
        return f"{self.label(mask, stderr)} {text}"

    def label(self, mask: int, stderr: bool = False) -> str:
        """The coloured label of the ranks, as wide as that of all ranks."""
        text = label(mask)
        colour = ansi.ORANGE if stderr else ansi.GRAY if mask == self._all else ansi.BLUE
        return f"{colour}{text}{ansi.RESET}{' ' * (self._width - len(text))}"


def gray(text: str) -> str:
    """Text beside the output itself."""
    return f"{ansi.GRAY}{text}{ansi.RESET}"


def left_out_line(output: CellOutput, hidden: Iterable[Node] = ()) -> str:
    """``… 993 000 lines left out …``, with the ranks that said them.

    Parameters
    ----------
    output
        Output of the cell.
    hidden
        Nodes that are kept but not shown.
    """
    counts = output.left_out
    for node in hidden:
        for rank in ranks_in(node.mask):
            counts[rank] += 1
    counts = {rank: count for rank, count in counts.items() if count}
    who = f"[{format_ranks(counts)}]"
    each = len(set(counts.values())) == 1
    number = f"{max(counts.values()) if each else sum(counts.values()):_}".replace("_", " ")
    if output.size == 1:
        return gray(f"… {number} lines left out …")
    of = f"each of {who}" if each and len(counts) > 1 else who
    return gray(f"… {number} lines of {of} left out …")


def blocks(output: CellOutput, final: bool, status: str | None = None) -> list[Block]:
    """The output as blocks, in order.

    Parameters
    ----------
    output
        Output of the cell.
    final
        Show all that is kept; otherwise, of a flood of lines only the last few, and below
        them who raised what, and `status`.
    status
        A line about the cell as a whole.
    """
    with output.lock:
        found: list[Block] = []
        lines: list[str] = []
        count = 0
        for item in _items(output, final):
            rich = isinstance(item, Block)
            if lines and (rich or count >= BLOCK_LINES):
                found.append(_text(lines))
                lines, count = [], 0
            if isinstance(item, Block):
                found.append(item)
            else:
                lines.append(item)
                count += 1 + item.count("\n")
        if not final:
            style = Style(output)
            for error in output.errors:
                mask = sum(1 << rank for rank in error.ranks)
                lines.append(f"{style.label(mask)} {ansi.RED}raised{ansi.RESET} {error.summary}")
            if status:
                lines.append(gray(status))
        if lines:
            found.append(_text(lines))
        return found


def _text(lines: list[str]) -> Block:
    text = "\n".join(lines)
    return Block(text, {"text/plain": text})


def _items(output: CellOutput, final: bool) -> Iterator[str | Block]:
    """Lines with label, and rich bundles, each behind a line with its label."""
    style = Style(output)
    nodes, boundary = output.merge.nodes, output.merge.boundary
    if boundary is None:
        yield from _rendered(nodes.items, style)
        return
    tail = list(nodes.following(boundary))
    yield from _rendered(nodes.items[: len(nodes.items) - len(tail)], style)
    hidden = [] if final else tail[:-LIVE_TAIL]
    if hidden or any(output.left_out.values()):
        yield left_out_line(output, hidden)
    yield from _rendered(tail[len(hidden) :], style)


def _rendered(items: list[Node], style: Style) -> Iterator[str | Block]:
    items = list(in_rank_order(items))
    position = 0
    while position < len(items):
        node = items[position]
        if node.key is None:
            end = position
            while end < len(items) and items[end].key is None:
                end += 1
            yield from _unfinished(items[position:end], style)
            position = end
            continue
        position += 1
        if node.text is None:
            if style.labelled:
                yield style.label(node.mask).rstrip()
            assert node.data is not None
            yield Block(node.key, node.data, node.metadata or {})
            continue
        if node.rendered is None:
            node.rendered = style.render(node, node.mask)
        yield node.rendered


def _unfinished(items: list[Node], style: Style) -> Iterator[str]:
    """Unfinished lines next to each other; equal ones stand once."""
    masks: dict[tuple[str, str | None], int] = {}
    for node in items:
        masks[node.kind, node.text] = masks.get((node.kind, node.text), 0) | node.mask
    for node in items:
        mask = masks.pop((node.kind, node.text), 0)
        if mask:
            yield style.render(node, mask)
