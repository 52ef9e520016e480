"""The dim line above the output of a cell that auto mode sent to the ranks."""

from __future__ import annotations

from html import escape


class RanksMarker:
    """Says where a cell runs.

    Parameters
    ----------
    where
        As ``ranks 0-1``.
    """

    def __init__(self, where: str) -> None:
        self.text = f"▸ {where}"

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return (
            '<div class="mlxbench-marker" style="color: inherit; opacity: 0.6; '
            f'font-size: 85%">{escape(self.text)}</div>'
        )
