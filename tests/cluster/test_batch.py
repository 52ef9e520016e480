"""Many prompts at once, and prompts that are kept, on two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models import generate, load
from mlxbench_kernel.models.small import make_small_model
from mlxbench_kernel.remote import prompts as many
from mlxbench_kernel.remote.language_model import ModelOnRanks

PROMPTS = ["The quick brown fox", "A", "Once upon a time there was a rank that waited " * 4]
BOOK = "It was the best of times, it was the worst of times. " * 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {name: make_small_model(place / name, name) for name in ("llama", "qwen2")}


@pytest.mark.parametrize(
    ("name", "shard"), [("llama", "tensor"), ("qwen2", "pipeline"), ("llama", "data")]
)
def test_a_batch_says_what_one_rank_says(
    ranks: Cluster, folders: dict[str, Path], name: str, shard: str
) -> None:
    alone = load(folders[name])
    lm = ModelOnRanks.load(folders[name], shard, cluster=ranks)
    told: list[tuple[float, str]] = []
    found = many.generate_batch(lm, PROMPTS, 16, progress=lambda *each: told.append(each))
    assert list(found) == [generate(alone, prompt, 16) for prompt in PROMPTS]
    assert found.finishes == ["length"] * 3 and [len(each) for each in found.tokens] == [16] * 3
    assert found.figures["tokens"] == 48 and found.figures["rate"] > 0
    assert found.figures["prompt_tokens"] == sum(map(len, PROMPTS))
    read = [found.ranks[rank]["prompt_tokens"] for rank in (0, 1)]
    assert sum(read) == found.figures["prompt_tokens"] * (1 if shard == "data" else 2)
    assert "of 3 texts" in told[-1][1]
    with pytest.raises(UsageError, match=r"prompt 1: the prompt is empty"):
        many.generate_batch(lm, ["a", ""], 4)
    lm.forget()


def test_fewer_prompts_than_replicas(ranks: Cluster, folders: dict[str, Path]) -> None:
    lm = ModelOnRanks.load(folders["llama"], "data", cluster=ranks)
    found = many.generate_batch(lm, PROMPTS[:1], 8)
    assert found[0] == generate(load(folders["llama"]), PROMPTS[0], 8)
    with pytest.raises(UsageError, match="there are no prompts"):
        many.generate_batch(lm, [], 8)
    with pytest.raises(UsageError, match="prompts is one text"):
        many.generate_batch(lm, "abc", 8)


@pytest.mark.parametrize("shard", ["tensor", "data"])
def test_a_prompt_is_read_once_and_kept_in_files(
    ranks: Cluster, folders: dict[str, Path], tmp_path: Path, shard: str
) -> None:
    lm = ModelOnRanks.load(folders["llama"], shard, cluster=ranks)
    assert many.read_prompt(lm, BOOK, "book")["tokens"] == len(BOOK)
    files = many.save_prompt(lm, "book", tmp_path / "kept")
    assert len(files) == (2 if shard == "tensor" else 1)
    asked = f"{BOOK} Who?"
    found = lm.generate_on_ranks(asked, 8, keep="book")
    assert found.figures["reused"] == len(BOOK)
    assert found.text == generate(load(folders["llama"]), asked, 8)
    lm = ModelOnRanks.load(folders["llama"], shard, cluster=ranks)
    assert many.load_prompt(lm, "book", tmp_path / "kept") == len(BOOK)
    again = lm.generate_on_ranks(asked, 8, keep="book")
    assert again.figures["reused"] == len(BOOK) and again.text == found.text
    assert many.forget_prompt(lm, "book") > 0
    with pytest.raises(UsageError, match="no prompt is kept as 'book'"):
        many.forget_prompt(lm, "book")
    with pytest.raises(UsageError, match=r"there is no .*other-rank0of2"):
        many.load_prompt(lm, "other", tmp_path / "kept")
