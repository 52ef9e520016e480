"""Who keeps arrays beside the variables that the user sees: kept states, protected values.

What keeps such arrays says so here itself; this package knows nothing of who that is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# By what it is called in the picture, a function that gives arrays, or dicts and lists of them.
# It is called whenever somebody looks, in any thread: it evaluates nothing and changes nothing.
HOLDERS: dict[str, Callable[[], Any]] = {}
