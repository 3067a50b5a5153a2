"""Hidden states from a cache: the live teacher's loss, as many bytes as were announced, and clear words where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from invariants.cached import SOFT, SPARSE_KINDS, cache_of, capture, directory_bytes, parts, states_for, trainer
from invariants.cases import Record, arguments, largest_difference, objectives, train

from hf_distill.cache.cache import Cache
from hf_distill.cache.format import Kept
from hf_distill.cache.hidden_states import StatesColumn, merged
from hf_distill.cache.replay import TrainingData
from hf_distill.errors import UserError
from hf_distill.models.layers import States
from hf_distill.objectives import (
    OBJECTIVES,
    Attention,
    Contrastive,
    Embeddings,
    Hidden,
    Hint,
    InputGradient,
    Objective,
    Patient,
    Relational,
    Relations,
    SimilarityPreserving,
)

LAST = ((1, 2),)
# Of a student of one layer and a teacher of two: one vector a text, all tokens, and both of the same layer.
CASES: dict[str, tuple[str, tuple[Objective, ...], str]] = {
    "hidden": ("classification", (Hidden(),), "2"),
    "two layers": ("classification", (Hidden(layers=((0, 1), (1, 2))), Embeddings()), "0, 1, 2"),
    "cosine": ("token-classification", (Hidden(loss="cosine", layers=((1, 1),)),), "1"),
    "hint": ("regression", (Hint(),), "1"),
    "similarity": ("classification", (Hidden(layers="similarity"),), "1, 2"),
    "first token": ("classification", (Patient(layers=LAST),), "2 (first)"),
    "first token by similarity": ("classification", (Patient(layers="similarity"),), "1 (first), 2 (first)"),
    "last token": ("causal-lm", (Patient(layers=((0, 1),), token="last"),), "1 (last)"),
    "mean": ("multi-label", (SimilarityPreserving(), Relational(), Contrastive(memory=8)), "2 (mean)"),
    "first": ("classification", (SimilarityPreserving(of="first"),), "2 (first)"),
    "last": ("causal-lm", (Relational(of="last"),), "2 (last)"),
    "first and mean": ("classification", (Patient(layers=LAST), SimilarityPreserving()), "2"),
    "tokens and mean": ("causal-lm-gpt2", (Hidden(), SimilarityPreserving(), Embeddings()), "0, 2"),
    "masks": ("masked-lm", (Hidden(layers=((0, 0), (1, 1))),), "0, 1"),
    "encoder": ("sequence-to-sequence", (Hidden(part="encoder"),), "encoder 2"),
    "decoder": ("sequence-to-sequence", (Hidden(part="decoder", layers=((1, 1),)),), "decoder 1"),
    "both": (
        "sequence-to-sequence-t5",
        (Hidden(part="decoder"), Embeddings(part="encoder"), SimilarityPreserving()),
        "decoder 2, encoder 0, encoder 2 (mean)",
    ),
    "a decoder's last": (
        "sequence-to-sequence", (Patient(part="decoder", layers=LAST, token="last"),), "decoder 2 (last)",
    ),
    "texts": ("sentence-similarity", (Hidden(), SimilarityPreserving(of="first")), "2"),
    "vectors of texts": (
        "sentence-similarity", (SimilarityPreserving(), Patient(layers=((0, 1),))), "1 (first), 2 (mean)",
    ),
    "an answer": ("sentence-similarity", (SimilarityPreserving(of="embedding"),), ""),
}  # fmt: skip


def terms(kind: str, features: tuple[Objective, ...]) -> tuple[Objective, ...]:
    return (*features, *(SOFT if kind in SPARSE_KINDS else objectives(kind)))


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_the_live_teachers(case: str, tmp_path: Path) -> None:
    """States of another token, text or layer are as good a target as the right ones, and nothing would tell: over three
    shuffled epochs every loss, gradient and figure has to be the live teacher's, whose padding is another."""
    kind, features, kept = CASES[case]
    found: list[tuple[Record, dict[str, float]]] = []
    for cached in (False, True):
        student, teacher, data = parts(kind, teacher_width=24)
        if cached:
            cache = capture(teacher, data, tmp_path / "cache", states=states_for(features, student, teacher))
            assert ", ".join(str(one.states) for one in cache.kept.states) == kept
            data, teacher = cache.apply(data)
        torch.manual_seed(0)  # of projections
        one = trainer(student, teacher, data, tmp_path, terms(kind, features))
        found.append((train(one), one.evaluate()))
    (live, live_figures), (replayed, replayed_figures) = found
    assert replayed.losses == pytest.approx(live.losses, rel=1e-9)
    assert largest_difference(replayed, live) < 1e-9
    for objective in features:
        name = f"eval_objective/{objective.name}"
        assert live_figures[name] > 0
        assert replayed_figures[name] == pytest.approx(live_figures[name], rel=1e-5)


def test_every_objective_on_states_is_tried() -> None:
    """A new one that says it reads no more than states, and reads more, would be let pass by `--check`."""
    tried = {objective.name for _, features, _ in CASES.values() for objective in features}
    assert tried == {name for name, kind in OBJECTIVES.items() if kind.reads == "states"}
    assert not any(kind.outputs for kind in OBJECTIVES.values() if kind.reads == "answers")


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-6), ("float16", 2e-3)])
@pytest.mark.parametrize("case", ["hidden", "first token", "mean", "tokens and mean", "decoder"])
def test_precision(case: str, precision: str, error: float, tmp_path: Path) -> None:
    """What half the bytes cost, on a loss that is small because student and teacher are close is another question: here
    the two are as far apart as models that do not know each other."""
    kind, features, _ = CASES[case]
    losses = []
    for cached in (False, True):
        student, teacher, data = parts(kind, dtype=torch.float32, teacher_width=24)
        if cached:
            states = states_for(features, student, teacher)
            data, teacher = capture(teacher, data, tmp_path / "cache", states=states, hidden_precision=precision).apply(
                data
            )
        torch.manual_seed(0)
        one = trainer(student, teacher, data, tmp_path, features, num_train_epochs=1, learning_rate=0.0)
        losses.append(train(one).losses)
    assert losses[1] == pytest.approx(losses[0], rel=error)
    assert (losses[1] == losses[0]) is False


@pytest.mark.parametrize("case", ["two layers", "mean", "tokens and mean", "decoder", "texts", "vectors of texts"])
def test_the_size_is_known_before(case: str, tmp_path: Path) -> None:
    """Layers are what makes a cache large: the disk has to be known to be too small before the first of them is there,
    and padding must not be in it."""
    kind, features, _ = CASES[case]
    student, teacher, data = parts(kind, dtype=torch.float32, teacher_width=64)
    states = states_for(features, student, teacher)
    plain = capture(teacher, data, tmp_path / "plain", top=2)
    said = cache_of(teacher, data, tmp_path / "cache", top=2, states=states)
    cache = capture(teacher, data, tmp_path / "cache", top=2, states=states)
    assert written(cache) == pytest.approx(said.size, rel=0.1)
    vectors = sum(said.contents.vectors(one.states) for one in said.kept.states)
    columns = len(said.kept.states)
    assert written(cache) - written(plain) == pytest.approx(vectors * 64 * 4 + 700 * columns, rel=0.1)
    assert "64 wide in float32" in said.in_words()


def written(cache: Cache) -> int:
    """Return the bytes of everything in a complete cache."""
    return directory_bytes(cache.path)


def refused(make: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        make()
    return caught.value


@pytest.mark.parametrize(
    ("entry", "precision", "key", "reason"),
    [
        (
            7e4,
            "float16",
            "hidden_precision",
            "layer 0 go up to 7e+04, but float16 ends at 65,504. Set hidden_precision",
        ),
        (float("nan"), "float32", "layers", "layer 0 have entries that are NaN or infinite"),
        (float("inf"), "float16", "layers", "layer 0 have entries that are NaN or infinite"),
    ],
)
def test_numbers_that_are_none(entry: float, precision: str, key: str, reason: str, tmp_path: Path) -> None:
    """An infinite target makes the first loss infinite, hours after it was written."""
    _, teacher, data = parts("classification", dtype=torch.float32)
    with torch.no_grad():
        teacher.bert.embeddings.LayerNorm.bias[3] = entry
    states = (States(0),)
    error = refused(lambda: capture(teacher, data, tmp_path / "cache", states=states, hidden_precision=precision))
    assert reason in str(error)
    assert error.key == key
    assert not list((tmp_path / "cache").glob("*.arrow"))
    if entry == 7e4:  # the way out
        capture(teacher, data, tmp_path / "cache-32", states=states, hidden_precision="float32")


REFUSED: list[tuple[Objective, str]] = [
    (Attention(layers=LAST), "'attention' looks into the teacher (its maps of attention)"),
    (Relations(), "'relations' looks into the teacher (what goes on within its layers)"),
    (InputGradient(), "'input_gradient' looks into the teacher (derivatives of its"),
    (
        Hidden(),
        "'hidden' compares hidden states of layers of the teacher that a cached teacher does not give: 2 (there: 1)",
    ),
    (Hidden(layers="similarity"), "does not give: 2 (there: 1)"),
    (SimilarityPreserving(), "does not give: 2 (mean) (there: 1)"),
]


@pytest.mark.parametrize(("objective", "reason"), REFUSED)
def test_what_is_not_kept(objective: Objective, reason: str, tmp_path: Path) -> None:
    """Said by name before the first batch, with the way out; not by an error of a tuple of None."""
    student, teacher, data = parts("classification")
    wrapped, replay = capture(teacher, data, tmp_path / "cache", states=(States(1),)).apply(data)
    assert reason in str(refused(lambda: trainer(student, replay, wrapped, tmp_path, (objective,))))
    trainer(student, replay, wrapped, tmp_path, (Hidden(layers=((1, 1),)), Patient(layers=((1, 1),))))


def test_there_is_no_such_layer(tmp_path: Path) -> None:
    """Python users write indices too."""
    _, teacher, data = parts("classification")
    error = refused(lambda: cache_of(teacher, data, tmp_path / "cache", states=(States(3),)))
    assert "has no layer 3. Its layers are 1 to 2" in str(error)
    assert error.key == "layers"


def test_a_cache_of_other_layers(tmp_path: Path) -> None:
    """The refusal says which; and one of no layers is the one that it was before there were any."""
    _, teacher, data = parts("classification")
    capture(teacher, data, tmp_path / "cache", states=(States(1), States(2, "mean")))
    error = refused(lambda: capture(teacher, data, tmp_path / "cache", states=(States(1),)))
    assert "layers 1, 2 (mean) there and 1 here" in str(error)
    assert "layers" not in Kept(outputs=("logits",)).as_dict()
    assert {"layers", "hidden_precision"} < set(
        capture(teacher, data, tmp_path / "other", states=(States(1),)).kept.as_dict()
    )


def test_nothing_is_read_that_is_not_compared(tmp_path: Path) -> None:
    """A stage on answers after one on layers, or the evaluation of a finished model, would wait for gigabytes."""
    student, teacher, data = parts("classification")
    wrapped, replay = capture(teacher, data, tmp_path / "cache", states=(States(0), States(1), States(2))).apply(data)
    rows = [wrapped.train[row] for row in range(4)]
    assert {name for name in wrapped.collator(rows) if "hidden" in name} == {
        f"cached_hidden_{layer}" for layer in (0, 1, 2)
    }
    for features, names in (((), set()), ((Hidden(),), {"cached_hidden_2"})):
        one = trainer(student, replay, wrapped, tmp_path, (*features, *objectives("classification")))
        assert {name for name in one.data_collator(rows) if "hidden" in name} == names
        assert one.teacher is not None
        assert torch.equal(one.teacher.key, replay.key)  # or a finished training would not be found again
        train(one)


def test_a_cache_that_does_not_fit_the_batch(tmp_path: Path) -> None:
    """Examples cut by a collator have fewer tokens than states, which would be taken for those of other tokens."""
    student, teacher, data = parts("classification")
    wrapped, replay = capture(teacher, data, tmp_path / "cache", states=(States(2),)).apply(data)
    plain = wrapped.collator.collate

    def cut(rows: list[dict[str, Any]]) -> Any:
        return {key: value if value.ndim == 1 else value[:, :5] for key, value in plain(rows).items()}

    object.__setattr__(wrapped.collator, "collate", cut)
    one = trainer(student, replay, wrapped, tmp_path, (Hidden(),))
    with pytest.raises(
        ValueError, match=r"the batch has \d+ tokens, but the cache has \d+ vectors of layer 2 for them"
    ):
        one.train()


def test_a_student_without_a_configuration(tmp_path: Path) -> None:
    """A plain module trains from answers; what layers it has is asked only where some are compared."""

    class Plain(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    student, teacher, data = parts("classification")
    data, replay = capture(teacher, data, tmp_path / "cache", states=(States(2),)).apply(data)
    losses = [
        train(trainer(model, replay, data, tmp_path, objectives("classification"))).losses
        for model in (Plain(student), parts("classification")[0])
    ]
    assert losses[0] == pytest.approx(
        losses[1], rel=1e-12
    )  # only the second runs without padding, and rounds otherwise


@pytest.mark.parametrize("left", [False, True])
def test_padding_on_either_side(left: bool, tmp_path: Path) -> None:
    """Decoders are padded on the left where they generate: a state belongs to its token, not to its column."""
    _, teacher, data = parts("causal-lm")
    states = (States(1), States(2, "last"))
    capture(teacher, data, tmp_path / "cache", states=states)
    if left:
        data = TrainingData(data.train, data.eval, flipped(data.collator), data.layout)
    wrapped, replay = cache_of(teacher, data, tmp_path / "cache", states=states).apply(data)
    batch = wrapped.collator([wrapped.train[row] for row in (3, 17, 5, 3)])
    mask = batch["attention_mask"] != 0
    assert mask.sum(1).unique().numel() == 3
    with torch.no_grad():
        theirs = teacher(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            output_hidden_states=True,
        ).hidden_states
    found = replay(**{key: value for key, value in batch.items() if key in replay.takes})["hidden_states"]
    assert found[0] is None
    assert torch.allclose(found[1][mask], theirs[1][mask], atol=1e-9)
    for row in range(4):
        assert torch.allclose(found[2][row], theirs[2][row][mask[row]][-1].expand_as(found[2][row]), atol=1e-9)


def flipped(collate: Any) -> Any:
    """Return a collator that pads on the left."""

    def left(rows: list[dict[str, Any]]) -> Any:
        batch = collate(rows)
        shift = (batch["attention_mask"] == 0).sum(1)
        return {
            key: torch.stack([row.roll(int(by)) for row, by in zip(value, shift, strict=True)])
            for key, value in batch.items()
        }

    return left


def test_columns_have_names_and_sizes() -> None:
    """Two columns of one name would be one column; bytes are what `--check` multiplies."""
    states = [States(4), States(4, part="encoder"), States(4, part="decoder"), States(4, "mean"), States(12, "last")]
    columns = [StatesColumn(one, 768, "float16") for one in states]
    assert len({one.name for one in columns}) == len(columns)
    assert columns[0].vector_bytes == 1536
    assert merged(states)[-2:] == (States(4, part="decoder"), States(4, part="encoder"))
    assert [str(one) for one in merged(states)] == ["4", "12 (last)", "decoder 4", "encoder 4"]


def test_a_directory_opens_without_us(tmp_path: Path) -> None:
    """What the card says of a column is how anybody reads it."""
    import datasets
    import numpy as np

    _, teacher, data = parts("classification", dtype=torch.float32)
    states = (States(1), States(2, "mean"))
    cache = cache_of(teacher, data, tmp_path / "cache", states=states, hidden_precision="float16")
    cache.fill(arguments(tmp_path / "args", per_device_eval_batch_size=4))
    rows = datasets.load_dataset(str(tmp_path / "cache"), split="train", cache_dir=str(tmp_path / "hf"))
    card = (tmp_path / "cache" / "README.md").read_text()
    assert "- `hidden_1`, hidden states of layer 1 in float16, 16 entries each, one vector for each token" in card
    assert "- `hidden_2_mean`, hidden states of layer 2 (mean) in float16, 16 entries each, the mean over" in card
    name, row = cache.contents.order[7]
    ids = torch.tensor([cache.contents.splits[name][row]["input_ids"]])
    with torch.no_grad():
        theirs = teacher(input_ids=ids, output_hidden_states=True).hidden_states
    assert np.asarray(rows[7]["hidden_1"]) == pytest.approx(theirs[1][0].numpy(), abs=2e-3)
    assert np.asarray(rows[7]["hidden_2_mean"]) == pytest.approx(theirs[2].mean(1).numpy(), abs=2e-3)
