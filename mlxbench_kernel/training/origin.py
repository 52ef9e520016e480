"""Where NaN and Inf came from in a step that is over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlxbench_kernel.errors import BenchError, UsageError
from mlxbench_kernel.rank.protection import PROTECTION
from mlxbench_kernel.training.exchange import gather_texts

if TYPE_CHECKING:
    from mlxbench_kernel.graph import Graph
    from mlxbench_kernel.training.running import Running

FINITE = "evaluated again, everything is finite on each rank alone"


@dataclass(frozen=True)
class StepGraph:
    """The lazy graph of a step, with the operation at which NaN and Inf begin.

    Attributes
    ----------
    step
        Which one: the last that was taken.
    rank
        The first on which there is such an operation; 0 where there is none.
    graph
        What that rank computes alone: loss, gradients, update. None on the other ranks, and where
        it could not be captured.
    node
        The operation, as its number in the graph; None where there is none.
    said
        The same in words, or why there is no graph; alike on all ranks.
    """

    step: int
    rank: int
    graph: Graph | None
    node: int | None
    said: str


def step_graph(stepper: Running) -> StepGraph:
    """Evaluate the last step again, node by node; on all ranks alike.

    The state is what it was afterwards. Functions of ``mx.compile`` are looked into as if they
    were not compiled.
    """
    step, said, doing = stepper.step, stepper.said, stepper.doing
    if not step:
        return StepGraph(0, 0, None, None, "no step was taken yet: type %mlx_step 1 first")
    after = stepper.kept_at(step) or stepper.keep()
    found, why = StepGraph(step, 0, None, None, ""), ""
    try:
        stepper.to(step - 1)  # where that is not kept, steps are taken again
        stepper.doing = f"looking where NaN begins in step {step}"
        found, why = _captured(stepper, found)
    except UsageError as error:  # of going there, on all ranks alike
        why = str(error)
    finally:
        stepper.put_back(after)
        stepper.said, stepper.doing = said, doing
    # First those that found something; then those that could not look; else it is rank 0's.
    failed = why and f"step {step} could not be evaluated again ({why})"
    where = f"rank {stepper.group.rank()}: " if stepper.group.size() > 1 else ""
    for begins, own in (("it begins with ", found.said), ("", failed)):
        texts = gather_texts(own and f"{where}{own}", stepper.group)
        for rank, text in enumerate(texts):
            if text:
                return _of_rank(stepper, replace(found, rank=rank, said=begins + text))
    return _of_rank(stepper, replace(found, said=FINITE))


def _captured(stepper: Running, found: StepGraph) -> tuple[StepGraph, str]:
    """What this rank finds alone, or why it finds nothing: others wait to be told either."""
    from mlxbench_kernel.graph.capture import captured
    from mlxbench_kernel.graph.nonfinite import first_nonfinite

    # What ranks tell one another is left out, so that each finds its own alone.
    namespace: dict[str, Any] = {**PROTECTION.namespace, **stepper.trees}
    try:
        with PROTECTION.held():
            batches = stepper.loop.builder.batches_of_now()
            got = captured(stepper.program.alone, batches, namespace=namespace, compiled=False)
            bad = first_nonfinite(got.outputs, got.graph, collectives=False)
    except BenchError as error:
        return found, str(error)
    except Exception as error:  # of the user's own functions
        return found, f"{type(error).__name__}: {error}".partition("\n")[0]
    node, said = (None, "") if bad is None else (bad.node, str(bad))
    return replace(found, graph=got.graph, node=node, said=said), ""


def _of_rank(stepper: Running, found: StepGraph) -> StepGraph:
    """With a graph on the rank that it is about alone."""
    here = stepper.group.rank() == found.rank
    return found if here else replace(found, graph=None, node=None)
