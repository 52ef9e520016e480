"""Puts mlxbench into an IPython shell, and takes it out again."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING

from mlxbench_kernel.kernel import displays
from mlxbench_kernel.kernel.complete import RanksMatcher
from mlxbench_kernel.kernel.generate_magics import GenerateMagics
from mlxbench_kernel.kernel.graph_magics import GraphMagics
from mlxbench_kernel.kernel.magics import RanksMagics
from mlxbench_kernel.kernel.memory_magics import MemoryMagics
from mlxbench_kernel.kernel.step_magics import StepMagics
from mlxbench_kernel.memory.in_shell import explain_in, explain_no_more_in

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_MAGICS: dict[InteractiveShell, RanksMagics] = {}


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext mlxbench_kernel``: add the magics, auto mode and completion to a shell.

    Ranks that were running when the extension was unloaded are held again, with all their
    variables.
    """
    magics = _MAGICS.get(shell)
    if magics is None:
        magics = _MAGICS[shell] = RanksMagics(shell)
    graphs = GraphMagics(magics)
    shell.register_magics(magics, graphs, StepMagics(magics), MemoryMagics(magics))
    shell.register_magics(GenerateMagics(shell))
    graphs.retraces.install()
    magics.auto.install()
    displays.install(shell)
    explain_in(shell)
    shell.Completer.custom_matchers.append(RanksMatcher(magics).match)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """``%unload_ext mlxbench_kernel``: take out what `load_ipython_extension` added.

    Running ranks go on, as this is half of ``%reload_ext``, until the extension is loaded again
    or the notebook's kernel ends.
    """
    magics = _MAGICS.get(shell)
    if magics is None:
        return
    magics.auto.remove()
    displays.remove(shell)
    explain_no_more_in(shell)
    shell.magics_manager.registry[GraphMagics.__name__].retraces.remove()
    for holder in (RanksMagics, GraphMagics, StepMagics, MemoryMagics, GenerateMagics):
        for kind, names in holder.magics.items():
            for name in names:
                shell.magics_manager.magics[kind].pop(name, None)
        shell.magics_manager.registry.pop(holder.__name__, None)
    shell.Completer.custom_matchers[:] = [
        each
        for each in shell.Completer.custom_matchers
        if not isinstance(getattr(each, "__self__", None), RanksMatcher)
    ]
    if magics.cluster is None:
        atexit.unregister(magics.leave)
        del _MAGICS[shell]
