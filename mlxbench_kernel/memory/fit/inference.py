"""What generating text takes: mlx-lm's way through a prompt, in shapes only.

Follows ``generate_step`` of mlx-lm 0.32.2 (``mlx_lm/generate.py``): all tokens of the prompt but
the last in pieces of 2 048, of which only the caches are evaluated, then one token at a time. The
caches are the model's own (``make_prompt_cache``), so sliding windows, grouped heads, latent
attention and recurrent states are what they are.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxbench_kernel.memory.fit.collectives import Rank
from mlxbench_kernel.memory.fit.need import Need, Unknown, arrays, can_predict, peak, thinking
from mlxbench_kernel.memory.fit.stand_ins import arrays_of, bytes_of, copied

PIECE = 2048  # mlx-lm's prefill_step_size


def generating(model: Module, rank: Rank, context: int, batch: int, piece: int = PIECE) -> Need:
    """What a rank needs to read and write `context` tokens in all, `batch` sequences at once.

    Parameters
    ----------
    model
        With stand-ins for arrays; what the rank holds of it.
    rank
        The rank.
    context
        Tokens of a sequence, the answer's among them.
    batch
        Sequences.
    piece
        Tokens of the prompt that are read at once.

    Raises
    ------
    Unknown
        The model cannot be called as mlx-lm's are.
    """
    model.eval()
    parameters = bytes_of(model)
    with thinking(rank):
        walk = _Walk(model, batch)
        most = 0
        whole, rest = divmod(context - 1, piece)
        number = 0
        while number < whole:
            before_last = whole - 1 - number
            if number >= 2 and before_last and walk.skip(piece, before_last):
                number += before_last
            most = max(most, walk.read(piece, look=number in (0, whole - 1)))
            number += 1
        if rest:
            most = max(most, walk.read(rest, look=True))
        most = max(most, walk.write())
        cache = bytes_of(walk.state())
    activations = max(0, most - cache) if can_predict() else None
    return Need(parameters, cache=cache, activations=activations)


class _Walk:
    """A model with its caches, somewhere in a sequence."""

    def __init__(self, model: Module, batch: int) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self._model, self._batch = model, batch
        self._fixed = dict.fromkeys(arrays_of(model), True)
        has_layers = hasattr(model, "make_cache") or hasattr(model, "layers")
        self._caches: list[Any] = make_prompt_cache(model) if has_layers else []
        self._before: list[Any] = []

    def state(self) -> list[Any]:
        """What the caches hold."""
        return [cache.state for cache in self._caches]

    def read(self, tokens: int, look: bool) -> int:
        """A piece of the prompt; bytes at the worst moment, caches among them, if looked at."""
        return self._call(tokens, look and bool(self._caches), False)

    def write(self) -> int:
        """The next token; bytes at the worst moment, caches among them."""
        return self._call(1, True, True)

    def _call(self, tokens: int, look: bool, to_the_end: bool) -> int:
        self._before = [(array.shape, array.dtype) for array in arrays(self.state())]
        held = bytes_of(self.state())
        given = {**self._fixed, **dict.fromkeys(arrays_of(self.state()), False)}
        piece = mx.zeros((self._batch, tokens), mx.int32)
        given.update(dict.fromkeys(arrays_of(piece), False))
        model: Any = self._model
        logits = model(piece, cache=self._caches) if self._caches else model(piece)
        if not isinstance(logits, mx.array) or logits.ndim != 3:
            raise Unknown("called with tokens [batch, context] it gives no logits")
        outputs = arrays(self.state())
        if to_the_end:
            last = logits[:, -1, :]
            outputs.append(last - mx.logsumexp(last, keepdims=True))
            del last
        del logits, piece
        took = peak(outputs, given) if look and can_predict() else 0
        del outputs
        for cache in self._caches:
            _forget(cache)
        return held + took

    def skip(self, piece: int, times: int) -> bool:
        """Go on by so many pieces without a call, if it is known how the caches grow."""
        caches = [each for cache in self._caches for each in _parts(cache)]
        now = [(array.shape, array.dtype) for array in arrays(self.state())]
        if not all(_grows(cache, piece) or _turns(cache) for cache in caches):
            return False
        if not _same(self._before, now, caches):
            return False
        for cache in caches:
            if _grows(cache, piece):
                for name in ("keys", "values"):
                    old = getattr(cache, name)
                    shape = (*old.shape[:2], old.shape[2] + piece * times, *old.shape[3:])
                    setattr(cache, name, mx.zeros(shape, old.dtype))
            if hasattr(cache, "offset"):
                cache.offset += piece * times
        return True


def _parts(cache: Any) -> list[Any]:
    inner = getattr(cache, "caches", None)
    if inner is None:
        return [cache]
    return [part for each in inner for part in _parts(each)]


def _grows(cache: Any, piece: int) -> bool:
    """Whether it grows by what it is given, in steps that divide a piece."""
    return type(cache).__name__ == "KVCache" and piece % int(cache.step) == 0


def _turns(cache: Any) -> bool:
    """Whether it stays as large as it is, from some length on."""
    return type(cache).__name__ in ("RotatingKVCache", "ArraysCache")


def _same(before: list[Any], now: list[Any], caches: list[Any]) -> bool:
    """Whether those that stay as large did so in the last piece."""
    if len(before) != len(now):
        return False
    at = 0
    for cache in caches:
        count = len(arrays(cache.state))
        if _turns(cache) and before[at : at + count] != now[at : at + count]:
            return False
        at += count
    return True


def _forget(cache: Any) -> None:
    """Keep a cache's shapes, and not what it was computed from."""
    for part in _parts(cache):
        part.state = copied(part.state)
