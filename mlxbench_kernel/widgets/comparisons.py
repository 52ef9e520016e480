"""Ways to share a model, and answers, side by side in tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.memory.fit.splits import WAYS
from mlxbench_kernel.remote.answers import Answers
from mlxbench_kernel.remote.comparing import Way, compare_ways
from mlxbench_kernel.remote.language_model import Prompt
from mlxbench_kernel.units import format_bytes
from mlxbench_kernel.widgets.generated import a_second
from mlxbench_kernel.widgets.progress import ProgressBar
from mlxbench_kernel.widgets.table import Table

if TYPE_CHECKING:
    from pandas import DataFrame


def compare(
    path: str | os.PathLike[str],
    prompt: Prompt,
    ways: Sequence[str] = WAYS,
    tokens: int = 64,
    *,
    cluster: Cluster | None = None,
    **options: Any,
) -> Comparison:
    """Load a model in several ways, one after the other, and generate from the same prompt.

    Parameters
    ----------
    path, cluster, **options
        As for `LanguageModel.load`.
    prompt
        Text, tokens or messages.
    ways
        Some of "tensor", "pipeline" and "data".
    tokens
        That are generated at most, greedily.

    Raises
    ------
    UsageError
        The prompt or a way cannot be.
    """
    with ProgressBar() as bar:
        found = compare_ways(path, prompt, ways, tokens, cluster=cluster, progress=bar, **options)
    return Comparison(found)


class Comparison:
    """Ways to share a model, side by side.

    Parameters
    ----------
    ways
        What was found.

    Attributes
    ----------
    ways : list of Way
        One for each row, with the texts.
    """

    def __init__(self, ways: Sequence[Way]) -> None:
        self.ways = list(ways)

    @property
    def went(self) -> list[Way]:
        """Those that go."""
        return [way for way in self.ways if not way.why]

    @property
    def table(self) -> Table:
        """What is shown."""
        header = (
            "way", "text", "first token", "prompt", "decode", "parameters", "KV cache",
            "in collectives",
        )  # fmt: skip
        return Table(header, [self._row(way) for way in self.ways], "bytes and shares by rank")

    def _row(self, way: Way) -> tuple[str, ...]:
        if way.why:
            return (way.shard, "–", "–", "–", "–", "–", "–", way.why)
        first = self.went[0]
        same = "as " + first.shard if way.tokens == first.tokens else "differs from " + first.shard
        figures, ranks = way.figures, [way.ranks[rank] for rank in sorted(way.ranks)]
        shares = [each["collectives"] for each in ranks]
        return (
            way.shard,
            f"{figures['tokens']} tokens" if way is first else same,
            f"{1000 * figures['first']:.3g} ms",
            _tokens(figures["prompt_rate"]),
            "–" if figures["rate"] is None else _tokens(figures["rate"]),
            " | ".join(format_bytes(way.nbytes[rank]) for rank in sorted(way.nbytes)),
            " | ".join(format_bytes(each["kv_bytes"]) for each in ranks),
            " | ".join("–" if x != x else f"{100 * x:.0f} %" for x in shares),
        )

    def to_dataframe(self) -> DataFrame:
        """A row for each way and rank: seconds, tokens per second, bytes."""
        import pandas

        rows: list[dict[str, Any]] = []
        for way in self.ways:
            same = None if way.why else way.tokens == self.went[0].tokens
            whole = {"way": way.shard, "why": way.why, "text": way.text, "same": same}
            whole.update(way.figures)
            for rank in sorted(way.nbytes):
                held = {"rank": rank, "parameters": way.nbytes[rank]}
                rows.append({**whole, **held, **way.ranks.get(rank, {})})
            if way.why:
                rows.append(whole)
        return pandas.DataFrame(rows)

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


class SideBySide:
    """Two answers to each prompt.

    Parameters
    ----------
    before, after
        To the same prompts.

    Attributes
    ----------
    before, after : Answers
        What was given.
    """

    def __init__(self, before: Answers, after: Answers) -> None:
        self.before, self.after = before, after

    @property
    def table(self) -> Table:
        """What is shown."""
        prompts = [prompt if isinstance(prompt, str) else repr(prompt) for prompt in self.prompts]
        rows = zip(prompts, self.before.texts, self.after.texts, strict=True)
        pairs = zip(self.before.texts, self.after.texts, strict=True)
        changed = sum(one != other for one, other in pairs)
        said = f"{changed} of {len(prompts)} answers differ"
        if self.before.model != self.after.model:
            said += f"; before: {self.before.model}; after: {self.after.model}"
        return Table(("prompt", "before", "after"), list(rows), said, wide=True)

    @property
    def prompts(self) -> list[Any]:
        """The prompts."""
        return self.before.prompts

    def to_dataframe(self) -> DataFrame:
        """A row for each prompt: ``prompt``, ``before``, ``after``."""
        import pandas

        return pandas.DataFrame(
            {"prompt": self.prompts, "before": self.before.texts, "after": self.after.texts}
        )

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def _tokens(rate: float) -> str:
    return a_second(rate).replace("/", " tokens/")
