"""What a notebook gives for prompts and options, written into a cell for the ranks."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import pytest

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote.asking import _written
from mlxbench_kernel.remote.language_model import plain_prompt


@pytest.mark.parametrize("given", [5, None, ["a", "b"], [1.5], b"bytes", {"role": "user"}])
def test_what_is_no_prompt_is_said(given: Any) -> None:
    with pytest.raises(UsageError, match="a prompt is text, a list of tokens or a list of mess"):
        plain_prompt(given)


def test_prompts_are_plain() -> None:
    assert plain_prompt("text") == "text"
    assert plain_prompt(np.array([3, 4])) == [3, 4]  # type: ignore[arg-type]
    messages = [{"role": "user", "content": "Hi"}]
    assert plain_prompt(messages) == messages


def test_numbers_of_numpy_are_read_on_a_rank() -> None:
    given = {"temp": np.float64(0.5), "tokens": [np.int32(3)], "pair": (np.bool_(True), "a")}
    assert ast.literal_eval(repr(_written(given))) == given
