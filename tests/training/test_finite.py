"""Nothing that is NaN or infinite passes: no loss, gradient, target, checkpoint, export or evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import engines
import pytest
import torch
from invariants.cases import Collator, NotingTrainer, arguments, make_models, make_rows, make_trainer, split, train
from invariants.processes import as_two_processes
from marked import NAN, Marked, marked_rows
from transformers import TrainerCallback, TrainingArguments

from hf_distill import DistillationTrainer, parallel
from hf_distill.errors import NotFinite, UserError
from hf_distill.files.records import read_record
from hf_distill.models import sharding
from hf_distill.objectives import Hidden, KLDivergence, Labels
from hf_distill.training.finite import NonFinite, Watch, bad_weight
from hf_distill.training.guarding import GuardedTrainer
from hf_distill.training.rollback import FILE as LEFT_OUT


class Poison(TrainerCallback):
    """Spoils a weight of the student after a step."""

    def __init__(self, step: int, value: float = NAN) -> None:
        self.step, self.value = step, value

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                model.classifier.weight[0, 0] = self.value


def in_order(directory: Path, **settings: Any) -> Any:
    """Return a trainer whose batches are the rows in their order, 8 a step."""
    settings = {"train_sampling_strategy": "sequential", "logging_steps": 100, **split(8), **settings}
    return make_trainer("classification", directory, **settings)


@pytest.mark.parametrize("terms", [None, [KLDivergence()], [Hidden()], [KLDivergence(weight=0.0), Labels()]])
@pytest.mark.parametrize("kind", ["classification", "causal-lm", "regression", "sentence-similarity"])
def test_a_teacher_of_nan_teaches_nothing(kind: str, terms: Any, tmp_path: Path) -> None:
    """Its targets make every weight of the student NaN, in silence. It is found before one of them is moved."""
    if terms and kind in ("regression", "sentence-similarity"):
        terms = None
    trainer = make_trainer(kind, tmp_path, terms=terms, logging_steps=100, **split(4))
    assert trainer.teacher is not None
    with torch.no_grad():
        for weight in trainer.teacher.parameters():
            weight.view(-1)[:8] = NAN
    before = {name: one.clone() for name, one in trainer.model.state_dict().items()}
    with pytest.raises(NotFinite, match=r"^step 1: .*the teacher's targets.*Its weight .* is not finite") as stopped:
        trainer.train()
    assert isinstance(stopped.value, FloatingPointError)
    assert "\n" not in str(stopped.value)
    assert all(one.equal(before[name]) for name, one in trainer.model.state_dict().items())


@pytest.mark.parametrize(("when", "settings"), [
    ("at the end", {}),
    ("before a checkpoint", {"save_strategy": "steps", "save_steps": 3}),
    ("before an evaluation", {"eval_strategy": "steps", "eval_steps": 3}),
    ("with the log", {"logging_steps": 3}),
])  # fmt: skip
def test_a_student_of_nan_is_found_where_something_is_read_anyway(
    when: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """The filter of Transformers logs it as 0, a checkpoint of it is resumed from, and an evaluation has no value."""
    trainer = in_order(tmp_path, max_steps=5 if when == "at the end" else 9, **settings)
    trainer.add_callback(Poison(1))
    with pytest.raises(NotFinite, match=r"^step 2: .* all 8 rows of the batch: the student's logits .* learning_rate"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    assert trainer.record.logs == []


def test_the_first_rows_and_terms_at_fault_are_named(tmp_path: Path) -> None:
    """Of a run of a week one wants to know which example it was."""
    terms = [Marked(), Labels()]
    trainer = in_order(tmp_path, terms=terms, rows=marked_rows(9, 12), num_train_epochs=1)
    with pytest.raises(NotFinite, match=r"^step 2: marked is NaN for rows 1, 4 of 8 of the batch: .* is finite"):
        trainer.train()
    trainer = in_order(tmp_path, terms=[Marked(how="inf")], rows=marked_rows(9), num_train_epochs=1)
    with pytest.raises(NotFinite, match=r"^step 2: marked is infinite for row 1 of 8"):
        trainer.train()


def test_a_gradient_of_nan_under_a_finite_loss(tmp_path: Path) -> None:
    """The loss of the step is right, and every weight is NaN after it."""
    trainer = in_order(tmp_path, terms=[Marked(how="gradient")], rows=marked_rows(9), num_train_epochs=1)
    with pytest.raises(NotFinite, match=r"^step 2: the gradient is not finite \(its norm is nan\)"):
        trainer.train()


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_weight_that_the_last_step_spoils_is_not_saved(value: float, tmp_path: Path) -> None:
    """No loss has seen it: the checkpoint would be the newest, and the export the result."""
    trainer = in_order(tmp_path, max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer.add_callback(Poison(3, value))
    with pytest.raises(NotFinite, match=r"^step 3: the weight classifier\.weight is NaN or infinite"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    with pytest.raises(NotFinite, match=r"classifier\.weight"):
        trainer.save_model(str(tmp_path / "exported"))
    assert not (tmp_path / "exported").exists()


def test_a_last_step_after_which_the_student_answers_nothing(tmp_path: Path) -> None:
    """Weights of 1e30 are finite, and what a model makes of them is not."""
    trainer = in_order(tmp_path, max_steps=1, optim="adamw_torch", learning_rate=1e30, dtype=torch.float32)
    trainer.train()
    assert bad_weight(trainer.model) is None
    with pytest.raises(NotFinite, match=r"^step 1: .*the student's logits"):
        trainer.save_model(str(tmp_path / "exported"))
    with pytest.raises(
        NotFinite, match=r"^evaluation after step 1: .* for all 13 rows of the evaluation: the student's"
    ):
        trainer.evaluate()


def test_a_plain_training_behaves_alike(tmp_path: Path) -> None:
    """`TrainingArguments` are welcome too, and have the filter on."""
    made = in_order(tmp_path)
    trainer = DistillationTrainer(
        made.model,
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=3, report_to="none", disable_tqdm=True),
        teacher=made.teacher,
        objectives=[Marked(), Labels()],
        train_dataset=made.train_dataset.from_list(marked_rows(*range(24))),
        data_collator=Collator(),
    )
    with pytest.raises(NotFinite, match="step 1: marked is NaN for all 8"):
        trainer.train()


def test_a_loss_that_grows_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A learning rate of 10 keeps every number finite, and the run ends hours later with a model that guesses."""
    trainer = in_order(tmp_path, optim="adamw_torch", learning_rate=10.0, max_steps=8, logging_steps=1)
    trainer.train()
    (said,) = [one.message for one in caplog.records if "times as much" in one.message]
    assert "learning_rate (now 10)" in said
    caplog.clear()
    in_order(tmp_path, optim="adamw_torch", learning_rate=1e-3, max_steps=8, logging_steps=1).train()
    assert "times as much" not in caplog.text


def test_the_best_model_is_not_chosen_by_nan(tmp_path: Path) -> None:
    """NaN is neither greater nor less: `load_best_model_at_end` would load nothing, and export the last."""
    trainer = in_order(
        tmp_path, max_steps=2, eval_strategy="steps", save_strategy="steps", eval_steps=1, save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="auc",
    )  # fmt: skip
    trainer.compute_metrics = lambda prediction: {"auc": NAN}
    with pytest.raises(NotFinite, match=r"eval_auc.* after step 1") as stopped:
        trainer.train()
    assert stopped.value.key == "training.metric_for_best_model"


# ---- on_nan: skip ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["nan", "gradient"])
def test_a_step_is_left_out(how: str, tmp_path: Path) -> None:
    """Counted as a step of loss 0 it would lower the mean; with zeros for gradients, momentum moves the weights."""
    settings: dict[str, Any] = {"optim": "adamw_torch", "learning_rate": 1e-2, "num_train_epochs": 1}
    rows = marked_rows(33, count=88)
    skipping = in_order(tmp_path, terms=[Marked(how=how)], rows=rows, on_nan="skip", **settings)
    found = train(skipping)
    # The same without the step, whose batch is the fifth; the learning rate is constant.
    wanted = train(in_order(tmp_path, terms=[Marked(how=how)], rows=rows[:32] + rows[40:], **settings))
    assert all(one.equal(wanted.weights[name]) for name, one in found.weights.items())
    assert skipping.state.log_history[-1]["skipped_steps"] == skipping.skipped == 1
    assert skipping.state.log_history[-1]["train_loss"] == pytest.approx(
        sum(wanted.losses) / len(wanted.losses), rel=1e-6
    )


def test_logs_of_a_window_with_a_step_left_out(tmp_path: Path) -> None:
    """One NaN in the sum of a window hides the loss of all its steps."""
    rows = marked_rows(9, count=88)
    trainer = in_order(tmp_path, terms=[Marked()], rows=rows, on_nan="skip", num_train_epochs=1, logging_steps=4)
    logged = train(trainer).logs[0]
    losses = trainer.record.losses
    mean = (losses[0] + losses[2] + losses[3]) / 3
    assert logged["loss"] == pytest.approx(mean, rel=1e-5)
    assert logged["objective/marked"] == pytest.approx(mean, rel=1e-5)
    assert logged["skipped_steps"] == 1


def test_skipping_gives_up(tmp_path: Path) -> None:
    """A teacher of NaN would have every step left out, and an untrained student exported."""
    trainer = in_order(tmp_path, terms=[Marked()], rows=marked_rows(*range(24)), on_nan="skip", max_steps=40)
    with pytest.raises(
        NotFinite, match=r"^20 of 20 steps were skipped, and on_nan: skip gives up above 10%\. The last one: step 20"
    ):
        trainer.train()
    trainer = in_order(tmp_path, terms=[Marked()], rows=marked_rows(*range(24)), on_nan="skip", max_steps=3)
    with pytest.raises(NotFinite, match=r"^3 of 3 steps were skipped.* one: step 3: marked"):
        trainer.train()


def test_steps_left_out_are_remembered_by_a_checkpoint(tmp_path: Path) -> None:
    """Counted from 0 again after each resume, nine tenths of the steps could be left out."""
    settings: dict[str, Any] = {
        "terms": [Marked()], "rows": marked_rows(9, count=88), "on_nan": "skip", "num_train_epochs": 1,
        "save_strategy": "steps", "save_steps": 3,
    }  # fmt: skip
    in_order(tmp_path, **settings).train()
    again = in_order(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert again.skipped == again.state.log_history[-1]["skipped_steps"] == 1


# ---- on_nan: rollback ------------------------------------------------------------------------------------------------

SAVED: dict[str, Any] = {
    "on_nan": "rollback", "save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch", "learning_rate": 1e-2,
    "num_train_epochs": 1,
}  # fmt: skip


@pytest.mark.parametrize("how", ["nan", "gradient"])
def test_a_training_goes_back_and_leaves_the_rows_out(how: str, tmp_path: Path, caplog: Any) -> None:
    """Found with the log, the fault has spoilt the weights of the steps since: they must be those of the checkpoint."""
    rows = marked_rows(33, count=88)
    found = in_order(tmp_path / "back", terms=[Marked(how=how)], rows=rows, **SAVED)
    found.train()
    # The same without the step, whose batch is the fifth; the learning rate is constant.
    wanted = in_order(tmp_path / "without", terms=[Marked(how=how)], rows=rows[:32] + rows[40:], **SAVED)
    wanted.train()
    assert all(one.equal(wanted.model.state_dict()[name]) for name, one in found.model.state_dict().items())
    assert found.skipped == found.state.log_history[-1]["skipped_steps"] == 1
    assert found.state.global_step == 11
    (said,) = [record.message for record in caplog.records if "rollback" in record.message]
    assert all(words in said for words in ("step 5", "checkpoint-3", "the rows of step 5 are left out"))


def test_all_steps_since_the_checkpoint_are_left_out_the_second_time(tmp_path: Path) -> None:
    """Rows that spoil the weights come before the step whose loss shows it: alone, that would fail again and again."""
    trainer = in_order(tmp_path, terms=[Marked()], rows=marked_rows(33, 41, count=400), **SAVED)
    trainer.train()
    assert read_record(tmp_path / LEFT_OUT) == {"steps": [4, 5, 6], "returns": {"3": 2}}
    assert trainer.skipped == 3


def test_no_checkpoint_of_an_earlier_training_is_returned_to(tmp_path: Path) -> None:
    """Trained again in the same directory, the student would go on with the weights of another training."""
    in_order(tmp_path, terms=[Marked()], rows=marked_rows(count=88), **SAVED).train()
    assert (tmp_path / "checkpoint-9").is_dir()
    again = in_order(tmp_path, terms=[Marked()], rows=marked_rows(9, count=88), **SAVED)
    with pytest.raises(NotFinite, match=r"step 2: marked .* no checkpoint yet"):
        again.train()


def test_steps_are_left_out_of_the_next_training_only_if_it_fails_too(tmp_path: Path) -> None:
    """The same trainer with `on_nan: stop` would pass over rows without a word."""
    trainer = in_order(tmp_path, terms=[Marked()], rows=marked_rows(33, count=88), **SAVED)
    trainer.train()
    assert trainer.skipped == 1
    trainer.args.on_nan = "stop"  # type: ignore[attr-defined]
    with pytest.raises(NotFinite, match=r"^step 5"):
        trainer.train()


def test_going_back_ends(tmp_path: Path) -> None:
    """A student whose weights are NaN would be trained again without end."""
    before = in_order(tmp_path, terms=[Marked()], rows=marked_rows(9, count=88), **SAVED)
    with pytest.raises(NotFinite, match=r"step 2: marked .* no checkpoint yet.*save_steps"):
        before.train()
    many = in_order(tmp_path, terms=[Marked()], rows=marked_rows(33, 41, count=88), **SAVED)
    with pytest.raises(NotFinite, match=r"step 6: marked .* leave out 3 of 11 steps.*10%"):
        many.train()
    spoilt = in_order(tmp_path, terms=[Marked()], rows=marked_rows(count=1600), **SAVED)
    spoilt.add_callback(Poison(4))
    with pytest.raises(NotFinite, match=r"step 6: .* returned to .*checkpoint-3 2 times"):
        spoilt.train()


def test_a_resumed_training_leaves_the_same_steps_out(tmp_path: Path) -> None:
    """Killed after it went back, a run that forgot why would fail again, or end with other weights."""
    settings: dict[str, Any] = {"terms": [Marked()], "rows": marked_rows(33, count=88), **SAVED}
    whole = in_order(tmp_path, **settings)
    whole.train()
    again = in_order(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert all(one.equal(whole.model.state_dict()[name]) for name, one in again.model.state_dict().items())
    assert again.skipped == 1
    fresh = in_order(tmp_path, **{**settings, "rows": marked_rows(count=88)})
    fresh.train()
    assert fresh.skipped == 0


@pytest.mark.parametrize("engine", ["fsdp2", pytest.param("fsdp2-shards", marks=pytest.mark.slow)])
def test_going_back_where_weights_are_sharded(engine: str, tmp_path: Path) -> None:
    """Each process would load its part into what the first training left behind, and go on with a mixture."""

    def work() -> tuple[bool, int]:
        settings = {**SAVED, "dtype": torch.float32, **split(4, processes=2)}
        rows = marked_rows(33, count=88)
        back = in_order(tmp_path / "back", terms=[Marked()], rows=rows, **settings)
        back.train()
        without = {**settings, "on_nan": "stop"}
        wanted = in_order(tmp_path / "without", terms=[Marked()], rows=rows[:32] + rows[40:], **without)
        wanted.train()
        weights = [one.model.state_dict() for one in (back, wanted)]
        return all(sharding.local(weights[0][name]).equal(sharding.local(one)) for name, one in weights[1].items()), (
            back.skipped
        )

    assert engines.run(engine, work, tmp_path / "results") == [(True, 1)] * 2


def test_going_back_needs_checkpoints(tmp_path: Path) -> None:
    """After days, the fault would find nothing to go back to."""
    with pytest.raises(ValueError, match="save_strategy"):
        in_order(tmp_path, **{**SAVED, "save_strategy": "no"}).train()
    with pytest.raises(ValueError, match="save_only_model"):
        in_order(tmp_path, **{**SAVED, "save_only_model": True}).train()


# ---- Scales and processes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "settles"), [(16, True), (60, False)])
def test_a_loss_scale_may_settle(row: int, settles: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16's loss scale begins too high on purpose: its first gradients are infinite, and their steps not taken."""
    monkeypatch.setattr(GuardedTrainer, "_scales", True)
    trainer = in_order(tmp_path, max_steps=1)
    for step in range(80):
        trainer.watch.gradient(step + 1, torch.tensor(float("inf") if step < row else 1.0))
    if settles:
        trainer.check_finite()
    else:
        with pytest.raises(NotFinite, match="step 40: the gradient"):
            trainer.check_finite()


def test_a_loss_scale_that_never_settles_is_found_between_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a log every few steps each look saw a few of them: no step was ever taken, and the run ended well."""
    monkeypatch.setattr(GuardedTrainer, "_scales", True)
    trainer = in_order(tmp_path, max_steps=1)
    found: list[str] = []
    for step in range(50):
        trainer.watch.gradient(step + 1, torch.tensor(float("inf")))
        if step % 10 == 9:
            try:
                trainer.check_finite()
            except NotFinite as error:
                found.append(str(error))
    assert found[0].startswith("step 40: the gradient")


def test_a_loss_scale_that_settles_hides_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first gradients under fp16 are infinite on purpose; a loss of NaN after them was taken for one of these."""
    monkeypatch.setattr(GuardedTrainer, "_scales", True)
    trainer = in_order(tmp_path, max_steps=1)
    trainer.watch.gradient(1, torch.tensor(float("inf")))
    bad = torch.zeros(8, len(trainer.terms))
    bad[3] = NAN
    trainer.watch.batch(2, bad, torch.zeros(8, 2))
    with pytest.raises(NotFinite, match=r"^step 2: .* row 3 of 8"):
        trainer.check_finite()


def test_saving_after_the_teacher_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who frees the memory of a teacher after hours of training must be able to save the student."""
    trainer = in_order(tmp_path, max_steps=1)
    trainer.train()
    trainer.teacher = None
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    assert "saved unchecked" in caplog.text


def test_one_process_may_log_and_save_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback on the first process asked the others, who were elsewhere: both waited for ever."""
    trainer = in_order(tmp_path, max_steps=1)
    trainer.watch.gradient(1, torch.tensor(1.0))

    def waits(*_: Any, **__: Any) -> None:
        raise AssertionError("the other processes are asked")

    monkeypatch.setattr(parallel, "summed", waits)
    monkeypatch.setattr(parallel, "processes", lambda: 2)
    trainer.log({"mine": 1.0})
    trainer.save_model(str(tmp_path / "saved"))
    with pytest.raises(AssertionError, match="are asked"):
        trainer.log({"loss": 1.0})


def test_two_processes(tmp_path: Path) -> None:
    """One process that stops leaves the others waiting for it until a timeout; all have to say the same."""
    found = as_two_processes("not_finite", tmp_path)
    assert found["stop"][0] == found["stop"][1]
    assert "step 2: marked is NaN for row 3 of 4 of the batch of process 1" in found["stop"][0]
    assert found["skip"] == found["rollback"] == [1, 1]


# ---- The watch -------------------------------------------------------------------------------------------------------


def test_classes_ruled_out_are_no_fault() -> None:
    """Models rule classes out by a logit of -inf: a training of theirs is as good as any."""
    watch = Watch(["kl"])
    watch.batch(1, torch.ones(2, 1), torch.tensor([[-float("inf"), 0.0], [1.0, -float("inf")]]))
    assert not watch.flag(torch.device("cpu")).item()
    assert watch.first() is None
    watch.batch(2, torch.ones(2, 1), torch.tensor([[0.0, 0.0], [1.0, float("inf")]]))
    assert watch.flag(torch.device("cpu")).item()
    assert watch.first() == NonFinite(2, {}, rows=(1,), of=2, sides=("teacher",))


def test_weights() -> None:
    """A buffer of -inf is a mask, a weight of it is not."""
    model = torch.nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([-float("inf")]))
    model.register_buffer("ids", torch.arange(3))
    model.register_buffer("nothing", torch.zeros(0))
    assert bad_weight(model) is None
    model.mask.fill_(NAN)  # type: ignore[operator]
    assert bad_weight(model) == "mask"
    model.half().weight.data[0, 1] = -float("inf")
    assert bad_weight(model) == "weight"


def test_a_head_whose_logits_are_never_all_there(tmp_path: Path) -> None:
    """What goes into it is finite: a line about the student's learning rate would send the reader astray."""
    trainer = make_trainer("causal-lm", tmp_path, max_steps=2, **split(8))
    assert trainer.teacher is not None
    with torch.no_grad():
        trainer.teacher.lm_head.weight[3] = float("inf")
    with pytest.raises(NotFinite, match=r"step 1: .*the teacher's targets.*lm_head\.weight is not finite"):
        trainer.train()


def test_layers_are_not_paired_by_nan(tmp_path: Path) -> None:
    """NaN has no norm, so nothing is like it, and the first layers in order were taken."""
    student, teacher = make_models("classification")
    with torch.no_grad():
        teacher.bert.encoder.layer[1].output.dense.weight.fill_(NAN)
    with pytest.raises(UserError, match="teacher's layer 2 are NaN"):
        NotingTrainer(
            student, arguments(tmp_path, **split(8)), teacher=teacher, objectives=[Hidden(layers="similarity")],
            train_dataset=datasets.Dataset.from_list(make_rows("classification")), data_collator=Collator(),
        )  # fmt: skip


@pytest.mark.parametrize("optimizer", ["lomo", "galore_adamw_layerwise"])
def test_steps_that_cannot_be_left_out(optimizer: str, tmp_path: Path) -> None:
    """Such an optimizer has moved the weights before the gradient is known as a whole."""
    with pytest.raises(ValueError, match="on_nan: stop"):
        in_order(tmp_path, on_nan="skip", optim=optimizer, optim_target_modules=["attention"])
