"""Loading and generating on one rank, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load as load_of_mlx_lm
from mlx_lm import stream_generate

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models import Part, folder, generate, load, sampling, ways
from mlxbench_kernel.models.generating import Generation
from mlxbench_kernel.models.shares import Share, cut, read_places
from mlxbench_kernel.models.small import make_small_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_model(tmp_path_factory.mktemp("models") / "llama", files=3)


@pytest.fixture
def part(llama: Path) -> Part:
    return load(llama)


def test_it_is_what_mlx_lm_loads(llama: Path, part: Part) -> None:
    model, tokenizer = load_of_mlx_lm(str(llama))[:2]
    theirs, ours = (dict(tree_flatten(each.parameters())) for each in (model, part.model))
    assert theirs.keys() == ours.keys()
    assert all(mx.array_equal(theirs[name], ours[name]) for name in theirs)
    assert part.nbytes == part.read_bytes == sum(each.nbytes for each in theirs.values())
    text = "".join(each.text for each in stream_generate(model, tokenizer, "A fox", max_tokens=30))
    assert generate(part, "A fox", 30) == text


def test_reading_says_how_far_it_is(llama: Path) -> None:
    told: list[tuple[int, int]] = []
    part = load(llama, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, part.nbytes) and told[-1] == (part.nbytes, part.nbytes)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32, mx.uint32, mx.uint8])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_share_is_read_from_the_file(tmp_path: Path, dtype: mx.Dtype, axis: int) -> None:
    whole = (mx.random.uniform(shape=(4, 6, 8)) * 100).astype(dtype)
    mx.save_safetensors(str(tmp_path / "a.safetensors"), {"x": mx.zeros(3), "w": whole})
    place = read_places(str(tmp_path / "a.safetensors"))["w"]
    length = whole.shape[axis]
    found = Share(place, axis, ((0, 1), (length // 2, length))).read()
    indices = mx.array([0, *range(length // 2, length)])
    assert found.dtype == dtype
    assert mx.array_equal(found, mx.take(whole, indices, axis=axis))


@pytest.mark.parametrize("segments", [1, 3, [4, 8], [0.5]])
def test_axes_are_cut_as_mlx_cuts_them(segments: int | list[int] | list[float]) -> None:
    from mlx.nn.layers.distributed import _split

    whole = mx.arange(24)
    for rank in (0, 1):
        theirs = [_split(each, 2, 0)[rank] for each in _split(whole, segments, 0)]
        ranges = cut(24, segments, rank, 2)
        ours = np.concatenate([np.arange(begin, end) for begin, end in ranges])
        assert np.array_equal(np.array(mx.concatenate(theirs)), ours)


def test_a_cache_that_is_kept_saves_the_prompt(part: Part) -> None:
    first = Generation(part, "The quick brown fox", 8, keep="chat")
    text = "".join(piece.text for piece in first)
    again = Generation(part, f"The quick brown fox{text} jumps", 8, keep="chat")
    pieces = list(again)
    assert pieces[0].reused >= len("The quick brown fox")
    assert "".join(piece.text for piece in pieces) == generate(
        part, f"The quick brown fox{text} jumps", 8
    )
    other = list(Generation(part, "Something else", 4, keep="chat"))
    assert other[0].reused == 0


def test_a_generation_that_is_broken_off_keeps_no_cache(part: Part) -> None:
    for piece in Generation(part, "abc", 20, keep="chat"):
        if piece.tokens == 3:
            break
    assert part.caches == {}


def test_it_says_whether_max_tokens_or_the_context_ended_it(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(Generation(part, "abc", 5))[-1].finish == "length"
    monkeypatch.setattr(Part, "context", 8)
    assert [piece.finish for piece in Generation(part, "abc", 20)] == [""] * 4 + ["context"]


def test_reading_a_long_prompt_can_be_followed(part: Part) -> None:
    told: list[tuple[int, int]] = []

    def reading(read: int, of: int) -> None:
        told.append((read, of))

    made = Generation(part, "a" * 100, 2, options={"prefill_step_size": 40}, reading=reading)
    assert len(list(made)) == 2
    assert told == [(0, 100), (40, 100), (80, 100), (99, 100), (100, 100)]


def test_sampling_follows_the_seed_and_leaves_the_users_random_state(part: Part) -> None:
    mx.random.seed(5)
    want = mx.random.uniform().item()
    mx.random.seed(5)
    texts = [generate(part, "abc", 20, temp=1.0, seed=seed) for seed in (1, 1, 2)]
    assert mx.random.uniform().item() == want
    assert texts[0] == texts[1] != texts[2]


def test_a_draft_model_gives_the_same_text(llama: Path, part: Part) -> None:
    drafted = load(llama, draft=llama)
    pieces = list(Generation(drafted, "The quick", 24, options={"num_draft_tokens": 3}))
    assert any(piece.from_draft for piece in pieces)
    assert "".join(piece.text for piece in pieces) == generate(part, "The quick", 24)


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ("", {}, "the prompt is empty"),
        ("a" * 5000, {}, "the prompt has 5,000 tokens and the model a context of 4,096"),
        ([1, "a"], {}, "a prompt is text, a list of tokens or a list of messages"),
        ("a", {"temparature": 1}, "temparature is not a sampling option: did you mean temperature"),
        ("a", {"top_p": 2}, "top_p=2 is no probability: type 0 to 1"),
        ("a", {"temp": -1}, "temp=-1 is negative"),
        ("a", {"temp": "hot"}, "temp='hot': type a number, or leave it out"),
        ("a", {"top_k": 1.5}, "top_k=1.5: type a whole number"),
        ("a", {"logit_bias": 3}, "logit_bias=3: type a dict"),
        ("a", {"max_kv_size": -5}, "max_kv_size=-5: type a whole number, 1 or more"),
        ("a", {"prefill_step_size": 0}, "prefill_step_size=0: type a whole number, 1 or more"),
        ("a", {"kv_bits": 7}, "kv_bits=7: type one of 2, 3, 4, 5, 6, 8"),
        ([1, 260], {}, "260 is no token of llama: it has 260 of them"),
        ([-1], {}, "-1 is no token of llama"),
        ([{"role": "user"}, 1], {}, "each message is a dict with a role and a content"),
        ("a", {"seed": 1.5}, "seed=1.5: type a whole number, 0 or more"),
    ],
)
def test_what_cannot_be_generated(part: Part, prompt, options, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=said):
        generate(part, prompt, 4, **options)


def test_a_chat_template_may_refuse_messages(llama: Path, tmp_path: Path) -> None:
    """As those of models do that know no system prompt."""
    strict = copied(llama, tmp_path / "strict")
    file = strict / "tokenizer_config.json"
    template = "{{ raise_exception('no system role') }}"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    messages = [{"role": "system", "content": "Short"}]
    with pytest.raises(UsageError, match=r"of strict does not take these messages: no system role"):
        generate(load(strict), messages, 4)


def test_names_of_other_libraries_are_known() -> None:
    assert sampling.check({"temperature": 0.5}) == {"temp": 0.5}


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_folders_that_are_not_whole(llama: Path, tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(UsageError) as caught:
            load(path)
        return str(caught.value)

    assert said(tmp_path / "nowhere").startswith(f"there is no folder {tmp_path / 'nowhere'}: ")
    (tmp_path / "empty").mkdir()
    assert said(tmp_path / "empty").startswith("there is no config.json in ")
    bare = copied(llama, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    assert said(bare).startswith("there is no tokenizer in ")
    part = copied(llama, tmp_path / "part")
    (part / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors of model.safetensors.index.json" in said(part)
    short = copied(llama, tmp_path / "short")
    file = short / "model-00001-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "is corrupt or cut short" in said(short)
    wrong = copied(llama, tmp_path / "wrong")
    file = wrong / "model-00001-of-00003.safetensors"
    file.write_bytes(struct.pack("<Q", 8) + b"{wrong!!" + file.read_bytes()[16:])
    assert "is corrupt or cut short" in said(wrong)
    strange = copied(llama, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text()) | {"model_type": "nonesuch"}
    (strange / "config.json").write_text(json.dumps(config))
    assert "mlx-lm cannot build the model" in said(strange) and "nonesuch" in said(strange)


def test_a_model_of_a_hub_goes_through_mlx_lms_downloader(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(path: str, revision: str | None = None, **patterns: object) -> Path:
        if Path(path).exists():
            return Path(path)
        asked.append((path, revision))
        return llama

    monkeypatch.setattr("mlx_lm.utils._download", download)
    assert load("mlx-community/small", revision="main").folder == llama
    assert asked == [("mlx-community/small", "main")]


def test_offline_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked: list[object] = []

    def resolve(*host: object, **_: object) -> None:
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set: unset it, or give a folder"):
        load("mlx-community/never-downloaded")
    assert not asked


def test_ways_that_do_not_go(part: Part) -> None:
    with pytest.raises(UsageError) as caught:
        ways.check(part.model, "llama", "tensor", 3)
    assert str(caught.value) == (
        "llama does not go as 'tensor': 3 ranks do not divide its 8 heads and 4 KV heads (2, 4 "
        "ranks do); type shard='data'"
    )
    with pytest.raises(UsageError, match="has no pipeline for it; type shard='tensor' or"):
        ways.check(part.model, "llama", "pipeline", 2)
    with pytest.raises(UsageError, match="shard='rows' is not known"):
        ways.check(part.model, "llama", "rows", 2)


def test_files_of_two_hosts_are_told_apart(llama: Path, tmp_path: Path) -> None:
    other = copied(llama, tmp_path / "other")
    assert folder.digests(llama) == folder.digests(other)
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    (other / "chat_template.jinja").write_text("{{ messages }}")
    (other / "generation_config.json").write_text('{"eos_token_id": 3}')
    ours, its = folder.digests(llama), folder.digests(other)
    differing = {name for name in ours.keys() | its.keys() if ours.get(name) != its.get(name)}
    assert differing == {"config.json", "chat_template.jinja", "generation_config.json"}


def test_a_small_model_is_not_written_over_something(llama: Path) -> None:
    with pytest.raises(UsageError, match="there is something in"):
        make_small_model(llama)
