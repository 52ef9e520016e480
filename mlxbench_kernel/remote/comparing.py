"""The same prompt with a model shared in several ways, one after the other on the same ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.fit.splits import WAYS
from mlxbench_kernel.remote.asking import Tell
from mlxbench_kernel.remote.language_model import ModelOnRanks, Prompt

Progress = Callable[[float, str], None]
NAME = "mlxbench_compared"  # the variable on the ranks, beside the user's
WARM_UP = 2  # tokens


@dataclass(frozen=True)
class Way:
    """How a model does that is shared in one way.

    Attributes
    ----------
    shard : str
        "tensor", "pipeline" or "data".
    why : str
        Why it does not go; "" where it does.
    text : str
        That was generated.
    tokens : list of int
        The same; of greedy decoding.
    figures : dict
        As of `Generated`: ``first`` (seconds), ``prompt_rate``, ``rate`` (tokens per second), ….
    nbytes : dict
        By rank the bytes of the parameters there.
    ranks : dict
        By rank that took part ``kv_bytes`` and ``collectives`` (share of the time).
    """

    shard: str
    why: str = ""
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    nbytes: dict[int, int] = field(default_factory=dict)
    ranks: dict[int, dict[str, Any]] = field(default_factory=dict)


def compare_ways(
    path: Any,
    prompt: Prompt,
    ways: Sequence[str] = WAYS,
    tokens: int = 64,
    *,
    cluster: Cluster | None = None,
    loaded: ModelOnRanks | None = None,
    progress: Progress = lambda done, text: None,
    show: Tell = lambda text: None,
    **options: Any,
) -> list[Way]:
    """Load a model in one way after the other, and generate greedily from the same prompt.

    What ranks hold stays as it is: a model is loaded beside it, and let go afterwards.

    Parameters
    ----------
    path
        As for `ModelOnRanks.load`.
    prompt, tokens
        What is generated from, and how much at most.
    ways
        Some of "tensor", "pipeline" and "data".
    cluster
        The ranks; by default those that were started last.
    loaded
        A model that is there in one of the ways, which is then not loaded again.
    progress, show
        Told how far it is, and who is late.
    **options
        Of `ModelOnRanks.load`.

    Returns
    -------
    list of Way
        One for each; one that does not go says why.

    Raises
    ------
    UsageError
        A way or the prompt cannot be.
    ClusterError
        A rank is gone, or failed.
    """
    ways = (ways,) if isinstance(ways, str) else ways
    for way in ways:
        if way not in WAYS:
            raise UsageError(f"way {way!r} is not known: type {', '.join(map(repr, WAYS))}")
    if not ways:
        raise UsageError(f"no ways were given: type some of {', '.join(map(repr, WAYS))}")
    cluster = cluster or Cluster.latest()
    found = []
    for number, way in enumerate(ways):
        progress(number / len(ways), way)
        if loaded is not None and loaded.shard == way:
            found.append(_measured(loaded, way, prompt, tokens, show))
        elif cluster.size == 1 and way != "data":
            found.append(Way(way, "there is one rank: it has nothing to share"))
        else:
            try:
                lm = ModelOnRanks.load(path, way, cluster=cluster, name=NAME, show=show, **options)
            except UsageError as error:
                found.append(Way(way, str(error).splitlines()[0].rstrip(":")))
                continue
            try:
                found.append(_measured(lm, way, prompt, tokens, show))
            finally:
                if not cluster.client.closed:
                    lm.forget()
    return found


def _measured(lm: ModelOnRanks, way: str, prompt: Prompt, tokens: int, show: Tell) -> Way:
    lm.generate_on_ranks(prompt, WARM_UP, seed=0, show=show)
    made = lm.generate_on_ranks(prompt, tokens, seed=0, show=show)
    nbytes = {rank: part["nbytes"] for rank, part in lm.parts.items()}
    return Way(way, "", made.text, made.tokens, made.figures, nbytes, made.ranks)
