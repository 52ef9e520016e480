"""`LanguageModel`: a language model on the ranks, with what a notebook shows of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

from IPython.display import display

from mlxbench_kernel.errors import ClusterError, GivenUp
from mlxbench_kernel.remote.language_model import Generated, ModelOnRanks, Prompt
from mlxbench_kernel.widgets.generated import LiveText
from mlxbench_kernel.widgets.progress import ProgressBar


class LanguageModel(ModelOnRanks):
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

    last: Generated | None = None

    @classmethod
    def load(
        cls, path_or_repo: str | os.PathLike[str], shard: str = "auto", **options: Any
    ) -> Self:
        """As `ModelOnRanks.load`, with the plan and a progress bar."""
        with ProgressBar() as bar:
            options = {"progress": bar, "planned": display, **options}
            return super().load(path_or_repo, shard, **options)

    def generate(
        self,
        prompt: Prompt,
        max_tokens: int = 256,
        *,
        seed: int | None = None,
        keep: str = "",
        draw: Callable[[Generated, str], None] | None = None,
        **options: Any,
    ) -> Generated:
        """Generate a text, which is shown as it comes with a line of figures.

        Parameters
        ----------
        prompt, max_tokens, seed, keep, **options
            As for `generate_on_ranks`.
        draw
            Shows what there is so far, and who is late; by default the cell's output does.

        Raises
        ------
        UsageError, ClusterError
            As there.
        KeyboardInterrupt
            Ctrl-C: `last` has the text so far, and the model is still there.
        """
        draw = LiveText().draw if draw is None else draw
        so_far = [Generated("", [], "", {}, {})]

        def heard(found: Generated) -> None:
            so_far[0] = found

        def show(status: str) -> None:
            if so_far[0].figures or status:
                draw(so_far[0], status)

        try:
            found = self.generate_on_ranks(
                prompt, max_tokens, seed=seed, keep=keep, heard=heard, show=show, **options
            )
        except (KeyboardInterrupt, ClusterError) as error:
            self.last = replace(so_far[0], finish="interrupted")
            draw(self.last, "")
            if isinstance(error, KeyboardInterrupt):
                count = self.last.figures.get("tokens", 0)
                raise GivenUp(
                    f"stopped after {count} tokens; {self.name}.last has the text, and the model "
                    "is as it was"
                ) from None
            raise
        self.last = found
        draw(found, "")
        return found
