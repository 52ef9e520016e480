"""What is chosen from the probabilities, by the names that mlx-lm gives it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from mlxbench_kernel.errors import UsageError

# Of ``mlx_lm.sample_utils.make_sampler`` and ``make_logits_processors``, and of ``generate_step``
# (mlx-lm 0.32.2).
SAMPLER = (
    "temp", "top_p", "min_p", "min_tokens_to_keep", "top_k", "xtc_probability", "xtc_threshold",
)  # fmt: skip
PROCESSORS = (
    "logit_bias", "repetition_penalty", "repetition_context_size", "presence_penalty",
    "presence_context_size", "frequency_penalty", "frequency_context_size",
)  # fmt: skip
STEP = (
    "max_kv_size", "prefill_step_size", "kv_bits", "kv_group_size", "quantized_kv_start",
    "num_draft_tokens",
)  # fmt: skip
WHOLE = {
    "min_tokens_to_keep", "top_k", "repetition_context_size", "presence_context_size",
    "frequency_context_size", *STEP,
}  # fmt: skip
POSITIVE = ("max_kv_size", "prefill_step_size", "num_draft_tokens")
BITS = (2, 3, 4, 5, 6, 8)  # that MLX quantizes to, in groups of …
GROUPS = (32, 64, 128)
UNSET = {*PROCESSORS, "max_kv_size", "kv_bits"}  # may be None
OPTIONS = (*SAMPLER, *PROCESSORS, *STEP)
OTHER_NAMES = {"temperature": "temp"}


def check(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options by mlx-lm's names.

    Raises
    ------
    UsageError
        One is not known, or its value cannot be.
    """
    found = {OTHER_NAMES.get(name, name): value for name, value in options.items()}
    for name in found:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, (*OPTIONS, *OTHER_NAMES), 1)
            meant = f"did you mean {near[0]}?" if near else f"type one of {', '.join(OPTIONS)}"
            raise UsageError(f"{name} is not a sampling option: {meant}")
    for name, value in found.items():
        _check_kind(name, value)
    for name in ("top_p", "min_p", "xtc_probability"):
        if name in found and not 0 <= found[name] <= 1:
            raise UsageError(f"{name}={found[name]!r} is no probability: type 0 to 1")
    if found.get("temp", 0) < 0:
        raise UsageError(f"temp={found['temp']!r} is negative: type 0 (greedy) or more")
    if found.get("top_k", 0) < 0:
        raise UsageError(f"top_k={found['top_k']!r} is negative: type 0 (all) or more")
    for name in POSITIVE:
        if found.get(name) is not None and found[name] < 1:
            raise UsageError(f"{name}={found[name]!r}: type a whole number, 1 or more")
    for name, known in (("kv_bits", BITS), ("kv_group_size", GROUPS)):
        if found.get(name) is not None and found[name] not in known:
            raise UsageError(f"{name}={found[name]!r}: type one of {', '.join(map(str, known))}")
    return found


def _check_kind(name: str, value: Any) -> None:
    """See that a value is a number, or whole where mlx-lm counts with it, or a bias by token."""
    if value is None and name in UNSET:
        return
    if name == "logit_bias":
        if not isinstance(value, Mapping):
            raise UsageError(f"logit_bias={value!r}: type a dict, as {{token: -100.0}}")
        for token, bias in value.items():
            if not isinstance(token, int) or not isinstance(bias, (int, float)):
                raise UsageError(
                    f"logit_bias has {token!r}: {bias!r}: type numbers, as {{token: -100.0}}"
                )
    elif isinstance(value, bool) or not isinstance(value, int if name in WHOLE else (int, float)):
        kind = "a whole number" if name in WHOLE else "a number"
        raise UsageError(f"{name}={value!r}: type {kind}, or leave it out")


def check_bias(options: Mapping[str, Any], tokens: int | None) -> None:
    """See that biases are of tokens that there are; MLX does not look, and the process dies.

    Raises
    ------
    UsageError
        One is not.
    """
    for token in options.get("logit_bias") or ():
        if tokens is not None and not 0 <= token < tokens:
            raise UsageError(f"logit_bias has the token {token}: this model has 0 to {tokens - 1}")


def check_seed(seed: Any) -> None:
    """See that a seed is one.

    Raises
    ------
    UsageError
        It is not.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise UsageError(f"seed={seed!r}: type a whole number, 0 or more")


def for_step(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``mlx_lm.stream_generate`` that these options make."""
    from mlx_lm.sample_utils import make_logits_processors, make_sampler

    known = check(options)
    sampler = {name: known[name] for name in SAMPLER if name in known}
    processors = {name: known[name] for name in PROCESSORS if name in known}
    found = {name: known[name] for name in STEP if name in known}
    if sampler:
        found["sampler"] = make_sampler(**sampler)
    if processors:
        found["logits_processors"] = make_logits_processors(**processors)
    return found
