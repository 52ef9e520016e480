"""What is inside of a language model on real ranks is what is inside of it on one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxbench_kernel import LanguageModel, compare
from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph.collective_order import with_messages
from mlxbench_kernel.models import Part, load
from mlxbench_kernel.models.activations import activations
from mlxbench_kernel.models.attention import attention
from mlxbench_kernel.models.evaluation import perplexity
from mlxbench_kernel.models.likely import likely
from mlxbench_kernel.models.small import make_small_model
from mlxbench_kernel.remote import inside
from mlxbench_kernel.remote.answers import answers_beside, answers_on
from mlxbench_kernel.remote.comparing import NAME, compare_ways
from mlxbench_kernel.remote.language_model import ModelOnRanks

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "qwen2": {},
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
    },
    "gpt_oss": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
        "rope_scaling": None,
    },
}  # fmt: skip
WAYS = [
    ("llama", "tensor"), ("qwen3", "tensor"), ("gpt_oss", "tensor"), ("qwen2", "pipeline"),
    ("qwen3_moe", "pipeline"), ("llama", "data"),
]  # fmt: skip
TEXT = "The quick brown fox jumps"
LONG = "def first(x):\n    return x if x else None\n" * 30


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {name: make_small_model(place / name, name, **each) for name, each in MODELS.items()}


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def both(
    request: pytest.FixtureRequest, ranks: Cluster, folders: dict[str, Path]
) -> Iterator[tuple[ModelOnRanks, Part]]:
    """A model on two ranks, and the same on this one."""
    name, shard = request.param
    lm = ModelOnRanks.load(folders[name], shard, cluster=ranks)
    yield lm, load(folders[name])
    lm.forget()


@pytest.fixture(scope="module")
def llama(ranks: Cluster, folders: dict[str, Path]) -> Iterator[ModelOnRanks]:
    lm = ModelOnRanks.load(folders["llama"], "tensor", cluster=ranks, name="other")
    yield lm
    lm.forget()


def close(found: Any, want: Any) -> bool:
    return found.shape == want.shape and np.allclose(found, want, rtol=1e-3, atol=1e-4)


def test_attention_is_that_of_one_rank(both: tuple[ModelOnRanks, Part]) -> None:
    lm, alone = both
    for layer in (0, -1):
        want = attention(alone, TEXT, layer)
        found = inside.attention_on(lm, TEXT, layer)
        assert want is not None and want.heads == found.heads == tuple(range(8))
        assert found.texts == list(TEXT) and found.layer == layer % 4
        assert close(found.values, want.values)
    some = inside.attention_on(lm, TEXT, layer, [6, 1])
    assert some.heads == (6, 1) and close(some.values, want.values[[6, 1]])


def test_activations_are_those_of_one_rank(both: tuple[ModelOnRanks, Part]) -> None:
    lm, alone = both
    modules = ["hidden", "mlp", "self_attn", "self_attn.q_proj", "self_attn.o_proj"]
    moe = "experts" if lm.architecture == "gpt_oss" else "switch_mlp"
    if lm.architecture in ("gpt_oss", "qwen3_moe"):
        modules += [f"mlp.{moe}", f"mlp.{moe}.gate_proj"]
    else:
        modules += ["mlp.up_proj", "mlp.down_proj"]
    modules += ["self_attn.k_norm"] * (lm.architecture == "qwen3")
    for what in modules:
        layer = len(what) % 4  # of both stages of a pipeline
        want = activations(alone, TEXT, layer, what)
        found = inside.activations_on(lm, TEXT, layer, what)
        assert want is not None and close(found.values, want.values), what
    assert found.values.shape[0] == len(TEXT)


def test_the_likeliest_tokens_are_those_of_one_rank(both: tuple[ModelOnRanks, Part]) -> None:
    lm, alone = both
    want, found = likely(alone, TEXT, 5), inside.likely_on(lm, TEXT, 5)
    assert close(found.probabilities, want.probabilities)
    assert np.allclose(found.chances[:-1], want.chances[:-1], rtol=1e-3)
    assert np.array_equal(found.places, want.places) and found.choices == want.choices
    made = lm.generate_on_ranks(TEXT, 8)
    last = inside.likely_of(lm, made, 2)
    assert last.first == len(TEXT) - 1
    assert last.places.tolist() == [1] * 8 + [0]  # greedy


def test_perplexity_is_that_of_one_rank(both: tuple[ModelOnRanks, Part]) -> None:
    lm, alone = both
    told: list[float] = []
    want = perplexity(alone, LONG, 64, 2)
    found = inside.perplexity_on(lm, LONG, 64, 2, progress=lambda done, text: told.append(done))
    assert math.isclose(found.value, want.value, rel_tol=1e-4)
    assert math.isclose(found.error, want.error, rel_tol=1e-4)
    assert (found.windows, found.tokens) == (want.windows, want.tokens)
    assert told[-1] == 1.0


def test_of_replicas_each_reads_some_of_the_windows(
    ranks: Cluster, folders: dict[str, Path]
) -> None:
    lm = ModelOnRanks.load(folders["llama"], "data", cluster=ranks)
    watch = (
        "read = []\nreal = lm.model.model.embed_tokens.__class__.__call__\n"
        "class Noting(lm.model.__class__):\n"
        "    def __call__(self, x, *a, **k):\n"
        "        read.append(x.shape)\n        return super().__call__(x, *a, **k)\n"
        "lm.model.__class__ = Noting"
    )
    assert not ranks.execute(watch).errors
    found = inside.perplexity_on(lm, LONG, 64, 4)
    windows = {rank: sum(shape[0] for shape in each) for rank, each in ranks.pull("read").items()}
    assert sum(windows.values()) == found.windows and min(windows.values()) > 0
    lm.forget()


def test_the_graph_of_a_step_has_its_collectives_and_evaluates_nothing(
    both: tuple[ModelOnRanks, Part], ranks: Cluster
) -> None:
    lm, _ = both
    lm.generate_on_ranks(TEXT, 4, keep="chat")
    count = (
        "from mlxbench_kernel.rank.collectives import GROUP\n"
        "done = len(GROUP.log())\nkept = [c.offset for c in lm.caches['chat'][1]] if lm.caches "
        "else []\nhere = sorted(n for n in globals() if 'mlxbench' in n)"
    )
    before = pulled(ranks, count)
    graphs = inside.step_on(lm, TEXT)
    assert pulled(ranks, count) == before
    assert set(graphs) == ({0} if lm.shard == "data" else {0, 1})
    found = {
        rank: [graph.collective(node) for node in with_messages(graph)]
        for rank, graph in graphs.items()
    }
    if lm.shard == "tensor":  # after attention and after the MLP of each layer
        assert found[0] == found[1] == ["all_sum"] * 2 * 4
    elif lm.shard == "pipeline":
        assert found == {0: ["recv", "all_gather"], 1: ["send", "all_gather"]}
    else:
        assert found == {0: []}


def pulled(ranks: Cluster, code: str) -> dict[str, Any]:
    assert not ranks.execute(code).errors
    return {name: ranks.pull(name) for name in ("done", "kept", "here")}


def test_time_is_split_by_rank(both: tuple[ModelOnRanks, Part]) -> None:
    lm, _ = both
    rows = inside.timing_on(lm, TEXT, 8)
    ranks = [0] if lm.shard == "data" else [0, 1]
    assert [(row.rank, row.phase) for row in rows] == [
        (rank, phase) for rank in ranks for phase in ("prompt", "decode")
    ]
    for row in rows:
        assert 0 <= row.waiting <= row.collectives <= row.seconds
        assert (row.collectives > 0) == (lm.shard != "data")
        assert row.tokens == (len(TEXT) if row.phase == "prompt" else 7)


def test_ways_are_compared_and_the_model_stays(ranks: Cluster, folders: dict[str, Path]) -> None:
    lm = ModelOnRanks.load(folders["qwen3_moe"], "tensor", cluster=ranks)
    lm.generate_on_ranks(TEXT, 4, keep="chat")
    ways = compare_ways(lm.path, TEXT, tokens=8, cluster=ranks, loaded=lm, **lm.options)
    assert [(way.shard, way.why) for way in ways] == [
        ("tensor", ""), ("pipeline", ""), ("data", "")
    ]  # fmt: skip
    assert len({tuple(way.tokens) for way in ways}) == 1
    assert all(way.figures["rate"] > 0 and len(way.nbytes) == 2 for way in ways)
    assert ways[2].nbytes[0] > 1.5 * ways[1].nbytes[0]
    assert lm.generate_on_ranks(TEXT, 4, keep="chat").figures["reused"] == len(TEXT) - 1
    assert not ranks.execute(f"assert {NAME!r} not in globals()").errors
    lm.forget()
    ways = compare_ways(folders["llama"], TEXT, ("pipeline", "data"), 4, cluster=ranks)
    assert "no pipeline" in ways[0].why and not ways[1].why


def test_answers_are_laid_side_by_side(llama: ModelOnRanks, folders: dict[str, Path]) -> None:
    before = answers_on(llama, ["The quick", "A"], 8)
    again = answers_beside(llama, before)[1]
    assert again.texts == before.texts and len(set(before.texts)) == 2
    change = "other.model.lm_head.weight = -other.model.lm_head.weight"
    assert not llama.cluster.execute(change).errors
    assert answers_beside(llama, before)[1].texts != before.texts
    assert not llama.cluster.execute(change).errors
    with pytest.raises(UsageError, match="there is nothing to lay beside"):
        answers_beside(llama, ["A"])
    with pytest.raises(UsageError, match="there are no prompts"):
        answers_on(llama, [])


def test_what_is_refused(both: tuple[ModelOnRanks, Part]) -> None:
    lm, _ = both
    refused = {
        "layer=4: the model has 4 layers: type 0 to 3": lambda: inside.attention_on(lm, TEXT, 4),
        "layer=-5: the model": lambda: inside.activations_on(lm, TEXT, -5),
        "did you mean 'self_attn.q_proj'": lambda: inside.activations_on(
            lm, TEXT, 0, "self_attn.q_prj"
        ),
        "has no module 'zzz': it has ": lambda: inside.activations_on(lm, TEXT, 3, "zzz"),
        "has 8 heads: type some of 0 to 7": lambda: inside.attention_on(lm, TEXT, 0, [8]),
        "the prompt is empty": lambda: inside.likely_on(lm, ""),
        "has 5,000 tokens and the model a context": lambda: inside.attention_on(lm, "a" * 5000, 0),
        "k=0: type a number": lambda: inside.likely_on(lm, TEXT, 0),
        "k=999: the vocabulary has 260": lambda: inside.likely_on(lm, TEXT, 999),
        "the text is empty": lambda: inside.perplexity_on(lm, ""),
        "the text has 25 tokens, less than a window of 64": lambda: inside.perplexity_on(
            lm, TEXT, 64
        ),
        "length=9999 is beyond": lambda: inside.perplexity_on(lm, TEXT, 9999),
        "nothing was generated yet": lambda: inside.likely_of(lm, None),
    }
    for said, ask in refused.items():
        with pytest.raises(UsageError, match=said):
            ask()
    assert lm.generate_on_ranks(TEXT, 2).tokens  # the ranks are well


def test_the_models_classes_are_as_before(llama: ModelOnRanks) -> None:
    inside.attention_on(llama, TEXT, 0)
    inside.activations_on(llama, TEXT, 0, "mlp.down_proj")
    check = (
        "layer = other.model.layers[0]\n"
        "for each in (layer, layer.mlp.down_proj):\n"
        "    assert not hasattr(type(each).__call__, '__wrapped__')\n"
        "assert not hasattr(mx.fast.scaled_dot_product_attention, '__wrapped__')"
    )
    assert not llama.cluster.execute(check).errors
    assert mx.array(0).item() == 0


def test_the_operations_of_a_step_are_timed(llama: ModelOnRanks) -> None:
    measured = inside.profile_of_step(llama, TEXT, repeat=1)
    assert set(measured) == {0, 1}
    for each in measured.values():
        sums = [
            seconds
            for node, seconds in enumerate(each.seconds)
            if each.graph.collective(node) == "all_sum"
        ]
        assert len(sums) == 2 * 4 and all(seconds > 0 for seconds in sums)


def test_a_quantized_model_is_looked_into(ranks: Cluster, tmp_path: Path) -> None:
    folder = make_small_model(tmp_path / "quantized", bits=4)
    lm, alone = ModelOnRanks.load(folder, "tensor", cluster=ranks), load(folder)
    for what in ("hidden", "self_attn.v_proj", "mlp.gate_proj"):
        want = activations(alone, TEXT, 1, what)
        assert want is not None
        assert close(inside.activations_on(lm, TEXT, 1, what).values, want.values)
    lm.forget()


def test_a_notebook_shows_it_all(
    ranks: Cluster, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = LanguageModel.load(folders["qwen2"], "pipeline", cluster=ranks)
    with pytest.raises(UsageError, match="nothing was generated yet"):
        lm.top_k()
    lm.generate(TEXT, 4)
    assert len(lm.top_k(k=3)) == 5 and lm.top_k(TEXT, 3).to_dataframe().shape == (len(TEXT), 11)
    assert np.asarray(lm.attention(TEXT, 1, heads=[2])).shape == (1, len(TEXT), len(TEXT))
    assert np.asarray(lm.activations(TEXT, -1)).shape == (len(TEXT), 128)
    graphs = inside.step_on(lm, TEXT)
    for graph in graphs.values():
        assert any(".layers." in f".{scope.path}." for scope in graph.scopes), "names of its layers"
    lm.graph().close()
    lm.graph(profile=True).close()
    assert "rank 0" in capsys.readouterr().out
    assert [row[1] for row in lm.timing(TEXT, 4).table.rows] == ["0", "1", "0", "1"]
    ways = lm.compare(TEXT, ("data", "pipeline"), tokens=4)
    assert [row[1] for row in ways.table.rows] == ["4 tokens", "as data"]
    file = tmp_path / "text.py"
    file.write_text(LONG)
    assert lm.perplexity(file, 64) == lm.perplexity(LONG, 64)
    before = lm.answers([TEXT], 4)
    assert lm.side_by_side(before).table.caption == "0 of 1 answers differ"
    with pytest.raises(UsageError, match="max_tokens: the options are those of the answers"):
        lm.side_by_side(before, max_tokens=3)
    assert compare(folders["qwen2"], TEXT, ("data",), 2, cluster=ranks).went
    with pytest.raises(UsageError, match="way 'rows' is not known"):
        lm.compare(TEXT, ("rows",))
    lm.forget()
    capsys.readouterr()


def test_no_collective_of_a_generation_is_left(llama: ModelOnRanks) -> None:
    """mlx-lm begins with a token more; another stream's collectives would meet those of it."""
    code = (
        "from mlxbench_kernel.models import generate\n"
        "from mlxbench_kernel.models.batch import generate_batch\n"
        "from mlxbench_kernel.rank.collectives import GROUP\n"
        "generate(other, 'abc', 3)\nassert all(each['done'] for each in GROUP.log())\n"
        "for number in range(20):\n"
        "    generate(other, 'abc', 1)\n"
        "    assert mx.distributed.all_sum(mx.array(number)).item() == 2 * number\n"
        "    generate_batch(other, ['abc', 'd'], 1)\n"
        "    assert mx.distributed.all_sum(mx.array(number)).item() == 2 * number"
    )
    assert not llama.cluster.execute(code, timeout=40).errors
