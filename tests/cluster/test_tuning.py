"""Fine-tuning on two ranks: as one rank with the whole batch, stepped, saved and resumed."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from disks import small_disk
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from mlx.utils import tree_flatten
from running import until

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import StorageError, UsageError
from mlxbench_kernel.models import generate, load
from mlxbench_kernel.models.small import make_small_model
from mlxbench_kernel.models.tuning import finetune
from mlxbench_kernel.remote.language_model import ModelOnRanks
from mlxbench_kernel.remote.tuning import finetune as finetune_on_ranks
from mlxbench_kernel.remote.tuning import fuse, save, validate

# Of such lengths that the two examples of a rank never have as many tokens as the other's.
EXAMPLES = [
    {"prompt": "q" * (number % 5 + 1), "completion": "abcdefg "[number % 8] * (5 * number + 1)}
    for number in range(12)
]
QUICK: dict[str, Any] = {"compile": False, "validate_every": 0, "learning_rate": 2e-3}
PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_model(tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def lm(ranks: Cluster, folder: Path) -> ModelOnRanks:
    return ModelOnRanks.load(folder, "data", cluster=ranks)


def adapters(ranks: Cluster) -> dict[str, Any]:
    """The adapters of the ranks, which have to be the same."""
    code = (
        "import mlx.utils\n"
        "found = dict(mlx.utils.tree_flatten(lm.model.trainable_parameters()))\nmx.eval(found)"
    )
    with ranks.between():
        assert not ranks.execute(code).errors
        found = ranks.pull("found")
    for name, array in found[0].items():
        assert mx.array_equal(found[1][name], array), name
    return dict(found[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"mask_prompt": True}, {"method": "dora"}, {"grad_accumulation_steps": 2}],
    ids=["lora", "masked", "dora", "accumulated"],
)
def test_two_ranks_follow_one_with_the_whole_batch(
    ranks: Cluster, lm: ModelOnRanks, folder: Path, options: dict[str, Any]
) -> None:
    # Adam makes of a gradient that is nearly 0 a step as large as any other.
    options = {**QUICK, "optimizer": "sgd", "learning_rate": 0.05, **options}
    made = finetune_on_ranks(lm, EXAMPLES, **options)
    made.stepping.step(6)
    alone = load(folder)
    one = finetune(alone, EXAMPLES, **options)
    one.stepper.run(6)
    expected: Any = dict(tree_flatten(alone.model.trainable_parameters()))
    found = adapters(ranks)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        apart = mx.linalg.norm(found[name] - array) / mx.linalg.norm(array)
        assert apart.item() < 1e-4, name
    ours, theirs = made.stepping.histories[0], one.stepper.history
    assert np.allclose(ours.series("main", "loss")[1], theirs.series("main", "loss")[1], rtol=1e-4)
    # What ranks' means of their own tokens give, as mlx-lm has it, is another course.
    shares = [one.batches(number)[1] for number in range(3)]
    assert any(int(each[::2, 1].sum()) != int(each[1::2, 1].sum()) for each in shares)


def test_validation_is_split_and_the_same(lm: ModelOnRanks, folder: Path) -> None:
    data = {"train": EXAMPLES, "valid": EXAMPLES[:7]}  # which two ranks do not divide
    options = {**QUICK, "validate_every": 2, "val_batches": -1}
    made = finetune_on_ranks(lm, data, **options)
    alone = load(folder)
    one = finetune(alone, data, **options)
    assert validate(lm).loss == pytest.approx(one.validate().loss, rel=1e-5)
    assert validate(lm).tokens == one.validate().tokens
    made.stepping.step(4)
    one.stepper.run(4)
    for history in made.stepping.histories:
        steps, values = history.series("main", "validation_loss")
        assert steps.tolist() == [2, 4]
        assert np.allclose(values, one.stepper.history.series("main", "validation_loss")[1], 1e-3)
    assert validate(lm).step == 4 and "validation_loss" in made.stepping.state.measured
    with pytest.raises(UsageError, match="there are no test examples"):
        validate(lm, "test")


def test_steps_back_and_branches_are_exact(ranks: Cluster, lm: ModelOnRanks) -> None:
    made = finetune_on_ranks(lm, EXAMPLES, dropout=0.2, **QUICK)
    stepping = made.stepping
    stepping.step(6)
    after = adapters(ranks)
    stepping.back(4)
    stepping.branch("other")
    stepping.set(learning_rate=1e-4)
    stepping.step(4)
    other = adapters(ranks)
    stepping.switch("main")
    stepping.to(2)
    stepping.step(4)
    again = adapters(ranks)
    assert all(mx.array_equal(again[name], array) for name, array in after.items())
    assert any(not mx.array_equal(other[name], array) for name, array in after.items())


def test_what_is_tuned_is_generated_saved_and_resumed(
    ranks: Cluster, lm: ModelOnRanks, folder: Path, tmp_path: Path
) -> None:
    made = finetune_on_ranks(lm, EXAMPLES, dropout=0.2, **QUICK)
    before = lm.generate_on_ranks(PROMPT, 16).text
    made.stepping.step(8)
    after = lm.generate_on_ranks(PROMPT, 16).text
    assert before == generate(load(folder), PROMPT, 16) != after
    assert save(lm, tmp_path / "adapters") == tmp_path / "adapters"
    assert generate(load(folder, adapter=tmp_path / "adapters"), PROMPT, 16) == after
    fuse(lm, tmp_path / "fused")
    assert generate(load(tmp_path / "fused"), PROMPT, 16) == after
    made.stepping.step(3)
    expected = adapters(ranks)
    again = finetune_on_ranks(lm, EXAMPLES, resume=tmp_path / "adapters", compile=False)
    assert again.step == 8 and again.stepping is made.stepping
    again.stepping.step(3)
    found = adapters(ranks)
    assert all(mx.array_equal(found[name], array) for name, array in expected.items())


def test_a_rank_that_is_killed_comes_back_with_model_and_tuning(folder: Path) -> None:
    options = {**QUICK, "optimizer": "sgd", "learning_rate": 0.05}
    cluster = Cluster.up(2, seed=7)
    try:
        lm = ModelOnRanks.load(folder, "data", cluster=cluster)
        made = finetune_on_ranks(lm, EXAMPLES, **options)
        made.stepping.step(3)
        os.kill(cluster.info.ranks[1].pid, signal.SIGKILL)
        until(lambda: 1 not in cluster.living())
        said: list[str] = []
        cluster.heal(tell=said.append)
        assert not any("failed" in each or "has no" in each for each in said), said
        made.stepping.step(3)
        adapters(cluster)
        one = finetune(load(folder), EXAMPLES, **options)
        one.stepper.run(6)
        for history in made.stepping.histories:
            losses = history.series("main", "loss")[1]
            assert np.allclose(losses, one.stepper.history.series("main", "loss")[1], rtol=1e-4)
        assert lm.generate_on_ranks(PROMPT, 8).figures["tokens"] == 8
        lm.forget()
        assert not any("on_model" in cell for cell in cluster.setup.cells)
    finally:
        cluster.down()


def test_a_tuned_model_that_is_forgotten_gives_its_memory_back(
    ranks: Cluster, folder: Path
) -> None:
    look = "import gc\ngc.collect()\nmx.clear_cache()\nactive = mx.get_active_memory()"

    def active() -> dict[int, int]:
        with ranks.between():
            assert not ranks.execute(look).errors
            found: dict[int, int] = ranks.pull("active")
        return found

    before = active()
    own = ModelOnRanks.load(folder, "data", cluster=ranks, name="tuned")
    finetune_on_ranks(own, EXAMPLES, **QUICK).stepping.step(3)
    held = min(active()[rank] - before[rank] for rank in before)
    own.forget()
    # Half a megabyte stays, which no object of Python holds, and no more after many such rounds.
    assert max(active()[rank] - before[rank] for rank in before) < held / 4


def test_what_is_refused_trains_nothing(
    ranks: Cluster, lm: ModelOnRanks, folder: Path, tmp_path: Path
) -> None:
    def said(data: Any, **options: Any) -> str:
        with pytest.raises(UsageError) as caught:
            finetune_on_ranks(lm, data, **{**QUICK, **options})
        return str(caught.value)

    assert "3 is of all ranks together, and 2 ranks do not divide it: type batch_size=2 or 4" in (
        said(EXAMPLES, batch_size=3)
    )
    wrong = tmp_path / "train.jsonl"
    wrong.write_text(json.dumps({"text": "a"}) + "\n{wrong}\n")
    assert f"{wrong}, line 2: this is no JSON" in said(tmp_path)
    # Each rank has a folder of its own under the same path, as hosts have.
    code = (
        "import os, pathlib\n"
        f"home = pathlib.Path({str(tmp_path)!r}) / f'home-{{rank}}'\nhome.mkdir()\n"
        "(home / 'some.txt').write_text('line\\n' * (300 + rank))\nos.chdir(home)"
    )
    assert not ranks.execute(code).errors
    assert "the train examples of rank 1 are not those of rank 0" in said("some.txt")
    assert "data cannot be told to the ranks (it is a int)" in said(5)
    split = ModelOnRanks.load(folder, "tensor", cluster=ranks, name="split")
    with pytest.raises(UsageError, match=r"is split \(tensor\): load it again with .*shard='data'"):
        finetune_on_ranks(split, EXAMPLES)
    with pytest.raises(UsageError, match=r"load it again with .*shard='data'"):
        fuse(split, tmp_path / "fused")
    with pytest.raises(UsageError, match=r"was not tuned yet: type lm\.finetune"):
        validate(split)


def test_a_full_disk_of_rank_0_leaves_the_old_adapters(lm: ModelOnRanks, tmp_path: Path) -> None:
    made = finetune_on_ranks(lm, EXAMPLES, rank=2, **QUICK)
    with small_disk(tmp_path / "disk", 900) as disk:
        place = disk.folder / "adapters"
        save(lm, place)
        before = {file.name: file.read_bytes() for file in place.iterdir()}
        made.stepping.step(1)
        disk.fill()
        with pytest.raises(StorageError, match=r"rank 0: cannot write .*the disk is full"):
            save(lm, place)
        assert {file.name: file.read_bytes() for file in place.iterdir()} == before
    made.stepping.step(1)


# -- as a notebook has it -----------------------------------------------------------------------


def test_magics_and_dashboard_drive_it(shell: InteractiveShell, folder: Path) -> None:
    from mlxbench_kernel import LanguageModel

    lm = LanguageModel.load(folder, "data")
    data = {"train": EXAMPLES, "valid": EXAMPLES[:4]}
    with capture_output() as captured:
        view = lm.finetune(data, steps=4, **{**QUICK, "validate_every": 2})
    assert "lora: " in captured.stdout and "12 train, 4 valid" in captured.stdout
    assert "valid, step 0: loss " in captured.stdout
    try:
        assert repr(view).startswith("Stepper of 2 ranks: step 4 of main, paused, loss ")
        with capture_output() as captured:
            shell.run_line_magic("mlx_step", "back 2")
        assert captured.stdout.startswith("step 2 · branch main")
        # While it plays, what generates comes between two steps, and it goes on.
        view.stepping.play()
        until(lambda: view.stepping.state.step > 6)
        with capture_output():
            assert lm.generate(PROMPT, 8).finish == "length"
        step = view.stepping.state.step
        until(lambda: view.stepping.state.step > step)
        view.stepping.pause()
        # A run that is begun anew begins at 0, and is paused.
        view.stepping.play()
        with capture_output():
            other = lm.finetune(data, **QUICK)
        assert other.stepping is view.stepping
        assert other.stepping.state.step == 0 and not other.stepping.state.playing
        other.close()
    finally:
        view.close()


def test_ctrl_c_pauses_between_two_steps(shell: InteractiveShell, folder: Path) -> None:
    from mlxbench_kernel import LanguageModel

    lm = LanguageModel.load(folder, "data")
    begun = threading.Event()

    def interrupt() -> None:
        assert begun.wait(30)
        signal.raise_signal(signal.SIGINT)

    with capture_output():
        view = lm.finetune(EXAMPLES, **QUICK)
    unwatch = view.stepping.watch(lambda: begun.set() if view.stepping.state.step > 2 else None)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with capture_output(), pytest.raises(KeyboardInterrupt):
            shell.run_line_magic("mlx_step", "100000")
        thread.join()
        assert not view.stepping.state.playing and view.stepping.state.step > 2
        assert lm.generate_on_ranks(PROMPT, 8).finish == "length"
    finally:
        unwatch()
        view.close()
    lm.forget()
    with pytest.raises(UsageError, match="no stepper"):
        view.stepping.step(1)
