"""What a notebook shows of the inside of a language model, and of how good it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mlxbench_kernel.graph.profile import side_by_side
from mlxbench_kernel.memory.fit.splits import WAYS
from mlxbench_kernel.models.evaluation import Perplexity
from mlxbench_kernel.remote import inside
from mlxbench_kernel.remote.answers import Answers, answers_beside, answers_on
from mlxbench_kernel.remote.comparing import compare_ways
from mlxbench_kernel.remote.language_model import Generated, ModelOnRanks, Prompt
from mlxbench_kernel.widgets.comparisons import Comparison, SideBySide
from mlxbench_kernel.widgets.graph_view import GraphView
from mlxbench_kernel.widgets.graphs import view_of_profile, view_of_ranks
from mlxbench_kernel.widgets.inside import ActivationMap, AttentionMaps, TopK
from mlxbench_kernel.widgets.progress import ProgressBar
from mlxbench_kernel.widgets.timings import Timing


class LooksInside(ModelOnRanks):
    """The part of `LanguageModel` that looks inside and evaluates."""

    last: Generated | None = None

    # -- looking inside ------------------------------------------------------------

    def top_k(self, text: Prompt | None = None, k: int = 10) -> TopK:
        """The `k` likeliest next tokens at each position, and where the one that follows stands.

        Parameters
        ----------
        text
            Text, tokens or messages; by default what `generate` made last, from its first token
            on.
        k
            How many.

        Raises
        ------
        UsageError
            The text or `k` cannot be, or nothing was generated yet.
        """
        if text is None:
            return TopK(inside.likely_of(self, self.last, k))
        return TopK(inside.likely_on(self, text, k))

    def attention(
        self, text: Prompt, layer: int, heads: Sequence[int] | None = None
    ) -> AttentionMaps:
        """The attention of a layer over a text: float32 [heads, L, L] from all ranks' heads.

        Shown as a heat map of the head that is chosen in it; NumPy takes it for the array.

        Parameters
        ----------
        text
            Text, tokens or messages.
        layer
            Its number; negative ones count from the end.
        heads
            Which ones; by default all.

        Raises
        ------
        UsageError
            The text, the layer or a head cannot be, or the layer has no attention.
        """
        return AttentionMaps(inside.attention_on(self, text, layer, heads))

    def activations(self, text: Prompt, layer: int, what: str = "hidden") -> ActivationMap:
        """What comes out of a layer or a module in it, whole: float32 [L, D].

        Shown as a heat map; NumPy takes it for the array.

        Parameters
        ----------
        text
            Text, tokens or messages.
        layer
            Its number; negative ones count from the end.
        what
            "hidden" for what goes on to the next layer, or a module, as "mlp.down_proj".

        Raises
        ------
        UsageError
            The text, the layer or the module cannot be.
        """
        return ActivationMap(inside.activations_on(self, text, layer, what))

    def graph(self, prompt: Prompt = "Hello", *, profile: bool = False) -> GraphView:
        """The graph of one decoding step after a prompt, with its collectives, on all ranks.

        Nothing is evaluated: the caches in it are of the right shapes, and hold zeros.

        Parameters
        ----------
        prompt
            Text, tokens or messages.
        profile
            Whether to evaluate copies of its operations one by one, and colour it by the time
            that each takes; also where collectives run on the GPU, of which `timing` cannot tell.

        Raises
        ------
        UsageError
            The prompt cannot be, or a rank is busy.
        """
        if profile:
            measured = inside.profile_of_step(self, prompt)
            first, *others = measured
            print(side_by_side(measured) if others else measured[first])
            return view_of_profile(measured[first], note=f"rank {first}")
        return view_of_ranks(inside.step_on(self, prompt))

    def timing(self, prompt: Prompt, tokens: int = 32) -> Timing:
        """Where the time of a generation goes on each rank: computing, collectives, waiting.

        Parameters
        ----------
        prompt
            Text, tokens or messages.
        tokens
            That are generated at most.

        Raises
        ------
        UsageError
            The prompt or `tokens` cannot be.
        """
        return Timing(inside.timing_on(self, prompt, tokens))

    def compare(self, prompt: Prompt, ways: Sequence[str] = WAYS, tokens: int = 64) -> Comparison:
        """Generate from the same prompt with the model shared in several ways, in one table.

        The others are loaded beside this one, one after the other; this one stays.

        Parameters
        ----------
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
            found = compare_ways(
                self.path, prompt, ways, tokens,
                cluster=self.cluster, loaded=self, progress=bar, **self.options,
            )  # fmt: skip
        return Comparison(found)

    # -- evaluating ----------------------------------------------------------------

    def perplexity(
        self, text_or_file: str | os.PathLike[str], length: int = 512, batch_size: int = 8
    ) -> Perplexity:
        """The perplexity of a text, as ``mlx_lm.perplexity`` computes it.

        Where each rank has a replica, each reads some of it.

        Parameters
        ----------
        text_or_file
            A text, or a file of this host (UTF-8).
        length
            Tokens of the windows that it is cut into; what is left at the end is not looked at.
        batch_size
            Windows that are read at once.

        Raises
        ------
        UsageError
            The text is shorter than a window, a number cannot be, or a file cannot be read.
        """
        with ProgressBar() as bar:
            text = inside.text_of(text_or_file)
            return inside.perplexity_on(self, text, length, batch_size, progress=bar)

    def answers(
        self, prompts: Sequence[Prompt], max_tokens: int = 64, *, seed: int = 0, **options: Any
    ) -> Answers:
        """What the model answers to some prompts, to be kept for `side_by_side`.

        Parameters
        ----------
        prompts
            Texts, tokens or messages.
        max_tokens, seed, **options
            As for `generate`; greedily without a ``temp``.

        Raises
        ------
        UsageError
            There is no prompt, or one of them or an option cannot be.
        """
        with ProgressBar() as bar:
            return answers_on(self, prompts, max_tokens, seed=seed, progress=bar, **options)

    def side_by_side(
        self, before: Answers | Sequence[Prompt], other: ModelOnRanks | None = None, **options: Any
    ) -> SideBySide:
        """What was answered before, as before a fine-tuning, and what the model answers now.

        Parameters
        ----------
        before
            From `answers`; or prompts, which `other` is to answer too.
        other
            Another model, for prompts.
        **options
            For prompts, as of `answers`.

        Raises
        ------
        UsageError
            There is nothing to lay beside, or as for `answers`.
        """
        with ProgressBar() as bar:
            return SideBySide(*answers_beside(self, before, other, progress=bar, **options))
