"""What a rank measures for "auto": reading weights of the model's kind, and a sum."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlxbench_kernel.models import link


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": 256, "torch_dtype": "float32"},
        {"hidden_size": 200, "quantization": {"group_size": 64, "bits": 4}},
        {"hidden_size": 256, "quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}},
        {"text_config": {"hidden_size": 256, "dtype": "bfloat16"}},
        {},
    ],
    ids=["plain", "quantized", "without biases", "with parts", "nothing said"],
)
def test_weights_of_each_kind_are_read(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "WEIGHTS", 4096 * 512)
    monkeypatch.setattr(link, "LEAST_SECONDS", 1e-6)
    found = link.measure(config, mx.distributed.init())
    assert found.keys() == {"alone", "together", "collective"}
    assert all(0 < value < float("inf") for value in found.values())


def test_it_says_bytes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_once", lambda run, times: 0.5)
    found = link.measure({"hidden_size": 256, "torch_dtype": "float32"}, mx.distributed.init())
    assert found["alone"] == 4 * link.WEIGHTS / 0.5
