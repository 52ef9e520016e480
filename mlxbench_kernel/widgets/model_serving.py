"""A language model that serves other programs, and is measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from mlxbench_kernel.remote.benchmark import benchmark
from mlxbench_kernel.remote.language_model import ModelOnRanks
from mlxbench_kernel.remote.serving import Server
from mlxbench_kernel.widgets.benchmark import MeasuredModel
from mlxbench_kernel.widgets.progress import ProgressBar


class Serves(ModelOnRanks):
    """The part of `LanguageModel` that serves and measures."""

    def serve(self, port: int = 0, **options: Any) -> Server:
        """Start mlx-lm's OpenAI-compatible server for it, on the loopback of rank 0's machine.

        The model is not loaded again. Cells go on to run: a request waits for them where the next
        token is due, and goes on afterwards. It stops with `Server.stop`, when the model is
        forgotten or loaded anew, and with the ranks or this kernel.

        Parameters
        ----------
        port
            Where to listen; 0 for one that is free.
        **options
            As ``mlx_lm.server`` names them: ``temp``, ``max_tokens``, ``prompt_cache_size``, …,
            see `mlxbench_kernel.models.answering.OPTIONS`. Pages in a browser may ask only where
            ``allowed_origins`` names them.

        Returns
        -------
        Server
            With ``url``, ``requests`` (so far), ``error`` and ``stop()``; shown, it has a line to
            try it with. A model with a replica on each rank is served by rank 0.

        Raises
        ------
        UsageError
            The port is taken, there is no such option, or the ranks serve a model already.
        ClusterError
            A rank is gone.

        Examples
        --------
        >>> server = lm.serve()
        >>> openai.OpenAI(base_url=server.url, api_key="-").models.list()
        """
        return Server(self, port, options, lambda text: print(text, file=sys.stderr))

    def benchmark(
        self,
        prompt: int = 512,
        generate: int = 128,
        repeat: int = 5,
        batch: int = 1,
        ways: Sequence[str] = (),
    ) -> MeasuredModel:
        """Measure how fast it generates, as ``mlx_lm.benchmark`` does: random tokens, which nothing
        ends early, and a run before that does not count.

        Parameters
        ----------
        prompt, generate
            Tokens of the prompt, and to generate.
        repeat
            Runs.
        batch
            Prompts at a time.
        ways
            Of "tensor", "pipeline" and "data" (one rank's replica), in which order; by default as
            it is loaded. In other ways its files are loaded beside it, one way after the other,
            so the model itself stays as it is.

        Returns
        -------
        MeasuredModel
            Shows a table and a plot; with ``rows``, ``means``, ``about`` (versions and hardware),
            ``commands`` (the same with mlx-lm), ``to_dataframe()`` and ``to_csv(path)``. After a
            Ctrl-C it has the runs that had ended.

        Raises
        ------
        UsageError
            A number or a way cannot be; nothing was measured.
        """
        with ProgressBar() as bar:
            return benchmark(self, MeasuredModel, prompt, generate, repeat, batch, ways, bar)
