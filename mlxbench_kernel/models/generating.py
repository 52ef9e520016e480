"""Generates text on the ranks of a model, with figures of how that goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models import sampling
from mlxbench_kernel.models.caches import KVCaches
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.models.prompts import Prompt, encode
from mlxbench_kernel.rank import frozen
from mlxbench_kernel.rank.collectives import GROUP


@dataclass(frozen=True)
class Piece:
    """What one more token brings.

    Attributes
    ----------
    text
        May be "", where a character needs more tokens.
    token
        Its number.
    tokens, prompt_tokens
        Generated so far, and of the prompt; of these ``reused`` were in a cache.
    from_draft, drafted
        Whether the draft model has found it, and how many of the tokens so far.
    first, seconds
        To the first token, and since then.
    finish
        "stop", "length" or "context" (which is full) with the last one, else "".
    """

    text: str
    token: int
    tokens: int
    prompt_tokens: int
    reused: int
    from_draft: bool
    first: float
    seconds: float
    finish: str = ""
    drafted: int = 0

    @property
    def prompt_rate(self) -> float:
        """Tokens of the prompt per second, without those that were in a cache."""
        return (self.prompt_tokens - self.reused) / self.first

    @property
    def rate(self) -> float:
        """Generated tokens per second after the first; NaN before the second."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds else math.nan


class Watch:
    """What a generation takes on this rank, to be asked for at any time.

    Parameters
    ----------
    caches
        Of the generation.
    """

    def __init__(self, caches: KVCaches) -> None:
        self._caches = caches
        self._began = time.perf_counter()
        self._logged = GROUP.spent(0)[0]
        self._spent = 0.0

    def figures(self) -> dict[str, float]:
        """``kv_bytes``, ``active`` and ``peak`` (bytes), and ``collectives``: the share of the time
        so far that this rank spent in collectives, waiting included; NaN where it has no log."""
        self._logged, spent = GROUP.spent(self._logged)
        self._spent += spent
        return {
            "kv_bytes": self._caches.nbytes,
            "active": mx.get_active_memory(),
            "peak": mx.get_peak_memory(),
            "collectives": self._spent / max(time.perf_counter() - self._began, 1e-9),
        }


class Generation:
    """One generation; all ranks of a split model have to make and follow it alike.

    Parameters
    ----------
    part
        Of the model.
    prompt
        Text, tokens or messages, see `prompts.encode`.
    max_tokens
        At most; less where the model's context ends before.
    seed
        Of the sampling. The random state of this process is as before afterwards.
    keep
        Name under which the KV cache stays, for a prompt that begins alike; "" for none.
    options
        Of sampling and of mlx-lm's ``generate_step``, see `sampling.OPTIONS`.
    halt
        Asked after each token whether to end, with their number; the same on all ranks.
    reading
        Told how many tokens of the prompt are read, and how many there are to read; not with a
        draft model (mlx-lm 0.32.2).

    Attributes
    ----------
    watch : Watch
        What it takes.
    prompt_tokens : list of int
        Of the prompt.
    found : list of int
        Generated so far.

    Raises
    ------
    UsageError
        Something that was given cannot be.
    """

    def __init__(
        self,
        part: Part,
        prompt: Prompt,
        max_tokens: int = 256,
        *,
        seed: int = 0,
        keep: str = "",
        options: Mapping[str, Any] | None = None,
        halt: Callable[[int], bool] = lambda tokens: False,
        reading: Callable[[int, int], None] = lambda read, of: None,
    ) -> None:
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise UsageError(f"max_tokens={max_tokens!r}: type a number, 1 or more")
        sampling.check_seed(seed)
        self._part, self._seed, self._halt, self._reading = part, seed, halt, reading
        self._arguments = sampling.for_step(options or {})
        sampling.check_bias(options or {}, part.vocabulary)
        self.prompt_tokens = encode(part, prompt)
        room = max_tokens if part.context is None else part.context - len(self.prompt_tokens)
        self._most = min(max_tokens, room)
        self._is_cut = self._most < max_tokens  # by the model's context
        self._caches = KVCaches(part, keep, self._arguments.pop("max_kv_size", None))
        self.found: list[int] = []
        self.watch = Watch(self._caches)

    def __iter__(self) -> Iterator[Piece]:
        """Generate; a step further with each piece that is asked for."""
        from mlx_lm import stream_generate
        from mlx_lm.generate import generation_stream

        part = self._part
        began = time.perf_counter()
        reused = self._caches.take(self.prompt_tokens)
        key = frozen.random_key()
        mx.random.seed(self._seed)
        first, drafted = math.nan, 0
        try:
            pieces: Any = stream_generate(
                part.model,
                part.tokenizer,
                self.prompt_tokens[reused:],
                max_tokens=self._most,
                draft_model=part.draft,
                prompt_cache=self._caches.caches,
                prompt_progress_callback=self._reading,
                **self._arguments,
            )
            with closing(pieces):
                for each in pieces:
                    now = time.perf_counter()
                    if math.isnan(first):
                        first = now - began
                    # The last one says how it ended; of "stop" its token is no text.
                    finish = each.finish_reason or ""
                    if finish == "length" and self._is_cut:
                        finish = "context"
                    if each.generation_tokens > len(self.found):
                        self.found.append(int(each.token))
                        drafted += bool(each.from_draft)
                    yield Piece(
                        each.text,
                        int(each.token),
                        each.generation_tokens,
                        len(self.prompt_tokens),
                        reused,
                        bool(each.from_draft),
                        first,
                        now - began - first,
                        finish,
                        drafted,
                    )
                    if self._halt(len(self.found)):
                        break
            # mlx-lm has begun with one more token: its collectives are not to meet those that come
            # next, which may be in another stream.
            mx.synchronize(generation_stream)
            self._caches.keep([*self.prompt_tokens, *self.found])
        finally:
            frozen.seed(key)


def generate(part: Part, prompt: Prompt, max_tokens: int = 256, **options: Any) -> str:
    """Generate text; in a script, on all ranks of a split model alike.

    Parameters
    ----------
    part, prompt, max_tokens
        As for `Generation`.
    **options
        ``seed``, ``keep``, and what `sampling.OPTIONS` names.
    """
    own = {name: options.pop(name) for name in ("seed", "keep") if name in options}
    made = Generation(part, prompt, max_tokens, options=options, **own)
    return "".join(piece.text for piece in made)
