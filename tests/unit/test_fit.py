"""`FitPlan`: hosts, ways to share a model out, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from fit_models import SMALL, folder_of

from mlxbench_kernel import FitPlan, UsageError
from mlxbench_kernel.memory.fit import Link
from mlxbench_kernel.memory.fit.hosts import Host, read_hosts
from mlxbench_kernel.memory.fit.longest import largest
from mlxbench_kernel.memory.fit.pace import read_bytes
from mlxbench_kernel.memory.fit.splits import Weights, best, even
from mlxbench_kernel.memory.fit.stand_ins import bytes_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("models")
    return {
        "llama": folder_of(top / "llama", "llama"),
        "qwen2": folder_of(top / "qwen2", "qwen2", files=3, num_hidden_layers=12),
    }


# -- hosts -------------------------------------------------------------------------------


class Live:
    def free_memory(self) -> dict[str, Any]:
        return {"studio": (64 * 10**9, 2), "mini": "16GB"}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["64GB", 16 * 10**9], [("host 0", 64, (0,)), ("host 1", 16, (1,))]),
        ([("a", "64GB"), ("b", "16GB", 2)], [("a", 64, (0,)), ("b", 16, (1, 2))]),
        ({"a": "64GB", "b": ("16GB", 2)}, [("a", 64, (0,)), ("b", 16, (1, 2))]),
        (Live(), [("studio", 64, (0, 1)), ("mini", 16, (2,))]),
    ],
)
def test_hosts(given: Any, found: list[tuple[str, int, tuple[int, ...]]]) -> None:
    hosts = tuple(Host(name, size * 10**9, ranks) for name, size, ranks in found)
    assert read_hosts(given) == hosts


def test_ranks_on_this_host_share_what_is_free(folders: dict[str, Path]) -> None:
    (host,) = read_hosts(2)
    assert host.ranks == (0, 1) and host.free > 10**6
    plan = FitPlan(folders["llama"], {"here": ("300MB", 2)}, 256, shard="data")
    one, two = plan.rows
    assert one.free == two.free == 300_000_000 and one.margin == 30_000_000
    assert one.left == two.left == one.free - one.margin - one.need - two.need


# -- ways to share a model out ---------------------------------------------------------------


def test_tensor_halves_what_is_sharded(folders: dict[str, Path]) -> None:
    whole = FitPlan(folders["llama"], ["1GB"], 512).rows[0]
    part = FitPlan(folders["llama"], ["1GB"] * 2, 512, shard="tensor").rows[0]
    embeddings = 2 * SMALL["vocab_size"] * SMALL["hidden_size"] * 4  # and the head
    assert part.parameters - embeddings == pytest.approx(
        (whole.parameters - embeddings) / 2, rel=0.01
    )
    assert part.cache == whole.cache // 2


def test_data_shares_out_the_batch(folders: dict[str, Path]) -> None:
    four = FitPlan(folders["llama"], ["1GB"], 128, 4, "train").rows[0]
    two = FitPlan(folders["llama"], ["1GB"] * 2, 128, 4, "train", "data").rows[0]
    assert two.parameters == four.parameters
    assert two.activations < 0.8 * four.activations


def test_pipeline_on_hosts_of_unequal_memory(folders: dict[str, Path]) -> None:
    hosts = {"studio": "200MB", "mini": "90MB"}
    plan = FitPlan(folders["qwen2"], hosts, 256, shard="pipeline")
    assert plan.fits and sum(plan.split) == 12 and plan.split[0] > 6 > plan.split[1]
    # Rank 0 has the last layers, as in mlx-lm.
    assert [row.layers for row in plan.rows] == [f"{plan.split[1]}–11", f"0–{plan.split[1] - 1}"]
    assert f"split={list(plan.split)}" in str(plan) and "[6, 6]" in str(plan)
    assert plan.rows[0].cache > plan.rows[1].cache
    in_layers = [row.parameters for row in plan.rows]
    whole = FitPlan(folders["qwen2"], ["1GB"]).rows[0].parameters
    assert sum(in_layers) == whole + 2 * SMALL["vocab_size"] * SMALL["hidden_size"] * 4 + 1024


def test_the_best_split_is_the_one_that_a_search_finds() -> None:
    weights = Weights((5, 1, 1, 1, 4, 4), 0)
    room = [4, 20, 6]

    def fullest(split: tuple[int, ...]) -> float:
        ends = [sum(split[rank + 1 :]) for rank in range(3)]
        return max(
            sum(weights.layers[end : end + count]) / space
            for end, count, space in zip(ends, split, room, strict=True)
        )

    every = [(a, b, 6 - a - b) for a in range(1, 5) for b in range(1, 6 - a)]
    assert fullest(best(weights, room)) == min(map(fullest, every))
    assert even(10, 4) == (3, 3, 2, 2)


def test_auto_takes_what_fits(folders: dict[str, Path]) -> None:
    roomy = FitPlan(folders["qwen2"], ["1GB"] * 2, 256)
    assert roomy.shard == "tensor" and roomy.why
    # Too little for half of everything on the second, enough for a few layers.
    tight = FitPlan(folders["qwen2"], {"studio": "200MB", "mini": "36MB"}, 256)
    assert tight.shard == "pipeline" and tight.fits
    assert "'tensor'" in tight.why
    assert FitPlan(folders["qwen2"], ["1GB"] * 2, 64, mode="train").shard == "data"
    assert FitPlan(folders["qwen2"], ["1GB"]).shard == "data"


def test_a_host_that_is_too_small_is_left_out(folders: dict[str, Path]) -> None:
    plan = FitPlan(folders["llama"], {"a": "16GB", "b": "1MB"}, 256)
    assert not plan.fits and "hosts without b" in plan.changes
    assert FitPlan(folders["llama"], {"a": "16GB"}, 256).fits
    assert not any("without" in each for each in FitPlan(folders["llama"], ["1MB"] * 2).changes)


def test_code_that_comes_with_a_model_runs_where_it_is_trusted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "own", "llama", num_hidden_layers=2)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_file": "own.py"}))
    (folder / "own.py").write_text("from mlx_lm.models.llama import Model, ModelArgs\n")
    assert "trust_remote_code=True" in str(FitPlan(folder, ["1GB"], 64))
    plan = FitPlan(folder, ["1GB"], 64, trust_remote_code=True)
    assert plan.certain and plan.rows[0].cache


SLOW = 50e-3  # seconds of a collective


def test_auto_takes_what_is_quickest_over_a_link(folders: dict[str, Path]) -> None:
    def of(collective: float, hosts: object = (("one", "1GB"), ("two", "1GB"))) -> FitPlan:
        link = Link((1e9, 1e9), 1e9, collective)
        return FitPlan(folders["qwen2"], hosts, 256, link=link)

    near, far = of(1e-9), of(SLOW)
    assert (near.shard, far.shard) == ("tensor", "data")
    reading, waiting = near.token_seconds("tensor"), far.token_seconds("tensor")
    assert waiting - reading == pytest.approx(2 * 12 * SLOW), "two in each layer"
    assert near.token_seconds("data") == pytest.approx(2 * reading, rel=0.3), "the head is whole"
    assert "over this link a token takes about" in far.why and "s as 'tensor'" in far.why
    # A replica does not fit; of the others the pipeline waits for less.
    assert of(SLOW, {"one": "52MB", "two": "52MB"}).shard == "pipeline"
    assert "'data'" in of(SLOW, {"one": "52MB", "two": "52MB"}).why


def test_ranks_of_one_host_share_its_memory(folders: dict[str, Path]) -> None:
    link = Link((1e9, 1e9), 0.4e9, 1e-9)  # both at once: less than half for each
    assert FitPlan(folders["qwen2"], {"one": ("1GB", 2)}, 256, link=link).shard == "data"


def test_no_pipeline_where_ranks_cannot_send(folders: dict[str, Path]) -> None:
    link = Link((1e9, 1e9), 1e9, SLOW, sends=False)
    plan = FitPlan(folders["qwen2"], ["52MB"] * 2, 256, link=link)
    assert plan.shard != "pipeline" and "no send and receive" in plan.why
    with pytest.raises(UsageError, match="no send and receive over this link; type shard="):
        FitPlan(folders["qwen2"], ["1GB"] * 2, 256, shard="pipeline", link=link)


def test_of_experts_only_those_that_are_asked_are_read() -> None:
    from mlx_lm.models import qwen3_moe

    sizes = {
        "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 2,
        "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "vocab_size": 100, "num_experts": 8, "num_experts_per_tok": 2,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 32,
        "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": False,
        "max_position_embeddings": 64, "norm_topk_prob": True,
    }  # fmt: skip
    model = qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(sizes))
    experts = 2 * 3 * 8 * 32 * 64 * 4  # layers, matrices, experts, their size, float32
    rows = 100 * 64 * 4  # of which one is looked up
    assert read_bytes(model) == bytes_of(model) - experts * 6 // 8 - rows


def test_a_link_that_cannot_be() -> None:
    with pytest.raises(UsageError, match=r"type numbers above 0 in place of 0"):
        Link((1e9, 0), 1e9, 1e-3)


@pytest.mark.parametrize(
    ("model", "mode", "shard", "said"),
    [
        ("llama", "infer", "pipeline", "no pipeline for it; type shard='tensor' or 'data'"),
        ("qwen2", "train", "pipeline", "no gradients .* type shard='tensor' or 'data'"),
        ("qwen2", "lora", "tensor", "no LoRA on sharded layers; type shard='data'"),
    ],
)
def test_a_way_that_does_not_go(
    folders: dict[str, Path], model: str, mode: str, shard: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        FitPlan(folders[model], ["1GB"] * 2, 64, mode=mode, shard=shard)


def test_numbers_of_ranks_that_do_not_go(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="3 ranks do not divide its 8 heads and 4 KV heads"):
        FitPlan(folders["llama"], ["1GB"] * 3, 64, shard="tensor")
    with pytest.raises(UsageError, match="it has 12 layers for 13 ranks"):
        FitPlan(folders["qwen2"], ["1GB"] * 13, 64, shard="pipeline")


# -- how much still fits -------------------------------------------------------------------


def test_the_longest_context_that_fits(folders: dict[str, Path]) -> None:
    plan = FitPlan(folders["llama"], ["150MB"], 4096)
    assert not plan.fits
    longest = plan.longest_context
    assert 256 <= longest < 4096 and longest % 256 == 0
    assert FitPlan(folders["llama"], ["150MB"], longest).fits
    assert not FitPlan(folders["llama"], ["150MB"], longest + 256).fits
    first, *_ = str(plan).splitlines()
    assert first.startswith("does not fit: missing are ") and f"context={longest}" in first


def test_the_largest_batch_that_fits(folders: dict[str, Path]) -> None:
    plan = FitPlan(folders["llama"], ["400MB"], 256, 64, "lora")
    assert not plan.fits and f"batch={plan.largest_batch}" in str(plan)
    assert FitPlan(folders["llama"], ["400MB"], 256, plan.largest_batch, "lora").fits
    assert not FitPlan(folders["llama"], ["400MB"], 256, plan.largest_batch + 1, "lora").fits


@pytest.mark.parametrize("limit", [0, 1, 255, 256, 300, 70_000, 131_072, 10**9])
def test_the_largest_number(limit: int) -> None:
    tried: list[int] = []

    def left(number: int) -> int:
        tried.append(number)
        return limit**2 - number**2  # as bent as attention

    found = largest(left, 131_072, 256)
    assert found == (limit if limit < 2 else min(max(limit // 256 * 256, 1), 131_072))
    assert len(tried) < 25


def test_a_context_beyond_the_models_own(folders: dict[str, Path]) -> None:
    plan = FitPlan(folders["llama"], ["64GB"], 5000)
    assert "made for contexts up to 4,096 tokens" in str(plan)
    assert plan.longest_context == 4096


# -- what is shown -------------------------------------------------------------------------


def test_a_table_and_dicts(folders: dict[str, Path]) -> None:
    plan = FitPlan(folders["llama"], {"studio": "1GB", "mini": "500MB"}, 256)
    first, asked, header, *rows = str(plan).splitlines()
    assert first.startswith("fits: ") and first.endswith("left on mini")
    assert asked.startswith("llama: infer, 256 tokens × 1, 2 ranks, shard='tensor'")
    assert header.split() == [
        "rank", "host", "parameters", "cache", "activations", "need", "free", "margin", "left",
    ]  # fmt: skip
    assert [row.split()[:2] for row in rows] == [["0", "studio"], ["1", "mini"]]
    for row in plan.to_dicts():
        parts = (row["parameters"], row["cache"], row["activations"])
        assert row["need"] == sum(parts) == row["free"] - row["margin"] - row["left"]
    assert plan.to_dataframe()["host"].tolist() == ["studio", "mini"]
    assert plan._repr_markdown_().count("\n| ") == 4  # with the header and the line below it


# -- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"hosts": 0}, "there are no hosts"),
        ({"hosts": []}, "there are no hosts"),
        ({"hosts": {}}, "there are no hosts"),
        ({"hosts": "64GB"}, "'64GB' are no hosts"),
        ({"hosts": ["much"]}, "free on host 0: 'much' is not a size"),
        ({"hosts": [3.5]}, "3.5 is no host"),
        ({"hosts": {"mini": ("1GB", 0)}}, "mini has 0 ranks"),
        ({"hosts": [("a", "1GB"), ("a", "1GB")]}, "a stands there twice"),
        ({"context": -1}, "context=-1: type a whole number, 1 or more"),
        ({"context": 0}, "context=0"),
        ({"batch": 0}, "batch=0"),
        ({"mode": "dream"}, "mode='dream' is not known: type one of 'infer', 'lora', 'train'"),
        ({"shard": "expert"}, "shard='expert' is not known"),
        ({"margin": 1.5}, "margin=1.5"),
        ({"model_or_path": 3}, "is no model"),
        ({"model_or_path": "no/such"}, "there is no folder no/such"),
    ],
)
def test_bad_arguments(folders: dict[str, Path], given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        FitPlan(**{"model_or_path": folders["llama"], "hosts": 1, **given})
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config.json in"):
        FitPlan(tmp_path, 1)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config.json cannot be read"):
        FitPlan(tmp_path, 1)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UsageError, match=r"no model\*.safetensors in .*, only weights.bin"):
        FitPlan(tmp_path, 1)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-100], "incomplete metadata"),
        (lambda data: b"", "too small"),
        (lambda data: b"\xff" * 64 + data[64:], "too large"),
        (lambda data: data[:8] + b"?" + data[9:], "invalid JSON"),
    ],
)
def test_a_corrupt_file(tmp_path: Path, damage: Any, said: str) -> None:
    folder = folder_of(tmp_path / "model", "llama", num_hidden_layers=1)
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UsageError, match=rf"model.safetensors is corrupt or cut short \(.*{said}"):
        FitPlan(folder, 1)


def test_a_missing_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "llama", num_hidden_layers=1, files=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model-00002-of-00003.safetensors of .* is not in"):
        FitPlan(folder, 1)


def test_an_architecture_that_mlx_lm_does_not_know(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    known = FitPlan(folder, ["1GB"], 512).rows[0]
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "hydra"}))
    plan = FitPlan(folder, ["1GB"], 512)
    (row,) = plan.rows
    assert row.parameters == known.parameters
    assert row.cache == 2 * 6 * 4 * 32 * 2 * 512  # in 16 bits, by the config's fields
    assert row.activations is None and not plan.certain
    assert str(plan).startswith("may fit") and "unknown" in str(plan)
    assert "Model type hydra not supported" in str(plan)
    with pytest.raises(UsageError, match="needs a model that mlx-lm can build; type shard='data'"):
        FitPlan(folder, ["1GB"] * 2, 512, shard="tensor")
    (folder / "config.json").write_text("{}")
    (bare,) = FitPlan(folder, ["1GB"], 512).rows
    assert (bare.parameters, bare.cache) == (known.parameters, None)


def test_a_model_that_is_no_language_model() -> None:
    plan = FitPlan(nn.Linear(1000, 100), ["1GB"], 64)
    assert plan.rows[0].parameters == 4 * (1000 * 100 + 100)
    assert plan.rows[0].activations is None and "could not be called" in str(plan)


@pytest.mark.parametrize("ranks", [1, 2])
def test_nothing_that_could_be_trained(ranks: int) -> None:
    model = nn.Linear(10, 10)
    with pytest.raises(UsageError, match="no layers that LoRA can be put on"):
        FitPlan(model, ["1GB"] * ranks, 64, mode="lora")
    model.freeze()
    with pytest.raises(UsageError, match="every parameter of the model is frozen"):
        FitPlan(model, ["1GB"] * ranks, 64, mode="train")


def test_without_the_native_module(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = FitPlan(folders["llama"], ["1GB"], 512).rows[0]
    monkeypatch.setattr("mlxbench_kernel.native.load", lambda: None)
    (row,) = FitPlan(folders["llama"], ["1GB"], 512).rows
    assert (row.parameters, row.cache, row.activations) == (full.parameters, full.cache, None)


def test_a_model_is_left_as_it_is(folders: dict[str, Path]) -> None:
    from mlx_lm.utils import load_model

    model, _ = load_model(folders["llama"])
    model.train()
    before = {id(each): each for each in model.modules()}
    weight = mx.array(model.layers[0].self_attn.q_proj.weight)
    for mode, shard in (("infer", "tensor"), ("lora", "data"), ("train", "data")):
        FitPlan(model, ["1GB"] * 2, 64, mode=mode, shard=shard)
    assert {id(each): each for each in model.modules()} == before
    assert model.training and len(model.trainable_parameters()) == 2
    assert mx.array_equal(model.layers[0].self_attn.q_proj.weight, weight)
