"""What is inside of a language model on one rank, against what MLX and mlx-lm say of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.perplexity import eval_ppl

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.graph import capture
from mlxbench_kernel.models import Part, load
from mlxbench_kernel.models import attention as of_attention
from mlxbench_kernel.models.activations import activations
from mlxbench_kernel.models.attention import attention, weights
from mlxbench_kernel.models.called import Attended, attention_in, outputs_of
from mlxbench_kernel.models.decoding import DecodingStep
from mlxbench_kernel.models.evaluation import perplexity
from mlxbench_kernel.models.likely import PIECE, likely
from mlxbench_kernel.models.small import make_small_model
from mlxbench_kernel.models.timing import Timed, split

TEXT = "The quick brown fox"


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Part:
    return load(make_small_model(tmp_path_factory.mktemp("models") / "llama"))


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("kind", ["none", "causal", "window", "added", "each head"])
@pytest.mark.parametrize("sinks", [False, True])
def test_weights_are_those_of_the_fused_operation(length: int, kind: str, sinks: bool) -> None:
    positions, heads, shared = 7, 6, 2
    queries = mx.random.normal((1, heads, length, 8))
    keys, values = (mx.random.normal((1, shared, positions, 8)) for _ in range(2))
    masks: dict[str, Any] = {
        "none": None,
        "causal": "causal",
        "window": create_causal_mask(length, positions - length, window_size=3),
        "added": mx.random.normal((length, positions)),
        "each head": mx.random.normal((1, heads, length, positions)),
    }
    sink = mx.random.normal((heads,)) if sinks else None
    found = weights(Attended(queries, keys, 0.3, masks[kind], sink))
    assert found.shape == (heads, length, positions)
    together = found @ mx.repeat(values[0], heads // shared, axis=0)
    want = mx.fast.scaled_dot_product_attention(
        queries, keys, values, scale=0.3, mask=masks[kind], sinks=sink
    )[0]
    assert mx.allclose(together, want, rtol=1e-4, atol=1e-5)


def test_attention_sees_only_what_came_before(part: Part) -> None:
    found = attention(part, TEXT, 2)
    assert found is not None and found.values.shape == (8, len(TEXT), len(TEXT))
    assert np.allclose(found.values.sum(-1), 1, atol=1e-5)
    assert not np.triu(found.values, 1).any()


def test_a_layer_that_is_watched_is_as_before(part: Part) -> None:
    model: Any = part.model
    layer = model.layers[1]
    call, fused = type(layer).__call__, mx.fast.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), attention_in(layer), outputs_of(layer.mlp):
        raise ZeroDivisionError
    with outputs_of(layer) as first, attention_in(layer) as asked, outputs_of(layer) as second:
        model(mx.array([[1, 2, 3]]))
    assert len(first) == len(asked) == len(second) == 1 and first[0] is second[0]
    assert type(layer).__call__ is call and mx.fast.scaled_dot_product_attention is fused


def test_hidden_states_follow_one_another(part: Part) -> None:
    model: Any = part.model
    tokens = part.tokenizer.encode(TEXT)
    last = activations(part, TEXT, -1)
    assert last is not None and last.texts == list(TEXT)
    logits = model.lm_head(model.model.norm(mx.array(last.values)))
    assert mx.allclose(logits, model(mx.array([tokens]))[0], rtol=1e-4, atol=1e-5)
    mlp, attended, before = (
        activations(part, TEXT, 1, what) for what in ("mlp.down_proj", "self_attn", "hidden")
    )
    assert mlp is not None and attended is not None and before is not None
    first = activations(part, TEXT, 0)
    assert first is not None
    assert np.allclose(first.values + attended.values + mlp.values, before.values, atol=1e-4)


@pytest.mark.parametrize("length", [5, PIECE + 3])
def test_the_likeliest_tokens_are_those_of_the_softmax(part: Part, length: int) -> None:
    model: Any = part.model
    tokens = [(7 * number) % 256 for number in range(length)]
    found = likely(part, tokens, 4)
    want = np.array(mx.softmax(model(mx.array([tokens]))[0], axis=-1))
    order = np.argsort(-want, axis=-1, kind="stable")
    assert found.ids.shape == (length, 4)
    assert (found.ids == order[:, :4]).mean() > 0.99  # of nearly equal ones the order may differ
    ordered = np.sort(want, axis=-1)[:, ::-1][:, :4]
    assert np.allclose(found.probabilities, ordered, rtol=1e-3)
    actual = want[np.arange(length - 1), tokens[1:]]
    assert np.allclose(found.chances[:-1], actual, rtol=1e-3) and math.isnan(found.chances[-1])
    places = (want[:-1] > actual[:, None]).sum(-1) + 1
    assert np.abs(found.places[:-1] - places).max() <= 1 and found.places[-1] == 0
    part_of_it = likely(part, tokens, 4, first=length - 2)
    assert part_of_it.first == length - 2 and len(part_of_it.tokens) == 2
    assert np.array_equal(part_of_it.ids, found.ids[-2:])


def test_parts_of_characters_have_names(part: Part) -> None:
    assert likely(part, "aö\n", 1).texts == ["a", "Ã", "¶", "\n"]


def test_perplexity_is_that_of_mlx_lm(part: Part, capsys: pytest.CaptureFixture[str]) -> None:
    text = "A good text for a model without a memory. " * 20
    tokens = part.tokenizer.encode(text)
    data = mx.array(tokens[: len(tokens) // 32 * 32]).reshape(-1, 32)
    want = eval_ppl(part.model, data, batch_size=4)
    told: list[tuple[int, int]] = []
    found = perplexity(part, text, 32, 4, lambda done, total: told.append((done, total)))
    assert (found.value, found.error) == pytest.approx(want, rel=1e-6)
    assert found.windows == len(data) and found.tokens == len(data) * 31
    assert told[0] == (0, len(told) - 1) and told[-1] == (len(told) - 1,) * 2
    assert f"perplexity {want[0]:.3f} ± {want[1]:.3f} over" in str(found)
    capsys.readouterr()


def test_a_decoding_step_is_what_is_decoded_and_is_not_evaluated(part: Part) -> None:
    model: Any = part.model
    step = DecodingStep(part, TEXT)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    graph = capture(step, model)
    assert mx.get_peak_memory() - before < 4096
    assert part.caches == {}
    caches = make_prompt_cache(model)
    mx.eval(model(mx.array([part.tokenizer.encode(TEXT)]), cache=caches))

    def decode(token: mx.array) -> Any:
        logits = model(token, cache=caches)[:, -1, :]
        chances = logits - mx.logsumexp(logits, keepdims=True)
        return mx.argmax(chances, axis=-1), chances.squeeze(0)

    real = capture(decode, step.token)
    written = graph.primitives.index("SliceUpdate")  # keys and values of each layer's cache
    assert (graph.primitive == written).sum() == 2 * 4
    assert sorted(np.array(graph.primitives)[graph.primitive]) == sorted(
        np.array(real.primitives)[real.primitive]
    )


def timed_at(begun: list[float], done: list[float], **more: Any) -> Timed:
    """A rank with collectives of all, that begins at 100 s and has its first token at 101 s."""
    calls = np.array([[0, -1, turn] for turn in range(len(begun))], np.int64)
    spans = np.array([begun, done]).T
    sends = np.zeros(len(begun), np.bool_)
    shift = more.get("shift", 0.0)
    spans = spans + shift
    return Timed(100 + shift, 101 + shift, 104 + shift, 5, 3, calls, sends, spans, True)


def test_waiting_is_told_from_transfer() -> None:
    early = timed_at([100.1, 102.0, 103.0], [100.5, 102.6, 103.2])
    late = timed_at([100.4, 102.5, 103.0], [100.5, 102.6, 103.2])
    rows = {(row.rank, row.phase): row for row in split({0: early, 1: late})}
    assert rows[0, "prompt"].waiting == pytest.approx(0.3)
    assert rows[0, "prompt"].transfer == pytest.approx(0.1)
    assert rows[0, "decode"].waiting == pytest.approx(0.5)
    assert rows[0, "decode"].collectives == pytest.approx(0.8)
    assert rows[0, "decode"].compute == pytest.approx(2.2)
    assert rows[0, "decode"].tokens == 2
    assert rows[1, "prompt"].waiting == rows[1, "decode"].waiting == 0
    # Another host, whose clock is ahead.
    ahead = timed_at([100.4, 102.5, 103.0], [100.5, 102.6, 103.2], shift=50.0)
    for row in split({0: early, 1: ahead}, one_clock=False):
        want = rows[row.rank, row.phase]
        assert row.waiting == pytest.approx(want.waiting, abs=1e-6)
        assert row.collectives == pytest.approx(want.collectives)


def test_sends_are_matched_with_receives() -> None:
    calls = np.array([[0, 1, 4]], np.int64)
    spans = np.array([[102.0, 102.9]])
    receives = Timed(100, 101, 104, 5, 3, calls, np.array([False]), spans, True)
    calls, spans = np.array([[0, 0, 4]], np.int64), np.array([[102.8, 102.85]])
    sends = Timed(100, 101, 104, 5, 3, calls, np.array([True]), spans, True)
    rows = {(row.rank, row.phase): row for row in split({0: receives, 1: sends})}
    assert rows[0, "decode"].waiting == pytest.approx(0.8)
    assert rows[1, "decode"].waiting == 0


def test_without_a_log_nothing_is_said() -> None:
    nothing = Timed(
        100, 101, 104, 5, 3, np.zeros((0, 3), np.int64), np.zeros(0, np.bool_), np.zeros((0, 2)),
        False,
    )  # fmt: skip
    rows = split({0: nothing, 1: nothing})
    assert all(math.isnan(row.collectives) and math.isnan(row.waiting) for row in rows)
    assert rows[0].seconds == 1


def test_what_cannot_be_looked_at(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_attention, "MOST_BYTES", 4 * len(TEXT) ** 2 * 3)
    with pytest.raises(UsageError, match=r"8 heads over 19 tokens takes 11.6 kB: type fewer"):
        attention(part, TEXT, 0)
    assert attention(part, TEXT, 0, [1, 2, 3]) is not None
    with pytest.raises(UsageError, match=r"heads=\[\]: type some"):
        attention(part, TEXT, 0, [])
    with pytest.raises(UsageError, match=r"layer 0 has no module 'self_attn\.rop\.e'"):
        activations(part, TEXT, 0, "self_attn.rop.e")
    with pytest.raises(UsageError, match="layer=True"):
        activations(part, TEXT, True)
    with pytest.raises(UsageError, match="length=1: type a number, 2 or more"):
        perplexity(part, TEXT, 1)
    with pytest.raises(UsageError, match="batch_size=0: type a number, 1 or more"):
        perplexity(part, TEXT, 4, 0)


def test_a_layer_without_attention_says_so(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = part.model
    kind = type(model.layers[0].self_attn)
    monkeypatch.setattr(kind, "__call__", lambda self, x, mask=None, cache=None: x)
    with pytest.raises(UsageError, match="layer 1 of llama computes no attention"):
        attention(part, TEXT, 1)
    with pytest.raises(UsageError, match=r"'self_attn\.q_proj' of layer 1 was not called"):
        activations(part, TEXT, 1, "self_attn.q_proj")


def test_a_model_of_another_kind_is_looked_into(tmp_path: Path) -> None:
    options = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}
    part = load(make_small_model(tmp_path / "gpt", "gpt_oss", rope_scaling=None, **options))
    sliding, full = (attention(part, TEXT, layer) for layer in (0, 1))
    assert sliding is not None and full is not None
    assert not np.tril(sliding.values, -4).any() and np.tril(full.values, -4).any()
    assert (sliding.values.sum(-1) < 1).all()  # the sink takes some
