"""Fine-tuning on one rank: examples, batches, adapters in mlx-lm's format, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import mlx_lm
import numpy as np
import pytest
from disks import small_disk
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten
from mlx_lm.tuner.datasets import CacheDataset, load_local_dataset
from mlx_lm.tuner.trainer import default_loss, iterate_batches
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlxbench_kernel.errors import StorageError, UsageError
from mlxbench_kernel.models import Part, datasets, fusing, generate, load
from mlxbench_kernel.models.batching import TrainingBatches, padded, trained_tokens
from mlxbench_kernel.models.generating import Generation
from mlxbench_kernel.models.options import Options
from mlxbench_kernel.models.small import make_small_model
from mlxbench_kernel.models.tuning import Tuning, finetune

TEXT = "\n".join(f"The quick brown fox jumps over {number} lazy dogs." for number in range(60))
QUICK: dict[str, Any] = {"compile": False, "validate_every": 0}  # compiling takes seconds on a CPU
ONE = mx.distributed.init()
pytestmark = pytest.mark.usefixtures("nothing_protected")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_model(tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "quantized"
    return make_small_model(place, num_hidden_layers=2, bits=4)


@pytest.fixture
def part(llama: Path) -> Part:
    return load(llama)


def written(folder: Path, name: str, records: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder


COMPLETIONS = [
    {"prompt": "a" * (number % 7 + 1), "completion": "b" * (3 * number + 1)} for number in range(11)
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": each["prompt"]},
            {"role": "assistant", "content": each["completion"]},
        ]
    }
    for each in COMPLETIONS
]
TEXTS = [{"text": each["prompt"] + each["completion"]} for each in COMPLETIONS]


# -- examples ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "mask"),
    [(COMPLETIONS, False), (COMPLETIONS, True), (CHATS, False), (CHATS, True), (TEXTS, False)],
)
def test_examples_and_batches_are_those_of_mlx_lm(
    part: Part, tmp_path: Path, records: list[Any], mask: bool
) -> None:
    folder = written(tmp_path / "data", "train", records)
    written(folder, "valid", records[:4])
    config = Options(mask_prompt=mask)
    theirs = [CacheDataset(each) for each in load_local_dataset(folder, part.tokenizer, config)[:2]]
    found = datasets.read(str(folder), part.tokenizer, mask_prompt=mask)
    for name, dataset in zip(("train", "valid"), theirs, strict=True):
        assert len(found[name]) == len(dataset)
        for number in range(len(dataset)):
            tokens, offset = dataset[number]
            assert found[name].tokens[number].tolist() == list(tokens)
            assert found[name].offsets[number] == offset
    assert len(found["test"]) == 0

    ours = TrainingBatches(found["train"], 4, 40, 5, ONE)
    pairs = [theirs[0][number] for number in range(len(records))]
    expected = iterate_batches(pairs, 4, 40, loop=True, seed=5)
    for number in range(7):
        tokens, lengths = next(expected)
        batch = ours(number)
        assert mx.array_equal(batch[0], tokens) and mx.array_equal(batch[1], lengths)
    assert all(mx.array_equal(a, b) for a, b in zip(ours(6), batch, strict=True))


def test_the_loss_is_that_of_mlx_lm(part: Part) -> None:
    from mlxbench_kernel.models.losses import loss_of

    found = datasets.read(COMPLETIONS, part.tokenizer, mask_prompt=True)["train"]
    batches = TrainingBatches(found, 4, 48, 0, ONE)
    for number in range(2):
        batch = batches(number)
        loss, count = default_loss(part.model, *batch[:2])
        assert batch[2].item() == count.item()
        assert loss_of(part.model, *batch).item() == loss.item()
    assert not part.model.training


class OfSize:
    """As far as batches ask: a group."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = lambda: rank, lambda: size


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_share_a_batch_by_its_tokens(part: Part, accumulate: int) -> None:
    found = datasets.read(COMPLETIONS, part.tokenizer)["train"]
    whole = TrainingBatches(found, 4, 40, 0, ONE, accumulate)
    halves: list[Any] = [
        TrainingBatches(found, 4, 40, 0, OfSize(rank, 2), accumulate)  # type: ignore[arg-type]
        for rank in (0, 1)
    ]
    for number in range(0, 4, accumulate):
        rows, counts = [], []
        for each in range(number, number + accumulate):
            numbers = whole.examples_of(each)
            for rank in (0, 1):
                tokens, lengths, share = halves[rank](each)
                expected = padded(found, numbers[rank::2], 40)
                assert np.array_equal(np.array(tokens), expected[0])
                assert np.array_equal(np.array(lengths), expected[1])
                rows.append(float(share.item()))
                counts.append(trained_tokens(found, numbers[rank::2], 40))
        assert len(set(counts)) > 1  # else this would say little
        assert set(rows) == {sum(counts) / 2 / accumulate}


def test_a_text_is_cut_into_pieces_that_miss_no_token(part: Part, tmp_path: Path) -> None:
    file = tmp_path / "some.txt"
    file.write_text(TEXT)
    for data in (TEXT, str(file), file):
        found = datasets.read(data, part.tokenizer)
        pieces = [*found["train"].tokens, *found["valid"].tokens]
        assert len(found["valid"]) == len(pieces) // 10 > 0
        joined = [pieces[0][0], *(token for piece in pieces for token in piece[1:])]
        assert part.tokenizer.decode(joined) == TEXT
    # Nothing is trained to come after a piece: as many losses as there are tokens to predict.
    assert trained_tokens(found["train"], [0], 2048) == len(pieces[0]) - 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"text": "a"}', '{"text": '], "train.jsonl, line 2: this is no JSON"),
        (['{"text": "a"}', "", '{"txt": "b"}'], "train.jsonl, line 3: there is no 'text'"),
        (['{"text": "a"}', '{"text": ""}'], "train.jsonl, line 2: 'text' is empty"),
        (['{"text": 5}'], "train.jsonl, line 1: it cannot be made into tokens"),
        (['{"words": "a"}'], "train.jsonl, line 1: each example is a dict with 'messages'"),
        (['{"messages": [5]}'], "train.jsonl, line 1: 'messages' is no list of dicts with a role"),
        (['{"messages": "Hi"}'], "train.jsonl, line 1: 'messages' is no list of dicts with a role"),
        (['{"messages": []}'], "train.jsonl, line 1: 'messages' is no list of dicts with a role"),
        ([], "has nothing to train on: put at least 4 examples into it"),
    ],
)
def test_a_line_that_is_wrong_is_named(
    part: Part, tmp_path: Path, lines: list[str], said: str
) -> None:
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(UsageError, match=said):
        finetune(part, tmp_path)
    assert part.tuning is None
    assert not any("lora" in name for name, _ in tree_flatten(part.model.parameters()))


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ("nowhere", {}, "there is no folder or file nowhere"),
        (TEXT, {"mask_prompt": True}, "mask_prompt is for prompts, and plain text has none"),
        (TEXTS, {"mask_prompt": True}, "mask_prompt is for prompts, and these are texts"),
        ({"train": TEXTS, "dev": TEXTS}, {}, "data has the key 'dev': its keys are train, valid"),
        (TEXTS, {"batch_size": 12}, "there are 11 examples to train on and batch_size=12"),
        (TEXTS, {"method": "lore"}, "method='lore' is not known: type 'lora', 'dora', 'full'"),
        (TEXTS, {"optimizer": "adm"}, "optimizer='adm' is not known: type 'adam', 'adamw'"),
        (TEXTS, {"keys": ["self_attn.q_prj"]}, "there is no layer 'self_attn.q_prj' to put"),
        (TEXTS, {"keys": "q_proj"}, "type a list of paths, as"),
        (TEXTS, {"num_layers": 3}, "num_layers=3, and the model has 2 layers"),
        (TEXTS, {"ranks": 3}, "ranks is not an option of finetune: did you mean rank"),
        (TEXTS, {"learning_rate": 0}, "learning_rate=0: type a number above 0"),
        (TEXTS, {"lr_schedule": {"name": "cosin"}}, "is none of mlx-lm's"),
        (TEXTS, {"lr_schedule": "cosine"}, "lr_schedule='cosine': type a dict"),
        (TEXTS, {"seed": -1}, "seed=-1: type a whole number, 0 or more"),
        (TEXTS, {"clip": 0}, "clip=0: type a number above 0"),
        (TEXTS, {"optimizer_config": {"beta": 1}}, "is not what adam takes"),
        (TEXTS, {"grad_checkpoint": True, "dropout": 0.1}, "leave one of the two out"),
    ],
)
def test_what_is_refused(part: Part, data: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        finetune(part, data, **options)
    assert part.tuning is None


def test_what_is_refused_keeps_what_was_tuned_before(part: Part) -> None:
    made = finetune(part, TEXTS, **QUICK)
    made.stepper.run(1)
    for options in ({"lr_schedule": {"name": "cosin"}}, {"optimizer_config": {"beta": 1}}):
        with pytest.raises(UsageError):
            finetune(part, TEXTS, **QUICK, **options)
    assert part.tuning is made
    made.stepper.run(1)
    assert made.stepper.step == 2


def test_quantized_weights_are_not_trained_themselves(quantized: Path) -> None:
    with pytest.raises(UsageError, match="type method='lora' or 'dora'"):
        finetune(load(quantized), TEXT, method="full")


def test_what_is_cut_is_said(part: Part) -> None:
    made = finetune(part, TEXTS, max_seq_length=16, **QUICK)
    assert made.notes[0].startswith("7 of 11 examples are longer than 16 tokens and are cut")
    assert "3 of 11 examples fill no batch" in made.notes[1]
    assert all(made.batches(number)[0].shape[1] == 16 for number in range(2))


# -- training ---------------------------------------------------------------------------------


def by_mlx_lm(folder: Path, tuning: Tuning, steps: int) -> dict[str, mx.array]:
    """The adapters after so many steps of mlx-lm's, from the same beginning and batches."""
    model: Any = mlx_lm.load(str(folder))[0]
    mx.random.seed(tuning.options.seed)
    model.freeze()
    config: Any = tuning.options.layer_parameters
    assert tuning.options.num_layers is not None
    linear_to_lora_layers(
        model, tuning.options.num_layers, config, use_dora=tuning.options.method == "dora"
    )
    optimizer = optim.Adam(tuning.options.learning_rate)
    model.train()
    step = value_and_grad(model, default_loss)
    for number in range(steps):
        _, gradients = step(model, *tuning.batches(number)[:2])
        optimizer.update(model, gradients)
        mx.eval(model.state, optimizer.state)
    return dict(tree_flatten(model.trainable_parameters()))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_steps_are_those_of_mlx_lm(part: Part, llama: Path, method: str) -> None:
    made = finetune(part, COMPLETIONS, method=method, learning_rate=1e-3, seed=3, **QUICK)
    made.stepper.run(4)
    found = dict(tree_flatten(part.model.trainable_parameters()))
    expected = by_mlx_lm(llama, made, 4)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert mx.allclose(found[name], array, rtol=1e-5, atol=1e-6), name


def test_layers_computed_again_give_the_same(part: Part) -> None:
    losses = []
    for again in (False, True):
        made = finetune(part, COMPLETIONS, learning_rate=1e-3, grad_checkpoint=again, **QUICK)
        made.stepper.run(3)
        losses.append(made.stepper.history.last("main")["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    made.end()
    assert type(part.model.layers[0]) is type(load(part.folder).model.layers[0])


def test_generating_is_of_the_weights_of_now_without_dropout(part: Part) -> None:
    before = generate(part, "The quick", 16, keep="chat")
    made = finetune(part, TEXT, learning_rate=5e-3, dropout=0.3, **QUICK)
    assert generate(part, "The quick", 16) == before
    made.stepper.run(12)
    after = generate(part, "The quick", 16)
    assert after != before and generate(part, "The quick", 16) == after
    # A cache that was kept of other weights is not used.
    first = Generation(part, "The quick", 16, keep="chat")
    assert "".join(piece.text for piece in first) == after
    made.stepper.to(0)
    again = Generation(part, "The quick", 16, keep="chat")
    assert "".join(piece.text for piece in again) == before


def test_a_run_is_validated_on_the_way(part: Part) -> None:
    options = {**QUICK, "validate_every": 4}
    made = finetune(part, TEXT, learning_rate=2e-3, **options)
    before = made.validate()
    stop = made.stepper.run(until="validation_loss < 5")
    assert "validation_loss < 5 holds" in stop.text and made.stepper.step % 4 == 0
    after = made.validate()
    assert after.loss < 5 < before.loss and after.tokens == before.tokens
    steps, values = made.stepper.history.series("main", "validation_loss")
    assert steps.tolist() == list(range(4, made.stepper.step + 1, 4))
    assert values[-1] == pytest.approx(after.loss)
    with pytest.raises(UsageError, match=r"there are no test examples: put test\.jsonl beside"):
        made.validate("test")


# -- adapters ---------------------------------------------------------------------------------


def text_of_mlx_lm(folder: Path, adapters: Path | None = None) -> str:
    path = None if adapters is None else str(adapters)
    model, tokenizer = mlx_lm.load(str(folder), adapter_path=path)[:2]
    return "".join(
        each.text for each in mlx_lm.stream_generate(model, tokenizer, "The quick", max_tokens=16)
    )


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_mlx_lm_reads_what_is_saved_and_fused(
    part: Part, llama: Path, tmp_path: Path, method: str
) -> None:
    before = generate(part, "The quick", 16)
    made = finetune(part, TEXT, method=method, learning_rate=3e-3, **QUICK)
    made.stepper.run(8)
    after = generate(part, "The quick", 16)
    assert after != before
    made.save(tmp_path / "adapters")
    assert text_of_mlx_lm(llama, tmp_path / "adapters") == after
    assert generate(load(llama, adapter=tmp_path / "adapters"), "The quick", 16) == after
    fusing.fuse(part, tmp_path / "fused")
    assert generate(part, "The quick", 16) == after
    assert text_of_mlx_lm(tmp_path / "fused") == after
    with pytest.raises(UsageError, match="there is something in"):
        fusing.fuse(part, tmp_path / "fused")
    made.stepper.run(1)  # the modules are still those that are tuned


def test_a_quantized_model_is_fused_to_floats(quantized: Path, tmp_path: Path) -> None:
    part = load(quantized)
    made = finetune(part, TEXT, learning_rate=3e-3, **QUICK)
    made.stepper.run(4)
    after = generate(part, "The quick", 16)
    fusing.fuse(part, tmp_path / "fused", dequantize=True)
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    assert "quantization" not in config and "quantization" in part.config
    assert text_of_mlx_lm(tmp_path / "fused") == after


def test_a_run_goes_on_from_what_it_saved(part: Part, llama: Path, tmp_path: Path) -> None:
    options = {**QUICK, "learning_rate": 2e-3, "dropout": 0.2, "batch_size": 3, "seed": 4}
    made = finetune(part, COMPLETIONS, **options)
    made.stepper.run(4)
    made.save(tmp_path / "adapters")
    made.stepper.run(3)
    expected = dict(tree_flatten(part.model.trainable_parameters()))
    losses = made.stepper.history.series("main", "loss")[1][-3:]

    other = load(llama)
    again = finetune(other, COMPLETIONS, resume=tmp_path / "adapters", compile=False)
    assert again.options == made.options and again.stepper.step == 4
    again.stepper.run(3)
    found = dict(tree_flatten(other.model.trainable_parameters()))
    assert np.array_equal(again.stepper.history.series("main", "loss")[1], losses)
    assert all(mx.array_equal(found[name], array) for name, array in expected.items())
    with pytest.raises(UsageError, match=r"rank=4 was 8 in what is gone on from: leave it out"):
        finetune(other, COMPLETIONS, resume=tmp_path / "adapters", rank=4)


def test_a_run_goes_on_from_adapters_of_mlx_lm(part: Part, tmp_path: Path) -> None:
    made = finetune(part, COMPLETIONS, rank=4, learning_rate=2e-3, **QUICK)
    made.stepper.run(3)
    after = generate(part, "The quick", 16)
    made.save(tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    for name in ("adapters.safetensors", "adapter_config.json"):
        (tmp_path / "theirs" / name).write_bytes((tmp_path / "ours" / name).read_bytes())
    again = finetune(part, COMPLETIONS, resume=tmp_path / "theirs", compile=False)
    assert again.options.rank == 4 and again.stepper.step == 0
    assert generate(part, "The quick", 16) == after
    with pytest.raises(UsageError, match=r"there is no adapter_config\.json in"):
        finetune(part, COMPLETIONS, resume=tmp_path)


def test_what_does_not_go_leaves_what_was_tuned(part: Part, tmp_path: Path) -> None:
    small = load(make_small_model(tmp_path / "small", num_hidden_layers=2, hidden_size=64))
    finetune(small, COMPLETIONS, **QUICK).save(tmp_path / "small-adapters")
    made = finetune(part, COMPLETIONS, learning_rate=2e-3, **QUICK)
    made.stepper.run(3)
    after = generate(part, "The quick", 16)
    with pytest.raises(UsageError, match=r"of shape .* and this model of shape"):
        finetune(part, COMPLETIONS, resume=tmp_path / "small-adapters", compile=False)
    assert part.tuning is made and generate(part, "The quick", 16) == after
    made.stepper.run(1)


def test_another_run_begins_with_the_model_itself(part: Part, tmp_path: Path) -> None:
    before = generate(part, "The quick", 16)
    for rank in (8, 4):
        made = finetune(part, TEXT, rank=rank, learning_rate=3e-3, **QUICK)
        assert generate(part, "The quick", 16) == before
        made.stepper.run(2)
    made.end()
    assert generate(part, "The quick", 16) == before and part.tuning is None


def test_adapters_that_were_loaded_are_taken_off_or_gone_on_from(
    part: Part, llama: Path, tmp_path: Path
) -> None:
    before = generate(part, "The quick", 16)
    made = finetune(part, TEXT, learning_rate=3e-3, **QUICK)
    made.stepper.run(4)
    after = generate(part, "The quick", 16)
    made.save(tmp_path / "adapters")
    other = load(llama, adapter=tmp_path / "adapters")
    assert generate(other, "The quick", 16) == after
    note = finetune(other, TEXT, **QUICK).notes[-1]
    assert note == (
        f"the adapters of {tmp_path / 'adapters'} are off: type "
        f"resume='{tmp_path / 'adapters'}' to go on from them"
    )
    assert generate(other, "The quick", 16) == before
    finetune(other, TEXT, resume=tmp_path / "adapters")
    assert generate(other, "The quick", 16) == after


def test_a_full_disk_leaves_the_old_adapters(part: Part, tmp_path: Path) -> None:
    made = finetune(part, TEXT, rank=2, **QUICK)

    def files() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in place.iterdir()}

    with small_disk(tmp_path / "disk", 900) as disk:
        place = disk.folder / "adapters"
        made.save(place)
        old = files()
        made.stepper.run(1)
        disk.fill()
        with pytest.raises(StorageError, match=f"cannot write {place}.*the disk is full"):
            made.save(place)
        assert files() == old
        with pytest.raises(StorageError, match="the disk is full"):
            fusing.fuse(part, disk.folder / "fused")
        assert {each.name for each in disk.folder.iterdir()} == {"adapters", "filler"}


def test_other_files_are_not_overwritten(part: Part, tmp_path: Path) -> None:
    made = finetune(part, TEXT, **QUICK)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is a folder of other files"):
        made.save(tmp_path)


def test_compiled_steps_go_back_exactly(part: Part) -> None:
    made = finetune(part, COMPLETIONS[:4], validate_every=0, keys=["mlp.up_proj"])

    def bits() -> list[Any]:
        return [np.array(array) for _, array in tree_flatten(part.model.trainable_parameters())]

    made.stepper.run(3)
    after = bits()
    made.stepper.back(2)
    made.stepper.run(2)
    assert all(np.array_equal(one, other) for one, other in zip(after, bits(), strict=True))
