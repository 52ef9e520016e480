"""Many prompts at once, and prompts that are kept, on one rank."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from mlxbench_kernel.errors import StorageError, UsageError
from mlxbench_kernel.models import Part, generate, kept_prompts, load
from mlxbench_kernel.models.batch import generate_batch
from mlxbench_kernel.models.caches import KVCaches
from mlxbench_kernel.models.generating import Generation
from mlxbench_kernel.models.small import make_small_model

PROMPTS = ["The quick brown fox", "A", "Once upon a time there was a rank that waited " * 4]
BOOK = "It was the best of times, it was the worst of times. " * 20


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def part(llama: Path) -> Part:
    return load(llama)


def test_a_batch_says_what_each_prompt_alone_says(part: Part) -> None:
    told: list[tuple[int, int]] = []
    found, figures = generate_batch(
        part, PROMPTS, 20, progress=lambda ended, tokens: told.append((ended, tokens))
    )
    assert [each.text for each in found] == [generate(part, prompt, 20) for prompt in PROMPTS]
    assert {each.finish for each in found} == {"length"}
    assert figures.tokens == 60 and figures.prompt_tokens == sum(map(len, PROMPTS))
    assert told[-1] == (3, 60) and told[0][0] == 0


def test_more_prompts_than_a_batch_has_room_for(part: Part) -> None:
    prompts = [f"number {n}" for n in range(7)]
    sizes = {"completion_batch_size": 2, "prefill_batch_size": 2}
    found, _ = generate_batch(part, prompts, 6, options=sizes)
    assert [each.text for each in found] == [generate(part, prompt, 6) for prompt in prompts]


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        (["a", ""], {}, "prompt 1: the prompt is empty"),
        (["a"], {"kv_bits": 4}, "kv_bits cannot be for a batch: leave it out"),
        (["a"], {"tepm": 1}, "tepm is not a sampling option"),
    ],
)
def test_what_cannot_be_a_batch(part: Part, prompts, options, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=said):
        generate_batch(part, prompts, 4, options=options)


def test_a_prompt_is_read_once(part: Part) -> None:
    told: list[tuple[int, int]] = []
    found = kept_prompts.read(part, BOOK, "book", lambda *each: told.append(each))
    assert found["tokens"] == len(BOOK) and told[-1] == (len(BOOK), len(BOOK)) and len(told) > 2
    asked = f"{BOOK} Who?"
    pieces = list(Generation(part, asked, 8, keep="book"))
    assert pieces[0].reused == len(BOOK)
    assert "".join(each.text for each in pieces) == generate(part, asked, 8)


def test_a_kept_prompt_in_a_file(llama: Path, part: Part, tmp_path: Path) -> None:
    kept_prompts.read(part, BOOK, "book")
    assert kept_prompts.save(part, "book", tmp_path / "kept")["tokens"] == len(BOOK)
    other = load(llama)
    kept_prompts.load(other, "book", tmp_path / "kept")
    asked = f"{BOOK} Who?"
    pieces = list(Generation(other, asked, 8, keep="book"))
    assert pieces[0].reused == len(BOOK)
    assert "".join(each.text for each in pieces) == generate(part, asked, 8)


def test_a_prompt_that_is_kept_no_more(part: Part) -> None:
    held = kept_prompts.read(part, BOOK, "book")["nbytes"]
    before = mx.get_active_memory()
    assert kept_prompts.forget(part, "book") == held
    assert before - mx.get_active_memory() >= held
    with pytest.raises(UsageError, match=r"no prompt is kept as 'book'"):
        kept_prompts.forget(part, "book")


def test_files_that_cannot_be_used(part: Part, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no prompt is kept as 'book': type lm.read_prompt"):
        kept_prompts.save(part, "book", tmp_path)
    kept_prompts.read(part, BOOK, "book")
    with pytest.raises(UsageError, match="there is 'book'"):
        kept_prompts.save(part, "bok", tmp_path)
    with pytest.raises(UsageError, match=r"there is no .*book-rank0of1\.safetensors"):
        kept_prompts.load(part, "book", tmp_path)
    file = Path(kept_prompts.save(part, "book", tmp_path)["file"])
    tuned = make_small_model(tmp_path / "tuned", seed=1)
    with pytest.raises(UsageError, match="was read by another model than tuned"):
        kept_prompts.load(load(tuned), "book", tmp_path)
    before = file.read_bytes()
    file.write_bytes(before[:-100])
    with pytest.raises(UsageError, match="is no kept prompt, or not whole"):
        kept_prompts.load(part, "book", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be written"):
        kept_prompts.save(part, "book", tmp_path / "file")
    part.caches["a/b"] = part.caches["book"]
    with pytest.raises(UsageError, match="cannot be part of a file's name"):
        kept_prompts.save(part, "a/b", tmp_path)


def test_a_draft_models_cache_is_as_long_as_the_models(llama: Path) -> None:
    part = load(llama, draft=llama)
    pieces = list(Generation(part, "The quick", 24, keep="x", options={"num_draft_tokens": 3}))
    assert 0 < pieces[-1].drafted < 24
    tokens, caches = part.caches["x"]
    assert {cache.offset for cache in caches} == {len(tokens)}
    again = KVCaches(part, "x")
    assert again.take([*tokens, 5]) == len(tokens)
