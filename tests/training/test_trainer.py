"""The trainer's other promises. That its loss is right, on any split of a batch: `invariants/`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import numpy as np
import pytest
import torch
import transformers
from invariants.cases import (
    KINDS,
    Collator,
    arguments,
    largest_difference,
    make_model,
    make_models,
    make_rows,
    make_trainer,
    objectives,
    split,
    train,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from versions import CHECKPOINTING

from hf_distill import DistillationArguments, DistillationTrainer
from hf_distill.component import component
from hf_distill.objectives import Attention, Comparison, Hidden, KLDivergence, Labels, LogitsMSE, Objective, Relations
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.spans import SpanRows
from hf_distill.rows.tokens import TargetRows, TokenRows

if TYPE_CHECKING:
    from conftest import MakeModel

Call = tuple[dict[str, Any], Any]


def record_calls(module: nn.Module) -> list[Call]:
    """Return a list to which every forward pass adds its keyword arguments and output."""
    calls: list[Call] = []
    module.register_forward_hook(lambda _, args, kwargs, output: calls.append((kwargs, output)), with_kwargs=True)
    return calls


def small(output_dir: Path, **settings: Any) -> DistillationArguments:
    return arguments(output_dir, **{"max_steps": 3, "per_device_train_batch_size": 4, **settings})


class EachStep(TrainerCallback):
    """Does something at the beginning of every step."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.action()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"model": "small"},
            "model: wanted a model, found the text 'small'. Load it: AutoModelFor....from_pretrained('small').",
        ),
        (
            {"teacher": dict},
            "teacher: wanted a model, its id or path, or PretrainedTeacher(model=...), found the class dict.",
        ),
        (
            {"args": {"seed": 1}},
            "args: wanted DistillationArguments, found a mapping. Write DistillationArguments(seed=...).",
        ),
        ({"objectives": ["kl"]}, "objectives[0]: wanted an objective, found the text 'kl'. Write KLDivergence()."),
        (
            {"objectives": [{"name": "kl"}]},
            "objectives[0]: wanted an objective, found a mapping. Write KLDivergence().",
        ),
        (
            {"objectives": [Labels(), "klo"]},
            "objectives[1]: wanted an objective, found the text 'klo'. Write KLDivergence().",
        ),
        (
            {"objectives": [KLDivergence]},
            "objectives[0]: wanted an objective, found the class KLDivergence. Write KLDivergence().",
        ),
        ({"objectives": "kl"}, "objectives: wanted a list of objectives, found the text 'kl'. Write [KLDivergence()]."),
        (
            {"objectives": Labels()},
            "objectives: wanted a list of objectives, found an object of Labels. Write [Labels()].",
        ),
        ({"layout": "tokens"}, "layout: wanted a hf_distill.rows.base.RowLayout, found the text 'tokens'."),
    ],
)
def test_what_is_no_model_and_no_objective_is_told_by_name(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    """`'str' object has no attribute 'parameters'` says neither which argument is wrong nor what it wants."""
    student, teacher = make_models("classification")
    given = {"model": student, "teacher": teacher, "args": small(tmp_path), **wrong}
    with pytest.raises(TypeError) as raised:
        DistillationTrainer(**given)
    assert str(raised.value) == said


# --- the teacher ------------------------------------------------------------------------------------------------------


def test_teacher_stays_in_eval_mode(tmp_path: Path) -> None:
    """With dropout the teacher's targets are noise, and the loss of a perfect student never reaches zero."""
    trainer = make_trainer("classification", tmp_path, dropout=0.5, num_train_epochs=1, **split(4))
    assert trainer.teacher is not None
    modes: list[bool] = []
    for module in trainer.teacher.modules():
        module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    trainer.add_callback(EachStep(trainer.teacher.train))
    trainer.add_callback(EachStep(lambda: trainer.teacher.bert.train()))  # type: ignore[union-attr, operator]
    trainer.train()
    assert len(modes) > 0
    assert not any(modes)
    assert trainer.model.training


def test_teacher_is_in_no_optimizer_and_no_file(tmp_path: Path) -> None:
    """A teacher that is part of the student is trained with it, and published with it."""
    trainer = make_trainer("classification", tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    teacher = trainer.teacher
    assert teacher is not None
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    keys = set(trainer.model.state_dict())
    trainer.train()
    theirs = {id(parameter) for parameter in teacher.parameters()}
    assert trainer.optimizer is not None
    trained = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert not theirs & trained
    assert trained == {id(parameter) for parameter in trainer.model.parameters()}
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert set(trainer.model.state_dict()) == keys
    assert set(load_file(tmp_path / "checkpoint-2" / "model.safetensors")) == keys
    assert not any("encoder.layer.1" in key for key in keys)  # the teacher has two layers, the student one


@pytest.mark.parametrize(
    ("kind", "terms", "asks"),
    [
        *((kind, None, None) for kind in ("classification", "token-classification", "question-answering")),
        *((kind, None, None) for kind in ("causal-lm", "masked-lm", "sequence-to-sequence", "sentence-similarity")),
        ("classification", [KLDivergence(), Hidden()], "hidden_states"),
        ("causal-lm", [KLDivergence(), Hidden()], "hidden_states"),
        ("classification", [KLDivergence(), Attention()], "attentions"),
        ("classification", [KLDivergence(), Relations()], None),
    ],
    ids=lambda one: one[-1].name if isinstance(one, list) else None,
)
def test_models_run_once_a_batch_and_return_no_more_than_asked_for(
    kind: str, terms: list[Objective] | None, asks: str | None, tmp_path: Path
) -> None:
    """A second forward pass, a graph for the teacher, its key-value cache, hidden states or attention maps that nobody
    looks at: all of them cost time or memory and change no number. Labels would make the model compute a loss of its
    own."""
    trainer = make_trainer(kind, tmp_path, terms=terms, num_train_epochs=1, **split(2))
    assert trainer.teacher is not None
    graphs: list[bool] = []
    trainer.teacher.register_forward_pre_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    calls = {"teacher": record_calls(trainer.teacher), "student": record_calls(trainer.model)}
    trainer.train()
    assert graphs == [False] * 12
    wanted = {} if asks is None else {f"output_{asks}": True}
    for found in calls.values():
        assert len(found) == 12
        for inputs, output in found:
            assert {name: value for name, value in inputs.items() if name.startswith("output_")} == wanted
            assert set(inputs) <= {"input_ids", "attention_mask", "decoder_input_ids", "use_cache", *wanted}
            assert inputs.get("use_cache", False) is False
            returned = {key for key in output if key.endswith(("hidden_states", "attentions", "values", "loss"))}
            assert returned == ({asks} if asks else set())
    assert all(
        not one.requires_grad for _, output in calls["teacher"] for one in output.values() if isinstance(one, Tensor)
    )


def test_half_precision_teacher(tmp_path: Path) -> None:
    """A softmax in bfloat16 keeps two digits: the teacher may be stored in it, the loss not computed in it."""
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        student, teacher = make_models("causal-lm-gpt2", dtype=torch.float32)
        trainer = quiet(
            student, small(tmp_path, max_steps=1), teacher=teacher.to(dtype), train_dataset=rows("causal-lm-gpt2")
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["objective/kl"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_teacher_gets_inputs_that_the_student_does_not_take(make_model: MakeModel, tmp_path: Path) -> None:
    """DistilBERT has no `token_type_ids`; dropped for both, a BERT teacher takes the second sentence for the first."""
    student = transformers.AutoModelForSequenceClassification.from_pretrained(make_model("distilbert", layers=2))
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(make_model("bert"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_model("bert"))
    encoded = dict(tokenizer(["a great film", "the plot"], ["was dull", "is great and clever"]))
    data = datasets.Dataset.from_dict({**encoded, "label": [1, 0], "idx": [7, 8]})
    args = small(tmp_path, max_steps=1, per_device_train_batch_size=2, train_sampling_strategy="sequential")
    trainer = quiet(student, args, teacher=teacher, train_dataset=data, processing_class=tokenizer, data_collator=None)
    theirs, ours = record_calls(teacher), record_calls(student)
    trainer.train()
    assert set(theirs[0][0]) == {"input_ids", "attention_mask", "token_type_ids"}
    assert set(ours[0][0]) == {"input_ids", "attention_mask"}
    batch = tokenizer.pad(encoded, return_tensors="pt")
    torch.testing.assert_close(theirs[0][1].logits, teacher(**batch).logits)


def test_teacher_that_would_be_trained_is_refused(tmp_path: Path) -> None:
    """Freezing what it shares with the student would freeze the student; not freezing it would move the target."""
    student, teacher = make_models("classification")
    with pytest.raises(ValueError, match=r"copy\.deepcopy"):
        DistillationTrainer(student, small(tmp_path), teacher=student)
    teacher.bert.embeddings = student.bert.embeddings
    with pytest.raises(ValueError, match=r"copy\.deepcopy"):
        DistillationTrainer(student, small(tmp_path), teacher=teacher)
    assert all(parameter.requires_grad for parameter in (*student.parameters(), *teacher.parameters()))
    student.bert.embeddings.requires_grad_(False)  # shared to save memory, and trained by nobody
    DistillationTrainer(student, small(tmp_path), teacher=teacher)


def test_missing_teacher(tmp_path: Path) -> None:
    """Without a teacher there is nothing to match: said at once, not in the first step. Labels alone need none."""
    student = make_model_of("classification")
    with pytest.raises(ValueError, match=r"kl.*`teacher=`"):
        DistillationTrainer(student, small(tmp_path))
    trainer = quiet(student, small(tmp_path), objectives=[Labels()], train_dataset=rows("classification"))
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["objective/labels"] == pytest.approx(log["loss"])
    assert not log.keys() & {"agreement", "teacher_share"}


def make_model_of(kind: str) -> Any:
    return make_model(kind, 1, seed=1, dtype=torch.float32)


def rows(kind: str, count: int = 24) -> datasets.Dataset:
    return datasets.Dataset.from_list(make_rows(kind, count))


def quiet(*args: Any, **kwargs: Any) -> DistillationTrainer:
    trainer = DistillationTrainer(*args, **{"data_collator": Collator(), **kwargs})
    trainer.remove_callback(PrinterCallback)
    return trainer


# --- logging ----------------------------------------------------------------------------------------------------------


def test_logs_are_means_over_steps(tmp_path: Path) -> None:
    """A value of the last step alone, or a mean over micro-batches, would be labelled like the loss and be another."""
    each = train(make_trainer("classification", tmp_path, num_train_epochs=2, **split(4))).logs
    every_third = train(make_trainer("classification", tmp_path, num_train_epochs=2, logging_steps=3, **split(4))).logs
    assert len(every_third) == 2
    for index, log in enumerate(every_third):
        for name in ("loss", "objective/kl", "objective/labels", "objective/logits_mse", "agreement"):
            mean = np.mean([one[name] for one in each[3 * index : 3 * index + 3]])
            assert log[name] == pytest.approx(mean, rel=1e-5), name


def test_loss_is_the_weighted_sum_of_what_is_logged(tmp_path: Path) -> None:
    """Logged terms that are weighted already, or weighted otherwise, would not explain the loss."""
    for log in train(make_trainer("causal-lm-gpt2", tmp_path, num_train_epochs=1, **split(4))).logs:
        weighted = sum(one.weight * log[f"objective/{one.name}"] for one in objectives("causal-lm-gpt2"))
        assert log["loss"] == pytest.approx(weighted, rel=1e-5)


def test_repeated_objectives_are_told_apart(tmp_path: Path) -> None:
    """Two terms under one name: the second would overwrite the first in every log."""
    terms = [KLDivergence(), KLDivergence(temperature=4.0), Labels()]
    trainer = make_trainer("classification", tmp_path, terms=terms, max_steps=1)
    trainer.train()
    log, evaluated = trainer.state.log_history[0], trainer.evaluate()
    assert log["objective/kl"] != log["objective/kl_2"]
    assert {"eval_objective/kl", "eval_objective/kl_2", "eval_objective/labels"} <= set(evaluated)


# --- objectives from outside ------------------------------------------------------------------------------------------


@component
class HiddenDistance(Objective):
    """Squared distance of the last hidden states' first tokens: what a plugin might bring."""

    name: ClassVar[str] = "hidden_distance"
    unit: ClassVar[Any] = "example"
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})

    def per_example(self, comparison: Comparison) -> Tensor:
        """See `Objective.per_example`."""
        assert comparison.teacher is not None
        student, teacher = comparison.student["hidden_states"], comparison.teacher["hidden_states"]
        assert (len(student), len(teacher)) == (2, 3)
        distance: Tensor = (student[-1][:, 0] - teacher[-1][:, 0]).square().sum(-1)
        return distance


@component
class Averaged(Objective):
    """Returns a mean, as losses elsewhere do."""

    name: ClassVar[str] = "averaged"

    def per_example(self, comparison: Comparison) -> Tensor:
        """See `Objective.per_example`."""
        return comparison.rows.student.square().mean()


def test_objective_from_outside_gets_hidden_states_of_both_models(tmp_path: Path) -> None:
    """`outputs` is the whole contract of a plugin: the states must be asked of both models, in training and
    evaluation, and must not leak into the predictions."""
    settings: dict[str, Any] = {"terms": [HiddenDistance()], "num_train_epochs": 4, "learning_rate": 0.01}
    trainer = make_trainer("classification", tmp_path, **settings, **split(4))
    before = trainer.evaluate()["eval_objective/hidden_distance"]
    record = train(trainer)
    after = trainer.evaluate()["eval_objective/hidden_distance"]
    assert after < 0.9 * before
    assert record.logs[0]["objective/hidden_distance"] == pytest.approx(record.logs[0]["loss"], rel=1e-5)
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (13, 3)
    again = train(make_trainer("classification", tmp_path, **settings, **split(2)))
    assert largest_difference(again, record) < 1e-12


def test_objective_that_averages_is_refused(tmp_path: Path) -> None:
    """Its mean would be taken for a sum and divided once more: a term that is 8 times too small, and trains."""
    with pytest.raises(ValueError, match=r"'averaged': per_example must return .* shape \(4,\); found \(\)"):
        make_trainer("classification", tmp_path, terms=[Averaged()], max_steps=1, **split(4)).train()


@component
class Threes(Objective):
    """Returns 3 for every example, in half precision."""

    name: ClassVar[str] = "threes"
    unit: ClassVar[Any] = "example"

    def per_example(self, comparison: Comparison) -> Tensor:
        """See `Objective.per_example`."""
        logits: Tensor = comparison.student["logits"]
        return (3 + 0 * logits[:, 0]).bfloat16()


def test_half_precision_sums_are_added_in_single(tmp_path: Path) -> None:
    """In bfloat16, 256 + 1 is 256: added up in the precision of a plugin, sums and counts would stop counting."""
    student, teacher = make_models("classification", dtype=torch.float32)
    args = small(tmp_path, max_steps=1, per_device_train_batch_size=257, per_device_eval_batch_size=257)
    data = rows("classification", 257)
    trainer = quiet(student, args, teacher=teacher, objectives=[Threes()], train_dataset=data, eval_dataset=data)
    assert trainer.evaluate()["eval_objective/threes"] == 3
    trainer.train()
    assert trainer.state.log_history[-2]["objective/threes"] == 3


# --- what goes in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_two_models_are_enough(kind: str, tmp_path: Path) -> None:
    """The example of the README: no objective, no layout, no task named; and the student gets nearer its teacher."""
    student, teacher = make_models(kind, dtype=torch.float32)
    # There the texts of a pair are much the same to both models from the start, and the labels far from that: a small
    # step is nearer to both.
    rate = 1e-5 if kind == "sentence-similarity" else 0.01
    trainer = quiet(
        student,
        small(tmp_path, max_steps=30, optim="adamw_torch", learning_rate=rate),
        teacher=teacher,
        train_dataset=rows(kind),
        eval_dataset=rows(kind, 13),
    )
    values = kind in ("regression", "sentence-similarity")
    matched = "logits_mse" if values else "kl"
    assert [one.name for one in trainer.objectives] == [matched, "labels"]
    own = {"question-answering": SpanRows, "sequence-to-sequence": TargetRows, "sequence-to-sequence-t5": TargetRows}
    usual = TokenRows if "lm" in kind or "token" in kind else ExampleRows
    assert type(trainer.layout) is own.get(kind, usual) or kind == "sentence-similarity"
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after[f"eval_objective/{matched}"] < before[f"eval_objective/{matched}"]
    assert ("eval_agreement" in after) == (not values)


def test_data_without_labels(tmp_path: Path) -> None:
    """An unlabelled transfer set is half the point of distillation; `Trainer` evaluates no loss without labels.

    Where nothing can be counted there is no value: 0 would read as a perfect score.
    """
    student, teacher = make_models("classification", dtype=torch.float32)
    data = rows("classification").remove_columns("labels")
    trainer = quiet(student, small(tmp_path), teacher=teacher, train_dataset=data, eval_dataset=data)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(0.5 * metrics["eval_objective/kl"])
    assert 0 <= metrics["eval_agreement"] <= 1
    assert "eval_objective/labels" not in metrics
    alone = quiet(student, small(tmp_path), objectives=[Labels()], eval_dataset=data)
    assert not [name for name in alone.evaluate() if "loss" in name or "objective" in name]


def test_iterable_dataset(tmp_path: Path) -> None:
    """A stream has no length: nothing may ask for one, and an end before `max_steps` is no step."""
    student, teacher = make_models("classification", dtype=torch.float32)
    stream = rows("classification").to_iterable_dataset()
    args = small(tmp_path, max_steps=5, gradient_accumulation_steps=2)
    trainer = quiet(student, args, teacher=teacher, train_dataset=stream, eval_dataset=stream)
    trainer.train()
    assert trainer.state.global_step == 5
    logs = [one for one in trainer.state.log_history if "loss" in one]
    for log in logs:
        weighted = 0.5 * log["objective/kl"] + 0.5 * log["objective/labels"]
        assert log["loss"] == pytest.approx(weighted, rel=1e-5)
    whole = quiet(student, args, teacher=teacher, eval_dataset=rows("classification"))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(whole.evaluate()["eval_loss"], rel=1e-6)


def test_lengths_are_read_from_their_column(tmp_path: Path) -> None:
    """The column is dropped before the sampler is made; Transformers then tokenises nothing but reads every example."""
    trainer = make_trainer("classification", tmp_path, train_sampling_strategy="group_by_length")
    assert trainer.train_dataset is not None
    wrong = trainer.train_dataset.map(lambda example: {"length": 100 - example["length"]})  # type: ignore[attr-defined]
    trainer.train_dataset = wrong
    sampler: Any = trainer._get_train_sampler(wrong.remove_columns("length"))
    assert sampler.lengths == list(wrong["length"])
    assert sampler.batch_size == 8


def test_student_made_by_model_init(tmp_path: Path) -> None:
    """`model_init` makes a new student for every training: nothing may hold on to the first."""
    _, teacher = make_models("classification", dtype=torch.float32)
    trainer = quiet(
        None, small(tmp_path), teacher=teacher, train_dataset=rows("classification"),
        model_init=lambda: make_model_of("classification"),
    )  # fmt: skip
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert trainer.state.log_history[0]["loss"] > 0


@pytest.mark.parametrize(
    ("kind", "task", "module"), [("causal-lm", "CAUSAL_LM", "q_proj"), ("classification", "SEQ_CLS", "query")]
)
def test_peft_student(tmp_path: Path, kind: str, task: str, module: str) -> None:
    """The wrapper hides class and signature of the model: layout and inputs must be read from inside, only the
    adapter be trained and saved, and a resumed training end with the same one."""
    import peft

    def adapted() -> Any:
        student = make_models(kind, dtype=torch.float32)[0]
        return peft.get_peft_model(student, peft.LoraConfig(task_type=task, r=2, target_modules=[module]))

    _, teacher = make_models(kind, dtype=torch.float32)
    lora, data = adapted(), rows(kind)
    initial = {name: value.clone() for name, value in lora.named_parameters()}
    trained = {name for name, value in lora.named_parameters() if value.requires_grad}
    args = small(tmp_path, save_strategy="steps", save_steps=3, max_steps=6)
    trainer = quiet(lora, args, teacher=teacher, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    figures = trainer.evaluate()
    assert figures["eval_loss"] < before
    assert {name for name, value in lora.named_parameters() if not torch.equal(value, initial[name])} == trained
    trainer.save_model()
    adapter = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == adapter
    weights = {
        path.name
        for path in (tmp_path / "checkpoint-3").iterdir()
        if path.suffix == ".safetensors" and path.name[0] != "_"
    }
    assert weights == {"adapter_model.safetensors"}
    fresh, _ = make_models(kind, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(fresh, tmp_path).merge_and_unload()
    whole = quiet(merged, args, teacher=teacher, eval_dataset=data).evaluate()
    for name in ("eval_loss", "eval_objective/kl", "eval_objective/labels"):
        assert whole[name] == pytest.approx(figures[name], rel=1e-5)
    resumed = quiet(adapted(), args, teacher=teacher, train_dataset=data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    wanted = dict(lora.named_parameters())
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.model.named_parameters())


def test_peft_teacher(tmp_path: Path) -> None:
    """A teacher fine-tuned with an adapter is a wrapper too: its `forward` takes anything and names little."""
    import peft

    student, teacher = make_models("classification", dtype=torch.float32)
    lora = peft.get_peft_model(teacher, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = Collator()(examples)
        return {**batch, "token_type_ids": batch["attention_mask"]}

    data = rows("classification")
    trainer = quiet(student, small(tmp_path), teacher=lora, train_dataset=data, data_collator=collate)
    calls = record_calls(teacher)
    trainer.train()
    assert all(set(inputs) > {"input_ids", "token_type_ids"} for inputs, _ in calls)
    assert not any(parameter.requires_grad for parameter in lora.parameters())
    assert trainer.state.log_history[0]["objective/kl"] > 0


# --- how it is run ----------------------------------------------------------------------------------------------------


def test_bf16_on_cpu(tmp_path: Path) -> None:
    """accelerate wraps the student's `forward` for mixed precision and leaves it wrapped: the next trainer of the same
    model must still find its parameters, and see the same numbers."""
    student, teacher = make_models("classification", dtype=torch.float32)
    data = rows("classification")
    trainer = quiet(student, small(tmp_path, bf16=True), teacher=teacher, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()
    full = quiet(copy.deepcopy(student), small(tmp_path), teacher=copy.deepcopy(teacher), eval_dataset=data).evaluate()
    assert before["eval_loss"] == pytest.approx(full["eval_loss"], rel=0.02)
    trainer.train()
    assert all(math.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    again = quiet(student, small(tmp_path, bf16=True), teacher=teacher, eval_dataset=data)
    assert again.evaluate()["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-6)


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_activation_checkpointing_changes_nothing(kind: str, tmp_path: Path) -> None:
    """The recomputation runs the student's layers again, in the backward pass, with hooks of its own."""
    plain = train(make_trainer(kind, tmp_path, max_steps=2, **split(4)))
    saved = train(make_trainer(kind, tmp_path, max_steps=2, **CHECKPOINTING, **split(4)))
    assert saved.losses == pytest.approx(plain.losses, rel=1e-12)
    assert largest_difference(saved, plain) < 1e-12


def test_plain_training_arguments(tmp_path: Path) -> None:
    """Whoever brings `TrainingArguments` gets the same check: a value that is ignored is one that was believed."""
    student, teacher = make_models("classification", dtype=torch.float32)
    plain = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        DistillationTrainer(student, TrainingArguments(**plain, label_smoothing_factor=0.1), teacher=teacher)
    args = TrainingArguments(**plain, max_steps=1)
    trainer = quiet(student, args, teacher=teacher, train_dataset=rows("classification"))
    assert trainer.train().global_step == 1


def test_what_cannot_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these would train, and train something else."""
    student, teacher = make_models("classification")
    args = small(tmp_path)
    with pytest.raises(ValueError, match="compute_loss_func would be ignored"):
        DistillationTrainer(student, args, teacher=teacher, compute_loss_func=lambda *_: 0)
    with pytest.raises(ValueError, match="no objective"):
        DistillationTrainer(student, args, teacher=teacher, objectives=[])
    values, their_values = make_models("regression")
    with pytest.raises(ValueError, match=r"'kl' compares distributions.*logits_mse"):
        DistillationTrainer(values, args, teacher=their_values, objectives=[LogitsMSE(), KLDivergence()])
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"2 GPUs in one process \(DataParallel\).*accelerate launch"):
        DistillationTrainer(student, args, teacher=teacher)


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "causal-lm-gpt2"])
def test_evaluation_before_training(kind: str, tmp_path: Path) -> None:
    """`evaluate()` on a fresh trainer prepares the model by another path than `train()` does."""
    trainer = make_trainer(kind, tmp_path, max_steps=2, learning_rate=0.0)
    before = objective_values(trainer.evaluate())
    assert set(before) > {"eval_loss", "eval_agreement", "eval_objective/kl"}
    trainer.train()
    assert objective_values(trainer.evaluate()) == before


def objective_values(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.endswith(("runtime", "second", "time", "epoch"))}


def test_evaluation_in_training_is_the_same(tmp_path: Path) -> None:
    """Counts and sums of training and evaluation share nothing: an evaluation between two logs must change neither."""
    settings: dict[str, Any] = {"num_train_epochs": 2, "logging_steps": 2, **split(4)}
    without = train(make_trainer("classification", tmp_path, **settings))
    trainer = make_trainer("classification", tmp_path, eval_strategy="steps", eval_steps=1, **settings)
    record = train(trainer)
    assert record.losses == without.losses
    names = ("loss", "objective/kl", "objective/labels", "agreement")
    assert [[log[name] for name in names] for log in record.logs] == [
        [log[name] for name in names] for log in without.logs
    ]
    last = [log for log in trainer.state.log_history if "eval_loss" in log][-1]
    assert objective_values(trainer.evaluate()).items() <= last.items()


def test_metrics_and_predictions(tmp_path: Path) -> None:
    """`compute_metrics` gets the student's logits and the labels in the order of the data set, whatever the sampling
    of the training: metrics do not see a wrong order, a comparison of two models row by row does."""
    seen = []

    def accuracy(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    student, teacher = make_models("classification")
    data = rows("classification", 13)
    args = small(tmp_path, train_sampling_strategy="group_by_length", per_device_eval_batch_size=4)
    trainer = quiet(student, args, teacher=teacher, eval_dataset=data, compute_metrics=accuracy)
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == accuracy(seen[0])["accuracy"]
    assert {"eval_loss", "eval_agreement", "eval_objective/kl"} <= set(metrics)
    wanted = np.concatenate([student(input_ids=torch.tensor([ids])).logits.detach() for ids in data["input_ids"]])
    for found in (seen[0], trainer.predict(data)):
        np.testing.assert_allclose(found.predictions, wanted, rtol=1e-9)
        assert found.label_ids.tolist() == data["labels"]
    theirs = np.concatenate([teacher(input_ids=torch.tensor([ids])).logits.detach() for ids in data["input_ids"]])
    agreement = (wanted.argmax(-1) == theirs.argmax(-1)).mean()
    assert metrics["eval_agreement"] == pytest.approx(agreement)
    named = trainer.evaluate({"one": data, "two": data})
    assert named["eval_one_objective/kl"] == named["eval_two_objective/kl"] == metrics["eval_objective/kl"]


@pytest.mark.parametrize(("metric", "best"), [("eval_loss", min), ("eval_agreement", max)])
def test_best_model_is_loaded(metric: str, best: Callable[..., float], tmp_path: Path) -> None:
    """The best checkpoint is chosen among values that this trainer adds after `Trainer` computed its own."""
    trainer = make_trainer(
        "classification", tmp_path, num_train_epochs=4, learning_rate=2.0, load_best_model_at_end=True,
        metric_for_best_model=metric, eval_strategy="epoch", save_strategy="epoch", **split(4),
    )  # fmt: skip
    trainer.train()
    values = [log[metric] for log in trainer.state.log_history if metric in log]
    assert len(values) == 4
    assert len(set(values)) > 1
    assert trainer.state.best_metric == best(values)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{3 * (1 + values.index(best(values)))}")
    saved = load_file(Path(trainer.state.best_model_checkpoint, "model.safetensors"))
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())
    assert trainer.evaluate()[metric] == best(values)


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_export_holds_the_model_and_nothing_else(make_model: MakeModel, tmp_path: Path) -> None:
    """`training_args.bin` is a pickle: whoever loads a published model must not be asked to trust one. A checkpoint
    needs its own to resume."""
    directory = make_model("bert", layers=1)
    student = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    args = small(tmp_path, save_strategy="steps", save_steps=3)
    trainer = quiet(
        student, args, teacher=copy.deepcopy(student), train_dataset=rows("classification").map(two_classes),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    theirs = {path.name for path in (tmp_path / "tokenizer").iterdir()}
    found = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert found == {"config.json", "model.safetensors"} | theirs
    assert (tmp_path / "checkpoint-3" / "training_args.bin").exists()
    trainer.save_model(str(tmp_path / "checkpoints of mine"))
    assert not (tmp_path / "checkpoints of mine" / "training_args.bin").exists()
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in student.state_dict().items())


def two_classes(example: dict[str, Any]) -> dict[str, Any]:
    return {"labels": min(example["labels"], 1), "input_ids": [token % 30 for token in example["input_ids"]]}


def test_model_card(tmp_path: Path) -> None:
    """A push drafts a card; it must not overwrite the one that the run has written."""
    trainer = make_trainer("classification", tmp_path, max_steps=1)
    trainer.train()
    trainer.create_model_card(tags=trainer.model.model_tags)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- distillation" in card
    assert "- hf_distill" in card
    (tmp_path / "README.md").write_text("ours", encoding="utf-8")
    trainer.has_model_card = True
    trainer.create_model_card()
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "ours"


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Around(nn.Module):
    """A module of the user's own around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        Around,
        lambda model: Around(nn.DataParallel(Around(model))),
    ],
    ids=["compiled", "parallel", "own", "several"],
)
def test_a_wrapped_teacher_reads_what_its_model_reads(kind: str, wrap: Any, tmp_path: Path) -> None:
    """By its own signature, `**kwargs`, a wrapper takes nothing: it was called with no input at all."""
    plain = make_trainer(kind, tmp_path)
    teacher = copy.deepcopy(plain.teacher)
    assert teacher is not None
    trainer = DistillationTrainer(
        plain.model,
        plain.args,
        teacher=wrap(teacher),
        objectives=objectives(kind),
        eval_dataset=plain.eval_dataset,
        data_collator=plain.data_collator,
    )
    wanted, found = plain.evaluate(), trainer.evaluate()
    names = [name for name in wanted if "objective" in name or name in ("eval_loss", "eval_agreement")]
    assert {name: found[name] for name in names} == pytest.approx({name: wanted[name] for name in names}, rel=1e-6)


def test_a_wrapper_that_says_nothing_is_refused(tmp_path: Path) -> None:
    """It would answer to no input, with an error of the model inside that names nothing of the user's."""
    plain = make_trainer("classification", tmp_path)
    given: dict[str, Any] = {"eval_dataset": plain.eval_dataset, "data_collator": plain.data_collator}
    empty = Around(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="holds 0 Transformers models"):
        DistillationTrainer(plain.model, plain.args, teacher=empty, layout=plain.layout, **given)
    other = nn.Sequential(copy.deepcopy(plain.teacher))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes input, and the batch has"):
        DistillationTrainer(plain.model, plain.args, teacher=other, layout=plain.layout, **given).evaluate()
    with pytest.raises(TypeError, match="inside a DataParallel"):
        DistillationTrainer(nn.DataParallel(plain.model), plain.args, teacher=plain.teacher, **given)
    around = Around(copy.deepcopy(plain.teacher))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inside a Around"):
        DistillationTrainer(plain.model, plain.args, teacher=around, objectives=[Attention()], **given)
