"""How a view looks whose kernel has ended: nothing that is pressed there does anything."""

from __future__ import annotations

TEXT = "the kernel that drew this has ended, and it shows what was then: run its cell again"


def when_gone(view: str) -> str:
    """A style sheet that says so in a view of this class (ipywidgets 8 marks those of a kernel that
    was restarted or shut down)."""
    there = f".{view}.jupyter-widgets-disconnected"
    return (
        f'{there}::before {{ content: "⚠ {TEXT}"; font-weight: 600; padding: 4px 0; }}\n'
        f"{there} > * {{ opacity: 0.5; }}\n"
        f"{there} .jupyter-widgets-disconnected::before {{ content: none; }}\n"  # one is enough
    )
