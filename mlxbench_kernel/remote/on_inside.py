"""What a rank finds inside of its part of a language model; this runs on the rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mlxbench_kernel.models.activations import activations
from mlxbench_kernel.models.attention import attention
from mlxbench_kernel.models.decoding import DecodingStep
from mlxbench_kernel.models.evaluation import perplexity
from mlxbench_kernel.models.likely import likely
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.models.timing import timed
from mlxbench_kernel.remote.on_model import namespace_here, part_named
from mlxbench_kernel.remote.said import SaidAtTimes

STEP = "mlxbench_decoding_step"  # the variable that holds it while its graph is captured


def on_inside(name: str, *arguments: Any) -> Any:
    """Do one of `CALLS`; what it returned."""
    return CALLS[name](*arguments)


def _likely(name: str, prompt: Any, k: int, first: int) -> Any:
    """The likeliest next tokens; the same on all ranks, so one tells."""
    part = part_named(name)
    found = likely(part, prompt, k, first)
    return found if part.rank == 0 else None


def _attention(name: str, prompt: Any, layer: int, heads: Sequence[int] | None) -> Any:
    """The attention of a layer, from a rank that has it."""
    part = part_named(name)
    return _told_once(part, attention(part, prompt, layer, heads))


def _activations(name: str, prompt: Any, layer: int, what: str) -> Any:
    """What comes out of a layer, from a rank that has it."""
    part = part_named(name)
    return _told_once(part, activations(part, prompt, layer, what))


def _told_once(part: Part, found: Any) -> Any:
    """In tensor parallel all have it."""
    return None if part.shard == "tensor" and part.rank else found


def _timed(name: str, prompt: Any, tokens: int) -> Any:
    return timed(part_named(name), prompt, tokens)


def _perplexity(name: str, text: str, length: int, batch_size: int) -> Any:
    """Perplexity of a text, or of the one that the notebook has put into variable `text`."""
    given = namespace_here().pop(text)
    part = part_named(name)
    tell = SaidAtTimes("done", "total")
    found = perplexity(part, np.asarray(given).tobytes().decode(), length, batch_size, tell)
    return asdict(found) if part.rank == 0 else None


def _prepare_step(name: str, prompt: Any) -> None:
    """Have a decoding step in variable `STEP`."""
    namespace_here()[STEP] = DecodingStep(part_named(name), prompt)


def _forget_step() -> None:
    namespace_here().pop(STEP, None)


CALLS: dict[str, Callable[..., Any]] = {
    "likely": _likely,
    "attention": _attention,
    "activations": _activations,
    "timed": _timed,
    "perplexity": _perplexity,
    "prepare_step": _prepare_step,
    "forget_step": _forget_step,
}
