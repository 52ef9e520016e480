"""Measures how fast a model generates, as `mlx_lm.benchmark` does, on the ranks as they hold it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.rank import frozen

FIGURES = ("prompt_tps", "generation_tps", "peak_memory", "total_time")


def runs(
    part: Part, prompt: int, generate: int, repeat: int, batch: int = 1
) -> Iterator[dict[str, float]]:
    """Time generations of random tokens, which nothing ends; on all ranks of a split model alike.

    Parameters
    ----------
    part
        Of the model.
    prompt, generate
        Tokens of the prompt, and to generate.
    repeat
        Runs that count, after one that does not.
    batch
        Prompts at a time.

    Yields
    ------
    dict
        After the one that does not count an empty one. Of each other run ``prompt_tps`` and
        ``generation_tps`` (tokens per second, of all prompts together), ``peak_memory`` (GB of
        10^9 bytes, MLX's since this run began), ``total_time`` (seconds).

    Raises
    ------
    UsageError
        A number cannot be.
    """
    check(part, prompt, generate, repeat, batch)
    prompts = _prompts(part, prompt, batch)
    for number in range(repeat + 1):
        mx.reset_peak_memory()
        with _endless(part.tokenizer):
            begun = time.perf_counter()
            found = _run(part, prompts, generate)
            seconds = time.perf_counter() - begun
        if number:
            figures = {name: float(getattr(found, name)) for name in FIGURES[:3]}
            yield {**figures, "total_time": seconds}
        else:
            yield {}


def check(part: Part, prompt: int, generate: int, repeat: int, batch: int) -> None:
    """See that the numbers of `runs` can be."""
    numbers = {"prompt": prompt, "generate": generate, "repeat": repeat, "batch": batch}
    for name, number in numbers.items():
        if not isinstance(number, int) or number < 1:
            raise UsageError(f"{name}={number!r}: type a number, 1 or more")
    if part.context is not None and prompt + generate > part.context:
        raise UsageError(
            f"prompt={prompt} and generate={generate} are more than the {part.context} tokens that "
            "the model is made for: type less"
        )


def machine() -> dict[str, Any]:
    """What this rank runs with and on: ``mlx``, ``mlx-lm``, ``mlxbench``, ``python`` (versions),
    ``os``, ``chip``, ``cores``, ``memory`` (bytes of the host, or of a GPU with its own)."""
    import psutil

    from mlxbench_kernel import __version__

    info = mx.device_info(mx.default_device())
    memory = info.get("memory_size") or info.get("total_memory") or psutil.virtual_memory().total
    return {
        "mlx": importlib.metadata.version("mlx"),
        "mlx-lm": importlib.metadata.version("mlx-lm"),
        "mlxbench": __version__,
        "python": platform.python_version(),
        "os": platform.platform(),
        "chip": str(info.get("device_name") or platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "memory": int(memory),
    }


def _prompts(part: Part, tokens: int, batch: int) -> list[list[int]]:
    """Those that `mlx_lm.benchmark` takes."""
    vocabulary = part.vocabulary or len(part.tokenizer.vocab)
    before = frozen.random_key()
    mx.random.seed(0)
    found: Any = mx.random.randint(0, vocabulary, (batch, tokens)).tolist()
    frozen.seed(before)
    return list(found)


def _run(part: Part, prompts: list[list[int]], generate: int) -> Any:
    from mlx_lm import batch_generate, stream_generate

    if len(prompts) > 1:
        return batch_generate(part.model, part.tokenizer, prompts, max_tokens=generate).stats
    last: Any = None
    for each in stream_generate(part.model, part.tokenizer, prompts[0], max_tokens=generate):
        last = each
    return last


@contextmanager
def _endless(tokenizer: Any) -> Iterator[None]:
    """No token ends a text."""
    before = tokenizer.eos_token_ids
    tokenizer.eos_token_ids = set()
    try:
        yield
    finally:
        tokenizer.eos_token_ids = before
