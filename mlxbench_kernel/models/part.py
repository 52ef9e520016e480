"""What a rank holds of a language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxbench_kernel.memory.fit.source import LONGEST


@dataclass(eq=False)
class Part:
    """What a rank holds of a language model: parts of its layers, some of them, or all.

    Attributes
    ----------
    model, tokenizer, config
        As ``mlx_lm.load`` gives them; after ``shard`` or ``pipeline`` of mlx-lm.
    folder
        That it was read from.
    shard
        "tensor", "pipeline", or "data" where each rank has a replica.
    group
        Of the ranks that share it; None for one rank alone.
    draft
        A smaller model with the same tokenizer, whole on each rank, for speculative decoding.
    adapter
        Folder of the adapter that was put on; None without one.
    nbytes, read_bytes
        Of the parameters that this rank holds, and of what it has read of the files.
    seconds
        That reading took.
    caches
        KV caches that are kept from one prompt to the next, by name: the tokens that are in one,
        and the caches of the layers.
    tuning
        The `tuning.Tuning` of a model that is being tuned; None before.
    """

    held_for_users: ClassVar = ("model", "draft", "caches", "optimizer")  # see `holding`

    model: Module
    tokenizer: Any
    config: dict[str, Any]
    folder: Path
    shard: str
    group: mx.distributed.Group | None = None
    draft: Module | None = None
    adapter: Path | None = None
    nbytes: int = 0
    read_bytes: int = 0
    seconds: float = 0.0
    caches: dict[str, tuple[list[int], list[Any]]] = field(default_factory=dict)
    tuning: Any = None
    _weights: Any = None  # which the caches are of

    def weights(self) -> Any:
        """What is the same as long as tuning has not changed the weights."""
        return None if self.tuning is None else self.tuning.weights()

    def see_weights(self) -> None:
        """Forget the caches where weights were tuned since."""
        now = self.weights()
        if now != self._weights:
            self.caches.clear()
        self._weights = now

    @property
    def optimizer(self) -> Any:
        """That it is tuned with; None where it is not being tuned."""
        return None if self.tuning is None else self.tuning.optimizer

    @property
    def rank(self) -> int:
        """Its rank in the group."""
        return 0 if self.group is None else self.group.rank()

    @property
    def size(self) -> int:
        """Number of ranks of the group."""
        return 1 if self.group is None else self.group.size()

    @property
    def is_split(self) -> bool:
        """Whether all ranks have to work together on each token."""
        return self.size > 1 and self.shard != "data"

    @property
    def context(self) -> int | None:
        """Tokens that the model is made for; None where its config does not say."""
        return next(filter(None, map(self._number, LONGEST)), None)

    @property
    def vocabulary(self) -> int | None:
        """Number of its tokens; None where its config does not say."""
        return self._number("vocab_size")

    def _number(self, name: str) -> int | None:
        """What the config says, or the part of it that is about text."""
        text = self.config.get("text_config")
        config = {**self.config, **text} if isinstance(text, dict) else self.config
        found = config.get(name)
        return found if isinstance(found, int) and found > 0 else None

    def __repr__(self) -> str:
        how = f"{self.shard}, rank {self.rank} of {self.size}" if self.size > 1 else "one rank"
        return f"Part({self.folder.name}, {how})"
