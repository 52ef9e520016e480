"""What libraries on a rank answer on the control channel, beside the rank itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# By the name of the call; each is called on the control thread, and gives what JSON can hold.
ANSWERS: dict[str, Callable[..., Any]] = {}
