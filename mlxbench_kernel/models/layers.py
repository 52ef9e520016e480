"""The layers of a model on its ranks: which ones there are, and who holds one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.interrupts import shielded
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.training.exchange import agree, gather_numbers

T = TypeVar("T")


class Layers:
    """Those of a model, some of them on this rank; made on all ranks of a split one alike.

    Parameters
    ----------
    part
        Of the model.

    Attributes
    ----------
    count : int
        Of all layers.
    first : int
        Number of the first one on this rank.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        model: Any = part.model
        self._held: list[Module] = list(model.layers)
        self.first, self.count = 0, len(self._held)
        if in_pipeline(part):
            assert part.group is not None
            held = gather_numbers([self.count], part.group)[:, 0]
            self.count = int(held.sum())
            self.first = int(held[part.rank + 1 :].sum())  # rank 0 has the last ones

    def number(self, layer: int) -> int:
        """A layer's number; negative ones count from the end.

        Raises
        ------
        UsageError
            There is none.
        """
        whole = isinstance(layer, int) and not isinstance(layer, bool)
        if not whole or not -self.count <= layer < self.count:
            raise UsageError(
                f"layer={layer!r}: the model has {self.count} layers: type 0 to {self.count - 1}"
            )
        return layer % self.count

    def held(self, number: int) -> Module | None:
        """A layer by its number; None where another rank has it."""
        place = number - self.first
        return self._held[place] if 0 <= place < len(self._held) else None

    def inside(self, number: int, path: str) -> Module | None:
        """A module of a layer, as "mlp.down_proj"; None where another rank has the layer.

        Raises
        ------
        UsageError
            It has none of that name; on all ranks.
        """
        layer = self.held(number)
        modules = {} if layer is None else dict(layer.named_modules())
        error = None
        if layer is not None and path not in modules:
            names = [name for name in modules if name]
            near = difflib.get_close_matches(path, names, 1)
            outer = [name for name in names if "." not in name]
            meant = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(outer))}"
            error = UsageError(f"layer {number} has no module {path!r}: {meant}")
        self.agree(error)
        return modules.get(path)

    def agree(self, error: UsageError | None) -> None:
        """Raise what one rank has met on all ranks that wait for it."""
        if in_pipeline(self._part):
            agree(error, self._part.group)
        elif error is not None:  # the others have met it too
            raise error


def in_pipeline(part: Part) -> bool:
    """Whether its layers are on several ranks."""
    return part.is_split and part.shard == "pipeline"


def noted(
    part: Part, tokens: Sequence[int], noting: AbstractContextManager[list[T]] | None
) -> list[T]:
    """Run a model on tokens, lazily, and give what is noted meanwhile.

    On all ranks of a split model alike. No cache is used, and none is changed.

    Parameters
    ----------
    part, tokens
        Of the model, and what it is run on.
    noting
        One of `called`; None on a rank that has nothing to note.
    """
    model: Any = part.model
    with shielded(nullcontext([]) if noting is None else noting) as (found,):
        logits = model(mx.array([tokens]))
    if in_pipeline(part):
        mx.eval(logits)  # what the others send and wait for
    kept: list[T] = found
    return kept


def texts_of(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Tokens one by one as text; a part of a character as the vocabulary has it."""
    known: dict[int, str] = {}
    for token in set(tokens):
        text = tokenizer.decode([token])
        if "\ufffd" in text or not text:
            text = str(tokenizer.convert_ids_to_tokens(token))
        known[token] = text
    return [known[token] for token in tokens]
