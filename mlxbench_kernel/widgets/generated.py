"""A text while it is generated, with a line of figures."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from IPython.display import DisplayHandle, display

from mlxbench_kernel.remote.language_model import Generated
from mlxbench_kernel.units import format_bytes

_STYLE = (
    "white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font-family:inherit;font-size:inherit"
)
_ENDS = {"length": "stopped at max_tokens", "context": "the context is full"}
_SMALL = "color:var(--jp-ui-font-color2,gray);font-size:var(--jp-ui-font-size1,12px)"


class LiveText:
    """The output of a cell that generates; drawn again in place."""

    def __init__(self) -> None:
        self._handle: DisplayHandle | None = None
        self._drawn: Any = None

    def draw(self, found: Generated, status: str = "") -> None:
        """Show what there is, and who is late."""
        line = " · ".join(each for each in (figures_line(found), status) if each)
        if (found.text, line) == self._drawn:
            return
        self._drawn = (found.text, line)
        bundle = {
            "text/plain": f"{found.text}\n\n{line}",
            "text/html": (
                f'<pre style="{_STYLE}">{html.escape(found.text)}</pre>'
                f'<div style="{_SMALL}">{html.escape(line)}</div>'
            ),
        }
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def figures_line(found: Generated) -> str:
    """The figures of a generation in a line, ranks side by side; "" before there are any."""
    said = []
    figures = found.figures
    if not figures and found.reading[1] and not found.finish:
        read, of = found.reading
        said = [f"reading the prompt: {read:,} of {of:,} tokens"]
    if figures:
        reused = f" ({figures['reused']} in the cache)" if figures["reused"] else ""
        said = [
            f"first token after {figures['first']:.3g} s",
            f"prompt {figures['prompt_tokens']} tokens{reused}, {a_second(figures['prompt_rate'])}",
        ]
        rate = "" if figures["rate"] is None else f", {a_second(figures['rate'])}"
        said.append(f"{figures['tokens']} tokens{rate}")
        if figures.get("drafted"):
            share = 100 * figures["drafted"] / max(figures["tokens"], 1)
            said.append(f"{share:.0f} % of them drafted")
    ranks = [found.ranks[rank] for rank in sorted(found.ranks)]
    if ranks:
        said += [
            f"KV cache {_sizes(ranks, 'kv_bytes')}",
            f"memory {_sizes(ranks, 'active')}",
        ]
        shares = [each["collectives"] for each in ranks]
        if len(shares) > 1 and all(share == share for share in shares):
            said.append(f"in collectives {' | '.join(f'{100 * each:.0f}' for each in shares)} %")
    if found.finish not in ("", "stop"):
        said.append(_ENDS.get(found.finish, found.finish))
    return " · ".join(said)


def a_second(value: float) -> str:
    """How many a second, with three digits or all before the point."""
    return f"{value:,.0f}/s" if value >= 100 else f"{value:.3g}/s"


def _sizes(ranks: Sequence[Mapping[str, Any]], name: str) -> str:
    return " | ".join(format_bytes(each[name]) for each in ranks)
