"""Generates texts for many prompts at once, as mlx-lm's server does: all of them in each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models import sampling
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.models.prompts import Prompt, encode
from mlxbench_kernel.rank import frozen

# Of ``mlx_lm.generate.BatchGenerator`` (mlx-lm 0.32.2); prompts that do not find room in a batch
# take the place of those that have ended.
SIZES = ("completion_batch_size", "prefill_batch_size", "prefill_step_size", "max_kv_size")


@dataclass
class Text:
    """What was generated for one prompt.

    Attributes
    ----------
    text
        Without the prompt.
    tokens
        The one that ended it included.
    finish
        "stop" or "length".
    """

    text: str
    tokens: list[int]
    finish: str


@dataclass
class BatchFigures:
    """What a batch took on this rank.

    Attributes
    ----------
    prompt_tokens, tokens
        Read and generated, of all prompts.
    prompt_seconds, seconds
        That reading and generating took.
    peak
        Of MLX's memory, in bytes.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    prompt_seconds: float = 0.0
    seconds: float = 0.0
    peak: int = 0


def generate_batch(
    part: Part,
    prompts: Sequence[Prompt],
    max_tokens: int = 256,
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    numbers: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda ended, tokens: None,
) -> tuple[list[Text], BatchFigures]:
    """Generate a text for each prompt; all ranks of a split model have to do it alike.

    Parameters
    ----------
    part
        Of the model.
    prompts
        Each as for `prompts.encode`.
    max_tokens
        For each at most; less where the model's context ends before.
    seed
        Of the sampling. The random state of this process is as before afterwards.
    options
        Of the sampling, and `SIZES`.
    numbers
        Of the prompts for messages, where they are some of more; by default from 0.
    progress
        Told after each step how many have ended, and the tokens so far.

    Returns
    -------
    list of Text, BatchFigures
        In the order of the prompts.

    Raises
    ------
    UsageError
        A prompt or an option cannot be; nothing was generated.
    """
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise UsageError(f"max_tokens={max_tokens!r}: type a number, 1 or more")
    sampling.check_seed(seed)
    given = dict(options or {})
    sizes = {name: given.pop(name) for name in SIZES if name in given}
    arguments = sampling.for_step(given)
    sampling.check_bias(given, part.vocabulary)
    processors = arguments.pop("logits_processors", None)
    sampler = arguments.pop("sampler", None)
    if arguments:
        raise UsageError(f"{', '.join(arguments)} cannot be for a batch: leave it out")
    called = range(len(prompts)) if numbers is None else numbers
    tokens = [_encoded(part, *each) for each in zip(called, prompts, strict=True)]
    if not tokens:
        return [], BatchFigures()
    most = [min(max_tokens, (part.context or max_tokens + len(each)) - len(each))
            for each in tokens]  # fmt: skip
    return _generated(part, tokens, most, seed, sampler, processors, sizes, progress)


def _encoded(part: Part, number: int, prompt: Prompt) -> list[int]:
    try:
        return encode(part, prompt)
    except UsageError as error:
        raise UsageError(f"prompt {number}: {error}") from None


def _generated(
    part: Part,
    prompts: list[list[int]],
    most: list[int],
    seed: int,
    sampler: Any,
    processors: Any,
    sizes: dict[str, Any],
    progress: Callable[[int, int], None],
) -> tuple[list[Text], BatchFigures]:
    from mlx_lm.generate import BatchGenerator

    key = frozen.random_key()
    mx.random.seed(seed)
    found = [Text("", [], "") for _ in prompts]
    figures = BatchFigures()
    began = time.perf_counter()
    try:
        made: Any = BatchGenerator(
            part.model,
            stop_tokens=[[token] for token in part.tokenizer.eos_token_ids],
            sampler=sampler,
            logits_processors=processors,
            **sizes,
        )
        with closing(made), made.stats() as stats:
            numbers = {uid: n for n, uid in enumerate(made.insert(prompts, most))}
            while responses := made.next_generated():
                for each in responses:
                    text = found[numbers[each.uid]]
                    text.tokens.append(int(each.token))
                    text.finish = each.finish_reason or ""
                figures.tokens += len(responses)
                progress(sum(bool(text.finish) for text in found), figures.tokens)
            # It has begun with one more step: its collectives are not to meet those that come
            # next, which may be in another stream.
            mx.synchronize(made.stream)
        figures.prompt_tokens = sum(map(len, prompts))
        figures.prompt_seconds = stats.prompt_time
        figures.seconds = time.perf_counter() - began - stats.prompt_time
        figures.peak = mx.get_peak_memory()
    finally:
        frozen.seed(key)
    for text in found:
        text.text = _decoded(part, text)
    return found, figures


def _decoded(part: Part, found: Text) -> str:
    """As ``mlx_lm.stream_generate`` makes text of tokens."""
    detokenizer = part.tokenizer.detokenizer
    detokenizer.reset()
    for token in found.tokens[: -1 if found.finish == "stop" else None]:
        detokenizer.add_token(token)
    detokenizer.finalize()
    text: str = detokenizer.text
    return text
