"""A plan as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxbench_kernel.units import format_bytes

if TYPE_CHECKING:
    from mlxbench_kernel.memory.fit.plan import FitPlan

_BYTES = (
    "parameters", "cache", "gradients", "optimizer", "snapshots", "activations", "need", "free",
    "margin", "left",
)  # fmt: skip
_TRAINING = {"gradients", "optimizer", "snapshots"}


def size(count: float) -> str:
    """Bytes for a person, negative ones too."""
    return format_bytes(count)


def headline(plan: FitPlan) -> str:
    """Whether it fits, and if not, by how much and what to change; one line."""
    if plan.fits:
        least = min(plan.rows, key=lambda row: row.left)
        known = "fits" if plan.certain else "may fit, what is known fits"
        return f"{known}: {size(least.left)} are left on {least.host}"
    short: dict[str, int] = {row.host: -row.left for row in plan.rows if row.left < 0}
    missing = ", ".join(f"{size(count)} on {host}" for host, count in short.items())
    return f"does not fit: missing are {missing}; change: {', or '.join(plan.changes)}"


def text(plan: FitPlan) -> str:
    """The headline, what was asked for, an aligned table, and notes."""
    header, rows = _cells(plan)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    left_bound = {"host", "layers"}
    lines = [headline(plan), _asked(plan)]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if name in left_bound else cell.rjust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *plan.notes])


def markdown(plan: FitPlan) -> str:
    """The same as a table of Markdown."""
    header, rows = _cells(plan)
    aligned = [":--" if name in ("host", "layers") else "--:" for name in header]
    lines = [f"| {' | '.join(row)} |" for row in (header, aligned, *map(_escaped, rows))]
    head = f"**{headline(plan)}**\n\n{_asked(plan)}"
    return "\n\n".join([head, "\n".join(lines), *plan.notes])


def _asked(plan: FitPlan) -> str:
    ranks = "1 rank" if plan.ranks == 1 else f"{plan.ranks} ranks"
    why = f" ({plan.why})" if plan.why else ""
    return (
        f"{plan.source.name}: {plan.mode}, {plan.context:,} tokens × {plan.batch:,}, {ranks}, "
        f"shard={plan.shard!r}{why}"
    )


def _cells(plan: FitPlan) -> tuple[list[str], list[list[str]]]:
    names = [name for name in _BYTES if _is_shown(plan, name)]
    layers = ["layers"] if plan.split else []
    header = ["rank", "host", *layers, *names]
    rows = []
    for row in plan.rows:
        values = vars(row)
        shown = [str(row.rank), row.host, *([row.layers] if plan.split else [])]
        for name in names:
            value = values[name]
            shown.append("unknown" if value is None else size(value))
        rows.append(shown)
    return header, rows


def _is_shown(plan: FitPlan, name: str) -> bool:
    return name not in (_TRAINING if plan.mode == "infer" else {"cache"})


def _escaped(row: list[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in row]
