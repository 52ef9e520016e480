"""Where NaN and Inf came from in a step that is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlxbench_kernel.errors import BenchError
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training.exchange import gather_texts

if TYPE_CHECKING:
    from mlxbench_kernel.training.running import Running


def origin(stepper: Running) -> str:
    """Evaluate the last step again, and name its first bad operation; on all ranks alike.

    Nothing is changed: state and batches are put back and forth.

    Returns
    -------
    str
        In words, for the first rank on which there is one.
    """
    from mlxbench_kernel.graph.capture import captured
    from mlxbench_kernel.graph.nonfinite import first_nonfinite

    step = stepper.step
    before, after = stepper.kept_at(step - 1), stepper.kept_at(step)
    said = ""
    if before is None or after is None:
        said = f"the state before step {step} is not kept"
    else:
        before.put_back()
        try:
            batches = stepper.loop.batches_of_now()
            # What ranks tell one another is left out, so that each finds its own alone.
            namespace: dict[str, Any] = {**PROTECTION.namespace, **stepper.trees}
            with PROTECTION.held():
                got = captured(stepper.program.alone, batches, namespace=namespace, compiled=False)
                found = first_nonfinite(got.outputs, got.graph, collectives=False)
            said = "" if found is None else str(found)
        except (BenchError, ValueError, RuntimeError) as error:
            said = f"the first bad operation was not found ({error})"
        finally:
            after.put_back()
            stepper.refresh()
            PROTECTION.commit()
    told = gather_texts(said, stepper.group)
    for rank, text in enumerate(told):
        if text:
            where = f"rank {rank}: " if len(told) > 1 else ""
            return f"it begins with {where}{text}"
    return "evaluated again, everything is finite on each rank alone"
