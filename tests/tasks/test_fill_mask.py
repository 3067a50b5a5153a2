"""Fill-mask: which tokens are hidden, that it is the same on every split of a batch, and what is learned."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import run

from hf_distill.errors import UserError
from hf_distill.models.loading import load_model, open_tokenizer
from hf_distill.objectives import KLDivergence, Labels
from hf_distill.tasks import FillMask, Prepared, Setup

TEXTS = [
    "a great film",
    "the plot is moving and the cast is charming and the story was very clever .",
    "dull",
    "it was a very bad story !",
    "with this cast the film is a brilliant scene of it",
    "zebra quartz and vexing jumpers",
]
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def prepare(
    model: Path, texts: Sequence[Any] = TEXTS, *, max_length: int | None = 64, tokenizer: Any = None, **task: Any
) -> Prepared:
    from datasets import Dataset

    data = Dataset.from_dict({"text": list(texts)})
    return FillMask(**task).prepare(
        {"train": data, "eval": data}, Setup(tokenizer=tokenizer or open_tokenizer(str(model)), max_length=max_length)
    )


def rows_of(prepared: Prepared, split: str = "train") -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "length"} for row in getattr(prepared, split)]


def collator_of(prepared: Prepared, epoch: int = 0) -> Any:
    collator: Any = prepared.collator
    collator.set_epoch(epoch)
    return collator


# ---- Masks -----------------------------------------------------------------------------------------------------------


def test_masks_do_not_depend_on_the_batch(make_model: Any) -> None:
    """Masks drawn in order of arrival differ between 8 x 1 and 4 x 2, between processes, and after a resume."""
    prepared = prepare(make_model("bert-mlm"))
    rows = rows_of(prepared)
    together = collator_of(prepared)(rows)
    alone = [collator_of(prepared)([row]) for row in rows]
    for index, one in enumerate(alone):
        width = one["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][index, :width], one["input_ids"][0])
        assert torch.equal(together["labels"][index, :width], one["labels"][0])
    backwards = collator_of(prepared)(rows[::-1])
    assert torch.equal(backwards["labels"].flip(0), together["labels"])


def test_masks_change_with_epoch_and_seed_and_come_back(make_model: Any) -> None:
    """Masks that stay make an epoch a repetition; masks that do not come back make a resumed run another one."""
    path = make_model("bert-mlm")
    prepared, other = prepare(path), prepare(path, seed=1)
    rows = rows_of(prepared)
    first, second = (collator_of(prepared, epoch)(rows)["labels"] for epoch in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, collator_of(prepared, 0)(rows)["labels"])
    assert not torch.equal(first, collator_of(other, 0)(rows)["labels"])


def test_masks_of_the_eval_split_stay(make_model: Any) -> None:
    """Students asked about other tokens than their teacher, or than last time, cannot be compared."""
    prepared = prepare(make_model("bert-mlm"))
    rows = rows_of(prepared, "eval")
    one, other = (collator_of(prepared, epoch)(rows) for epoch in (0, 7))
    assert torch.equal(one["input_ids"], other["input_ids"])
    assert torch.equal(one["labels"], other["labels"])
    again = prepare(make_model("bert-mlm"))
    assert again.eval["labels"][:] == prepared.eval["labels"][:]


def test_shares_are_those_of_bert(make_model: Any) -> None:
    """80 % mask, 10 % another token, 10 % themselves, of 15 %; a special token hidden or learned shifts all of it."""
    path = make_model("bert-mlm")
    tokenizer = open_tokenizer(str(path))
    special = set(tokenizer.all_special_ids)
    prepared = prepare(path, [" ".join(["film", "story", "plot", "cast"] * 10)])
    (row,) = rows_of(prepared)
    fates: Counter[str] = Counter()
    for epoch in range(400):
        batch = collator_of(prepared, epoch)([row])
        for old, new, label in zip(row["input_ids"], batch["input_ids"][0], batch["labels"][0], strict=True):
            if label == -100:
                assert new == old
            else:
                assert label == old
                assert old not in special
                assert int(new) == tokenizer.mask_token_id or int(new) not in special
                fates["mask" if new == tokenizer.mask_token_id else "same" if new == old else "other"] += 1
    total = sum(fates.values())
    assert total == 400 * 6  # 15 % of 40
    assert fates["mask"] / total == pytest.approx(0.8, abs=0.03)
    assert fates["other"] / total == pytest.approx(0.1, abs=0.02)


def test_one_token_is_always_hidden(make_model: Any) -> None:
    """15 % of a short text is no token: the example would cost two passes and teach nothing."""
    prepared = prepare(make_model("bert-mlm"), ["dull"])
    assert [int((collator_of(prepared, e)(rows_of(prepared))["labels"] != -100).sum()) for e in range(9)] == [1] * 9


@pytest.mark.parametrize("kind", ["bert-mlm", "roberta"])
def test_whole_words(kind: str, make_model: Any) -> None:
    """Half a word left visible gives the other half away."""
    path = make_model(kind)
    tokenizer = open_tokenizer(str(path))
    prepared = prepare(path, ["the zebra is a dull film with quartz"], whole_word=True, mask_share=0.4)
    (row,) = rows_of(prepared)
    words = tokenizer("the zebra is a dull film with quartz").word_ids()
    hidden_some = set()
    for epoch in range(60):
        labels = collator_of(prepared, epoch)([row])["labels"][0].tolist()
        hidden = {word for word, label in zip(words, labels, strict=True) if label != -100}
        visible = {word for word, label in zip(words, labels, strict=True) if label == -100 and word is not None}
        assert hidden
        assert not hidden & visible
        hidden_some |= hidden
    assert hidden_some == set(words) - {None}


def test_long_texts_become_several_examples(make_model: Any) -> None:
    """Cut at the end, most of a corpus of articles would never be seen."""
    path = make_model("bert-mlm")
    tokenizer = open_tokenizer(str(path))
    prepared = prepare(path, ["film story plot cast scene " * 5, " ", "dull"], max_length=12)
    assert prepared.train["length"][:] == [12, 12, 7, 3]
    inner = [token for row in prepared.train["input_ids"][:3] for token in row[1:-1]]
    assert inner == tokenizer("film story plot cast scene " * 5)["input_ids"][1:-1]


@pytest.mark.parametrize(
    ("kind", "texts", "task", "key", "says"),
    [
        ("gpt2-lm", ["a"], {}, "", "has no mask token: the models are not masked language models"),
        ("bert-mlm", [None, "a"], {}, "columns.text", "1 of 2 entries of the train split are missing"),
        ("bert-mlm", ["", " "], {}, "columns.text", "no text of the train split has a token that could be masked"),
        ("bert-mlm", ["a"], {"max_length": 2}, "max_length", "2 tokens leave no room for text"),
    ],
)
def test_what_cannot_be_masked_is_refused(
    kind: str, texts: list[Any], task: dict[str, Any], key: str, says: str, make_model: Any
) -> None:
    """Without a mask token None would be fed to the models; texts without a token would train on nothing."""
    with pytest.raises(UserError) as caught:
        prepare(make_model(kind), texts, **task)
    assert (caught.value.key or "") == key
    assert says in caught.value.mistakes[0]


# ---- Loss ------------------------------------------------------------------------------------------------------------


def trainer_of(prepared: Prepared, student: Any, teacher: Any, directory: Path, **arguments: Any) -> Any:
    from invariants.cases import NotingTrainer
    from invariants.cases import arguments as quiet

    return NotingTrainer(
        student,
        quiet(directory, **arguments),
        teacher=teacher,
        objectives=[KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5)],
        layout=prepared.layout,
        train_dataset=prepared.train,
        eval_dataset=prepared.eval,
        data_collator=prepared.collator,
    )


def pair(make_model: Any, prepared: Prepared) -> tuple[Any, Any]:
    student, teacher = (make_model("bert-mlm", layers=layers, seed=layers, **QUIET) for layers in (1, 2))
    return tuple(load_model(str(path), prepared.head)[0].double() for path in (student, teacher))


@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_a_step_does_not_depend_on_its_split(loss_on: str, make_model: Any, tmp_path: Path) -> None:
    """Dynamic masks and token means are the two ways in which a split changes masked language modelling."""
    from invariants.cases import largest_difference, split, train

    prepared = prepare(make_model("bert-mlm"), [*TEXTS, *TEXTS[::-1], *TEXTS[:4]], loss_on=loss_on)
    records = [
        train(trainer_of(prepared, *pair(make_model, prepared), tmp_path, num_train_epochs=2, **split(size)))
        for size in (8, 4, 1)
    ]
    assert len(records[0].losses) == 4
    for other in records[1:]:
        assert other.losses == pytest.approx(records[0].losses, rel=1e-12)
        assert largest_difference(records[0], other) < 1e-9


def test_a_resumed_run_sees_the_same_masks(make_model: Any, tmp_path: Path) -> None:
    """A resume in the middle of the second epoch with the masks of the first would go unnoticed."""
    from invariants.cases import split, train

    prepared = prepare(make_model("bert-mlm"), [*TEXTS, *TEXTS[::-1], *TEXTS[:4]])
    settings = {"num_train_epochs": 3, **split(4)}
    whole = train(trainer_of(prepared, *pair(make_model, prepared), tmp_path / "whole", **settings))
    saving = {"save_strategy": "steps", "save_steps": 3}
    first = trainer_of(prepared, *pair(make_model, prepared), tmp_path / "cut", **settings, **saving)
    train(first)
    collator_of(prepared, 99)  # what an interrupted process knew is lost
    rest = trainer_of(prepared, *pair(make_model, prepared), tmp_path / "cut", **settings)
    resumed = train(rest, resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert resumed.losses == whole.losses[3:]
    assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())


def test_workers_that_stay_know_the_epoch(make_model: Any, tmp_path: Path) -> None:
    """A worker has a copy of the collator from before the first epoch: every epoch would have its masks."""
    from invariants.cases import split, train

    prepared = prepare(make_model("bert-mlm"), [*TEXTS, *TEXTS[:2]])
    settings = {"num_train_epochs": 2, **split(8)}
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    plain = train(trainer_of(prepared, *pair(make_model, prepared), tmp_path, **settings))
    worked = train(trainer_of(prepared, *pair(make_model, prepared), tmp_path, **settings, **workers))
    assert worked.losses == plain.losses


def test_loss_on_all_is_the_teachers_word_on_every_token(make_model: Any) -> None:
    """Visible tokens have the teacher's answer and no label of their own; special tokens and padding have neither."""
    path = make_model("bert-mlm")
    prepared, masked = prepare(path, loss_on="all"), prepare(path)
    all_rows = prepared.layout.counts(collator_of(prepared)(rows_of(prepared)))
    few_rows = masked.layout.counts(collator_of(masked)(rows_of(masked)))
    assert all_rows["row"].tolist() == [length - 2 for length in prepared.train["length"]]
    assert all_rows["label"].tolist() == few_rows["label"].tolist() == few_rows["row"].tolist()
    logits = torch.randn(len(TEXTS), max(prepared.train["length"]), 160)
    losses = []
    for one in (prepared, masked):
        rows = one.layout.select(logits, None, collator_of(one)(rows_of(one)))
        losses.append(Labels().rows(rows.student, None, rows.labels).sum())
    assert torch.allclose(*losses)


# ---- Whole runs ------------------------------------------------------------------------------------------------------


def test_a_run_and_its_perplexities(make_model: Any, tmp_path: Path) -> None:
    """The headline is over hidden tokens, each counted once: with the visible ones in it every model looks good."""
    from transformers import AutoModelForMaskedLM

    path = make_model("bert-mlm", seed=1)
    where = tmp_path / "data.jsonl"
    where.write_text("".join(json.dumps({"sentence": text}) + "\n" for text in TEXTS * 3), encoding="utf-8")
    recipe = {
        "task": {"name": "fill-mask", "mask_share": 0.3},
        "data": {
            "path": {"train": str(where), "validation": str(where)},
            "columns": {"text": "sentence"},
            "max_length": 32,
        },
        "teacher": {"name": "pretrained", "model": str(path)},
        "student": {"name": "copy_layers", "layers": 2},
        "objectives": [{"name": "kl", "weight": 0.5, "temperature": 2.0}, {"name": "labels", "weight": 0.5}],
        "report": {"baseline": True, "latency": False},
        "training": {
            "output_dir": str(tmp_path / "out"),
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "disable_tqdm": True,
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    report = run(tmp_path / "recipe.yaml")
    prepared = prepare(path, TEXTS, max_length=32, mask_share=0.3)
    for name, directory in (("teacher", path), ("student", tmp_path / "out")):
        model = AutoModelForMaskedLM.from_pretrained(directory, dtype=torch.float64)
        losses = []
        for row in prepared.eval:
            with torch.no_grad():
                logits = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            losses += [-float(logits[place, label]) for place, label in enumerate(row["labels"]) if label != -100]
        assert getattr(report, name).metrics["perplexity"] == pytest.approx(
            math.exp(sum(losses) / len(losses)), rel=1e-4
        )
    assert (report.metric, report.greater_is_better) == ("perplexity", False)
    assert report.baseline is not None
    assert 0 <= report.agreement <= 1
