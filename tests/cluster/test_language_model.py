"""A language model on real ranks: the same text as on one, read by shares, stopped and kept."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import processes, run

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import ClusterError, GivenUp, UsageError
from mlxbench_kernel.models import generate, load
from mlxbench_kernel.models.small import make_small_model
from mlxbench_kernel.remote.language_model import Generated, ModelOnRanks
from mlxbench_kernel.remote.planned import find_files
from mlxbench_kernel.remote.prompts import generate_batch

EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "qwen2": {},
    "qwen3_moe": EXPERTS,
    "quantized": {"model_type": "llama", "bits": 4},
    "quantized_qwen2": {"model_type": "qwen2", "bits": 4},
}
PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {
        name: make_small_model(place / name, **{"model_type": name, "files": 3, **options})
        for name, options in MODELS.items()
    }


@pytest.fixture(scope="module")
def four() -> Iterator[Cluster]:
    before = processes()
    cluster = Cluster.up(4, seed=7)
    yield cluster
    cluster.down()
    assert processes() <= before


LOGITS = "logits = lm.model(mx.array([lm.tokenizer.encode({prompt!r})]))\nmx.eval(logits)"


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("name", "shard"),
    [
        ("llama", "tensor"), ("qwen3", "tensor"), ("qwen3_moe", "tensor"), ("quantized", "tensor"),
        ("qwen2", "pipeline"), ("qwen3_moe", "pipeline"), ("quantized_qwen2", "pipeline"),
        ("llama", "data"),
    ],
)  # fmt: skip
def test_it_says_what_one_rank_says(
    ranks: Cluster, four: Cluster, folders: dict[str, Path], name: str, shard: str, size: int
) -> None:
    import mlx.core as mx

    cluster = ranks if size == 2 else four
    alone = load(folders[name])
    lm = ModelOnRanks.load(folders[name], shard, cluster=cluster)
    found = lm.generate_on_ranks(PROMPT, 24)
    assert found.text == generate(alone, PROMPT, 24)
    assert found.figures["tokens"] == 24 and found.finish == "length"
    assert not cluster.execute(LOGITS.format(prompt=PROMPT)).errors
    want = alone.model(mx.array([alone.tokenizer.encode(PROMPT)]))
    for logits in cluster.pull("logits").values():
        assert mx.allclose(logits, want, rtol=1e-3, atol=1e-4)
    lm.forget()


def test_each_rank_reads_its_share(ranks: Cluster, folders: dict[str, Path]) -> None:
    # Read by this process, as Linux counts it; on macOS nobody does.
    count = (
        "import psutil\nfrom mlxbench_kernel.models import load\n"
        "before = psutil.Process().io_counters().read_chars\n"
        f"one = load({str(folders['llama'])!r}, {{shard!r}}, group)\n"
        "read = psutil.Process().io_counters().read_chars - before\nheld = one.read_bytes\ndel one"
    )
    read: dict[str, dict[str, dict[int, int]]] = {}
    for shard in ("data", "data", "tensor"):  # the first time modules are read too
        assert not ranks.execute(count.format(shard=shard)).errors
        read[shard] = {name: ranks.pull(name) for name in ("read", "held")}
    for rank in (0, 1):
        saved = read["data"]["read"][rank] - read["tensor"]["read"][rank]
        held = read["data"]["held"][rank] - read["tensor"]["held"][rank]
        assert held > 0.4 * read["data"]["held"][rank]
        assert saved == pytest.approx(held, rel=0.05)


def test_auto_takes_what_goes_and_fits(ranks: Cluster, folders: dict[str, Path]) -> None:
    planned = []
    lm = ModelOnRanks.load(folders["llama"], cluster=ranks, planned=planned.append)
    assert planned == [lm.plan] and lm.plan is not None
    took = r"([\d.]+) ([mµ]?)s as '(\w+)'"
    compared = re.search(f"over this link a token takes about {took}, {took}", lm.plan.why)
    assert compared is not None, lm.plan.why
    powers = {"": 1.0, "m": 1e-3, "µ": 1e-6}
    quick, slow = (float(compared[n]) * powers[compared[n + 1]] for n in (1, 4))
    assert 0 < quick <= slow < 1 and {compared[3], compared[6]} == {"tensor", "data"}
    assert lm.shard == compared[3] and lm.shard in repr(lm) and "2 ranks" in repr(lm)


def test_stopping_keeps_the_model(ranks: Cluster, folders: dict[str, Path]) -> None:
    lm = ModelOnRanks.load(folders["llama"], "tensor", cluster=ranks)
    begun = threading.Event()
    heard: list[Generated] = []

    def hear(found: Generated) -> None:
        heard.append(found)
        begun.set()

    def stop() -> None:
        assert begun.wait(30)
        lm.stop()

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(ClusterError, match="interrupted"):
        lm.generate_on_ranks(PROMPT, 4000, heard=hear)
    stopping.join()
    assert heard[-1].figures["tokens"] < 4000
    assert lm.generate_on_ranks(PROMPT, 24).text == generate(load(folders["llama"]), PROMPT, 24)


def test_a_stopped_generation_holds_no_model_that_was_replaced(
    ranks: Cluster, folders: dict[str, Path]
) -> None:
    look = "import gc\ngc.collect()\nmx.clear_cache()\nactive = mx.get_active_memory()"
    lm = ModelOnRanks.load(folders["llama"], "tensor", cluster=ranks)
    run(ranks, look)
    before = ranks.pull("active")
    begun = threading.Event()
    stopping = threading.Thread(target=lambda: begun.wait(30) and lm.stop())
    stopping.start()
    with pytest.raises(ClusterError, match="interrupted"):
        lm.generate_on_ranks(PROMPT, 4000, heard=lambda found: begun.set())
    stopping.join()
    ModelOnRanks.load(folders["llama"], "tensor", cluster=ranks)
    run(ranks, look)
    for rank, active in ranks.pull("active").items():
        assert active < 1.2 * before[rank]


def test_what_would_kill_a_rank_is_refused(ranks: Cluster, folders: dict[str, Path]) -> None:
    lm = ModelOnRanks.load(folders["llama"], "tensor", cluster=ranks)
    with pytest.raises(UsageError, match="logit_bias has the token 99999: this model has 0 to"):
        lm.generate_on_ranks(PROMPT, 4, logit_bias={99999: 5})
    with pytest.raises(UsageError, match="logit_bias has 'a': 1: type numbers"):
        lm.generate_on_ranks(PROMPT, 4, logit_bias={"a": 1})
    with pytest.raises(UsageError, match="name='mx' is what cells on ranks use themselves"):
        ModelOnRanks.load(folders["llama"], "tensor", cluster=ranks, name="mx")
    assert lm.generate_on_ranks(PROMPT, 4, logit_bias={5: -100.0}).figures["tokens"] == 4


def test_what_is_refused_loads_nothing(
    ranks: Cluster, four: Cluster, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="has no pipeline for it; type shard='tensor' or"):
        ModelOnRanks.load(folders["llama"], "pipeline", cluster=ranks)
    two_heads = make_small_model(tmp_path / "two", num_attention_heads=2, num_key_value_heads=2)
    with pytest.raises(UsageError, match="4 ranks do not divide its 2 heads and 2 KV"):
        ModelOnRanks.load(two_heads, "tensor", cluster=four)
    with pytest.raises(UsageError, match="there is no folder"):
        ModelOnRanks.load(tmp_path / "nowhere", cluster=ranks)
    with pytest.raises(UsageError, match=r"llama does not fit: missing (.|\n)*parameters +cache"):
        ModelOnRanks.load(folders["llama"], cluster=ranks, context=2**30)
    with pytest.raises(UsageError, match="'a b' is no name of a variable"):
        ModelOnRanks.load(folders["llama"], cluster=ranks, name="a b")


def test_what_is_refused_leaves_the_model_that_is_there(
    ranks: Cluster, folders: dict[str, Path], tmp_path: Path
) -> None:
    lm = ModelOnRanks.load(folders["llama"], "data", cluster=ranks)
    other = make_small_model(tmp_path / "other", vocab_size=300)
    for beside in ({"adapter": tmp_path / "nowhere"}, {"draft": other}):
        with pytest.raises(UsageError, match=r"there is no adapter_config|a vocabulary of 300"):
            ModelOnRanks.load(folders["llama"], "data", cluster=ranks, **beside)
    assert lm.generate_on_ranks(PROMPT, 4).text


def test_the_model_it_takes_the_place_of_makes_room(
    ranks: Cluster, folders: dict[str, Path]
) -> None:
    lm = ModelOnRanks.load(folders["llama"], "data", cluster=ranks)
    held = "lm.nbytes = 2**50"
    assert not ranks.execute(held).errors
    again = ModelOnRanks.load(folders["llama"], "data", cluster=ranks)
    assert lm.plan is not None and again.plan is not None
    assert again.plan.rows[0]["free"] > 2**50 > lm.plan.rows[0]["free"]


def test_hosts_with_other_files_are_found_out(
    ranks: Cluster, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Each rank has a folder of its own under the same path, as hosts have."""
    for rank in (0, 1):
        target = tmp_path / f"home-{rank}" / "model"
        target.mkdir(parents=True)
        for file in folders["llama"].iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    ranks.execute(
        f"import os; before = os.getcwd(); os.chdir({str(tmp_path)!r} + f'/home-{{rank}}')"
    )
    try:
        made = ModelOnRanks(ranks, "lm", "model")
        assert find_files(made, None, None, None).keys() == {0, 1}
        adapter = tmp_path / "home-1" / "adapter"
        adapter.mkdir()
        (adapter / "adapters.safetensors").write_bytes(b"of rank 1 alone")
        with pytest.raises(UsageError, match=r"adapters.safetensors differs .*: copy adapter of"):
            find_files(made, None, "adapter", None)
        config = tmp_path / "home-1" / "model" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 5.0}))
        with pytest.raises(UsageError, match=r"config.json differs between .* \(rank 0\) and"):
            find_files(made, None, None, None)
        with pytest.raises(UsageError, match=r"config.json differs between .* \(rank 0\) and"):
            find_files(ModelOnRanks(ranks, "lm", str(folders["llama"])), None, None, "model")
    finally:
        ranks.execute("os.chdir(before)")


def test_ctrl_c_is_one_line_and_keeps_the_model(ranks: Cluster, folders: dict[str, Path]) -> None:
    lm = ModelOnRanks.load(folders["llama"], "tensor", cluster=ranks)
    begun: list[float] = []

    def interrupt(done: float, text: str) -> None:
        if done > 0 and not begun:
            begun.append(done)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(GivenUp, match="stopped on all ranks; %mlx_dist status") as caught:
        generate_batch(lm, [PROMPT] * 2, 4000, progress=interrupt)
    assert begun and len(caught.value._render_traceback_()) == 1
    assert len(generate_batch(lm, [PROMPT] * 2, 4).texts) == 2


def test_a_model_that_is_gone_says_so(ranks: Cluster, folders: dict[str, Path]) -> None:
    lm = ModelOnRanks.load(folders["llama"], "data", cluster=ranks)
    ranks.execute("del lm")
    with pytest.raises(UsageError, match="lm is no language model here any more: load it again"):
        lm.generate_on_ranks(PROMPT, 4)
    lm = ModelOnRanks.load(folders["llama"], "data", cluster=ranks)
    lm.forget()
    assert "forgotten; lm = LanguageModel.load(…) loads it" in repr(lm)
    with pytest.raises(UsageError, match="lm is no language model here any more: load it again"):
        lm.generate_on_ranks(PROMPT, 4)
    with pytest.raises(UsageError, match="5 is no folder and no name on the hub: type one"):
        ModelOnRanks.load(5, cluster=ranks)  # type: ignore[arg-type]
