"""What is known of a node when its turn to be evaluated comes, and what it then takes of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mlxbench_kernel.graph.strides import Form, Layout, packed

NEW = -1
SPARE = 16384  # bytes that a buffer may be larger than what it is taken over for (utils.h)


class Output(NamedTuple):
    """Where a result goes.

    Attributes
    ----------
    source
        The place of the input whose buffer it has; `NEW` for a buffer of its own.
    nbytes
        Of the buffer of its own.
    form
        How it lies there.
    """

    source: int
    nbytes: int
    form: Form


class Allocation(NamedTuple):
    """What evaluating a node does to memory.

    Attributes
    ----------
    outputs : sequence of Output
    temporaries : sequence of int
        Bytes of buffers that are there from now until the node has been computed.
    dispatches
        Pieces of work that it gives to its stream.
    scratch
        Bytes that are there only while it is computed, which may be later.
    """

    outputs: Sequence[Output]
    temporaries: Sequence[int] = ()
    dispatches: int = 1
    scratch: int = 0


class Call:
    """A node whose turn it is.

    Parameters
    ----------
    layout
        Of the graph.
    name, text
        Its primitive and arguments.
    on_gpu, fused
        Whether it runs on a GPU, and whether ``mx.compile`` has made it.
    taken, made
        Arrays.
    free
        Whether nothing but this node needs an array and its buffer any more
        (``array::is_donatable``).
    capacity
        Bytes of an array's buffer.
    """

    __slots__ = ("capacity", "free", "fused", "layout", "made", "name", "on_gpu", "taken", "text")

    def __init__(
        self,
        layout: Layout,
        name: str,
        text: str,
        on_gpu: bool,
        fused: bool,
        taken: list[int],
        made: list[int],
        free: Callable[[int], bool],
        capacity: Callable[[int], int],
    ) -> None:
        self.layout, self.name, self.text = layout, name, text
        self.on_gpu, self.fused = on_gpu, fused
        self.taken, self.made, self.free, self.capacity = taken, made, free, capacity

    def form(self, place: int) -> Form:
        """How an input lies."""
        return self.layout.form[self.taken[place]]

    def donates(self, place: int, output: int = 0) -> bool:
        """``is_donatable(in, out)``."""
        layout, array, made = self.layout, self.taken[place], self.made[output]
        return (
            layout.itemsize[array] == layout.itemsize[made]
            and self.capacity(array) <= layout.nbytes[made] + SPARE
            and self.free(array)
        )

    def new(self, output: int = 0) -> Output:
        """A result that lies as new ones do."""
        made = self.made[output]
        return Output(NEW, self.layout.nbytes[made], packed(self.layout.shape[made]))

    def like(self, form: Form, output: int = 0) -> Output:
        """A new result that lies as an input does."""
        return Output(NEW, form.elements * self.layout.itemsize[self.made[output]], form)

    def copied(self, place: int, whole: bool) -> Output:
        """``copy_cpu`` of an input: with its buffer `whole`, or element by element."""
        if not whole or self.form(place).elements == 1 < self.layout.size[self.made[0]]:
            return self.new()
        if self.donates(place):
            return Output(place, 0, self.form(place))
        return self.like(self.form(place))

    def straightened(self, places: Sequence[int]) -> list[int]:
        """Bytes of the copies of those inputs that are not row-contiguous."""
        nbytes = self.layout.nbytes
        return [nbytes[self.taken[place]] for place in places if not self.form(place).row]


Rule = Callable[[Call], Allocation]
