"""What a stepper tells of itself while it runs, to a thread beside the one that trains."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from mlxbench_kernel.rank.answers import ANSWERS
from mlxbench_kernel.training.encoding import encode, encode_samples
from mlxbench_kernel.training.settings import parts

if TYPE_CHECKING:
    from mlxbench_kernel.training.stepper import Stepper

ROWS = 2000  # of the history in one answer
NO_DETAILS = -2  # instead of a version


class Report:
    """Answers to the calls ``stepper`` and ``stepper_stop`` of the control channel.

    What needs arrays is looked up by the thread that trains, between two steps.

    Parameters
    ----------
    stepper
        Of which it tells.
    """

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._seen: dict[str, Any] = {}
        self._identity = secrets.token_hex(8)
        self.run = self._identity  # of which the history is; of another rank's after a fault
        self.version = 0
        self.look()
        ANSWERS["stepper"] = self.tell
        ANSWERS["stepper_stop"] = stepper.stop

    def look(self) -> None:
        """Look up what only the thread that trains may; after each command."""
        stepper = self._stepper
        self._seen = {
            "settings": stepper.settings.values(),
            "frozen": stepper.frozen,
            "layers": [path for path in parts(stepper.modules) if path],
            "parameters": list(stepper.program.trained),
            "measured": stepper.measured,
            "breakpoints": dict(stepper.breakpoints.known),
            "active": list(stepper.breakpoints.active),
        }
        self.version += 1

    def tell(
        self, rows: int = 0, samples: int = 0, version: int = -1, stepper: str = ""
    ) -> dict[str, Any]:
        """How it stands.

        Parameters
        ----------
        rows, samples
            From which number on rows of the history and samples are wanted.
        version
            Which details are known already; `NO_DETAILS` where none are wanted.
        stepper
            The stepper that these numbers are of, as told before; of another one they do not
            count, and all is told.

        Returns
        -------
        dict
            ``stepper``, which is no other's; ``run``, which a stepper shares that goes on where
            another one was; ``step``, ``branch``, ``tip`` (of that), ``doing``, ``said``,
            ``stopped`` and ``broke`` (kind and name of `Stop`), ``playing``, ``wanted`` (see
            `State`), ``budget``, ``used``, ``sampling``, ``comparing``; ``next_rows`` and
            ``rows``, ``next_samples`` and ``samples`` (see `encode`); ``received``, whether these
            rows, and these samples, are another rank's; ``version``, and unless that is known
            ``details``: ``branches``, ``kept``, ``journal``, ``settings``, ``frozen``, ``layers``,
            ``parameters``, ``measured``, ``breakpoints``, ``active``.
        """
        if stepper != self._identity:
            rows = samples = 0
            version = version if version == NO_DETAILS else -1
        return self._told(rows, samples, version)

    def _told(self, rows: int, samples: int, version: int) -> dict[str, Any]:
        stepper = self._stepper
        next_rows, found = stepper.history.since(rows, ROWS)
        next_samples, taken = stepper.samples.since(samples)
        said: dict[str, Any] = {
            "stepper": self._identity,
            "run": self.run,
            "step": stepper.step,
            "branch": stepper.branches.current.name,
            "tip": stepper.branches.current.tip,
            "doing": stepper.doing,
            "said": stepper.said,
            "stopped": stepper.stopped,
            "broke": stepper.broke if stepper.said else "",
            "playing": stepper.doing == "playing",
            "wanted": list(stepper.wanted),
            "budget": stepper.snapshots.budget,
            "used": stepper.snapshots.used,
            "sampling": stepper.sampling.interval,
            "comparing": stepper.replicas.interval if stepper.group.size() > 1 else 0,
            "next_rows": next_rows,
            "rows": encode(found),
            "next_samples": next_samples,
            "samples": encode_samples(taken),
            "received": [stepper.history.is_received(rows), stepper.samples.is_received(samples)],
            "version": self.version,
        }
        if version not in (self.version, NO_DETAILS):
            said["details"] = {**self._seen, **self._lists()}
        return said

    def _lists(self) -> dict[str, Any]:
        stepper = self._stepper
        return {
            "branches": [
                [each.name, each.parent, each.start, each.tip] for each in list(stepper.branches)
            ],
            "kept": [
                [each.branch, each.step, each.bytes, each.parts is None]
                for each in stepper.snapshots.all()
            ],
            "journal": [
                [each.step, each.branch, each.text, each.time] for each in list(stepper.journal)
            ],
        }
