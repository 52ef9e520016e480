"""What the view of a graph and the kernel say to each other, over the widget's comm.

The same types stand in ``extensions/widgets/src/graph/messages.ts``. The scene is no message but
a synced trait, so that a second view of the same widget, and one that is shown while the kernel
is busy, have it at once. A new scene is sent before the answer to what changed it.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

Buffer = memoryview


class SceneState(TypedDict):
    """A `Scene` as it travels: little-endian buffers, and texts joined by newlines."""

    item: Buffer
    kind: Buffer
    x: Buffer
    y: Buffer
    width: Buffer
    height: Buffer
    swatch: Buffer
    frame: Buffer
    source: Buffer
    target: Buffer
    stub: Buffer
    titles: str
    notes: str
    palette: str
    legend: list[tuple[str, int]]


class Timeline(TypedDict):
    """Memory in the order of evaluation, above what there is before: a few thousand points.

    ``at`` are places in that order (int32), ``bytes`` are float32; ``peak`` is the highest point.
    """

    at: Buffer
    bytes: Buffer
    peak: int
    label: str


class Request(TypedDict):
    """What the browser asks.

    ``item`` is a node's number, or that of a group as in `Scene.item`; ``id`` comes back in the
    answer. Which of the others are there depends on ``ask``.
    """

    id: int
    ask: Literal[
        "toggle", "open_all", "close_all", "reveal", "details", "search", "colour", "path", "text",
        "export", "alive",
    ]  # fmt: skip
    item: NotRequired[int | None]
    other: NotRequired[int]
    text: NotRequired[str]


class Link(TypedDict):
    """A node that one can go to."""

    item: int
    label: str


class More(TypedDict):
    """How many links of a kind were left out."""

    inputs: int
    outputs: int


class Answer(TypedDict):
    """What the kernel answers; with the hits of a search comes one buffer of int32.

    ``item`` is where a node that was to be revealed is seen: a constant is seen in its user.
    ``more`` says how many links there are beside those that are sent.
    """

    answer: int
    error: NotRequired[str]
    rows: NotRequired[list[tuple[str, str]]]
    inputs: NotRequired[list[Link]]
    outputs: NotRequired[list[Link]]
    path: NotRequired[list[Link]]
    more: NotRequired[More]
    text: NotRequired[str]
    item: NotRequired[int]
