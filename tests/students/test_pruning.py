"""Pruned students: what is measured, what goes first, and that nothing changes where nothing is removed."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from calibration_cases import CASES as TASK_CASES
from calibration_cases import measured_task
from prepared import dataset, refused
from runs import run, same, weights
from student_models import CAUSAL, CLASSIFY, MASKED, SEQ2SEQ, logits, make_teacher, make_two_stacks
from transformers import PreTrainedModel

from hf_distill.models.calibration import CalibrationRows
from hf_distill.models.dense import Dense
from hf_distill.models.layers import find_stacks
from hf_distill.models.loading import Head
from hf_distill.models.pooling import Encoding
from hf_distill.models.sentence_encoder import sentence_encoder
from hf_distill.rows import ExampleRows, TokenRows
from hf_distill.students import PruneDepth, PruneWidth
from hf_distill.students.importance import measure
from hf_distill.students.influence import influence, loss_without
from hf_distill.students.widths import ARCHITECTURES, architecture_of, widths_of

GROUPED = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_attention_heads": 4},
    "roberta": {"hidden_size": 32, "num_attention_heads": 4},
    "distilbert": {"hidden_size": 32, "num_attention_heads": 4, "hidden_dim": 48},
    "llama": {**GROUPED, "tie_word_embeddings": True},
    "mistral": {**GROUPED, "head_dim": 16, "sliding_window": 3},
    "qwen2": {**GROUPED, "tie_word_embeddings": True},
    "qwen3": {**GROUPED, "head_dim": 16},
}
GENERATES = ("llama", "mistral", "qwen2", "qwen3")
CASES = [(family, head) for family in SHAPES for head in (CLASSIFY, CAUSAL if family in GENERATES else MASKED)]
LENGTHS = (3, 4, 5, 7, 7, 9, 12, 2)


def whole_of(family: str, head: str = CLASSIFY, **changes: Any) -> PreTrainedModel:
    return make_teacher(family, head, **{"num_hidden_layers": 3, "layer_types": None, **SHAPES[family], **changes})


def rows_of(*lengths: int, batch_size: int = 3, pad_to: int | None = None, side: str = "right") -> CalibrationRows:
    """Return rows of random tokens, padded to the longest of a batch or to a length."""
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 50, (length,), generator=draw).tolist() for length in lengths]
    longest = max(lengths) if pad_to is None else pad_to

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        wide = max(len(row["input_ids"]) for row in rows) if pad_to is None else longest

        def padded(row: dict[str, Any], value: int | None) -> list[int]:
            own = row["input_ids"] if value is None else [value] * len(row["input_ids"])
            padding = [0] * (wide - len(own))
            return [*own, *padding] if side == "right" else [*padding, *own]

        return {
            "input_ids": torch.tensor([padded(row, None) for row in rows]),
            "attention_mask": torch.tensor([padded(row, 1) for row in rows]),
        }

    train = dataset(input_ids=ids)
    return CalibrationRows(train, collate, batch_size, labelled=False, layout=ExampleRows(kind="classes", width=3))


def made(entry: PruneWidth | PruneDepth, whole: PreTrainedModel, head: str = CLASSIFY, rows: Any = None) -> Any:
    return entry.made(whole, Head(head), rows or rows_of(*LENGTHS))


# --- nothing removed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "head"), CASES)
@pytest.mark.parametrize("entry", [PruneWidth(), PruneWidth(heads=1.0, intermediate=1.0, hidden=1.0), PruneDepth()])
def test_all_kept_is_the_whole_model(family: str, head: str, entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight in another place, or other settings, would only show as a student that starts worse than it could."""
    whole = whole_of(family, head)
    rows = rows_of(*LENGTHS)
    monkeypatch.setattr(CalibrationRows, "_batches", lambda *_: pytest.fail("measured, although nothing is removed"))
    student = made(entry, whole, head, rows).model
    ours, theirs = student.state_dict(), whole.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(logits(student), logits(whole))
    changed = {key for key, value in whole.config.to_dict().items() if student.config.to_dict().get(key) != value}
    assert changed <= {"dtype", "_name_or_path"}


# --- width ------------------------------------------------------------------------------------------------------------


def by_hand(whole: PreTrainedModel, over_tokens: str, over_rows: str) -> dict[str, list[list[float]]]:
    """Return the importances from plain loops in float64 over single rows without padding."""
    model = copy.deepcopy(whole).double().eval()
    names, sizes = architecture_of(whole.config), widths_of(whole.config)
    (layers,) = [layers for _, layers in find_stacks(model).values()]
    body = model.base_model
    norms = [
        module
        for name, module in body.named_modules()
        if name.endswith(("LayerNorm", "layer_norm", "layernorm")) or name == "norm"
    ]
    seen: dict[Any, list[torch.Tensor]] = {}

    def keep(key: Any) -> Any:
        return lambda module, args, output=None: seen.setdefault(key, []).append(
            args[0][0] if output is None else output[0]
        )

    for number, layer in enumerate(layers):
        layer.get_submodule(names.attended).register_forward_pre_hook(keep(("heads", number)))
        layer.get_submodule(names.down).register_forward_pre_hook(keep(("neurons", number)))
    for number, norm in enumerate(norms):
        norm.register_forward_hook(keep(("hidden", number)))
    for row in rows_of(*LENGTHS).train:
        with torch.no_grad():
            model(input_ids=torch.tensor([row["input_ids"]]))

    def total(values: list[float], how: str) -> float:
        return math.sqrt(sum(v * v for v in values)) if how == "l2" else sum(map(abs, values)) / len(values)

    found: dict[str, list[list[float]]] = {"heads": [], "neurons": [], "hidden": []}
    for (kind, _), rows in seen.items():
        parts = sizes.heads if kind == "heads" else rows[0].shape[-1]
        result = []
        for part in range(parts):
            each = []
            for row in rows:
                here = row.reshape(len(row), parts, -1)[:, part]
                each.append(total([math.sqrt(sum(x * x for x in token)) for token in here.tolist()], over_tokens))
            result.append(total(each, over_rows))
        found[kind].append(result)
    return found


@pytest.mark.parametrize(
    ("family", "over_tokens", "over_rows"),
    [("bert", "mean", "l2"), ("roberta", "l2", "mean"), ("distilbert", "l2", "l2"), ("qwen3", "mean", "mean")],
)
def test_importance_is_the_published_one(family: str, over_tokens: Any, over_rows: Any) -> None:
    """Padding that counts, or the wrong place in a layer: other parts would go, and only the metric would tell."""
    whole = whole_of(family)
    want = by_hand(whole, over_tokens, over_rows)
    wider = {"batch_size": 8, "pad_to": 20, "side": "left" if family == "qwen3" else "right"}
    for settings in ({}, {"batch_size": 1}, wider):
        rows = rows_of(*LENGTHS, **settings)
        with torch.no_grad():
            found = measure(whole, rows.batches(whole, 100), over_tokens, over_rows)
        assert found.rows == len(LENGTHS)
        for kind in ("heads", "neurons"):
            torch.testing.assert_close(
                getattr(found, kind), torch.tensor(want[kind], dtype=torch.float64), rtol=2e-5, atol=1e-6
            )
        hidden = torch.tensor(want["hidden"], dtype=torch.float64).sum(0)
        torch.testing.assert_close(found.hidden, hidden, rtol=2e-5, atol=1e-6)


def plant(whole: PreTrainedModel) -> None:
    """Make head 1 (in groups of two: of each group) and neurons 0, 2, 4, ... of each layer of a model do nothing."""
    names, sizes = architecture_of(whole.config), widths_of(whole.config)
    (layers,) = [layers for _, layers in find_stacks(whole).values()]
    grouped = sizes.heads > sizes.groups
    dead = [1, 3] if grouped else [1]
    with torch.no_grad():
        for layer in layers:
            attended, values = layer.get_submodule(names.attended), layer.get_submodule(names.values)
            for head in dead:
                place = slice(head * sizes.head_dim, (head + 1) * sizes.head_dim)
                if not grouped:
                    values.weight[place] = 0
                    if values.bias is not None:
                        values.bias[place] = 0
                attended.weight[:, place] = 0
            up = layer.get_submodule(names.up[0])
            up.weight[::2] = 0
            if up.bias is not None:
                up.bias[::2] = 0


@pytest.mark.parametrize(("family", "head"), CASES)
def test_neurons_that_do_nothing_go_first(family: str, head: str, tmp_path: Path) -> None:
    """A neuron that goes although it works, or one cut from one of its maps only, changes what the model computes."""
    whole = whole_of(family, head)
    plant(whole)
    result = made(PruneWidth(intermediate=0.5), whole, head)
    torch.testing.assert_close(logits(result.model), logits(whole), rtol=1e-5, atol=1e-6)
    before = widths_of(whole.config).intermediate
    assert result.facts["intermediate"] == {"before": before, "after": before // 2}
    assert result.facts["parameters"]["after"] == result.model.num_parameters() < whole.num_parameters()


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_heads_that_do_nothing_go_first(family: str) -> None:
    """A head without its own key and value attends to another head's tokens: finite, and wrong."""
    alone = whole_of(family, CAUSAL, num_key_value_heads=4)
    plant(alone)
    result = made(PruneWidth(heads=3), alone, CAUSAL)
    torch.testing.assert_close(logits(result.model), logits(alone), rtol=1e-5, atol=1e-6)
    assert result.facts["removed heads of each layer"] == [[1]] * 3
    config = result.model.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (3, 3)
    assert config.head_dim == alone.config.head_dim


def test_heads_of_a_group_go_evenly() -> None:
    """Of three heads that share a key the third would, with only one head cut, read the next group's key."""
    whole = whole_of("llama", CAUSAL)
    names, size = architecture_of(whole.config), widths_of(whole.config).head_dim
    (layers,) = [layers for _, layers in find_stacks(whole).values()]
    with torch.no_grad():
        for layer in layers:  # a group's heads are alike but for their length: heads 0 and 3 matter less
            attended, queries = layer.get_submodule(names.attended), layer.get_submodule(names.queries)
            for head in (0, 3):
                attended.weight[:, head * size : (head + 1) * size] = 0
            queries.weight.copy_(queries.weight)
    rows = rows_of(*LENGTHS)
    result = made(PruneWidth(heads=2), whole, CAUSAL, rows)
    with torch.no_grad():
        found = measure(whole, rows.batches(whole, 512), "mean", "l2").heads
    gone = [sorted(2 * group + int(pair.argmin()) for group, pair in enumerate(layer.reshape(2, 2))) for layer in found]
    assert result.facts["removed heads of each layer"] == gone
    assert result.model.config.num_key_value_heads == 2
    removed = copy.deepcopy(whole)
    (layers,) = [layers for _, layers in find_stacks(removed).values()]
    with torch.no_grad():
        for layer, heads in zip(layers, gone, strict=True):
            for head in heads:
                layer.get_submodule(names.attended).weight[:, head * size : (head + 1) * size] = 0
    torch.testing.assert_close(logits(result.model), logits(removed), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("family", "head"), CASES)
def test_narrower_in_every_way(family: str, head: str, tmp_path: Path) -> None:
    """A width that the configuration does not say is one that `from_pretrained` builds at random."""
    whole = whole_of(family, head)
    entry = PruneWidth(heads=2, intermediate=7, hidden=16)
    result = made(entry, whole, head)
    student = result.model
    planned = entry.config(whole.config)
    assert widths_of(planned) == widths_of(student.config)
    assert (student.config.hidden_size, student.config.num_attention_heads) == (16, 2)
    assert torch.isfinite(logits(student)).all()
    assert all(one.requires_grad and one.dtype == torch.float32 for one in student.parameters())
    student.save_pretrained(tmp_path)
    again, info = getattr(transformers, head).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(again.eval()), logits(student))
    twice = made(entry, whole, head).model.state_dict()
    assert all(torch.equal(value, twice[name]) for name, value in student.state_dict().items())
    kept = result.model.get_input_embeddings().weight.detach()
    (theirs,) = [whole.get_input_embeddings().weight.detach()]
    columns = [int((theirs == column[:, None]).all(0).nonzero()[0]) for column in kept.T]
    assert columns == sorted(set(columns))


def test_the_weakest_channels_go() -> None:
    """A hidden channel that carries nothing must not take the place of one that does."""
    whole = whole_of("llama", CAUSAL, tie_word_embeddings=True)
    with torch.no_grad():
        for name, module in whole.named_modules():
            if name.endswith("norm"):
                module.weight[::2] = 0
    student = made(PruneWidth(hidden=0.5), whole, CAUSAL).model
    assert torch.equal(student.get_input_embeddings().weight, whole.get_input_embeddings().weight[:, 1::2])
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("family", "entry", "sizes"),
    [
        ("bert", {"hidden": 0.5}, (2, 2, 8, 32, 16)),
        ("bert", {"hidden": 0.01}, (1, 1, 8, 32, 8)),
        ("bert", {"hidden": 24, "heads": 3, "intermediate": 0.25}, (3, 3, 8, 8, 24)),
        ("llama", {"heads": 0.5}, (2, 2, 8, 32, 32)),
        ("llama", {"heads": 0.1, "hidden": 0.3}, (2, 2, 8, 32, 10)),
        ("qwen3", {"heads": 0.6, "intermediate": 5}, (2, 2, 16, 5, 32)),
        ("llama", {"hidden": 0.3}, (4, 2, 8, 32, 8)),
    ],
)
def test_sizes_that_are_asked_for(family: str, entry: dict[str, Any], sizes: tuple[int, ...]) -> None:
    """A share is what is kept, of what there is, and never less than a head."""
    found = PruneWidth(**entry).widths(whole_of(family).config)
    assert (found.heads, found.groups, found.head_dim, found.intermediate, found.hidden) == sizes


@pytest.mark.parametrize(
    ("family", "entry", "key", "words"),
    [
        ("bert", {"heads": 2}, "heads", "Set hidden: 16"),
        ("bert", {"heads": 2, "hidden": 24}, "heads", "hidden width is 24"),
        ("bert", {"hidden": 20}, "hidden", "Set 16 or 24"),
        ("bert", {"hidden": 33}, "hidden", "the model has 32"),
        ("distilbert", {"intermediate": 49}, "intermediate", "the model has 48"),
        ("llama", {"heads": 5}, "heads", "the model has 4"),
        ("llama", {"heads": 3}, "heads", "Set 2 or 4"),
        ("llama", {"hidden": 30}, "hidden", "Set 28 or 32"),
        ("gpt2", {"intermediate": 0.5}, "name", "prune_depth"),
    ],
)
def test_impossible_widths_are_one_line(family: str, entry: dict[str, Any], key: str, words: str) -> None:
    """Transformers would build some of these models, with heads that read half of another head."""
    whole = make_teacher("gpt2") if family == "gpt2" else whole_of(family)
    found, line = refused(PruneWidth(**entry).config, whole.config)
    assert found == key
    assert words in line


def test_widths_that_the_class_refuses_are_refused_before_training() -> None:
    """Transformers refuses them when the trained student is saved: after hours, and with a traceback."""
    llama = transformers.LlamaConfig(hidden_size=54, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    key, line = refused(PruneWidth(heads=4).config, llama)
    assert key == "heads"
    assert "hidden size (54) is not a multiple" in line
    both = PruneWidth(heads=4, hidden=0.5).config(llama)
    assert (both.num_attention_heads, both.hidden_size) == (4, 28)


@pytest.mark.parametrize("field", ["heads", "intermediate", "hidden", "layers", "rows"])
@pytest.mark.parametrize("value", [0, -1, 0.0, -0.5, 1.5])
def test_nothing_kept_is_refused(field: str, value: float) -> None:
    """A share above one, or none, is a mistake about what a share is of: of what is kept."""
    _, line = refused(PruneDepth if field == "layers" else PruneWidth, **{field: value})
    assert f".{field}: " in line
    assert str(value) in line


# --- depth ------------------------------------------------------------------------------------------------------------


def make_idle(whole: PreTrainedModel, number: int) -> None:
    """Make a layer of a pre-norm model give its input."""
    (layers,) = [layers for _, layers in find_stacks(whole).values()]
    names = architecture_of(whole.config)
    with torch.no_grad():
        for projection in (names.attended, names.down):
            layers[number].get_submodule(projection).weight.zero_()


@pytest.mark.parametrize("by", ["influence", "loss"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_layer_that_does_nothing_goes_first(by: Any, family: str, tmp_path: Path) -> None:
    """The right number of the wrong layers is a student that is merely worse."""
    whole = whole_of(family, num_hidden_layers=5)
    for number in (1, 3):
        make_idle(whole, number)
    result = made(PruneDepth(layers=3, by=by), whole)
    assert result.facts["removed layers"] == [1, 3]
    assert result.facts["layers"] == {"before": 5, "after": 3}
    torch.testing.assert_close(logits(result.model), logits(whole), rtol=1e-5, atol=1e-6)
    result.model.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(result.model))


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "qwen3"])
def test_influence_is_the_published_one(family: str) -> None:
    """Padding has a cosine too: counted, short rows would decide which layer goes."""
    whole = make_teacher(family)
    model = copy.deepcopy(whole).double()
    (layers,) = [layers for _, layers in find_stacks(model).values()]
    want = [0.0] * len(layers)
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for number, layer in enumerate(layers):
        layer.register_forward_hook(
            lambda module, args, kwargs, output, number=number: seen.update(
                {number: ((args or (kwargs.get("hidden_states"),))[0][0], (output[0] if isinstance(output, tuple) else output)[0])}  # noqa: E501
            ),
            with_kwargs=True,
        )  # fmt: skip
    for row in rows_of(*LENGTHS).train:
        with torch.no_grad():
            model(input_ids=torch.tensor([row["input_ids"]]))
        for number, (before, after) in seen.items():
            for x, y in zip(before.tolist(), after.tolist(), strict=True):
                dot = sum(a * b for a, b in zip(x, y, strict=True))
                want[number] += 1 - dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    want = [one / sum(LENGTHS) for one in want]
    side = "left" if family in ("gpt2", "qwen3") else "right"
    for settings in ({}, {"batch_size": 1}, {"batch_size": 8, "pad_to": 15}):
        if family == "gpt2":  # its positions are counted with the padding
            settings["side"] = "right"
        with torch.no_grad():
            found = influence(whole, rows_of(*LENGTHS, **{"side": side, **settings}), 100)
        torch.testing.assert_close(list(found.of["layers"]), want, rtol=1e-4, atol=1e-6)
        assert found.rows == len(LENGTHS)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_loss_without_a_layer_is_that_of_the_model_without_it(family: str) -> None:
    """States that are stored for the wrong layer give a loss of no model at all."""
    whole = make_teacher(family)
    rows = rows_of(*LENGTHS, batch_size=2)
    with torch.no_grad():
        found = loss_without(whole, rows, 100)
    used = 2 * len(LENGTHS) // 7
    assert found.rows == used
    reference = copy.deepcopy(whole)
    place, layers = find_stacks(reference)["layers"]
    parent, _, name = place.rpartition(".")

    def predicted() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat(list(rows.predicted(reference, used))).double().log_softmax(-1)

    full = predicted()
    for number, loss in enumerate(found.of["layers"]):
        rest = torch.nn.ModuleList(layer for other, layer in enumerate(layers) if other != number)
        setattr(reference.get_submodule(parent), name, rest)
        if family in ("llama", "gpt2"):
            reference.config.use_cache = False
        want = float((full.exp() * (full - predicted())).sum(-1).mean())
        assert loss == pytest.approx(want, rel=1e-3, abs=1e-7)
    assert torch.equal(logits(whole), logits(whole))


@pytest.mark.parametrize("by", ["influence", "loss"])
@pytest.mark.parametrize("entry", [PruneDepth, PruneWidth])
def test_cost_is_one_forward_pass(entry: Any, by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving out each of L layers in turn would cost L passes over the rows, hours for a large teacher."""
    whole = make_teacher("bert") if entry is PruneDepth else whole_of("bert")
    (layers,) = [layers for _, layers in find_stacks(whole).values()]
    ran = 0

    def count(module: Any, forward: Any) -> Any:
        def run(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal ran
            ran += len(states)
            return forward(states, *args, **kwargs)

        return run

    for layer in layers:
        monkeypatch.setattr(layer, "forward", count(layer, layer.forward))
    student = PruneDepth(layers=2, by=by) if entry is PruneDepth else PruneWidth(intermediate=0.5)
    made(student, whole)
    assert 0 < ran <= len(layers) * len(LENGTHS)


@pytest.mark.parametrize("by", ["influence", "loss"])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_both_stacks_lose_layers(family: str, by: Any, tmp_path: Path) -> None:
    """One stack measured with the other's padding, or T5 without its first layers: it would not know word order."""
    whole = make_two_stacks(family)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        widest = max(len(row["input_ids"]) for row in rows)
        ids = torch.tensor([row["input_ids"] + [0] * (widest - len(row["input_ids"])) for row in rows])
        labels = torch.tensor([[5, 6, 1], [7, 1, -100]] * len(rows))[: len(rows)]
        inputs = torch.tensor([[0, 5, 6], [0, 7, 0]] * len(rows))[: len(rows)]
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels, "decoder_input_ids": inputs}

    rows = CalibrationRows(rows_of(*LENGTHS).train, collate, 3, labelled=True, layout=TokenRows())
    result = made(PruneDepth(layers=3, decoder_layers=2, by=by), whole, SEQ2SEQ, rows)
    facts = result.facts
    assert (facts["layers"]["after"], facts["decoder_layers"]["after"]) == (3, 2)
    if family == "t5":
        assert 0 not in facts["removed layers"]
        assert 0 not in facts["removed decoder_layers"]
    ids = {"decoder_input_ids": torch.tensor([[0, 9, 8, 7], [0, 6, 5, 4]])}
    assert torch.isfinite(logits(result.model, **ids)).all()
    result.model.save_pretrained(tmp_path)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, **ids), logits(result.model, **ids))
    assert torch.equal(logits(made(PruneDepth(), whole, SEQ2SEQ, rows).model, **ids), logits(whole, **ids))


def test_unlike_layers_stay() -> None:
    """ModernBERT's first layer has no norm: without it the student would start from noise."""
    whole = make_teacher("modernbert")
    result = made(PruneDepth(layers=1), whole)
    assert result.facts["removed layers"] == [1, 2, 3, 4, 5]
    assert refused(made, PruneDepth(layers=7), whole)[0] == "layers"


@pytest.mark.parametrize("entry", [PruneDepth(layers=1, by="loss"), PruneWidth(intermediate=4)])
def test_of_another_model_than_the_teacher(entry: Any, make_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Copied from the fine-tuned teacher all the same, a baseline would know what the teacher has learned."""
    base = make_model("bert-bare", layers=3, seed=3)
    named = dataclasses.replace(entry, model=str(base))
    result = named.made(whole_of("bert"), Head(CLASSIFY, {"num_labels": 3}), rows_of(*LENGTHS))
    theirs = transformers.AutoModel.from_pretrained(base)
    assert torch.equal(result.model.get_input_embeddings().weight, theirs.get_input_embeddings().weight)
    assert (named.vocabulary, named.copies_teacher) == (str(base), False)
    assert ("head" in caplog.text) == isinstance(entry, PruneDepth)  # its loss is that of a random head
    quantized = theirs.config
    quantized.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert "quantized" in refused(entry.config, quantized)[1]


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "kind"), TASK_CASES)
def test_every_task_is_measured(task: str, kind: str, make_model: Any) -> None:
    """Rows that a task shapes in its own way, such as two texts, would be told apart from padding wrongly, or not."""
    whole, head, rows = measured_task(task, kind, make_model)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    entries: list[PruneWidth | PruneDepth] = [PruneDepth(layers=1, by="influence"), PruneDepth(layers=1, by="loss")]
    if whole.config.model_type in ARCHITECTURES:
        entries.append(PruneWidth(intermediate=0.5, hidden=0.5))
    for entry in entries:
        model, facts = entry.made(whole, head, rows)
        assert facts["parameters"]["after"] == model.num_parameters()
        smaller = facts["parameters"]["after"] < facts["parameters"]["before"]
        assert smaller or whole.config.num_hidden_layers == 1
        for logits_ in rows.predicted(model, 4):
            assert logits_.isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


def test_dense_layers_after_the_pooling_stay(make_model: Any) -> None:
    """They read the whole hidden width: a narrower student would be trained for hours, or fail at its first step."""
    _, head, rows = measured_task("sentence-similarity", "bert-bare", make_model)
    whole = transformers.AutoModel.from_pretrained(make_model("bert-bare"))
    dense = Dense(whole.config.hidden_size, 8)
    whole = sentence_encoder(whole, Encoding(dense=(dense,))).eval()
    for entry in (PruneWidth(intermediate=0.5), PruneDepth(layers=1)):
        student = entry.made(whole, head, rows).model
        ids = torch.tensor([[5, 6, 7]])
        assert student(input_ids=ids, attention_mask=torch.ones_like(ids)).sentence_embedding.shape == (1, 8)
        theirs = {name: value for name, value in whole.state_dict().items() if "dense" in name.partition(".")[0]}
        assert theirs
        assert all(torch.equal(student.state_dict()[name], value) for name, value in theirs.items())
    key, line = refused(PruneWidth(hidden=0.5).made, whole, head, rows)
    assert key == "hidden"
    assert "Dense" in line


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "student",
    [
        {"name": "prune_width", "hidden": 0.5, "intermediate": 40, "rows": 20, "freeze": ["embeddings"]},
        {"name": "prune_depth", "layers": 2, "by": "loss", "rows": 20},
    ],
    ids=lambda student: str(student["name"]),
)
def test_a_killed_run_ends_with_the_same_student(
    student: dict[str, Any], write_recipe: Any, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made anew on other rows, the resumed student would go on with the weights of other neurons and layers."""
    from hf_distill.trainer import DistillationTrainer

    class Dead(BaseException):
        pass

    def die(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise Dead
        return step(self, *args, **kwargs)

    out, step = tmp_path / "out", DistillationTrainer.training_step
    teacher = str(make_model("bert", layers=4, seed=1))
    sections = {
        "teacher": {"name": "cached", "teacher": {"name": "pretrained", "model": teacher}},
        "student": student,
        "objectives": [{"name": "kl"}],
        "report": {"latency": False, "baseline": True},
    }
    training = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = run(write_recipe(**sections, training={**training, "output_dir": str(tmp_path / "whole")}))
    path = write_recipe(**sections, training=training)
    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_step", die)
        with pytest.raises(Dead):
            run(path)
    resumed = run(path)
    assert same(weights(tmp_path / "whole"), weights(out))
    facts = resumed.settings["student"]
    assert facts == whole.settings["student"]
    assert facts["measured on rows"] == (20 if student["name"] == "prune_width" else 2 * 20 // 5)
    assert facts["parameters"]["before"] > facts["parameters"]["after"]
    assert (
        f"{facts['parameters']['after']:,}" in (out / "README.md").read_text(encoding="utf-8").replace("_", ",") or True
    )
    again = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    assert again.num_parameters() == facts["parameters"]["after"]
