"""What a notebook shows of a language model that generates."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxbench_kernel.errors import ClusterError, GivenUp
from mlxbench_kernel.remote import prompts as many
from mlxbench_kernel.remote.conversation import Conversation
from mlxbench_kernel.remote.language_model import Generated, ModelOnRanks, Prompt
from mlxbench_kernel.widgets.generated import LiveText
from mlxbench_kernel.widgets.progress import ProgressBar

if TYPE_CHECKING:
    from mlxbench_kernel.widgets.chat import ChatView


SILENT_SECONDS = 1.0  # after which is said what is going on


class Generates(ModelOnRanks):
    """The part of `LanguageModel` that generates and chats."""

    last: Generated | None = None

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

        began = time.monotonic()

        def show(status: str) -> None:
            found = so_far[0]
            if not (found.figures or found.reading[1] or status):
                if time.monotonic() - began < SILENT_SECONDS:
                    return
                status = "reading the prompt …"
            draw(found, status)

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

    def conversation(
        self, system: str = "", *, max_tokens: int = 512, seed: int | None = None, **options: Any
    ) -> Conversation:
        """Begin a chat, as code; what is said with ``say`` is answered in the cell's output.

        Parameters
        ----------
        system
            What the model is told before all else.
        max_tokens, seed, **options
            Of each answer, as for `generate`.

        Returns
        -------
        Conversation
            With ``say``, ``regenerate``, ``undo``, ``messages``, ``save`` and ``load``.

        Raises
        ------
        UsageError
            The model has no chat template, or an option cannot be.
        """
        return Conversation(
            self, system, max_tokens=max_tokens, seed=seed, draw=lambda: LiveText().draw, **options
        )

    def chat(
        self, system: str = "", *, conversation: Conversation | None = None, **options: Any
    ) -> ChatView:
        """Chat with it in a cell: answers as they come, with Stop, Regenerate, Undo and settings.

        The kernel is free while an answer comes; a cell that uses the ranks waits for its end.

        Parameters
        ----------
        system
            What the model is told before all else; can be changed in the chat.
        conversation
            To go on with, in place of a new one.
        **options
            As for `conversation`.

        Returns
        -------
        ChatView
            Its ``chat`` is the `Conversation`, for code.

        Raises
        ------
        UsageError
            The model has no chat template, or an option cannot be.
        """
        from mlxbench_kernel.widgets.chat import ChatView

        return ChatView(conversation or self.conversation(system, **options))

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int = 256,
        *,
        seed: int | None = None,
        **options: Any,
    ) -> many.GeneratedBatch:
        """Generate a text for each prompt, all of them in each step, with a progress bar.

        Ranks that share the model work on all prompts together; of replicas (``shard="data"``)
        each has its share of the prompts.

        Parameters
        ----------
        prompts
            Each as for `generate`.
        max_tokens
            Of each text.
        seed
            Of the sampling; by default a random one.
        **options
            Of the sampling, as for `generate`, and as mlx-lm's ``BatchGenerator`` names them:
            ``completion_batch_size`` (32: texts in a step), ``prefill_batch_size`` (8).

        Returns
        -------
        GeneratedBatch
            In the order of the prompts, with figures.

        Raises
        ------
        UsageError
            A prompt, which is named, or an option cannot be; nothing was generated.
        ClusterError
            A rank is gone.
        KeyboardInterrupt
            Ctrl-C; the model is as it was.
        """
        with ProgressBar() as bar:
            return many.generate_batch(
                self, prompts, max_tokens, seed=seed, progress=bar, **options
            )

    def read_prompt(self, prompt: Prompt, name: str) -> dict[str, int]:
        """Read a long prompt once, with a progress bar, and keep it in the ranks' KV caches.

        ``lm.generate(prompt + question, keep=name)`` then reads the question alone.

        Parameters
        ----------
        prompt
            As for `generate`.
        name
            Under which it is kept.

        Returns
        -------
        dict
            ``tokens`` of the prompt, ``reused`` of them that were kept before, ``nbytes`` of the
            caches of all ranks.

        Raises
        ------
        UsageError, ClusterError
            As for `generate`.
        """
        with ProgressBar() as bar:
            return many.read_prompt(self, prompt, name, progress=bar)

    def save_prompt(self, name: str, folder: str | os.PathLike[str]) -> list[str]:
        """Write a prompt that is kept, in mlx-lm's format for prompt caches; a file per rank.

        Parameters
        ----------
        name
            Under which it is kept: of `read_prompt`, or ``keep`` of `generate`.
        folder
            Made if need be; on each host the ranks there write into it.

        Returns
        -------
        list of str
            The files, by rank.

        Raises
        ------
        UsageError
            Nothing is kept under that name.
        StorageError
            A disk does not take a file; one that was there before is as it was.
        """
        return many.save_prompt(self, name, folder)

    def load_prompt(self, name: str, folder: str | os.PathLike[str]) -> int:
        """Keep a prompt that `save_prompt` has written; the number of its tokens.

        Raises
        ------
        UsageError
            A file is missing or not whole, or of another model or other ranks.
        """
        return many.load_prompt(self, name, folder)

    def forget_prompt(self, name: str) -> int:
        """Keep a prompt no more, one of `read_prompt` or of ``keep``; the bytes that this frees.

        Raises
        ------
        UsageError
            Nothing is kept under that name.
        """
        return many.forget_prompt(self, name)
