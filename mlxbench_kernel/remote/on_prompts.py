"""What a rank does with many prompts at once, and with those that are kept; runs on the rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mlxbench_kernel.models import batch, kept_prompts
from mlxbench_kernel.models.part import Part
from mlxbench_kernel.remote.said import SaidAtTimes

Named = Callable[[str], Part]


def calls(part_named: Named) -> dict[str, Callable[..., Any]]:
    """For `on_model.CALLS`."""

    def generate_batch(
        name: str,
        prompts: list[Any],
        most: int,
        seed: int,
        options: dict[str, Any],
        numbers: list[int] | None = None,
    ) -> dict[str, Any]:
        texts, figures = batch.generate_batch(
            part_named(name), prompts, most, seed=seed, options=options, numbers=numbers,
            progress=SaidAtTimes("ended", "tokens"),
        )  # fmt: skip
        return {"texts": [asdict(each) for each in texts], "figures": asdict(figures)}

    def read_prompt(name: str, prompt: Any, keep: str) -> dict[str, int]:
        return kept_prompts.read(part_named(name), prompt, keep, SaidAtTimes("done", "total"))

    def save_prompt(name: str, keep: str, folder: str) -> dict[str, Any]:
        return kept_prompts.save(part_named(name), keep, folder)

    def load_prompt(name: str, keep: str, folder: str) -> dict[str, Any]:
        return kept_prompts.load(part_named(name), keep, folder)

    def forget_prompt(name: str, keep: str) -> int:
        return kept_prompts.forget(part_named(name), keep)

    def forget_prompts(name: str) -> None:
        part_named(name).caches.clear()

    return {
        "generate_batch": generate_batch,
        "read_prompt": read_prompt,
        "save_prompt": save_prompt,
        "load_prompt": load_prompt,
        "forget_prompt": forget_prompt,
        "forget_prompts": forget_prompts,
    }
