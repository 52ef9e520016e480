"""Looks inside of a language model that ranks hold, and evaluates it; nothing is drawn here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import Graph, Profile
from mlxbench_kernel.models.activations import Activations
from mlxbench_kernel.models.attention import Attention
from mlxbench_kernel.models.evaluation import Perplexity
from mlxbench_kernel.models.likely import Likely
from mlxbench_kernel.models.timing import Split, split
from mlxbench_kernel.remote.asking import Heard, Tell, ask_ranks
from mlxbench_kernel.remote.graphs import capture_on
from mlxbench_kernel.remote.language_model import Generated, ModelOnRanks, Prompt, plain_prompt
from mlxbench_kernel.remote.on_inside import STEP, on_inside
from mlxbench_kernel.remote.replays import profile_on

Progress = Callable[[float, str], None]
LONGEST_NAME = 1024  # characters of a string that may name a file
TEXT = "mlxbench_text"  # the variable of ranks that holds a text on its way


def likely_on(
    lm: ModelOnRanks, prompt: Prompt, k: int = 10, first: int = 0, show: Tell = lambda text: None
) -> Likely:
    """The likeliest next tokens at each position of a text, see `models.likely.likely`."""
    found: Likely = _one(_asked(lm, "likely", plain_prompt(prompt), k, first, show=show))
    return found


def likely_of(
    lm: ModelOnRanks, last: Generated | None, k: int = 10, show: Tell = lambda text: None
) -> Likely:
    """The likeliest tokens at each place of a generated text; the first row is before its first.

    Raises
    ------
    UsageError
        Nothing was generated, or its tokens are not known.
    """
    if last is None:
        raise UsageError("nothing was generated yet: give a text")
    if not last.tokens or not last.prompt:
        raise UsageError("the tokens of what was stopped are not known: give its text")
    tokens = [*last.prompt, *last.tokens]
    if lm.context is not None:
        tokens = tokens[: lm.context - 1]
    return likely_on(lm, tokens, k, len(last.prompt) - 1, show)


def attention_on(
    lm: ModelOnRanks,
    prompt: Prompt,
    layer: int,
    heads: Sequence[int] | None = None,
    show: Tell = lambda text: None,
) -> Attention:
    """The attention of a layer over a text, see `models.attention.attention`."""
    chosen = None if heads is None else [int(head) for head in heads]
    given = (plain_prompt(prompt), layer, chosen)
    found: Attention = _one(_asked(lm, "attention", *given, show=show))
    return found


def activations_on(
    lm: ModelOnRanks,
    prompt: Prompt,
    layer: int,
    what: str = "hidden",
    show: Tell = lambda text: None,
) -> Activations:
    """What comes out of a layer or a module in it, see `models.activations.activations`."""
    given = (plain_prompt(prompt), layer, what)
    found: Activations = _one(_asked(lm, "activations", *given, show=show))
    return found


def timing_on(
    lm: ModelOnRanks, prompt: Prompt, tokens: int = 32, show: Tell = lambda text: None
) -> list[Split]:
    """Where the time of a generation goes on each rank, see `models.timing.timed` and `split`."""
    found = _asked(lm, "timed", plain_prompt(prompt), tokens, show=show)
    hosts = {each.host for each in lm.cluster.info.ranks}
    return split(found, one_clock=len(hosts) == 1)


def step_on(lm: ModelOnRanks, prompt: Prompt) -> dict[int, Graph]:
    """The graph of one decoding step on each rank, see `models.decoding`; nothing is evaluated."""
    with _step(lm, prompt) as call:
        found = capture_on(lm.cluster, call, _working(lm))
    title = f"one decoding step of {lm.name}"
    return {rank: graph.with_(title=title) for rank, graph in found.items()}


def profile_of_step(lm: ModelOnRanks, prompt: Prompt, repeat: int = 5) -> dict[int, Profile]:
    """How long each operation of a decoding step takes, on each rank; copies are evaluated.

    Also where collectives run on the GPU, whose ends no log knows.
    """
    with _step(lm, prompt) as call:
        return profile_on(lm.cluster, call, _working(lm), repeat, tell=lm.tell)


@contextmanager
def _step(lm: ModelOnRanks, prompt: Prompt) -> Iterator[str]:
    """A decoding step is there in the block, for what an expression is captured for: this one."""
    _asked(lm, "prepare_step", plain_prompt(prompt))
    try:
        yield f"{STEP}({lm.name}.model)"
    finally:
        if not lm.cluster.client.closed:
            for rank in lm.cluster.client.living() & set(_working(lm)):
                lm.cluster.client.on(rank).apply_async(on_inside, "forget_step")


def perplexity_on(
    lm: ModelOnRanks,
    text: str,
    length: int = 512,
    batch_size: int = 8,
    progress: Progress = lambda done, text: None,
    show: Tell = lambda text: None,
) -> Perplexity:
    """The perplexity of a text, see `models.evaluation.perplexity`.

    Where each rank has a replica, each reads some of the windows.
    """
    done: dict[int, float] = {}

    def heard(rank: int, told: dict[str, Any]) -> None:
        done[rank] = told["done"] / max(told["total"], 1)
        progress(sum(done.values()) / lm.size, "reading the text")

    lm.cluster.push({TEXT: np.frombuffer(text.encode(), np.uint8)})
    found = _asked(
        lm, "perplexity", TEXT, length, batch_size, ranks=lm.ranks, heard=heard, show=show
    )
    return Perplexity(**_one(found))


def text_of(text_or_file: str | os.PathLike[str]) -> str:
    """A text, or what is in a file.

    Parameters
    ----------
    text_or_file
        Text; or a path, which a string is taken for where there is such a file.

    Raises
    ------
    UsageError
        The file cannot be read, or is no text.
    """
    named = isinstance(text_or_file, os.PathLike)
    if not named and not isinstance(text_or_file, str):
        raise UsageError(f"a {type(text_or_file).__name__} is no text: give one, or a file")
    given = os.fspath(text_or_file)
    if not named and (len(given) > LONGEST_NAME or "\n" in given):
        return given
    file = Path(given).expanduser()
    if not named and not os.path.isfile(file):  # which says no of what cannot be a name
        if re.fullmatch(r"[~.]?/\S+", given):
            raise UsageError(f"there is no file {given}: give a text, or a file of text")
        return given
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UsageError(f"{file} cannot be read ({why}): give a text, or a file of text") from None


def _working(lm: ModelOnRanks) -> list[int]:
    """The ranks that have to work together; of replicas one is enough."""
    return [0] if lm.shard == "data" else lm.ranks


def _asked(
    lm: ModelOnRanks,
    call: str,
    *arguments: Any,
    ranks: Sequence[int] | None = None,
    heard: Heard = lambda rank, told: None,
    show: Tell = lambda text: None,
) -> dict[int, Any]:
    """Have ranks do one of `on_inside.CALLS` with a model; the results, by rank."""
    chosen = _working(lm) if ranks is None else ranks
    return ask_ranks(
        lm.cluster, chosen, lm.tell, None, call, lm.name, *arguments,
        of=on_inside, show=show, heard=heard,
    )  # fmt: skip


def _one(found: dict[int, Any]) -> Any:
    """What the rank that has it has told."""
    return next(each for each in found.values() if each is not None)
