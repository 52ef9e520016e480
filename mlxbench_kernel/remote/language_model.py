"""`ModelOnRanks`: a language model that the ranks of a cluster hold, as a notebook uses it."""

from __future__ import annotations

import itertools
import keyword
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.holding import OFFERED
from mlxbench_kernel.models.halting import ASK, END
from mlxbench_kernel.remote.asking import Heard, Tell, ask_ranks, cell_of
from mlxbench_kernel.remote.generated import Generated, SoFar, figures_of
from mlxbench_kernel.remote.given import Prompt, as_ranks_find_it, plain_prompt
from mlxbench_kernel.remote.on_model import on_model
from mlxbench_kernel.remote.planned import (
    Plan,
    Progress,
    against_link,
    find_files,
    measured_link,
    with_room,
)
from mlxbench_kernel.remote.serving import stop_serving
from mlxbench_kernel.units import format_bytes

__all__ = ["Generated", "ModelOnRanks", "Plan", "Progress", "Prompt", "figures_of", "plain_prompt"]
HALT_SECONDS = 0.5
_NUMBERS = itertools.count()


class ModelOnRanks:
    """A language model that ranks hold; made by `load`.

    On each rank the variable `name` is a `mlxbench_kernel.models.Part`: ``lm.model`` and
    ``lm.tokenizer`` there are mlx-lm's own.

    Attributes
    ----------
    cluster : Cluster
        Whose ranks.
    name : str
        Of the variable on the ranks.
    path : str
        Folder or name that it was loaded from.
    shard : str
        "tensor", "pipeline" or "data" (a replica on each rank).
    plan : Plan or None
        Made before loading; None where none was wanted.
    parts : dict
        By rank ``nbytes`` (of the parameters there), ``read_bytes``, ``seconds``, ``context``
        (tokens that the model is made for, or None), ``has_chat_template``.
    architecture : str
        As mlx-lm calls it.
    tell : function
        Is told in words what was done about a fault.
    number : int
        The one that was made last has the greatest.
    options : dict
        Of `load`, with which it was loaded: ``adapter``, ``draft``, ``revision``, ….
    """

    def __init__(self, cluster: Cluster, name: str, path: str) -> None:
        self.number = next(_NUMBERS)
        self.cluster, self.name, self.path = cluster, name, path
        self.shard = self.architecture = ""
        self.plan: Plan | None = None
        self.parts: dict[int, dict[str, Any]] = {}
        self._loaded_in: list[int] = []  # by rank
        self._forgotten = False
        self.tell: Tell = lambda text: None
        self.options: dict[str, Any] = {}

    @classmethod
    def load(
        cls,
        path_or_repo: str | os.PathLike[str],
        shard: str = "auto",
        *,
        cluster: Cluster | None = None,
        name: str = "lm",
        context: int | None = None,
        adapter: str | os.PathLike[str] | None = None,
        draft: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        anyway: bool = False,
        progress: Progress = lambda done, text: None,
        planned: Callable[[Plan], None] = lambda plan: None,
        show: Tell = lambda text: None,
    ) -> Self:
        """Load a model on all ranks; of the weights each reads only its share.

        Parameters
        ----------
        path_or_repo
            Folder of a model as mlx-lm reads it, the same on all hosts, or its name on the hub.
        shard
            "tensor" (parts of each layer on every rank), "pipeline" (whole layers), "data" (a
            replica on each rank), or "auto": of those that go and fit the one in which a token
            takes least, by what reading weights and a collective are measured to take.
        cluster
            The ranks; by default those that were started last.
        name
            Of the variable on the ranks.
        context
            Tokens that are to fit; by default 8 192, or what the model is made for if that is less.
        adapter
            Folder of adapters, as `mlx_lm.lora` saves them.
        draft
            A smaller model with the same tokenizer, for speculative decoding.
        revision, trust_remote_code
            As for mlx-lm's ``load``.
        anyway
            Whether to load what is not planned to fit.
        progress, planned, show
            Told how far it is, what the plan is before anything is loaded, and who is late.

        Raises
        ------
        UsageError
            Something that was given cannot be, files are not whole or not the same on all hosts,
            or the model does not fit: with the plan's table. Nothing was loaded.
        ClusterError
            A rank is gone, or failed.
        """
        if not name.isidentifier() or keyword.iskeyword(name):
            raise UsageError(f"name={name!r} is no name of a variable: type lm")
        if name in OFFERED:
            raise UsageError(f"name={name!r} is what cells on ranks use themselves: type lm")
        made = cls(cluster or Cluster.latest(), name, as_ranks_find_it(path_or_repo))
        made.options = {
            "adapter": adapter, "draft": draft, "revision": revision,
            "trust_remote_code": trust_remote_code,
        }  # fmt: skip
        beside = [None if each is None else as_ranks_find_it(each) for each in (adapter, draft)]
        progress(0.0, "looking at the files")
        folders = find_files(made, revision, beside[0], beside[1], progress)
        progress(0.02, "planning")
        made._make_plan(folders, shard, context, anyway, planned)
        options = {
            "trust_remote_code": trust_remote_code,
            "split": made.plan.split if made.plan else None,
            "adapter": beside[0],
            "draft": beside[1],
        }
        done: dict[int, float] = {}

        def heard(rank: int, told: dict[str, Any]) -> None:
            done[rank] = told["done"] / max(told["total"], 1)
            all_of_it = format_bytes(told["total"] * made.size)
            progress(0.05 + 0.95 * sum(done.values()) / made.size, f"reading {all_of_it}")

        stop_serving(made.cluster, name)
        arguments = {rank: (name, folders[rank], made.shard, options) for rank in made.ranks}
        made.parts = made.ask_each("load", arguments, heard=heard, show=show)
        made._loaded_in = made._processes()
        setup = made.cluster.setup
        setup.put(made.of_tuning)
        setup.put(made.of_loading, cell_of(on_model, "each", "load", arguments))
        made.shard = made.parts[0]["shard"]
        progress(1.0, "loaded")
        return made

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.cluster.size

    @property
    def ranks(self) -> list[int]:
        """All of them."""
        return list(range(self.size))

    @property
    def context(self) -> int | None:
        """Tokens that the model is made for; None where its config does not say."""
        found: int | None = self.parts[0]["context"]
        return found

    @property
    def has_chat_template(self) -> bool:
        """Whether its tokenizer puts messages together."""
        return bool(self.parts[0]["has_chat_template"])

    @property
    def of_loading(self) -> str:
        """What the cell that loads it is called, where a rank is started again."""
        return f"loading the model {self.name}"

    @property
    def of_tuning(self) -> str:
        """Likewise the one that makes it ready to be tuned."""
        return f"making {self.name} ready to be tuned"

    def __repr__(self) -> str:
        held = format_bytes(sum(each["nbytes"] for each in self.parts.values()))
        how = f"{self.shard} on {self.size} ranks" if self.size > 1 else "on one rank"
        name = Path(self.path).name or self.path
        if self._forgotten:
            return f"LanguageModel {name}: forgotten; {self.name} = LanguageModel.load(…) loads it"
        return f"LanguageModel {name} ({self.architecture}), {how}, {held} of parameters"

    def ask(
        self,
        call: str,
        *arguments: Any,
        ranks: Sequence[int] | None = None,
        heard: Heard = lambda rank, told: None,
        show: Tell = lambda text: None,
    ) -> dict[int, Any]:
        """Have ranks do one of `on_model.CALLS` with this model; the results, by rank.

        Raises
        ------
        UsageError, ClusterError
            See `ask_ranks`.
        """
        chosen = self.ranks if ranks is None else ranks
        processes = self._processes()
        if self.parts and processes != self._loaded_in:  # one came back, without what others keep
            self._loaded_in = processes
            self.ask("forget_prompts")
        return ask_ranks(
            self.cluster, chosen, self.tell, None, call, self.name, *arguments,
            of=on_model, show=show, heard=heard,
        )  # fmt: skip

    def _processes(self) -> list[int]:
        return [each.pid for each in self.cluster.info.ranks]

    def forget(self) -> None:
        """Have the ranks let go of it, and give the memory back; its server is stopped."""
        stop_serving(self.cluster, self.name)
        for key in (self.of_tuning, self.of_loading):
            self.cluster.setup.put(key)
        self.ask("forget")
        self._forgotten = True

    # -- generating ----------------------------------------------------------------

    def generate_on_ranks(
        self,
        prompt: Prompt,
        max_tokens: int = 256,
        *,
        seed: int | None = None,
        keep: str = "",
        heard: Callable[[Generated], None] = lambda so_far: None,
        show: Tell = lambda text: None,
        **options: Any,
    ) -> Generated:
        """Generate a text.

        Parameters
        ----------
        prompt
            Text as it is, tokens, or messages with ``role`` and ``content`` for the model's chat
            template.
        max_tokens
            At most.
        seed
            Of the sampling; by default a random one.
        keep
            Name under which the ranks keep the KV cache, for a prompt that begins alike.
        heard
            Is told again and again what there is so far, on the client's thread.
        show
            Is told who is late.
        **options
            As mlx-lm names them: ``temp``, ``top_p``, ``top_k``, ``min_p``, ``repetition_penalty``,
            …, see `mlxbench_kernel.models.sampling.OPTIONS`.

        Returns
        -------
        Generated
            Of what was ended by `halt`, the text until then.

        Raises
        ------
        UsageError
            The prompt or an option cannot be.
        ClusterError
            It was stopped (`stop`), or a rank is gone; the model is still there.
        KeyboardInterrupt
            Likewise, by Ctrl-C.
        """
        so_far = SoFar(heard)
        seed = random.getrandbits(32) if seed is None else seed
        given = plain_prompt(prompt)
        ranks = [0] if self.shard == "data" else self.ranks
        found = self.ask(
            "generate", given, max_tokens, seed, keep, options,
            ranks=ranks, heard=so_far, show=show,
        )  # fmt: skip
        first = found[0]
        return Generated(
            so_far.text,
            first["tokens"],
            first["piece"]["finish"] or "interrupted",
            figures_of(first["piece"]),
            {rank: each["figures"] for rank, each in found.items()},
            first["prompt"],
        )

    def stop(self) -> None:
        """Stop what the ranks are generating; from any thread. The model stays."""
        self.cluster.interrupt()

    def halt(self) -> bool:
        """Have a generation end after the same token on all ranks; from any thread.

        It returns what there is then, with ``finish="interrupted"``, and the KV cache is kept.

        Returns
        -------
        bool
            Whether it will; not where a rank does not answer, or is not generating any more.
        """
        client = self.cluster.client
        ranks = [0] if self.shard == "data" else self.ranks
        waiting = client.call(ASK, ranks, HALT_SECONDS)
        if len(waiting) < len(ranks):
            return False
        return len(client.call(END, ranks, HALT_SECONDS, last=max(waiting.values()))) == len(ranks)

    # -- loading -------------------------------------------------------------------

    def _make_plan(
        self,
        folders: Mapping[int, str],
        shard: str,
        context: int | None,
        anyway: bool,
        planned: Callable[[Plan], None],
    ) -> None:
        held = self.ask("held")
        hosts = with_room(self.cluster.free_memory(), [held[rank] for rank in self.ranks])
        options: dict[str, Any] = {} if context is None else {"context": context}
        options["trust_remote_code"] = self.options["trust_remote_code"]
        link = measured_link(self, folders) if shard == "auto" and self.size > 1 else None
        told = ask_ranks(
            self.cluster, [0], self.tell, None, "plan", folders[0], hosts, shard, link, options,
            of=on_model,
        )[0]  # fmt: skip
        self.plan = Plan(**told)
        self.shard = self.plan.shard
        if reason := against_link(self.shard, self.cluster.info.backend, self.size):
            raise UsageError(f"{self.path} does not go here: {reason}")
        if not self.plan.fits and not anyway:
            raise UsageError(f"{self.path} {self.plan.text}")
        planned(self.plan)

    def ask_each(
        self,
        call: str,
        arguments: Mapping[int, tuple[Any, ...]],
        heard: Heard = lambda rank, told: None,
        show: Tell = lambda text: None,
    ) -> dict[int, Any]:
        """As `ask`, with arguments of its own for each rank, the name of the model among them."""
        return ask_ranks(
            self.cluster, list(arguments), self.tell, None, "each", call, dict(arguments),
            of=on_model, show=show, heard=heard,
        )  # fmt: skip
