"""The dashboard of a stepper, over one that makes up its figures."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import ipywidgets
import numpy as np
import pytest
from fake_stepping import BREAKPOINTS, LAYERS, FakeStepping
from ipywidgets.widgets.widget import Widget, _instances
from pressing import inside, press, wait

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.remote.mirror import KeptStep, State
from mlxbench_kernel.remote.stepping import Stepping
from mlxbench_kernel.training.history import History
from mlxbench_kernel.training.origin import StepGraph
from mlxbench_kernel.training.place import Entry
from mlxbench_kernel.widgets.stepping import StepperView
from mlxbench_kernel.widgets.stepping_figure import (
    BAD,
    BARS,
    CURVES,
    HEAT,
    HEAT_BAD,
    POINTS,
    VALIDATED,
    shortened,
)
from mlxbench_kernel.widgets.stepping_graph import OPEN
from mlxbench_kernel.widgets.stepping_layers import Layers
from mlxbench_kernel.widgets.threads import MOST_A_SECOND, Redraws


@pytest.fixture
def stepping() -> FakeStepping:
    return FakeStepping(size=2)


@pytest.fixture
def view(stepping: FakeStepping) -> Iterator[StepperView]:
    view = StepperView(stepping)
    yield view
    view.close()


def enter(field: Any, text: str) -> None:
    """Type a line and press Enter."""
    field.value = text
    field._handle_custom_msg({"event": "submit"}, [])


def open_panel(view: StepperView, title: str) -> None:
    view.panels.selected_index = list(view.panels.titles).index(title)


def traces(view: StepperView) -> Any:
    return view.figure.widget.data


def curve(view: StepperView, branch: str) -> Any:
    """The loss of a branch; an empty curve if there is none."""
    found = [
        each
        for each in traces(view)[CURVES::2]
        if each.name == branch and each.visible is not False
    ]
    return found[0] if found else SimpleNamespace(x=None)


def steps(view: StepperView, branch: str) -> list[int]:
    """The steps of the loss of a branch."""
    at = curve(view, branch).x
    return [] if at is None else list(at)


def test_names_of_layers_tell_them_apart() -> None:
    blocks = [f"model.layers.{n}.self_attn.{w}_proj" for n in (0, 11) for w in "qv"]
    assert shortened(blocks) == [
        "0.self_attn.q_proj", "0.self_attn.v_proj", "11…elf_attn.q_proj", "11…elf_attn.v_proj",
    ]  # fmt: skip
    assert shortened(["model.embed_tokens", "model.norm"]) == ["embed_tokens", "norm"]
    assert shortened(["model.norm"]) == ["model.norm"] and shortened([]) == []


def test_buttons_and_fields_ask_for_what_they_say(
    view: StepperView, stepping: FakeStepping
) -> None:
    movement = view.movement
    press(view, "Step")
    movement.run_by.value = 30
    press(view, "Run")
    enter(movement.condition, "loss < 0.1")
    movement.back_by.value = 4
    press(view, "Back")
    movement.target.value = 12
    press(view, "To step")
    enter(movement.name, "wide")
    press(view, "Play")
    wait(lambda: stepping.state.playing and movement.playing.description == "Pause")
    press(view, "Pause")
    wait(lambda: movement.playing.description == "Play" and not stepping.state.playing)
    press(view, "Reset")
    press(view, "Reset: sure?")
    wait(lambda: stepping.asked[-1] == "to 0")
    assert stepping.asked == [
        "step 1", "run 30", "until loss < 0.1", "to 57", "to 12", "branch wide at 12", "play",
        "pause", "to 0",
    ]  # fmt: skip
    assert movement.name.value == ""


def test_what_a_command_raises_is_one_red_line(view: StepperView, stepping: FakeStepping) -> None:
    enter(view.movement.condition, "losss < <b>0.1")
    wait(lambda: "losss is not measured: did you mean loss?" in view.error.value)
    assert "mlxbench-step-error" in view.error.value and 'role="alert"' in view.error.value
    # The next command that works takes it away; a second line of a message is not shown.
    press(view, "Step")
    wait(lambda: view.error.value == "")
    press(view, "Back")
    press(view, "Back")
    wait(lambda: "kept are steps 0 to 40" in view.error.value)
    assert "more" not in view.error.value
    # So do mistakes that are no errors of ours.
    stepping.step = lambda: 1 // 0  # type: ignore[assignment]
    press(view, "Step")
    wait(lambda: "ZeroDivisionError: integer" in view.error.value)
    enter(view.movement.condition, " ")
    wait(lambda: "the condition is empty" in view.error.value)


def test_a_long_command_says_what_is_done_and_holds_the_buttons(
    view: StepperView, stepping: FakeStepping
) -> None:
    stepping.held = threading.Event()
    view.movement.back_by.value = 3
    stepping.take(5)
    press(view, "Back")
    wait(lambda: "going back 3 steps …" in view.busy.value)
    buttons = [each for each in inside(view) if isinstance(each, ipywidgets.Button)]
    wait(lambda: all(each.disabled for each in buttons))
    assert stepping.state.step == 5
    stepping.held.set()
    wait(lambda: stepping.state.step == 2 and not any(each.disabled for each in buttons))
    wait(lambda: view.busy.value == "")
    stepping.held.clear()
    enter(view.movement.condition, "loss < 1")
    wait(lambda: "playing until loss &lt; 1 …" in view.busy.value)
    stepping.held.set()


def test_status_says_where_and_how_fast(view: StepperView, stepping: FakeStepping) -> None:
    stepping.take(60)
    stepping.change(said="loss < 0.1 holds & more")
    wait(lambda: "step 60 · branch main · paused · 20 steps/s · 41 k tokens/s" in view.status.value)
    assert "layers sampled every 10 steps · replicas compared every 50" in view.status.value
    assert "loss &lt; 0.1 holds &amp; more" in view.status.value
    loss = stepping.histories[0].last("main")["loss"]
    assert repr(view) == f"Stepper of 2 ranks: step 60 of main, paused, loss {loss:.4g}"


def test_curves_of_branches_overlay_and_go(view: StepperView, stepping: FakeStepping) -> None:
    stepping.take(40)
    stepping.branch("wide", at=20)
    stepping.take(30)
    stepping.change()
    wait(lambda: steps(view, "wide") == list(range(21, 51)))

    assert len(steps(view, "main")) == 40
    assert curve(view, "wide").line.width > curve(view, "main").line.width
    rate = traces(view)[CURVES + 1]
    assert rate.name == "main" and set(rate.y) == {np.float32(0.001)}
    # Going back takes away what was after.
    stepping.to(25)
    wait(lambda: steps(view, "wide") == list(range(21, 26)))
    # A deleted branch goes, and its curves serve the next.
    stepping.switch("main")
    stepping.delete("wide")
    wait(lambda: traces(view)[CURVES + 2].visible is False)
    stepping.branch("third")
    stepping.take(5)
    stepping.change()
    wait(lambda: len(steps(view, "third")) == 5)
    assert len(traces(view)) == CURVES + 4
    view.log_loss.value = True
    wait(lambda: view.figure.widget.layout.yaxis.type == "log")
    assert view.figure.widget.layout.yaxis2.type == "linear"


def test_a_loss_that_is_no_number_is_marked(view: StepperView, stepping: FakeStepping) -> None:
    stepping.take(3)
    height = stepping.histories[0].last("main")["loss"]
    for history in stepping.histories:
        history.append("main", {"step": 4, "loss": float("nan"), "learning_rate": 0.1})
    stepping.change(step=4)
    bad = traces(view)[BAD]
    wait(lambda: bad.x is not None and list(bad.x) == [4])
    assert list(bad.y) == [np.float32(height)]


def test_validation_is_drawn_with_the_loss(view: StepperView, stepping: FakeStepping) -> None:
    stepping.take(4)
    for history in stepping.histories:
        history.append("main", {"step": 5, "loss": 1.0, "validation_loss": 2.5})
        history.append("main", {"step": 6, "loss": 1.0})
    stepping.change(step=6)
    drawn = traces(view)[VALIDATED]
    wait(lambda: drawn.x is not None and list(drawn.x) == [5])
    assert list(drawn.y) == [2.5] and drawn.showlegend


def test_a_long_run_is_thinned_and_only_what_changed_is_sent(
    view: StepperView, stepping: FakeStepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    view._redraws.close()
    stepping.take(8_000)
    stepping.branch("other")
    stepping.take(10)
    view.redraw()
    assert POINTS / 2 < len(steps(view, "main")) <= POINTS
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(
        Widget, "_send", lambda self, message, buffers=None: sent.append(message["state"])
    )
    view.redraw()
    assert not sent
    stepping.take(1)
    view.redraw()
    updates = [each["_py2js_update"] for each in sent if each.get("_py2js_update")]
    (update,) = updates
    names = {traces(view)[index].name for index in update["style_traces"]}
    assert "main" not in names and "other" in names


def test_layers_on_ranks_at_a_sampled_step(view: StepperView, stepping: FakeStepping) -> None:
    stepping.take(55)
    stepping.change()
    heat, bad = traces(view)[HEAT], traces(view)[HEAT_BAD]
    title = view.figure.widget.layout.annotations[0]
    wait(lambda: title.text == "own gradient norm, step 50")
    assert np.shape(heat.z) == (len(LAYERS), 2)
    # The parameter 7 is the bias of the fourth layer, and no number at step 50.
    assert list(bad.z[3]) == [1, 1] and sum(row[0] is not None for row in bad.z) == 1
    assert list(heat.z[3]) == [None, None] and heat.text[3][0] == f"{LAYERS[3]}: nan"
    samples = stepping.samples[1].get("main", 50, "grad_norm")
    assert samples is not None
    assert heat.z[0][1] == pytest.approx(np.log10(np.hypot(samples[0], samples[1])))
    json.dumps([heat.z, bad.z, heat.text], allow_nan=False)
    # The slider looks back, and stays there while new samples come.
    view.time.latest.value = False
    wait(lambda: not view.time.slider.disabled)
    view.time.slider.value = 1
    wait(lambda: title.text == "own gradient norm, step 20")
    stepping.take(20)
    stepping.change()
    wait(lambda: view.time.slider.max == 6)
    assert view.time.step == 20
    view.time.measure.value = "non-finite"
    view.time.latest.value = True
    wait(lambda: title.text == "non-finite, step 70")
    assert not any(any(row) for row in bad.z)


def test_layers_add_up() -> None:
    layers = Layers(["a.weight", "a.bias", "b.weight", "scale"])
    assert layers.names == ["a", "b", "scale"]
    values = np.array([3, 4, 5, np.inf], dtype=np.float32)
    assert layers.reduce("grad_norm", values).tolist() == [5, 5, np.inf]
    assert layers.reduce("update_ratio", values).tolist() == [4, 5, np.inf]
    assert layers.reduce("nonfinite", values).tolist() == [7, 5, np.inf]


def test_a_rank_without_a_sample_is_left_empty(view: StepperView, stepping: FakeStepping) -> None:
    stepping.take(20)
    stepping.samples[1].truncate("main", 10)
    stepping.change()
    wait(lambda: view.figure.widget.layout.annotations[0].text == "own gradient norm, step 20")
    assert all(row[0] is not None and row[1] is None for row in traces(view)[HEAT].z)
    assert not any(any(row) for row in traces(view)[HEAT_BAD].z)


def test_time_of_a_step_is_stacked_by_rank(view: StepperView, stepping: FakeStepping) -> None:
    stepping.take(100)
    stepping.change()
    data, compute, collective = traces(view)[BARS : BARS + 3]
    wait(lambda: compute.y and None not in compute.y)
    assert data.y == (4, 4)
    assert compute.y[1] > compute.y[0] + 8 and collective.y[0] > collective.y[1] + 8


def test_branches_are_switched_compared_and_deleted(
    view: StepperView, stepping: FakeStepping
) -> None:
    stepping.take(10)
    stepping.branch("wide", at=5)
    branches = view.branches
    wait(lambda: len(branches.chooser.options) == 2)
    assert branches.chooser.options[1] == ("● wide: 5–5, from main", "wide")
    press(view, "Switch")
    wait(lambda: "no branch is chosen" in view.error.value)
    branches.chooser.value = "main"
    press(view, "Switch")
    wait(lambda: stepping.state.branch == "main")
    branches.other.value = "wide"
    press(view, "Compare with")
    wait(lambda: "main and wide: 26 parameters" in branches.compared.value)
    assert "layers.5.mlp.bias" in branches.compared.value
    branches.chooser.value = "wide"
    press(view, "Delete")
    press(view, "Delete: sure?")
    wait(lambda: len(branches.chooser.options) == 1)
    assert branches.chooser.value is None


def test_settings_are_edited_and_layers_frozen(view: StepperView, stepping: FakeStepping) -> None:
    open_panel(view, "Settings")
    settings = view.settings
    wait(lambda: settings.fields and settings.fields["learning_rate"].placeholder == "0.001")
    press(view, "Apply")
    wait(lambda: "nothing is changed" in view.error.value)
    enter(settings.fields["learning_rate"], "abc")
    wait(lambda: "learning_rate: &#x27;abc&#x27; is no number" in view.error.value)
    enter(settings.fields["learning_rate"], "-1")
    wait(lambda: "cannot be negative" in view.error.value)
    assert stepping.state.settings["learning_rate"] == 0.001
    settings.fields["clip"].value = "0.5"
    enter(settings.fields["learning_rate"], "1e-2")
    wait(lambda: settings.fields["learning_rate"].placeholder == "0.01")
    assert stepping.state.settings["clip"] == 0.5 and settings.fields["clip"].value == ""
    enter(settings.fields["clip"], "off")
    wait(lambda: stepping.state.settings["clip"] == "off")
    stepping.change(settings={**stepping.state.settings, "clip": None})
    wait(lambda: settings.fields["clip"].placeholder == "off")
    assert settings.layer.options == LAYERS
    settings.layer.value = "layers.0.mlp"
    press(view, "Freeze")
    wait(lambda: settings.frozen.value == "frozen: layers.0.mlp")
    press(view, "Unfreeze")
    wait(lambda: settings.frozen.value == "no layer is frozen")


def test_at_nan_the_graph_is_opened_where_it_begins(
    view: StepperView, stepping: FakeStepping
) -> None:
    bad = view.bad_step
    assert bad.offer.layout.display == "none"
    stepping.change(said="step 0: loss is nan", broke="nonfinite")
    wait(lambda: bad.offer.layout.display == "")
    for _ in range(2):  # the second takes the place of the first
        before = bad.place.children
        press(view, OPEN)
        wait(lambda: len(bad.place.children) == 2 and bad.place.children != before)  # noqa: B023
    assert "step 0: it begins with rank 1: Log" in bad.said.value
    shown = bad.place.children[1]
    graph = shown.source.graph
    assert graph.primitives[graph.primitive[shown.focus]] == "Log"
    press(view, "Close the graph")
    wait(lambda: bad.place.layout.display == "none")
    assert shown.comm is None

    def broken() -> StepGraph:
        raise UsageError("step 9 could not be evaluated again (its batches are gone)")

    stepping.graph = broken  # type: ignore[method-assign]
    press(view, OPEN)
    wait(lambda: "its batches are gone" in view.error.value)
    assert len(bad.place.children) == 1
    stepping.change(said="", broke="")
    wait(lambda: bad.offer.layout.display == "none")


def test_breakpoints_are_boxes_and_an_own_expression(
    view: StepperView, stepping: FakeStepping
) -> None:
    open_panel(view, "Breakpoints")
    panel = view.breakpoints
    wait(lambda: list(panel.boxes) == list(BREAKPOINTS))
    assert [box.value for box in panel.boxes.values()] == [True, False, False]
    panel.boxes["spike"].value = True
    panel.boxes["nonfinite"].value = False
    wait(lambda: stepping.state.active == ("spike",))
    enter(panel.own, "loss <")
    wait(lambda: "ends too early" in view.error.value and panel.own.value == "loss <")
    enter(panel.own, "loss < 0.2")
    wait(lambda: "loss < 0.2" in panel.boxes and panel.boxes["loss < 0.2"].value)
    assert panel.own.value == ""
    assert panel.list.children[-1].description == "loss < 0.2"
    # A box whose command fails says what holds.
    stepping.no_break = lambda what: 1 // 0  # type: ignore[assignment]
    panel.boxes["spike"].value = False
    wait(lambda: "ZeroDivisionError" in view.error.value and panel.boxes["spike"].value)


def test_kept_steps_cost_and_lead_back(view: StepperView, stepping: FakeStepping) -> None:
    stepping.take(40)
    stepping.branch("wide")
    kept = (KeptStep("main", 20, 3_000_000, True), KeptStep("wide", 40, 1_000_000, False))
    stepping.change(kept=kept, used=1_000_000)
    open_panel(view, "Kept steps and checkpoints")
    panel = view.kept
    wait(lambda: len(panel.chooser.options) == 2)
    assert panel.said.value == "2 steps kept, 1.00 MB of 4.00 GB; 1 on disk (3.00 MB)"
    assert panel.chooser.options[1][0] == "main step 20: 3.00 MB, on disk"
    panel.chooser.value = ("main", 20)
    press(view, "Go there")
    wait(lambda: stepping.asked[-2:] == ["switch main", "to 20"])
    press(view, "Branch there")
    wait(lambda: stepping.asked[-1] == "branch branch 2 at 20")
    enter(panel.budget, "-3")
    wait(lambda: "the budget is to be -3 GB" in view.error.value)
    enter(panel.budget, "2.5")
    wait(lambda: stepping.state.budget == 2_500_000_000 and panel.budget.value == "")
    enter(panel.path, "runs/a")
    press(view, "Load")
    press(view, "Load: sure?")
    wait(lambda: stepping.asked[-2:] == ["save runs/a", "load runs/a"])


def test_the_journal_is_read_and_becomes_a_script(
    view: StepperView, stepping: FakeStepping
) -> None:
    open_panel(view, "Journal")
    wait(lambda: "nothing was changed yet" in view.journal.entries.value)
    entries = tuple(Entry(step, "main", f"<{step}>", 0.0) for step in range(300))
    stepping.change(journal=entries)
    wait(lambda: "main step 299 · &lt;299&gt;" in view.journal.entries.value)
    assert "and 100 before these" in view.journal.entries.value
    press(view, "As a script")
    wait(lambda: "stepper.set(learning_rate=0.1)" in view.journal.script.value)


def test_what_helps_is_offered_when_it_stopped(view: StepperView, stepping: FakeStepping) -> None:
    repair = view.repair
    assert repair.replicas.layout.display == repair.batches.layout.display == "none"
    stepping.change(said="replicas differ: layers.0.weight on rank 1")
    wait(lambda: repair.replicas.layout.display == "")
    repair.rank.value = 1
    press(view, "Copy")
    wait(lambda: stepping.asked == ["equalize 1"] and repair.replicas.layout.display == "none")
    stepping.change(said="out of batches: 40 were given")
    wait(lambda: repair.batches.layout.display == "")
    press(view, "Begin the batches again")
    wait(lambda: stepping.asked[-1] == "restart batches")


def test_a_view_that_cannot_be_drawn_says_so(view: StepperView, stepping: FakeStepping) -> None:
    histories, stepping.histories = stepping.histories, []
    stepping.change()
    wait(lambda: "the view could not be drawn: IndexError" in view.error.value)
    stepping.histories = histories
    stepping.change()
    wait(lambda: view.error.value == "")


def test_closing_ends_the_threads_and_leaves_no_widget(stepping: FakeStepping) -> None:
    before, threads = set(_instances), set(threading.enumerate())
    view = StepperView(stepping)
    stepping.branch("wide")
    open_panel(view, "Breakpoints")
    wait(lambda: view.breakpoints.boxes)
    view.close()
    view.close()
    stepping.change()
    wait(lambda: set(threading.enumerate()) <= threads)
    assert set(_instances) == before and not stepping._watchers


def test_redraws_are_few_and_the_last_state_is_drawn() -> None:
    state, drawn, ready = SimpleNamespace(number=0), [], threading.Event()
    redraws = Redraws(lambda: drawn.append(state.number) is not None, ready.is_set)
    redraws.ask()
    time.sleep(0.1)
    assert not drawn  # the browser is not ready
    ready.set()
    began = time.monotonic()
    for state.number in range(1, 1001):
        redraws.ask()
        time.sleep(0.0002)
    wait(lambda: drawn[-1] == 1000)
    took = time.monotonic() - began
    redraws.close()
    assert len(drawn) <= took * MOST_A_SECOND + 2


def test_messages_of_the_browser_do_not_swallow_updates(
    view: StepperView, stepping: FakeStepping
) -> None:
    view._redraws.close()
    figure = view.figure.widget
    stepping.take(5)
    view.redraw()
    assert figure.ready()  # nobody looks
    figure.set_state({"_view_count": 1})
    stepping.take(5)
    view.redraw()
    assert not figure.ready()
    answer = {"trace_deltas": [], "trace_edit_id": figure._last_trace_edit_id}
    figure.set_state({"_js2py_traceDeltas": answer, "_js2py_layoutDelta": {}})
    assert figure.ready()
    # What somebody does in the figure does arrive.
    zoom = {"relayout_data": {"xaxis.range[0]": 2, "xaxis.range[1]": 4}, "source_view_id": "a"}
    figure.set_state({"_js2py_relayout": zoom})
    assert figure.layout.xaxis.range == (2, 4)


def test_long_steps_are_asked_for_less_often() -> None:
    history = History()
    stepping = Stepping.__new__(Stepping)
    stepping._mirror = SimpleNamespace(  # type: ignore[assignment]
        histories=[history], state=State(branch="main")
    )
    paces = [stepping._pace()]
    for step, seconds in enumerate((0.03, 0.2, 3.0), 1):
        history.append("main", {"step": float(step), "seconds": seconds})
        paces.append(stepping._pace())
    assert paces == [0.05, 0.05, 0.1, 0.25]
