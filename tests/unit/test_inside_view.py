"""What a person sees of the inside of a language model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.models.activations import Activations
from mlxbench_kernel.models.attention import Attention
from mlxbench_kernel.models.likely import Likely
from mlxbench_kernel.models.timing import Split
from mlxbench_kernel.remote.answers import Answers
from mlxbench_kernel.remote.comparing import Way
from mlxbench_kernel.remote.inside import text_of
from mlxbench_kernel.widgets import inside
from mlxbench_kernel.widgets.comparisons import Comparison, SideBySide
from mlxbench_kernel.widgets.inside import ActivationMap, AttentionMaps, TopK
from mlxbench_kernel.widgets.timings import Timing

NAN = float("nan")


@pytest.fixture
def top() -> TopK:
    return TopK(
        Likely(
            3,
            np.array([5, 6], np.int32),
            ["<b>", "\n"],
            np.array([[6, 7], [8, 9]], np.int32),
            [["\n", "x"], ["y", "z"]],
            np.array([[0.5, 0.25], [0.125, 0.1]], np.float32),
            ["\n", ""],
            np.array([1, 0], np.int32),
            np.array([0.5, NAN], np.float32),
        )
    )


def test_the_likeliest_tokens_as_a_table_and_a_frame(top: TopK) -> None:
    assert top.table.rows == [
        ("3", "'<b>'", "'\\n' 50 %, no. 1", "● '\\n' 50 %", "'x' 25 %"),
        ("4", "'\\n'", "", "'y' 12.5 %", "'z' 10 %"),
    ]
    assert "&lt;b&gt;" in top._repr_html_() and "● '\\n'" in repr(top)
    frame = top.to_dataframe()
    assert frame["position"].tolist() == [3, 4] and frame["next_place"].tolist() == [1, 0]
    assert frame["token_2"].tolist() == ["x", "z"]
    assert frame["probability_1"].tolist() == [0.5, 0.125]
    assert frame["next"].isna().tolist() == [False, True]


def test_of_many_rows_some_are_shown(top: TopK, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "ROWS", 1)
    assert len(top.table.rows) == 1 and "1 more rows" in repr(top)


def test_a_head_is_chosen_in_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((4, 3, 3)).astype(np.float32)
    maps = AttentionMaps(Attention(2, (0, 1, 4, 5), ["a", "b", "a"], values))
    assert np.array_equal(np.asarray(maps), values) and np.asarray(maps).dtype == np.float32
    shown = maps._repr_mimebundle_()["application/vnd.plotly.v1+json"]
    names = [trace["name"] for trace in shown["data"]]
    assert names == ["mean of all heads", "head 0", "head 1", "head 4", "head 5"]
    assert [trace["visible"] for trace in shown["data"]] == [True, *[False] * 4]
    (menu,) = shown["layout"]["updatemenus"]
    assert [button["label"] for button in menu["buttons"]] == names
    assert menu["buttons"][3]["args"] == [{"visible": [False, False, False, True, False]}]
    assert shown["data"][0]["x"] == ["0 'a'", "1 'b'", "2 'a'"]  # equal tokens stay apart
    figure = maps.figure([4])
    assert np.array_equal(figure.data[0].z, values[2]) and len(figure.data) == 1
    with pytest.raises(UsageError, match=r"head 3 was not asked for: there are \[0, 1, 4, 5\]"):
        maps.figure([3])
    monkeypatch.setattr(inside, "DRAWN_BYTES", 3 * values[0].nbytes)
    assert [trace.name for trace in maps.figure().data] == ["mean of all heads", "head 0", "head 1"]
    assert "heads 0 to 1; figure(heads=[…])" in maps.figure().layout.title.text


def test_activations_as_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(-6, 6, dtype=np.float32).reshape(2, 6)
    shown = ActivationMap(Activations(1, "mlp", ["a", "b"], values))
    assert np.array_equal(np.asarray(shown), values)
    assert np.array_equal(shown.figure().data[0].z, values)
    assert repr(shown) == "mlp of layer 1: float32 [2, 6]"
    monkeypatch.setattr(inside, "DRAWN_BYTES", 8)
    assert np.allclose(shown.figure().data[0].y, np.linalg.norm(values, axis=1))


def test_time_per_token_by_rank() -> None:
    rows = [
        Split(rank, phase, tokens, seconds, spent, waiting)
        for rank in (0, 1)
        for phase, tokens, seconds, spent, waiting in (
            ("prompt", 100, 0.5, 0.1, 0.05), ("decode", 10, 1.0, 0.4, 0.1 * rank),
        )
    ]  # fmt: skip
    timing = Timing(rows)
    assert timing.table.rows[0] == (
        "prompt, 100 tokens", "0", "500", "400", "100", "50", "50", "20 %"
    )  # fmt: skip
    assert timing.table.rows[3] == (
        "decode, 10 tokens", "1", "100", "60", "40", "10", "30", "40 %"
    )  # fmt: skip
    bars = {bar.name: list(bar.y) for bar in timing.figure().data}
    assert bars["waiting for the last rank"] == pytest.approx([0, 10])
    assert timing.to_dataframe()["compute"].tolist() == pytest.approx([0.4, 0.6] * 2)
    unknown = Timing([Split(0, "decode", 10, 1.0, NAN, NAN)])
    assert unknown.table.rows[0][3:] == ("–",) * 5 and "on the GPU" in unknown.table.caption


def test_ways_side_by_side() -> None:
    figures = {"first": 0.01, "prompt_rate": 500.0, "rate": 50.0, "tokens": 2, "prompt_tokens": 5}
    ranks = {rank: {"kv_bytes": 1000, "collectives": 0.25 * rank} for rank in (0, 1)}
    ways = Comparison(
        [
            Way("pipeline", "llama does not go"),
            Way("tensor", "", "ab", [1, 2], figures, {0: 10_000, 1: 20_000}, ranks),
            Way("data", "", "ac", [1, 3], figures | {"rate": None}, {0: 30_000, 1: 30_000},
                {0: {"kv_bytes": 2000, "collectives": NAN}}),
        ]
    )  # fmt: skip
    assert ways.table.rows[0][-1] == "llama does not go"
    assert ways.table.rows[1] == (
        "tensor", "2 tokens", "10 ms", "500 tokens/s", "50 tokens/s", "10.0 kB | 20.0 kB",
        "1.00 kB | 1.00 kB", "0 % | 25 %",
    )  # fmt: skip
    assert ways.table.rows[2][1] == "differs from tensor" and ways.table.rows[2][-1] == "–"
    frame = ways.to_dataframe()
    assert frame["way"].tolist() == ["pipeline", "tensor", "tensor", "data", "data"]
    assert frame["same"].tolist() == [None, True, True, False, False]


def test_answers_side_by_side() -> None:
    before = Answers("lm", ["A\nfox", [1, 2]], ["one", "two"], {})
    shown = SideBySide(before, Answers("lm", before.prompts, ["one", "three"], {}))
    assert shown.table.caption == "1 of 2 answers differ"
    assert "pre-wrap" in shown._repr_html_() and "three" in shown._repr_html_()
    assert shown.to_dataframe()["after"].tolist() == ["one", "three"]
    other = SideBySide(before, Answers("other", before.prompts, ["x", "y"], {}))
    assert other.table.caption == "2 of 2 answers differ; before: lm; after: other"


def test_a_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("Grüße", "utf-8")
    assert text_of(file) == text_of(str(file)) == "Grüße"
    assert text_of("no such file") == "no such file" and text_of("") == ""
    assert text_of("a\n" * 5000) == "a\n" * 5000
    with pytest.raises(UsageError, match=r"nowhere.txt cannot be read \(No such file"):
        text_of(tmp_path / "nowhere.txt")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="it is no text in UTF-8"):
        text_of(str(file))
    with pytest.raises(UsageError, match="a int is no text"):
        text_of(5)  # type: ignore[arg-type]
