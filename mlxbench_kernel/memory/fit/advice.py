"""Which way to share a model out, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.fit.need import Unknown
from mlxbench_kernel.memory.fit.table import size
from mlxbench_kernel.units import quantity

if TYPE_CHECKING:
    from mlxbench_kernel.memory.fit.plan import FitPlan

# The first that fits is taken.
_ORDER = {
    "infer": ("tensor", "pipeline", "data"),
    "lora": ("data",),
    "train": ("data", "tensor"),
}
_WHY = {
    "tensor": "all ranks work on each token, and each holds a part of every layer",
    "pipeline": "each rank holds whole layers, as many as fit there",
    "data": "each rank holds everything, and they share out the batch",
}
_FOUR_BITS = 4.5 / 16  # of the size in 16 bits, with scales and biases of groups of 64
_WORTH_IT = 256  # tokens of a context


def choose(plan: FitPlan) -> tuple[str, str]:
    """The way to share a model out, and why.

    Of those that fit: for generating on ranks whose link is known, the one in which a token takes
    least; else the first, which is for generating the one in which all ranks work on each token,
    and for training the one that sends least. If none fits, the one in which least is missing.
    """
    passed: list[str] = []
    fitting: list[str] = []
    least: tuple[int, str] | None = None
    for way in _ORDER[plan.mode]:
        reason = plan.against[way]
        if not reason:
            try:
                left = plan.left(way, plan.context, plan.batch)
            except UsageError as error:
                if way == "data":  # which always goes: something else is wrong
                    raise
                reason = plan.against[way] = _short(error)
            else:
                if left >= 0:
                    fitting.append(way)
                    if plan.link is None or plan.mode != "infer":
                        break
                    continue
                passed.append(f"as {way!r} {size(-left)} would be missing")
                if least is None or left > least[0]:
                    least = left, way
        if reason:
            passed.append(f"{way!r} does not go ({reason})")
    if fitting:
        way, compared = _quickest(plan, fitting)
        return way, "; ".join([_WHY[way], *compared, *passed])
    assert least is not None, "'data' always goes"
    others = [reason for reason in passed if not reason.startswith(f"as {least[1]!r}")]
    return least[1], "; ".join(["nothing fits, and so the least is missing", *others])


def _quickest(plan: FitPlan, fitting: list[str]) -> tuple[str, list[str]]:
    """Of ways that fit the one in which a token takes least, and what the others take."""
    if len(fitting) == 1:
        return fitting[0], []
    try:
        took = {way: plan.token_seconds(way) for way in fitting}
    except Unknown:
        return fitting[0], []
    told = ", ".join(
        f"{quantity(took[way])}s as {way!r}" for way in sorted(fitting, key=took.__getitem__)
    )
    return min(fitting, key=took.__getitem__), [f"over this link a token takes about {told}"]


def changes(plan: FitPlan) -> Iterator[str]:
    """What to type so that it fits, the least change first."""
    ways = [way for way, reason in plan.against.items() if not reason and way != plan.shard]
    if plan.ranks > 1:
        for way in ways:
            if _left(plan, way) >= 0:
                yield f"shard={way!r}"
    short = [row.host for row in plan.rows if row.left < 0]
    if plan.fits_on({host.name for host in plan.hosts}.difference(short)):
        yield f"hosts without {', '.join(dict.fromkeys(short))}"
    if plan.batch > 1 and plan.largest_batch:
        yield f"batch={plan.largest_batch}"
    if plan.longest_context >= min(_WORTH_IT, plan.context):
        yield f"context={plan.longest_context}"
    least = -min(row.left for row in plan.rows)
    parameters = max(row.parameters for row in plan.rows)
    if plan.mode == "train" and plan.source.model is not None:
        yield "mode='lora', which trains few parameters"
    if not _is_quantized(plan) and plan.mode != "train":
        saved = int(parameters * (1 - _FOUR_BITS))
        enough = "" if saved >= least else ", which is not enough alone"
        yield f"weights in 4 bits (mlx_lm.convert -q), about {size(saved)} less{enough}"
    missing = {row.host: -row.left for row in plan.rows if row.left < 0}
    more = ", ".join(
        f"{size(count / (1 - plan.margin))} on {host}" for host, count in missing.items()
    )
    yield f"more memory: {more}"


def _short(error: UsageError) -> str:
    """What is wrong, without what to type instead."""
    return str(error).removeprefix("FitPlan: ").rpartition(": ")[0].rstrip(".")


def _left(plan: FitPlan, way: str) -> int:
    try:
        return plan.left(way, plan.context, plan.batch)
    except UsageError:
        return -1


def _is_quantized(plan: FitPlan) -> bool:
    if "quantization" in plan.source.config or "quantization_config" in plan.source.config:
        return True
    model = plan.source.model
    return model is not None and any(hasattr(each, "bits") for each in model.modules())
