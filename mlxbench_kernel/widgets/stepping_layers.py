"""Measures of parameters as measures of layers, on each rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlxbench_kernel.training import ParameterHistory

MEASURES = {
    "own gradient norm": "grad_norm_rank",
    "gradient norm": "grad_norm",
    "update / weight": "update_ratio",
    "non-finite": "nonfinite",
}


class Layers:
    """The modules that hold the parameters, in the order of these.

    Parameters
    ----------
    parameters
        Their names, as ``layers.0.attention.weight``.
    """

    def __init__(self, parameters: Sequence[str]) -> None:
        modules = [name.rpartition(".")[0] or name for name in parameters]
        self.names = list(dict.fromkeys(modules))
        self.parameters = tuple(parameters)
        numbers = {name: number for number, name in enumerate(self.names)}
        self._of = np.array([numbers[module] for module in modules], dtype=np.intp)

    def reduce(self, measure: str, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """A measure of each layer: norms add up as squares, counts add up, of ratios the largest.

        Parameters
        ----------
        measure
            One of the values of `MEASURES`.
        values
            Of the parameters, float32 [parameters].

        Returns
        -------
        float64 [layers]
            What is not finite in a parameter is not finite in its layer.
        """
        found = np.zeros(len(self.names))
        given = np.asarray(values, dtype=np.float64)
        if measure == "update_ratio":
            np.maximum.at(found, self._of, given)
        elif measure in ("grad_norm", "grad_norm_rank"):
            np.add.at(found, self._of, np.square(given))
            found = np.sqrt(found)
        else:
            np.add.at(found, self._of, given)
        return found

    def table(
        self, samples: Sequence[ParameterHistory], branch: str, step: int, measure: str
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """A measure of all layers on all ranks.

        Returns
        -------
        float64 [layers, ranks], bool [ranks]
            The values, and which ranks have a sample of that step.
        """
        values = np.full((len(self.names), len(samples)), np.nan)
        there = np.zeros(len(samples), dtype=bool)
        for rank, history in enumerate(samples):
            try:
                found = history.get(branch, step, measure)
            except KeyError:  # the rank is behind, or has thinned out this sample
                continue
            if found is not None and len(found) == len(self._of):
                values[:, rank], there[rank] = self.reduce(measure, found), True
        return values, there
