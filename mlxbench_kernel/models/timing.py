"""Where the time of a generation goes on a rank: computing, or collectives."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.models.generating import Generation
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.models.prompts import Prompt
from mlxbench_kernel.rank.collectives import GROUP

LOOK_EVERY = 4  # tokens; of the log the oldest of 4096 collectives are forgotten
PHASES = ("prompt", "decode")


@dataclass(frozen=True)
class Timed:
    """A generation on one rank.

    Attributes
    ----------
    begin, first, end : float
        Unix time: when it began, had its first token, and ended.
    prompt_tokens, tokens : int
        Read and generated.
    calls : int64 [n, 3]
        Its collectives, some after the end too: the link, the peer (-1 for those of all ranks) and
        the turn among these.
    sends : bool [n]
        Which of them send to the peer.
    spans : float64 [n, 2]
        When each began and was done here, Unix time.
    logged : bool
        Whether there is a log of them, with the ends of all.
    """

    begin: float
    first: float
    end: float
    prompt_tokens: int
    tokens: int
    calls: NDArray[np.int64]
    sends: NDArray[np.bool_]
    spans: NDArray[np.float64]
    logged: bool


@dataclass(frozen=True)
class Split:
    """Where the time of a phase went on a rank; seconds.

    Attributes
    ----------
    rank, phase
        "prompt" is all until the first token, "decode" what came after.
    tokens : int
        Read, or generated.
    seconds : float
        Altogether.
    collectives : float
        Of these in collectives; NaN where there is no log. The rest is computing.
    waiting : float
        Of those in collectives, until the last rank had come; NaN where that is not known.
    """

    rank: int
    phase: str
    tokens: int
    seconds: float
    collectives: float
    waiting: float

    @property
    def compute(self) -> float:
        """Seconds outside of collectives."""
        return self.seconds - self.collectives

    @property
    def transfer(self) -> float:
        """Seconds in collectives when all ranks were there."""
        return self.collectives - self.waiting


def timed(part: Part, prompt: Prompt, tokens: int = 32, warm_up: int = 2) -> Timed:
    """Generate greedily and note when collectives ran; on all ranks of a split model alike.

    Parameters
    ----------
    part, prompt
        As for `Generation`.
    tokens
        At most.
    warm_up
        Tokens that are generated before, which may have to compile and allocate; 0 for none.

    Raises
    ------
    UsageError
        As for `Generation`.
    """
    made = Generation(part, prompt, tokens)
    if warm_up:
        for _ in Generation(part, prompt, warm_up):
            pass
    log = _Log()
    begin, first = time.time(), math.nan
    count, end = 0, begin
    for piece in made:
        count, end = piece.tokens, time.time()
        if math.isnan(first):
            first = end
        if count % LOOK_EVERY == 1:
            log.look()
    log.look()
    done = [log.done[number] for number in sorted(log.done)]
    return Timed(
        begin,
        first,
        end,
        len(made.prompt_tokens),
        count,
        np.array([[e["link"], e["peer"], e["turn"]] for e in done], np.int64).reshape(-1, 3),
        np.array([e["operation"].lower() == "send" for e in done], np.bool_),
        np.array([[e["begun"], e["done"]] for e in done], np.float64).reshape(-1, 2),
        log.whole or part.size == 1,
    )


class _Log:
    """What collectives were done since now, by number."""

    def __init__(self) -> None:
        self._from = GROUP.spent(0)[0]
        self.done: dict[int, dict[str, Any]] = {}
        self.whole = GROUP.lasting  # whether all ends are known

    def look(self) -> None:
        """Read what is new; what still runs is read again next time."""
        new = GROUP.log(self._from)
        self.done.update((each["number"], each) for each in new if each["done"] > 0)
        self.whole = self.whole and all(each["done"] >= 0 for each in new)
        left = [each["number"] for each in new if not each["done"]]
        self._from = min(left, default=new[-1]["number"] + 1 if new else self._from)


def split(ranks: Mapping[int, Timed], one_clock: bool = True) -> list[Split]:
    """Where the time went, by rank and phase.

    Parameters
    ----------
    ranks
        What `timed` gave on each.
    one_clock
        Whether they are on one host. If not, clocks are set right by collectives of all ranks,
        which end everywhere at about the same time.
    """
    clocks = {rank: 0.0 if one_clock else _late(ranks, rank) for rank in ranks}
    begun = {
        _key(rank, call, sends): span[0] - clocks[rank]
        for rank, each in ranks.items()
        for call, sends, span in zip(each.calls, each.sends, each.spans, strict=True)
    }
    return [row for rank in ranks for row in _split(ranks, rank, clocks[rank], begun)]


def _split(
    ranks: Mapping[int, Timed], rank: int, clock: float, begun: Mapping[tuple[Any, ...], float]
) -> list[Split]:
    each = ranks[rank]
    ends = each.spans[:, 1]
    in_prompt, in_decode = ends <= each.first, (ends > each.first) & (ends <= each.end)
    took = each.spans[:, 1] - each.spans[:, 0]
    waited = np.full(len(took), np.nan)
    for row, (call, sends) in enumerate(zip(each.calls, each.sends, strict=True)):
        others = [begun.get(key) for key in _others(ranks, rank, call, bool(sends))]
        known = [other for other in others if other is not None]
        if len(known) == len(others):
            late = max(known, default=0.0) - (each.spans[row, 0] - clock)
            waited[row] = min(max(late, 0.0), took[row])
    seconds = {"prompt": each.first - each.begin, "decode": each.end - each.first}
    tokens = {"prompt": each.prompt_tokens, "decode": max(each.tokens - 1, 0)}
    rows = []
    for phase, here in zip(PHASES, (in_prompt, in_decode), strict=True):
        spent = float(took[here].sum()) if each.logged else math.nan
        waiting = float(waited[here].sum()) if each.logged else math.nan
        rows.append(Split(rank, phase, tokens[phase], seconds[phase], spent, waiting))
    return rows


def _key(rank: int, call: NDArray[np.int64], sends: bool) -> tuple[Any, ...]:
    """What a collective is called: of all, which one on this rank; of two, who sends to whom."""
    link, peer, turn = (int(value) for value in call)
    return (link, rank, peer, turn, bool(sends) if peer >= 0 else False)


def _others(
    ranks: Mapping[int, Timed], rank: int, call: NDArray[np.int64], sends: bool
) -> list[tuple[Any, ...]]:
    """The same collective on the other ranks, see `_key`."""
    link, peer, turn = (int(value) for value in call)
    if peer >= 0:
        return [(link, peer, rank, turn, not sends)]
    return [(link, other, -1, turn, False) for other in ranks if other != rank]


def _late(ranks: Mapping[int, Timed], rank: int) -> float:
    """Seconds that a rank's clock is ahead of that of the first rank."""
    first, own = next(iter(ranks.values())), ranks[rank]
    ends = {tuple(call): span[1] for call, span in zip(first.calls, first.spans, strict=True)}
    ahead = [
        span[1] - ends[tuple(call)]
        for call, span in zip(own.calls, own.spans, strict=True)
        if call[1] < 0 and tuple(call) in ends
    ]
    return float(np.median(ahead)) if ahead else 0.0
