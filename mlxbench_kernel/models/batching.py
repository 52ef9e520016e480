"""Batches of examples as mlx-lm makes them, each by its number and the same whenever it is asked.

``mlx_lm.tuner.trainer.iterate_batches`` (mlx-lm 0.32.2): examples sorted by length; neighbours make
a batch, which ranks share out one by one; batches in an order that is drawn anew
for each pass; padded to a multiple of 32. There the loss of a rank is the mean over its own tokens,
and gradients are averaged over ranks: where their numbers of tokens differ, that is not the mean
over the whole batch. Here each batch says of how many tokens its loss is the sum, so that ranks
together follow one rank with the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.datasets import Examples

PAD_TO = 32

# Tokens, int32 [examples, length]; int32 [examples, 2]: how many of each are a prompt, and how many
# there are; float32: by what the sum of the losses is divided.
Batch = tuple[mx.array, mx.array, mx.array]


def sorted_batches(examples: Examples, batch_size: int) -> list[list[int]]:
    """Which examples make up each batch; those that would not fill one are left out."""
    order = sorted(range(len(examples)), key=lambda number: len(examples.tokens[number]))
    return [
        order[begin : begin + batch_size]
        for begin in range(0, len(order) - batch_size + 1, batch_size)
    ]


def padded(
    examples: Examples, numbers: Sequence[int], max_seq_length: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Examples as rows of one length, and where of each the trained part begins and ends.

    Returns
    -------
    tokens
        int32 [examples, length]; 0 behind the last one.
    lengths
        int32 [examples, 2], as ``mlx_lm.tuner.trainer.default_loss`` reads them.
    """
    tokens = np.zeros((len(numbers), _width(examples, numbers, max_seq_length)), np.int32)
    lengths = np.zeros((len(numbers), 2), np.int32)
    for row, number in enumerate(numbers):
        some = examples.tokens[number][:max_seq_length]
        tokens[row, : len(some)] = some
        lengths[row] = examples.offsets[number], len(some) - examples.pieces
    return tokens, lengths


def trained_tokens(examples: Examples, numbers: Sequence[int], max_seq_length: int) -> int:
    """How many tokens of `padded` examples have a loss, as ``default_loss`` masks them."""
    width, count = _width(examples, numbers, max_seq_length), 0
    for number in numbers:
        end = min(len(examples.tokens[number]), max_seq_length) - examples.pieces
        count += max(min(end, width - 1) - max(examples.offsets[number], 1) + 1, 0)
    return count


def _width(examples: Examples, numbers: Sequence[int], max_seq_length: int) -> int:
    longest = max(len(examples.tokens[number]) for number in numbers)
    return min(1 + PAD_TO * -(-longest // PAD_TO), max_seq_length)


class TrainingBatches:
    """The batches of a training run; called with the number of one.

    Parameters
    ----------
    examples
        To train on.
    batch_size
        Examples of a batch, of all ranks together.
    max_seq_length
        Longer examples are cut.
    seed
        Of the order of batches.
    group
        The ranks.
    accumulate
        Batches of a step, which count by their tokens.

    Raises
    ------
    UsageError
        There are too few examples, or the ranks do not divide a batch.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        max_seq_length: int,
        seed: int,
        group: mx.distributed.Group,
        accumulate: int = 1,
    ) -> None:
        self._examples, self._longest, self._group = examples, max_seq_length, group
        self._accumulate = accumulate
        if batch_size % group.size():
            size = group.size()
            near = max(size, batch_size // size * size)
            raise UsageError(
                f"batch_size={batch_size} is of all ranks together, and {size} ranks do not "
                f"divide it: type batch_size={near} or {near + size}"
            )
        self._batches = sorted_batches(examples, batch_size)
        if not self._batches:
            raise UsageError(
                f"there are {len(examples)} examples to train on and batch_size={batch_size}: give "
                "more of them, or a smaller batch_size"
            )
        self._drawn = np.random.RandomState(seed)  # the generator that mlx-lm draws from
        self._orders: list[NDArray[np.int64]] = []

    def __len__(self) -> int:
        """Of one pass."""
        return len(self._batches)

    def examples_of(self, number: int) -> list[int]:
        """The numbers of the examples in a batch, for all ranks."""
        turn, place = divmod(number, len(self._batches))
        while len(self._orders) <= turn:
            self._orders.append(self._drawn.permutation(len(self._batches)))
        return self._batches[self._orders[turn][place]]

    def __call__(self, number: int) -> Batch:
        """This rank's part of a batch, counted from 0."""
        rank, size = self._group.rank(), self._group.size()
        own = self.examples_of(number)[rank::size]
        tokens, lengths = padded(self._examples, own, self._longest)
        first = number - number % self._accumulate
        total = sum(
            trained_tokens(self._examples, self.examples_of(each)[part::size], self._longest)
            for each in range(first, first + self._accumulate)
            for part in range(size)
        )
        # A step takes the mean over ranks and over the batches of a step.
        share = max(total, 1) / (size * self._accumulate)
        return mx.array(tokens), mx.array(lengths), mx.array(share, mx.float32)


def parts_of(
    examples: Examples,
    batch_size: int,
    most: int,
    max_seq_length: int,
    seed: int,
    group: mx.distributed.Group,
) -> Iterator[tuple[mx.array, mx.array]]:
    """This rank's part of examples to validate with, the same at each call.

    Parameters
    ----------
    most
        Batches; -1 for all examples, those too that fill no batch.
    others
        As of `TrainingBatches`.

    Yields
    ------
    tokens, lengths
        As of `padded`; ranks may have one fewer than others.
    """
    order = sorted(range(len(examples)), key=lambda number: len(examples.tokens[number]))
    batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
    if 0 <= most < len(batches):
        drawn = np.random.RandomState(seed).permutation(len(batches))[:most]
        batches = [batches[number] for number in drawn]
    for numbers in batches:
        own = numbers[group.rank() :: group.size()]
        if own:
            tokens, lengths = padded(examples, own, max_seq_length)
            yield mx.array(tokens), mx.array(lengths)
