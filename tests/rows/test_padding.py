"""Padding changes nothing: neither the side nor the amount of it, whatever the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from conftest import MakeModel
from invariants.cases import KINDS, Collator, arguments, make_rows, make_trainer, split, train
from invariants.test_batch_splits import assert_same, figures
from runs import run
from torch import Tensor, nn

from hf_distill import DistillationTrainer
from hf_distill.objectives import Hidden, KLDivergence
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.padding import PadOneSide, side_of
from hf_distill.rows.spans import SpanRows

LAYOUT = ExampleRows(kind="classes", width=3)


class LeftCollator(Collator):
    """Pads what belongs to the tokens of the (encoder's) input on the left."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = super().__call__(rows)
        if batch["input_ids"].dim() == 3:  # whose texts have come through here
            return batch
        pads = (batch["attention_mask"] == 0).sum(-1)
        tokens = batch["attention_mask"].shape
        for name in ("input_ids", "attention_mask", "context_mask", "labels", "aligned_at"):
            value = batch.get(name)
            if name == "labels" and ("decoder_input_ids" in batch or "context_mask" in batch):
                continue
            if value is not None and value.shape == tokens and (name != "labels" or not value.is_floating_point()):
                places = (torch.arange(tokens[-1]) - pads.unsqueeze(-1)) % tokens[-1]
                batch[name] = value.take_along_dim(places, -1)
        if "aligned_at" in batch:  # positions in the teacher's own tokens, which have been moved as well
            theirs = (batch["teacher_attention_mask"] == 0).sum(-1, keepdim=True)
            batch["aligned_at"] = torch.where(
                batch["aligned_at"] < 0, batch["aligned_at"], batch["aligned_at"] + theirs
            )
        if "context_mask" in batch:
            batch["labels"] = torch.where(batch["labels"] < 0, batch["labels"], batch["labels"] + pads.unsqueeze(-1))
        return batch


@pytest.mark.parametrize("kind", KINDS)
def test_the_side_changes_nothing(kind: str, tmp_path: Path) -> None:
    """A model with learned positions, or one that reads its first token, answers something else after padding on the
    left: figures change with the batch size, and nothing tells."""
    settings: dict[str, Any] = {"num_train_epochs": 1, "per_device_eval_batch_size": 13, **split(4)}
    right, left = (make_trainer(kind, tmp_path, collator=one(), **settings) for one in (Collator, LeftCollator))
    batch = LeftCollator()(make_rows(kind, 8))
    assert (batch["attention_mask"][..., 0] == 0).any()
    assert figures(left.evaluate()) == pytest.approx(figures(right.evaluate()), rel=1e-6)
    assert_same(train(left), train(right))


def classifier(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    common = {"vocab_size": 60, "num_labels": 3, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model: Any = transformers.AutoModelForSequenceClassification.from_config(
        transformers.AutoConfig.for_model(kind, **{**common, **small, **settings})
    )
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.3)
    return model.eval()


XLNET = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}
SIDES: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, "right"),
    "bert": ({}, "right"),
    "qwen2": ({"num_key_value_heads": 2}, "right"),
    "xlnet": ({**XLNET, "hidden_size": 32}, "left"),
    "convbert": ({"embedding_size": 32}, "none"),
    "fnet": ({}, "none"),
}


@pytest.mark.parametrize("kind", SIDES)
def test_the_side_is_tried_out(kind: str) -> None:
    """A list of architectures would be out of date with the next release of Transformers."""
    settings, wanted = SIDES[kind]
    assert side_of(classifier(kind, **settings), LAYOUT) == wanted
    if kind != "fnet":  # whose transform is not there in half precision
        assert side_of(classifier(kind, **settings).bfloat16(), LAYOUT) == wanted
    model = classifier(kind, **settings)
    state = torch.get_rng_state()
    side_of(model, LAYOUT)
    assert torch.get_rng_state().equal(state)


def trainer_of(student: Any, teacher: Any, tmp_path: Path, pad: Callable[..., Any], **settings: Any) -> Any:
    chance = torch.Generator().manual_seed(3)
    lengths = torch.randint(3, 14, (13,), generator=chance).tolist()
    ids = [torch.randint(5, 60, (length,), generator=chance).tolist() for length in lengths]
    rows = [{"input_ids": one, "attention_mask": [1] * len(one), "labels": len(one) % 3} for one in ids]
    terms = settings.pop("terms", [KLDivergence()])
    return DistillationTrainer(
        student,
        arguments(tmp_path, **settings),
        teacher=teacher,
        objectives=terms,
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(rows),
        data_collator=pad,
    )


class Pad:
    """Pads with token 1 on one side."""

    def __init__(self, side: str) -> None:
        self.side = side

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[int], value: int) -> list[int]:
            empty = [value] * (longest - len(values))
            return [*empty, *values] if self.side == "left" else [*values, *empty]

        return {
            "input_ids": torch.tensor([padded(row["input_ids"], 1) for row in rows]),
            "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", SIDES)
def test_batches_of_one_and_of_many(kind: str, side: str, tmp_path: Path) -> None:
    """Figures that depend on the eval batch size are nobody's figures; these are the ones of each text alone."""
    settings, wanted = SIDES[kind]
    student, teacher = classifier(kind, **settings), classifier(kind, **settings)
    for weight in student.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    found = []
    for size in (1, 13):
        trainer = trainer_of(student, teacher, tmp_path, Pad(side), per_device_eval_batch_size=size)
        assert set(trainer.padding.sides.values()) == {wanted}
        assert bool(trainer.padding.decisions) == (wanted == "none")
        found.append(figures(trainer.evaluate()))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    rows = trainer.eval_dataset
    logits = [
        [model(input_ids=torch.tensor([ids])).logits.double().detach() for ids in rows["input_ids"]]
        for model in (student, teacher)
    ]
    by_hand = [
        nn.functional.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="sum", log_target=True).item()
        for s, t in zip(*logits, strict=True)
    ]
    assert found[1]["eval_objective/kl"] == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)


def test_running_without_padding_has_the_gradient_of_single_texts(tmp_path: Path) -> None:
    """One length after the other is still one batch: a part without gradient would train on some texts only."""
    settings: dict[str, Any] = {
        "max_steps": 1,
        "per_device_train_batch_size": 13,
        "train_sampling_strategy": "sequential",
    }
    weights = []
    for size, steps in ((13, 1), (1, 13)):
        split_up = {**settings, "per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        student, teacher = classifier("convbert", embedding_size=32), classifier("convbert", embedding_size=32)
        for weight in student.parameters():
            weight.data += 0.05 * torch.ones_like(weight)
        student.config.hidden_dropout_prob = 0.0
        for module in student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trainer = trainer_of(student, teacher, tmp_path, Pad("right"), **split_up)
        trainer.train()
        weights.append([weight.detach().clone() for weight in student.parameters()])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_one_that_is_looked_into_is_warned_of_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Hidden states of several passes are not those of one: there figures do change, which somebody has to say."""
    model = classifier("convbert", embedding_size=32)
    trainer_of(model, classifier("convbert", embedding_size=32), tmp_path, Pad("right"), terms=[Hidden()])
    assert "ConvBertForSequenceClassification" in caplog.text
    assert "depend on padding" in caplog.text


def test_targets_padded_on_the_left_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    """A decoder has no mask by default: it would read the padding before its text, and learn from that."""
    directory = make_model("bart")
    model = transformers.BartForConditionalGeneration.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, padding_side="left")
    rows = [
        {**tokenizer(text), "labels": tokenizer(text)["input_ids"]} for text in ("a film", "the story is very good")
    ]
    trainer = DistillationTrainer(
        model,
        arguments(tmp_path),
        teacher=transformers.BartForConditionalGeneration.from_pretrained(directory),
        eval_dataset=datasets.Dataset.from_list(rows),
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model=model),
    )
    with pytest.raises(ValueError, match="padded on the left"):
        trainer.evaluate()


def test_a_recipe_whose_tokenizer_pads_left(write_recipe: Any, make_model: MakeModel, tmp_path: Path) -> None:
    """GPT-2 counts positions from the first column: its accuracy changed with the batch it was evaluated in."""
    directory = tmp_path / "gpt2"
    source = make_model("gpt2", layers=2)
    transformers.AutoModelForSequenceClassification.from_pretrained(source).save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(source, padding_side="left").save_pretrained(directory)
    teacher = {"name": "pretrained", "model": str(directory)}
    training = {"max_steps": 1, "learning_rate": 1e-12}
    found = []
    for size in (1, 32):
        out = {"output_dir": str(tmp_path / f"out{size}"), "per_device_eval_batch_size": size}
        report = run(
            write_recipe(teacher=teacher, student={"name": "copy_layers", "layers": 1}, training=training | out)
        )
        found.append((report.teacher.metrics, report.student.metrics, report.agreement))
    assert found[0] == found[1]


def test_positions_move_with_their_tokens() -> None:
    """Moved to the left (XLNet), the answer of a question had a negative place, which counts as no label."""
    ids = torch.tensor([[5, 6, 7, 0, 0], [1, 2, 3, 4, 5], [8, 9, 0, 0, 0]])
    starts = torch.tensor([1, 2, -100])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "start_positions": starts}
    moved = PadOneSide(lambda _: batch, SpanRows(), left=True, teacher_left=False)([])
    assert moved["start_positions"].tolist() == [3, 2, -100]
    assert [moved["input_ids"][row, place] for row, place in enumerate((3, 2))] == [6, 3]
    back = PadOneSide(lambda _: moved, SpanRows(), left=False, teacher_left=False)([])
    assert all(torch.equal(back[name], batch[name]) for name in batch)
