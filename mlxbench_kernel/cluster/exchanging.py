"""Values that go between the notebook and ranks; the part of `Cluster` that moves them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from mlxbench_kernel.cluster.background import Background
from mlxbench_kernel.cluster.client import BenchClient
from mlxbench_kernel.cluster.looking import Looking
from mlxbench_kernel.cluster.machinery import Machinery, Progress
from mlxbench_kernel.cluster.state import ClusterInfo
from mlxbench_kernel.cluster.transfer import Transfer
from mlxbench_kernel.cluster.turns import Show, ignore


class Exchanging(Looking):
    """Has ranks take and give values while nothing else uses them.

    Parameters
    ----------
    info, machinery, client
        Of the cluster.

    Attributes
    ----------
    background : Background
        What uses the ranks meanwhile, and waits.
    """

    def __init__(self, info: ClusterInfo, machinery: Machinery, client: BenchClient) -> None:
        super().__init__(info, machinery, client)
        self.background: Background = getattr(self, "background", None) or Background()

    def between(self, show: Show = ignore) -> AbstractContextManager[None]:
        """Around what uses the ranks: has what runs on them in the background wait meanwhile.

        Parameters
        ----------
        show
            Is told who is waited for, see `Turns.taken`.
        """
        return self.background.between(show)

    def results(self, ranks: Iterable[int] | None = None) -> dict[int, Any]:
        """Value of the last expression of each rank's last cell.

        Returns
        -------
        dict
            By rank; None where the cell ended with no expression, its text where the value
            cannot be sent.
        """
        with self.between():
            return self._transfer(ranks).results()

    def push(
        self,
        values: Mapping[str, Any],
        ranks: Iterable[int] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Put values into the namespaces of ranks; see `Transfer.push`."""
        with self.between():
            self._transfer(ranks, progress).push(values)

    def pull(
        self,
        names: str | Sequence[str],
        ranks: Iterable[int] | None = None,
        progress: Progress | None = None,
    ) -> dict[int, Any]:
        """Fetch variables from ranks; see `Transfer.pull`.

        Returns
        -------
        dict
            For each rank the value, or for several names a dict of values by name.
        """
        with self.between():
            transfer = self._transfer(ranks, progress)
            if isinstance(names, str):
                return {rank: values[names] for rank, values in transfer.pull([names]).items()}
            return transfer.pull(names)

    def _transfer(self, ranks: Iterable[int] | None, progress: Progress | None = None) -> Transfer:
        chosen = self.choose(ranks)
        self._require(chosen)
        return Transfer(self.client, chosen, self.doing, progress)
