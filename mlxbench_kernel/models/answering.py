"""mlx-lm's server for a model that is loaded already, on ranks that do other things too."""

from __future__ import annotations

import argparse
import gc
import threading
from contextlib import suppress
from queue import Empty, Queue
from typing import Any
from weakref import WeakSet

import mlx.core as mx
from mlx_lm.generate import DEFAULT_QUANTIZED_KV_START
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache
from mlx_lm.processors import load_processor
from mlx_lm.server import (
    CompletionRequest,
    GenerationArguments,
    ModelProvider,
    ResponseGenerator,
    TimeBudget,
    _image_parts,
)

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.models.turns import Turns

# What `lm.serve` takes beside the port: as `mlx_lm.server` calls it, with its default.
OPTIONS: dict[str, Any] = {
    "temp": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "max_tokens": 512,
    "num_draft_tokens": 3,
    "chat_template_args": {},
    "decode_concurrency": 32,
    "prompt_concurrency": 8,
    "prefill_step_size": 2048,
    "prompt_cache_size": 10,
    "prompt_cache_bytes": None,
    "kv_bits": None,
    "kv_group_size": 64,
    "quantized_kv_start": DEFAULT_QUANTIZED_KV_START,
    # Of mlx-lm "*": then any page that a browser on this machine shows can ask the model.
    "allowed_origins": [],
}
_KINDS = {
    int: "a whole number, 0 or more", float: "a number, 0 or more", dict: "a dict", list: "a list",
}  # fmt: skip
# Seconds from one look for new requests, or for a cell that wants the ranks, to the next.
BUDGET = 0.1

_PAUSE, _STOP = "pause", "stop"  # in place of a request


def arguments(part: Part, options: dict[str, Any]) -> argparse.Namespace:
    """What `mlx_lm.server` would have read from its command line.

    Raises
    ------
    UsageError
        It has no such option, or not with that value.
    """
    unknown = sorted(options.keys() - OPTIONS.keys())
    if unknown:
        raise UsageError(f"serve has no option {unknown[0]!r}: it takes {', '.join(OPTIONS)}")
    for name, value in options.items():
        _check(name, value)
    return argparse.Namespace(
        **{**OPTIONS, **options},
        model=str(part.folder),
        adapter_path=None,
        draft_model=None,
        trust_remote_code=False,
        chat_template="",
        use_default_chat_template=False,
        pipeline=part.shard == "pipeline",
    )


def _check(name: str, value: Any) -> None:
    default = OPTIONS[name]
    kind = int if default is None else type(default)
    fits = isinstance(value, (int, float) if kind is float else kind)
    if kind in (int, float):
        fits = fits and not isinstance(value, bool) and value >= 0
    if not fits and not (value is None and default is None):
        raise UsageError(f"{name}={value!r}: type {_KINDS[kind]}, as {name}={default!r}")


class _Over(Exception):
    """There will be no turn any more."""


class Provider(ModelProvider):
    """Has one model, which is there."""

    def __init__(self, part: Part, model_id: str, given: argparse.Namespace) -> None:
        super().__init__(given)
        cache: list[Any] = make_prompt_cache(part.model)
        vars(self).update(
            is_distributed=part.is_split,
            model_key=(model_id, None, None),
            model=part.model,
            tokenizer=part.tokenizer,
            draft_model=part.draft,
            processor=load_processor(part.model, part.config),
            is_batchable=part.draft is None and all(hasattr(each, "merge") for each in cache),
        )

    def load_default(self) -> None:
        """It is loaded."""

    def load(self, *request: Any) -> tuple[Any, Any]:
        """The model, whatever a request calls it: `Answering.generate` has looked at that."""
        return self.model, self.tokenizer


class Answering(ResponseGenerator):
    """mlx-lm's ``ResponseGenerator``, whose thread works in turns with the one that runs cells.

    Parameters
    ----------
    part
        Of the model; not loaded again.
    model_id
        What requests call it.
    options
        See `OPTIONS`.

    Attributes
    ----------
    turns : Turns
        Of its thread.
    requests_so_far : int
        That came; on rank 0.
    """

    def __init__(self, part: Part, model_id: str, options: dict[str, Any]) -> None:
        given = arguments(part, options)
        self.turns = Turns()
        self.requests_so_far = 0
        self._counting = threading.Lock()
        self._part, self.model_id = part, model_id
        self._weights = part.weights()  # which the prompt cache is of
        self._wanted = ""  # one of the signs above
        self._asked: WeakSet[Queue[Any]] = WeakSet()  # where those who asked wait
        # Its thread is started in there, and waits for its first turn.
        super().__init__(
            Provider(part, model_id, given), LRUPromptCache(int(given.prompt_cache_size))
        )
        self._is_distributed = part.is_split
        self._rank = part.rank
        self._time_budget = TimeBudget(BUDGET, iterations=4)
        self._time_budget._is_distributed = part.is_split

    @property
    def names(self) -> list[str]:
        """What a request may call the model; the first one is listed."""
        return [self.model_id, self._part.folder.name, str(self._part.folder), "default_model"]

    def pause(self) -> None:
        """Have the turn end, on all ranks at the same place; on rank 0, from any thread."""
        self._wanted = self._wanted or _PAUSE
        self.requests.put(None)  # it need not wait for a request

    def stop(self) -> None:
        """Likewise, for good."""
        self._wanted = _STOP
        self.requests.put(None)

    def generate(
        self,
        request: CompletionRequest,
        generation_args: GenerationArguments,
        progress_callback: Any = None,
    ) -> Any:
        """As mlx-lm's, of this model only; called by the threads of the HTTP server.

        Raises
        ------
        ValueError
            Another model, adapter or draft model is asked for.
        """
        asked = generation_args.model
        if asked.model not in self.names:
            raise ValueError(f"this server has only {self.model_id}, not {asked.model}")
        if asked.adapter or asked.draft not in ("default_model", None):
            raise ValueError("this server puts on no adapters, and takes no draft model")
        asked.model = self.model_id
        with self._counting:
            self.requests_so_far += 1
        ctx, pieces = super().generate(request, generation_args, progress_callback)
        if self._is_distributed and not (
            self._is_batchable(generation_args) and not any(_image_parts(request.messages))
        ):
            # A client that leaves would end this on rank 0 only, in the middle of a collective.
            ctx.stop = lambda: None
        return ctx, pieces

    def _run_generate(self) -> None:
        error: BaseException | None = None
        try:
            with suppress(_Over):
                if self.turns.rest():
                    self._generate()
            self.model_provider.reset()  # in this thread and its stream, as mlx-lm does
            self.prompt_cache = LRUPromptCache(0)
            gc.collect()
        except Exception as raised:
            self._generation_failed = True
            error = raised
        finally:
            self.turns.end(error)
            self._tell_clients()

    def give_up(self) -> None:
        """Have nobody wait for its thread, which is stuck."""
        self._generation_failed = True
        self._tell_clients()

    def _tell_clients(self) -> None:
        """Have those who wait for an answer know that none will come."""
        while True:
            try:
                found = self.requests.get_nowait()
            except Empty:
                break
            if found is not None:
                self._asked.add(found[0])
        for queue in list(self._asked):
            queue.put(RuntimeError("the server has ended"))

    def _next_request(self, timeout: float | None = None) -> Any:
        leads = not self._is_distributed or self._rank == 0
        found: Any = self._taken(timeout) if leads else None
        told = self._share_object(found[1:] if isinstance(found, tuple) else found)
        if told in (_PAUSE, _STOP):
            mx.synchronize()  # what was begun ahead has collectives too
            self._wanted = ""
            if told == _STOP or not self.turns.rest():
                raise _Over  # mlx-lm's own stop takes some steps more, with other ranks or without
            self._see_weights()
        if not isinstance(told, tuple):
            return None
        return (found[0] if leads else Queue(), *told)

    def _see_weights(self) -> None:
        """Forget the prompt cache where weights were tuned since."""
        now = self._part.weights()
        if now != self._weights:
            self.prompt_cache = LRUPromptCache(self.prompt_cache.max_size)
        self._weights = now

    def _taken(self, timeout: float | None) -> Any:
        """A request, a sign, or None where nothing comes."""
        if self._wanted:
            return self._wanted
        try:
            found = self.requests.get(timeout=timeout) if timeout else self.requests.get_nowait()
        except Empty:
            return None
        if found is None:
            return self._wanted or None
        self._asked.add(found[0])
        return found

    def _tokenize(self, tokenizer: Any, request: Any, args: Any) -> Any:
        tokenize: Any = super()._tokenize
        found = tokenize(tokenizer, request, args)
        length, context = len(found[0]), self._part.context
        if not length:
            raise ValueError("the prompt is empty")
        if context is not None:
            if length >= context:
                raise ValueError(
                    f"the prompt has {length} tokens, and the model is made for {context}"
                )
            args.max_tokens = min(args.max_tokens, context - length)
        return found
