"""A table that a notebook shows as HTML and a terminal as aligned text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

# A translucent grey is visible on white and on black; no background is set.
_LINE = "1px solid var(--jp-border-color2, rgba(128, 128, 128, 0.4))"
_CELL = "text-align: left; padding: 2px 12px 2px 0; color: inherit; vertical-align: top"


class Table:
    """Rows of text under a header.

    Parameters
    ----------
    header
        Names of the columns.
    rows
        Texts, one per column.
    caption
        A line below the table; "" for none.
    wide
        Whether all columns hold texts of any length, with lines of their own.
    """

    def __init__(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        caption: str = "",
        wide: bool = False,
    ) -> None:
        self.header = tuple(header)
        self.rows = [tuple(row) for row in rows]
        self.caption = caption
        self._wide = wide

    def __repr__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, *([self.caption] if self.caption else [])])

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th scope="col" style="{style}; border-bottom: {_LINE}">{escape(name)}</th>'
            for style, name in zip(self._styles(), self.header, strict=True)
        )
        cells = [
            "".join(
                f'<td style="{style}">{escape(cell)}</td>'
                for style, cell in zip(self._styles(), row, strict=True)
            )
            for row in self.rows
        ]
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        caption = (
            '<caption style="caption-side: bottom; text-align: left; color: inherit; '
            f'padding: 4px 0; opacity: 0.75">{escape(self.caption)}</caption>'
            if self.caption
            else ""
        )
        return (
            '<table class="mlxbench" style="border-collapse: collapse; margin: 0; color: inherit">'
            f"{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _styles(self) -> list[str]:
        """Of the columns: only the last one, which may hold a line of code, is broken."""
        if self._wide:
            return [f"{_CELL}; white-space: pre-wrap; overflow-wrap: anywhere"] * len(self.header)
        *others, last = (_CELL,) * len(self.header)
        return [*(f"{each}; white-space: nowrap" for each in others), f"{last}; min-width: 12em"]
