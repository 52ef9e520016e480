"""What can be chosen for tuning a model, by mlx-lm's names and with its defaults."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import mlx.core as mx

from mlxbench_kernel.errors import UsageError

METHODS = ("lora", "dora", "full")
OPTIMIZERS = {
    "adam": "Adam", "adamw": "AdamW", "muon": "Muon", "sgd": "SGD", "adafactor": "Adafactor",
}  # fmt: skip
# Of which layers there are, and so of what was saved: no other can go on from it.
STRUCTURE = ("method", "num_layers", "rank", "scale", "dropout", "keys")
_OTHER_NAMES = {
    "fine_tune_type": "method", "iters": "steps", "steps_per_eval": "validate_every",
    "lr": "learning_rate",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How a model is tuned; defaults are those of ``mlx_lm.lora`` (mlx-lm 0.32.2).

    Attributes
    ----------
    method
        "lora", "dora", or "full": the layers themselves.
    num_layers
        Layers from the last one on; -1 for all. By default 16, or all of a smaller model.
    rank, scale, dropout, keys
        Of LoRA and DoRA. ``keys``: paths of the linear layers within a layer, or of others in the
        model; by default all within the layers.
    batch_size
        Examples of a step, of all ranks together.
    learning_rate, lr_schedule
        A number; or a schedule as mlx-lm's config has it:
        ``{"name": "cosine_decay", "arguments": [1e-5, 1000], "warmup": 100}``.
    optimizer, optimizer_config
        "adam", "adamw", "muon", "sgd" or "adafactor", and what it takes beside the learning rate.
    max_seq_length
        Tokens; longer examples are cut.
    grad_checkpoint
        Whether layers are computed again for their gradients, which takes less memory.
    grad_accumulation_steps
        Batches of a step.
    mask_prompt
        Whether prompts are not trained.
    seed
        Of the new weights, of dropout and of the order of batches.
    val_batches, validate_every
        How many batches are validated with, -1 for all; and after every so many steps, 0 for never.
    clip
        Largest norm of the gradients; None for any.
    compile
        Whether steps run through ``mx.compile``, as mlx-lm's do; by default on a GPU. On a CPU MLX
        has a C++ compiler make each kernel for each shape, which takes seconds.
    prompt_feature, completion_feature, chat_feature, text_feature
        What these fields of an example are called.
    """

    method: str = "lora"
    num_layers: int | None = None
    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0
    keys: tuple[str, ...] | None = None
    batch_size: int = 4
    learning_rate: float = 1e-5
    lr_schedule: Mapping[str, Any] | None = None
    optimizer: str = "adam"
    optimizer_config: Mapping[str, Any] | None = None
    max_seq_length: int = 2048
    grad_checkpoint: bool = False
    grad_accumulation_steps: int = 1
    mask_prompt: bool = False
    seed: int = 0
    val_batches: int = 25
    validate_every: int = 200
    clip: float | None = None
    compile: bool | None = None
    prompt_feature: str = "prompt"
    completion_feature: str = "completion"
    chat_feature: str = "messages"
    text_feature: str = "text"

    @classmethod
    def of(cls, given: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> Self:
        """Options that were given, the others as they were saved or by default.

        Raises
        ------
        UsageError
            One is not known, cannot be, or is another one than what was saved allows.
        """
        known = {each.name for each in fields(cls)}
        named = {_OTHER_NAMES.get(name, name): value for name, value in given.items()}
        for name in named:
            if name not in known:
                near = difflib.get_close_matches(name, [*known, *_OTHER_NAMES], 1)
                meant = f"did you mean {near[0]}?" if near else f"type one of {', '.join(known)}"
                raise UsageError(f"{name} is not an option of finetune: {meant}")
        if named.get("keys") is not None:
            named["keys"] = _names(named["keys"])
        before = {} if saved is None else {k: v for k, v in saved.items() if k in known}
        for name in STRUCTURE:
            if saved is not None and name in named and named[name] != before.get(name):
                raise UsageError(
                    f"{name}={named[name]!r} was {before.get(name)!r} in what is gone on from: "
                    "leave it out"
                )
        made = cls(**{**before, **named})
        made._check()
        return made

    @property
    def compiled(self) -> bool:
        """Whether steps are compiled here."""
        if self.compile is None:
            return bool(mx.default_device().type == mx.gpu)
        return self.compile

    @property
    def features(self) -> dict[str, str]:
        """The names of fields, for `datasets.read`."""
        return {
            name: getattr(self, name)
            for name in ("prompt_feature", "completion_feature", "chat_feature", "text_feature")
        }

    @property
    def layer_parameters(self) -> dict[str, Any] | None:
        """mlx-lm's ``lora_parameters``; None for ``full``."""
        if self.method == "full":
            return None
        found = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout}
        return found | ({} if self.keys is None else {"keys": list(self.keys)})

    def for_layers(self, count: int) -> Self:
        """With the number of layers that are tuned, of so many.

        Raises
        ------
        UsageError
            There are not so many.
        """
        if self.num_layers is None:
            return replace(self, num_layers=min(16, count))
        if self.num_layers > count:
            raise UsageError(
                f"num_layers={self.num_layers}, and the model has {count} layers: type "
                f"num_layers={count}, or -1 for all"
            )
        return self

    def config(self, model: str) -> dict[str, Any]:
        """What ``adapter_config.json`` holds, by mlx-lm's names.

        Parameters
        ----------
        model
            Folder of the model.
        """
        found = asdict(self)
        for name in ("rank", "scale", "dropout", "keys"):
            del found[name]
        found["fine_tune_type"] = found.pop("method")
        found["steps_per_eval"] = found.pop("validate_every")
        config = found.pop("optimizer_config")
        found["optimizer_config"] = {self.optimizer: dict(config or {})}
        return {**found, "lora_parameters": self.layer_parameters, "model": model}

    @staticmethod
    def saved_in(config: Mapping[str, Any]) -> dict[str, Any]:
        """Options out of an ``adapter_config.json``, be it mlx-lm's own."""
        found = {_OTHER_NAMES.get(name, name): value for name, value in config.items()}
        found["method"] = config.get("fine_tune_type", "lora")
        found.update(found.pop("lora_parameters", None) or {})
        if found.get("keys") is not None:
            found["keys"] = tuple(found["keys"])
        several = found.get("optimizer_config") or {}
        found["optimizer_config"] = several.get(found.get("optimizer", "adam")) or None
        return found

    def _check(self) -> None:
        for name, allowed in (("method", METHODS), ("optimizer", tuple(OPTIMIZERS))):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name}={getattr(self, name)!r} is not known: type "
                    + ", ".join(map(repr, allowed))
                )
        for name in ("rank", "batch_size", "grad_accumulation_steps"):
            self._require_whole(name, 1)
        self._require_whole("max_seq_length", 2)
        self._require_whole("validate_every", 0)
        self._require_whole("val_batches", -1)
        self._require_whole("seed", 0)
        if self.seed >= 2**32:
            raise UsageError(f"seed={self.seed}: type a number below 2**32")
        if self.clip is not None and not self._number("clip") > 0:
            raise UsageError(f"clip={self.clip!r}: type a number above 0, or leave it out")
        for name in ("lr_schedule", "optimizer_config"):
            if not isinstance(getattr(self, name), (Mapping, type(None))):
                raise UsageError(f"{name}={getattr(self, name)!r}: type a dict")
        if self.num_layers is not None and (self._whole("num_layers", -1) in (None, 0)):
            raise UsageError(f"num_layers={self.num_layers!r}: type 1 or more, or -1 for all")
        if not 0 <= self._number("dropout") < 1:
            raise UsageError(f"dropout={self.dropout!r} is no share of what is left out: type 0.1")
        if not 0 < self._number("learning_rate") < math.inf:
            raise UsageError(f"learning_rate={self.learning_rate!r}: type a number above 0")
        if self.grad_checkpoint and self.dropout:
            raise UsageError(
                "grad_checkpoint computes layers a second time, and MLX would draw another dropout "
                "then: leave one of the two out"
            )
        self._number("scale")
        try:
            json.dumps([self.lr_schedule, self.optimizer_config])
        except TypeError as error:
            raise UsageError(
                f"lr_schedule and optimizer_config are dicts of numbers and texts ({error})"
            ) from None

    def _whole(self, name: str, least: int) -> int | None:
        value = getattr(self, name)
        good = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return value if good else None

    def _require_whole(self, name: str, least: int) -> None:
        if self._whole(name, least) is None:
            raise UsageError(
                f"{name}={getattr(self, name)!r}: type a whole number, {least} or more"
            )

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise UsageError(f"{name}={value!r} is no number")
        return float(value)


def _names(keys: Any) -> tuple[str, ...]:
    if isinstance(keys, str) or not all(isinstance(each, str) for each in keys):
        raise UsageError(f"keys={keys!r}: type a list of paths, as ['self_attn.q_proj']")
    return tuple(keys)
