"""Many prompts at once, and prompts that ranks keep: what a notebook asks a model for them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote.asking import Tell
from mlxbench_kernel.remote.language_model import ModelOnRanks, Progress, Prompt, plain_prompt


@dataclass(frozen=True)
class GeneratedBatch:
    """The texts of many prompts, in the order of these.

    Attributes
    ----------
    texts : list of str
        Without the prompts.
    tokens : list of list of int
        Of each, the one that ended it included.
    finishes : list of str
        "stop" or "length".
    figures : dict
        ``prompt_tokens``, ``tokens``, ``prompt_rate`` and ``rate``: tokens per second of all
        prompts together, and of all ranks where these share the prompts out.
    ranks : dict
        By rank ``prompt_tokens``, ``tokens``, ``prompt_seconds``, ``seconds``, ``peak`` (bytes).
    """

    texts: list[str]
    tokens: list[list[int]]
    finishes: list[str]
    figures: dict[str, Any]
    ranks: dict[int, dict[str, Any]]

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __getitem__(self, number: int) -> str:
        return self.texts[number]

    def __repr__(self) -> str:
        figures = self.figures
        return (
            f"{len(self)} texts, {figures['tokens']} tokens at {figures['rate']:.3g}/s, prompts "
            f"{figures['prompt_tokens']} tokens at {figures['prompt_rate']:.3g}/s"
        )


def generate_batch(
    lm: ModelOnRanks,
    prompts: Sequence[Prompt],
    max_tokens: int = 256,
    *,
    seed: int | None = None,
    progress: Progress = lambda done, text: None,
    show: Tell = lambda text: None,
    **options: Any,
) -> GeneratedBatch:
    """Generate a text for each prompt, see `LanguageModel.generate_batch`."""
    if isinstance(prompts, str):
        raise UsageError("prompts is one text: give a list of them, or type lm.generate(text)")
    given = [plain_prompt(each) for each in prompts]
    if not given:
        raise UsageError("there are no prompts: give a list of texts")
    seed = random.getrandbits(32) if seed is None else seed
    ended: dict[int, tuple[int, int]] = {}

    def heard(rank: int, told: dict[str, Any]) -> None:
        ended[rank] = told["ended"], told["tokens"]
        said = ended.values() if lm.shard == "data" else [ended[min(ended)]]
        done, tokens = (sum(each) for each in zip(*said, strict=True))
        progress(
            min(1.0, tokens / (max_tokens * len(given))),
            f"{done} of {len(given)} texts, {tokens} tokens",
        )

    data = lm.shard == "data"  # then each has its own, as many as the others
    shares = {rank: list(range(rank, len(given), lm.size)) for rank in lm.ranks}
    arguments = {
        rank: (lm.name, [given[n] for n in share], max_tokens, seed + rank, options, share)
        for rank, share in shares.items()
        if share
    }
    if data:
        found = lm.ask_each("generate_batch", arguments, heard=heard, show=show)
    else:
        found = lm.ask("generate_batch", given, max_tokens, seed, options, heard=heard, show=show)
    texts: list[dict[str, Any]] = [{}] * len(given)
    for rank, each in found.items():
        texts[slice(rank, None, lm.size) if data else slice(None)] = each["texts"]
    ranks = {rank: each["figures"] for rank, each in found.items()}
    counted = list(ranks.values()) if data else [ranks[0]]
    return GeneratedBatch(
        [each["text"] for each in texts],
        [each["tokens"] for each in texts],
        [each["finish"] for each in texts],
        _together(counted),
        ranks,
    )


def _together(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of ranks that work beside one another."""
    read, made = (sum(each[name] for each in ranks) for name in ("prompt_tokens", "tokens"))
    reading, making = (max(each[name] for each in ranks) for name in ("prompt_seconds", "seconds"))
    return {
        "prompt_tokens": read,
        "tokens": made,
        "prompt_rate": read / max(reading, 1e-9),
        "rate": made / max(making, 1e-9),
    }


def read_prompt(
    lm: ModelOnRanks,
    prompt: Prompt,
    name: str,
    *,
    progress: Progress = lambda done, text: None,
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, int]:
    """Have the ranks read and keep a prompt, see `LanguageModel.read_prompt`."""
    given = plain_prompt(prompt)

    def heard(rank: int, told: dict[str, Any]) -> None:
        if rank == 0:
            progress(told["done"] / told["total"], f"reading {told['total']:,} tokens")

    found = lm.ask("read_prompt", given, name, ranks=_holders(lm), heard=heard, show=show)
    held: dict[str, int] = found[0]
    return {**held, "nbytes": sum(each["nbytes"] for each in found.values())}


def save_prompt(lm: ModelOnRanks, name: str, folder: str | os.PathLike[str]) -> list[str]:
    """Have each rank write its part of a kept prompt; the files, by rank."""
    found = lm.ask("save_prompt", name, _absolute(folder), ranks=_holders(lm))
    return [found[rank]["file"] for rank in sorted(found)]


def load_prompt(lm: ModelOnRanks, name: str, folder: str | os.PathLike[str]) -> int:
    """Have each rank read its part of a kept prompt; the number of its tokens."""
    found = lm.ask("load_prompt", name, _absolute(folder), ranks=_holders(lm))
    return int(found[0]["tokens"])


def forget_prompt(lm: ModelOnRanks, name: str) -> int:
    """Have the ranks keep a prompt no more; the bytes that this frees on all of them."""
    return sum(lm.ask("forget_prompt", name, ranks=_holders(lm)).values())


def _holders(lm: ModelOnRanks) -> list[int]:
    """The ranks that generate one text: of replicas the first."""
    return [0] if lm.shard == "data" else lm.ranks


def _absolute(folder: str | os.PathLike[str]) -> str:
    return str(Path(folder).expanduser().absolute())
