"""What a rank does with its part of a language model for the notebook; this runs on the rank."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.fit import FitPlan, Link
from mlxbench_kernel.memory.fit.source import read_source
from mlxbench_kernel.models import Part, folder, load, ways
from mlxbench_kernel.models.generating import Generation, Piece
from mlxbench_kernel.models.halting import Halt
from mlxbench_kernel.models.link import measure
from mlxbench_kernel.models.loading import check_beside
from mlxbench_kernel.remote import on_prompts
from mlxbench_kernel.remote.said import SAY_SECONDS, SaidAtTimes, say

FIGURES_SECONDS = 0.5
CONTEXT = 8192  # tokens that are to fit, where nobody says and the model is made for as many


def on_model(name: str, *arguments: Any) -> Any:
    """Do one of `CALLS`; what it returned."""
    return CALLS[name](*arguments)


def part_named(name: str) -> Part:
    """The part of a model that the notebook has loaded under this name."""
    found = namespace_here().get(name)
    if not isinstance(found, Part):
        raise UsageError(
            f"{name} is no language model here any more: load it again (LanguageModel.load)"
        )
    return found


def _each(call: str, arguments: dict[int, tuple[Any, ...]]) -> Any:
    """One of `CALLS` with this rank's own arguments."""
    return CALLS[call](*arguments[mx.distributed.init().rank()])


def _find(
    path: str, revision: str | None, adapter: str | None, draft: str | None
) -> dict[str, Any]:
    """Where the model is here, and what its files are, and those of what goes with it."""
    found = folder.find(path, revision, SaidAtTimes("come", "of"))
    config = folder.check(found)
    digests = folder.digests(found)
    if adapter is not None:
        digests |= folder.digests_of_adapter(Path(adapter))
    if draft is not None:
        of_draft = folder.digests(folder.find(draft, tell=SaidAtTimes("come", "of")))
        digests |= {str(Path(draft) / name): digest for name, digest in of_draft.items()}
    return {
        "folder": str(found),
        "digests": digests,
        "architecture": str(config.get("model_type")),
    }


def _held(name: str) -> int:
    """Bytes of the model that one of this name takes the place of."""
    part = namespace_here().get(name)
    return part.nbytes if isinstance(part, Part) else 0


def _link(path: str) -> dict[str, float]:
    """What reading such weights and a collective take here."""
    found = measure(folder.check(Path(path)), mx.distributed.init())
    mx.clear_cache()
    return found


def _plan(
    path: str, hosts: Any, shard: str, link: dict[str, Any] | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Whether it fits, and how."""
    try:
        source = read_source(path, bool(options.get("trust_remote_code")))
        if shard != "auto" and source.model is not None:
            size = mx.distributed.init().size()
            ways.check(source.model, source.architecture, shard, size)
        options = {"context": min(CONTEXT, source.longest or CONTEXT), **options}
        known = None if link is None else Link(**link)
        plan = FitPlan(path, hosts, shard=shard, link=known, **options)
    except UsageError as error:
        raise UsageError(str(error).removeprefix("FitPlan: ")) from error
    return {
        "text": str(plan), "markdown": plan._repr_markdown_(), "shard": plan.shard,
        "why": plan.why, "split": list(plan.split), "fits": plan.fits, "rows": plan.to_dicts(),
    }  # fmt: skip


def _load(name: str, path: str, shard: str, options: dict[str, Any]) -> dict[str, Any]:
    """Load this rank's part into the variable `name`."""
    group = mx.distributed.init()
    beside = options.get("adapter"), options.get("draft")
    check_beside(Path(path), shard, group.size(), *beside)
    _forget(name)  # so that two never have to fit
    part = load(path, shard, group, progress=SaidAtTimes("done", "total"), **options)
    namespace_here()[name] = part
    return {
        "shard": part.shard, "nbytes": part.nbytes, "read_bytes": part.read_bytes,
        "seconds": part.seconds, "context": part.context,
        "has_chat_template": bool(part.tokenizer.has_chat_template),
    }  # fmt: skip


def _generate(
    name: str, prompt: Any, most: int, seed: int, keep: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Generate; rank 0 says the text as it comes, and each rank what that takes here."""
    part = part_named(name)
    reading = _Reading(part.rank == 0)
    with Halt() as halt:
        made = Generation(
            part, prompt, most, seed=seed, keep=keep, options=options, halt=halt, reading=reading
        )
        told = _Told(made, part.rank == 0)
        for piece in made:
            told(piece)
    return {**told.last(), "tokens": made.found, "prompt": made.prompt_tokens}


class _Reading:
    """Says how much of a prompt is read, where that takes long."""

    def __init__(self, speaks: bool) -> None:
        self._speaks, self._said = speaks, time.monotonic()

    def __call__(self, read: int, of: int) -> None:
        now = time.monotonic()
        if self._speaks and read < of and now - self._said > FIGURES_SECONDS:
            self._said = now
            say(read=read, all=of)


class _Told:
    """Says what a generation brings, some of it at a time."""

    def __init__(self, made: Generation, speaks: bool) -> None:
        self._made, self._speaks = made, speaks
        self._text = ""
        self._piece: Piece | None = None
        self._said = self._looked = 0.0

    def __call__(self, piece: Piece) -> None:
        self._text += piece.text
        self._piece = piece
        now = time.monotonic()
        if now - self._looked > FIGURES_SECONDS:
            self._looked = now
            self._say(figures=_sayable(self._made.watch.figures()))
        elif self._speaks and now - self._said > SAY_SECONDS:
            self._say()

    def last(self) -> dict[str, Any]:
        """Say the rest; the last piece and the figures."""
        figures = self._made.watch.figures()
        self._say(figures=_sayable(figures))
        return {"piece": _numbers(self._piece), "figures": figures}

    def _say(self, **more: Any) -> None:
        if self._speaks:
            self._said = time.monotonic()
            more |= {"text": self._text, "piece": _numbers(self._piece)}
            self._text = ""
        say(**more)


def _sayable(figures: dict[str, float]) -> dict[str, float | None]:
    """Figures in terms of JSON, which knows no NaN: None for what is not known."""
    return {name: None if value != value else value for name, value in figures.items()}


def _numbers(piece: Piece | None) -> dict[str, Any]:
    """A piece with its rates."""
    if piece is None:
        return {}
    rate = piece.rate
    return {
        **asdict(piece), "prompt_rate": piece.prompt_rate, "rate": None if rate != rate else rate,
    }  # fmt: skip


def _tuning(name: str, call: str, *arguments: Any) -> Any:
    """One of `on_tuning.CALLS`."""
    from mlxbench_kernel.remote.on_tuning import on_tuning

    return on_tuning(part_named(name), call, *arguments)


def _forget(name: str) -> None:
    """Let go of a model."""
    part = namespace_here().pop(name, None)
    if isinstance(part, Part) and part.tuning is not None:
        part.tuning.end()  # else its stepper would hold it
    del part
    mx.clear_cache()


def namespace_here() -> dict[str, Any]:
    """The user's variables on this rank."""
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    namespace: dict[str, Any] = shell.user_ns
    return namespace


CALLS: dict[str, Callable[..., Any]] = {
    "each": _each,
    "find": _find,
    "held": _held,
    "link": _link,
    "plan": _plan,
    "load": _load,
    "generate": _generate,
    "tuning": _tuning,
    "forget": _forget,
    **on_prompts.calls(part_named),
}
