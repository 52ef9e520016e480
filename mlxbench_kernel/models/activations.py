"""What comes out of a layer, or of a module in it, whole: put together from the ranks' shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from numpy.typing import NDArray

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.interrupts import shielded
from mlxbench_kernel.memory.fit.source import read_source
from mlxbench_kernel.models.called import outputs_of
from mlxbench_kernel.models.layers import Layers, in_pipeline, noted, texts_of
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.models.prompts import Prompt, encode
from mlxbench_kernel.training.exchange import to_numpy

HIDDEN = "hidden"
# Results of the same numbers on several ranks differ by rounding; terms of a sum by much more.
ALIKE = 0.02


@dataclass(frozen=True)
class Activations:
    """What comes out of a layer or of a module of it.

    Attributes
    ----------
    layer : int
        Its number.
    what : str
        "hidden", or the path of the module.
    texts : list of str
        The tokens.
    values : float32 [L, …]
        Of each token; mostly [L, D].
    """

    layer: int
    what: str
    texts: list[str]
    values: NDArray[np.float32]


def activations(part: Part, prompt: Prompt, layer: int, what: str = HIDDEN) -> Activations | None:
    """What comes out of a layer for a text; on all ranks of a split model alike.

    Parameters
    ----------
    part
        Of the model, which is as it was afterwards.
    prompt
        As for `prompts.encode`.
    layer
        Its number; negative ones count from the end.
    what
        "hidden" for what the layer gives to the next one, or the path of a module in it, as
        "mlp.down_proj".

    Returns
    -------
    Activations or None
        None on a rank of a pipeline that does not hold the layer.

    Raises
    ------
    UsageError
        The text, the layer or the module cannot be, or the module gives no array for each token.
    """
    tokens = encode(part, prompt)
    layers = Layers(part)
    number = layers.number(layer)
    path = "" if what == HIDDEN else what
    module = layers.inside(number, path)
    found = noted(part, tokens, None if module is None else outputs_of(module))
    error = None
    if module is not None and not (found and isinstance(found[0], mx.array)):
        how = f"gives a {type(found[0]).__name__}, no array" if found else "was not called"
        error = UsageError(f"{what!r} of layer {number} {how}: type another, or 'hidden'")
    layers.agree(error)
    if module is None:
        return None
    own = found[0].astype(mx.float32)
    if part.is_split and not in_pipeline(part):
        own = _whole(part, own, _shape(part, tokens, number, path))
    texts = texts_of(part.tokenizer, tokens)
    return Activations(number, what, texts, to_numpy(own[0] if own.shape[0] == 1 else own))


def _shape(part: Part, tokens: list[int], number: int, path: str) -> tuple[int, ...]:
    """The shape that a model which is not split gives; nothing is evaluated."""
    model: Any = read_source(part.folder).model
    module: Module = dict(model.layers[number].named_modules())[path]
    with shielded(outputs_of(module)) as (found,):
        model(mx.array([tokens]))
    return tuple(found[0].shape)


def _whole(part: Part, own: mx.array, shape: tuple[int, ...]) -> mx.array:
    """What all ranks have together.

    That is seen in the shapes: along an axis that is shorter here each rank has a piece. Where the
    shape is that of all, each rank has all of it, or a term of a sum (as inside of experts, whose
    results mlx-lm adds up afterwards): then the ranks' numbers have nothing in common.
    """
    gathered = mx.distributed.all_gather(own[None], group=part.group)
    shorter = [axis for axis, (here, all_) in enumerate(zip(own.shape, shape, strict=True))
               if here != all_]  # fmt: skip
    if shorter:
        return mx.concatenate(list(gathered), axis=shorter[0])
    apart = mx.abs(gathered - gathered[:1]).max()
    if float(apart) <= ALIKE * float(mx.abs(gathered).max()):
        return gathered[0]
    return gathered.sum(axis=0)
