"""One step of decoding with a KV cache, to be looked at without being evaluated."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxbench_kernel.models.part import Part
from mlxbench_kernel.models.prompts import Prompt, encode


class DecodingStep:
    """What ``mlx_lm.generate`` does for one token, with caches of its own.

    The caches are as after reading a prompt, but hold zeros: their shapes are found out by a call
    whose result is not evaluated. So the model has not run, and no rank has sent anything.

    Parameters
    ----------
    part
        Of the model; its caches are left alone.
    prompt
        As for `prompts.encode`.

    Attributes
    ----------
    token : array [1, 1]
        That was found last.
    """

    def __init__(self, part: Part, prompt: Prompt) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        tokens = encode(part, prompt)
        model: Any = part.model
        self._caches = make_prompt_cache(model)
        model(mx.array([tokens]), cache=self._caches)
        for cache in self._caches:
            _blank(cache)
        self.token = mx.array([tokens[-1:]])
        mx.eval(self.token)

    def __call__(self, model: Module) -> tuple[mx.array, mx.array]:
        """The next token and the logarithms of the probabilities, lazy; of greedy decoding.

        Once only: the caches hold the token afterwards.
        """
        call: Any = model
        logits = call(self.token, cache=self._caches)[:, -1, :]
        chances = logits - mx.logsumexp(logits, keepdims=True)
        return mx.argmax(chances, axis=-1), chances.squeeze(0)


def _blank(cache: Any) -> None:
    """Have a cache, or caches in it, hold zeros of the same shapes."""
    for name, value in vars(cache).items():
        setattr(cache, name, _blanked(value))


def _blanked(value: Any) -> Any:
    if isinstance(value, mx.array):
        zeros = mx.zeros(value.shape, value.dtype)
        mx.eval(zeros)
        return zeros
    if isinstance(value, (list, tuple)):
        return type(value)(_blanked(each) for each in value)
    if type(value).__module__.startswith("mlx_lm."):
        _blank(value)
    return value
