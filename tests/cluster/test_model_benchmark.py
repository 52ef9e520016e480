"""How fast a model generates on real ranks, measured from the notebook as mlx-lm measures it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.small import make_small_model
from mlxbench_kernel.remote import asking
from mlxbench_kernel.widgets.language_model import LanguageModel


@pytest.fixture(scope="module")
def lm(ranks: Cluster, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = make_small_model(tmp_path_factory.mktemp("models") / "llama", files=2)
    return LanguageModel.load(folder, "tensor", cluster=ranks)


def test_each_way_is_measured_and_the_model_stays(lm: LanguageModel, tmp_path: Path) -> None:
    assert not lm.cluster.execute("lm.learned = rank + 1").errors
    found = lm.benchmark(32, 8, 2, ways=("tensor", "pipeline", "data"))
    assert [(row["shard"], row["run"]) for row in found.rows] == [
        ("tensor", 1), ("tensor", 2), ("data", 1), ("data", 2),
    ]  # fmt: skip
    assert "has no pipeline" in found.failed["pipeline"]
    for row in found.rows:
        # The first of the generated tokens belongs to the prompt's time.
        assert row["total_time"] > 32 / row["prompt_tps"] > 0 and row["generation_tps"] > 0
        assert row["peak_memory"] > 0
    assert found.means["data"]["prompt_tps"] == pytest.approx(
        sum(row["prompt_tps"] for row in found.rows[2:]) / 2
    )
    assert lm.shard == "tensor"
    assert not lm.cluster.execute("kept = lm.learned, '_mlxbench_measured' in globals()").errors
    assert lm.cluster.pull("kept") == {0: (1, False), 1: (2, False)}
    assert found.about["mlx"] in repr(found) and "sharding" in found.table()._repr_html_()
    assert len(found.plot().data) == 6
    frame = found.to_dataframe()
    assert list(frame["shard"]) == ["tensor", "tensor", "data", "data"]
    found.to_csv(tmp_path / "runs.csv")
    read = pandas.read_csv(tmp_path / "runs.csv")
    assert list(read["generation_tps"]) == pytest.approx(list(frame["generation_tps"]))
    assert set(read["mlx-lm"]) == {found.about["mlx-lm"]} and set(read["prompt"]) == {32}


def test_nothing_ends_it_early_and_the_tokenizer_is_as_before(lm: LanguageModel) -> None:
    """The model's end of a text is what it would generate: every token counts as one."""
    code = "before, lm.tokenizer.eos_token_ids = lm.tokenizer.eos_token_ids, range(260)"
    assert not lm.cluster.execute(code).errors
    [row] = lm.benchmark(16, 40, 1, batch=2).rows
    assert row["generation_tps"] * row["total_time"] > 40
    assert not lm.cluster.execute("left = len(lm.tokenizer.eos_token_ids)").errors
    assert lm.cluster.pull("left") == {0: 260, 1: 260}
    assert not lm.cluster.execute("lm.tokenizer.eos_token_ids = before").errors


def test_the_command_measures_the_same_with_mlx_lm(lm: LanguageModel) -> None:
    found = lm.benchmark(24, 6, 1)
    words = shlex.split(found.commands["tensor"])
    assert words[0] == "mlx.launch"
    words[0] = str(Path(sys.executable).parent / words[0])
    words[words.index("mlx_lm.benchmark")] = str(Path(sys.executable).parent / "mlx_lm.benchmark")
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert "prompt_tokens=24, generation_tokens=6, batch_size=1" in done.stdout, done.stderr
    assert "Averages: prompt_tps=" in done.stdout


def test_ctrl_c_keeps_what_was_measured(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh = asking._StopWithTheFirst.refresh
    heard: list[int] = []
    pressed: list[bool] = []
    message = asking._StopWithTheFirst.message

    def hear(self, rank, kind, content):  # type: ignore[no-untyped-def]
        message(self, rank, kind, content)
        if rank == 1 and kind == "display_data":
            heard.append(rank)

    def press(self, status):  # type: ignore[no-untyped-def]
        refresh(self, status)
        if len(heard) > 2 and not pressed:
            pressed.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(asking._StopWithTheFirst, "message", hear)
    monkeypatch.setattr(asking._StopWithTheFirst, "refresh", press)
    found = lm.benchmark(16, 4, 100000)
    assert found.interrupted and 2 <= len(found.rows) < 100000
    assert "interrupted" in repr(found)
    assert lm.generate_on_ranks("again", 4).figures["tokens"] == 4


def test_numbers_that_cannot_be(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="repeat=0: type a number, 1 or more"):
        lm.benchmark(repeat=0)
    with pytest.raises(UsageError, match="are more than the 4096 tokens that the model"):
        lm.benchmark(prompt=4000, generate=1000)
    with pytest.raises(UsageError, match="ways='expert': type some of 'tensor'"):
        lm.benchmark(ways=("expert",))
    with pytest.raises(UsageError, match="has no pipeline"):
        lm.benchmark(ways=("pipeline",))
