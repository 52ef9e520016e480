"""`LanguageModel`: a language model on the ranks, with what a notebook shows of it."""

from __future__ import annotations

import os
from typing import Any, Self

from IPython.display import display

from mlxbench_kernel.widgets.model_generating import Generates
from mlxbench_kernel.widgets.model_inside import LooksInside
from mlxbench_kernel.widgets.model_serving import Serves
from mlxbench_kernel.widgets.model_tuning import Tunes
from mlxbench_kernel.widgets.progress import ProgressBar


class LanguageModel(Generates, LooksInside, Serves, Tunes):
    """A language model that the ranks of a cluster hold.

    See `ModelOnRanks` for what it knows, and `load` for making one.

    Attributes
    ----------
    last : Generated or None
        What `generate` made last, also if it was stopped.

    Examples
    --------
    >>> lm = LanguageModel.load("~/models/Qwen3-4B-4bit")
    >>> text = lm.generate("Once upon a time", temp=0.7)
    """

    @classmethod
    def load(
        cls, path_or_repo: str | os.PathLike[str], shard: str = "auto", **options: Any
    ) -> Self:
        """As `ModelOnRanks.load`, with the plan and a progress bar."""
        with ProgressBar() as bar:
            options = {"progress": bar, "planned": display, **options}
            return super().load(path_or_repo, shard, **options)
