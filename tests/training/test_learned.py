"""What objectives learn: trained with the student, kept in checkpoints, never exported. On splits: `invariants/`."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pytest
import torch
import transformers
from invariants.cases import Collator, arguments, make_models, make_rows, make_trainer, split, train
from invariants.projected import Hooked, Projected, ProjectedTerm
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback
from versions import CHECKPOINTING

from hf_distill import DistillationArguments, DistillationTrainer
from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models.loading import Head
from hf_distill.objectives import Attention, Comparison, KLDivergence, Labels, Objective
from hf_distill.objectives.base import PreparedObjective, Term
from hf_distill.rows.examples import ExampleRows
from hf_distill.run.fit import Fitter
from hf_distill.tasks import Prepared
from hf_distill.tasks.evaluator import LogitsEvaluator
from hf_distill.training.saving import attach, detach

FILE = "distillation.safetensors"
WEIGHT = "distillation.0.projection.weight"
BIAS = "distillation.0.projection.bias"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def projected(directory: Path, **settings: Any) -> Any:
    defaults: dict[str, Any] = {"terms": [Projected(weight=0.5), Labels()], "teacher_width": 24, **split(4)}
    return make_trainer("classification", directory, **{**defaults, **settings})


def two_models(**settings: Any) -> tuple[Any, Any]:
    return make_models("classification", **{"teacher_width": 24, "dtype": torch.float32, **settings})


def quiet(student: Any, directory: Path, teacher: Any, *terms: Objective, **settings: Any) -> DistillationTrainer:
    data = datasets.Dataset.from_list(make_rows("classification"))
    args = arguments(directory, **{"max_steps": 3, "per_device_train_batch_size": 4, **settings})
    trainer = DistillationTrainer(
        student, args, teacher=teacher, objectives=terms or (Projected(), Labels()), data_collator=Collator(),
        train_dataset=data, eval_dataset=data.select(range(8)),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


# --- trained with the student -----------------------------------------------------------------------------------------


def test_gradient_of_a_projection(tmp_path: Path) -> None:
    """A projection that no optimizer knows stays random, and the student learns to please a random matrix. Its gradient
    by hand: with the residual `r = W h + b - t`, `2 r h^T` over all tokens that are no padding, by their number."""
    trainer = projected(tmp_path, max_steps=1, train_sampling_strategy="sequential")
    student, teacher = copy.deepcopy(trainer.model), copy.deepcopy(trainer.teacher)
    weight, bias = (trainer.model.state_dict()[name].clone().numpy() for name in (WEIGHT, BIAS))
    record = train(trainer)
    slope, shift, value, tokens = np.zeros_like(weight), np.zeros_like(bias), 0.0, 0
    for row in make_rows("classification")[:8]:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            h, t = (
                m(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].numpy() for m in (student, teacher)
            )
        residual = h @ weight.T + bias - t
        slope, shift = slope + 2 * residual.T @ h, shift + 2 * residual.sum(0)
        value, tokens = value + float((residual**2).sum()), tokens + len(h)
    np.testing.assert_allclose(record.gradients[0][WEIGHT].numpy(), 0.5 * slope / tokens, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(record.gradients[0][BIAS].numpy(), 0.5 * shift / tokens, rtol=1e-9, atol=1e-12)
    assert record.logs[0]["objective/projected"] == pytest.approx(value / tokens, rel=1e-5)
    moved = weight - trainer.args.learning_rate * 0.5 * slope / tokens
    np.testing.assert_allclose(record.weights[WEIGHT].numpy(), moved, rtol=1e-9)
    trained = {id(one) for group in trainer.optimizer.param_groups for one in group["params"]}
    assert {id(one) for one in trainer.terms.learned.parameters()} <= trained


def test_same_projection_whatever_was_drawn_before(tmp_path: Path) -> None:
    """Two processes, or a run and its resumption, must begin with the same one: it follows from the seed alone."""
    weights = []
    for draws in (0, 5):
        student, teacher = two_models()
        torch.rand(draws)
        weights.append(quiet(student, tmp_path, teacher).model.state_dict()[WEIGHT])
    assert torch.equal(*weights)
    student, teacher = two_models()
    assert not torch.equal(quiet(student, tmp_path, teacher, seed=1).model.state_dict()[WEIGHT], weights[0])


def test_projection_has_the_precision_of_the_student(tmp_path: Path) -> None:
    """FSDP shards only parameters of one precision; and a quantised student's first parameter may be an integer."""
    student, teacher = two_models(dtype=torch.bfloat16)
    assert quiet(student, tmp_path, teacher).terms.learned["0"].projection.weight.dtype == torch.bfloat16
    student, teacher = two_models()
    numbers = nn.Parameter(torch.ones(2, dtype=torch.uint8), requires_grad=False)
    student.bert.embeddings.register_parameter("quantised", numbers)
    student._parameters["first"] = numbers
    assert next(student.parameters()).dtype == torch.uint8
    assert quiet(student, tmp_path, teacher).terms.learned["0"].projection.weight.dtype == torch.float32


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_resumed_training_is_the_same(tmp_path: Path) -> None:
    """A projection that starts anew after a crash throws away what the student has adapted to, without a word."""
    settings: dict[str, Any] = {
        "dropout": 0.1, "dtype": torch.float32, "optim": "adamw_torch", "max_steps": 6, "save_strategy": "steps",
        "save_steps": 1,
    }  # fmt: skip
    whole = train(projected(tmp_path / "whole", **settings))
    assert not torch.equal(whole.weights[WEIGHT], load_file(tmp_path / "whole/checkpoint-1" / FILE)[WEIGHT[13:]])
    for step in (1, 4):
        shutil.copytree(tmp_path / f"whole/checkpoint-{step}", tmp_path / f"{step}/checkpoint-{step}")
        rest = train(projected(tmp_path / str(step), **settings), resume_from_checkpoint=True)
        assert rest.losses == whole.losses[step:]
        assert rest.weights.keys() == whole.weights.keys()
        assert all(torch.equal(rest.weights[name], value) for name, value in whole.weights.items())


def test_best_checkpoint_brings_its_projection(tmp_path: Path) -> None:
    """`Trainer` loads the best model by another path than it resumes: the best student with the last projection is
    nobody's."""
    trainer = projected(
        tmp_path, num_train_epochs=4, learning_rate=0.1, load_best_model_at_end=True, eval_strategy="epoch",
        save_strategy="epoch", metric_for_best_model="eval_loss",
    )  # fmt: skip
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    best = Path(trainer.state.best_model_checkpoint)
    assert losses.index(min(losses)) < 3  # else the last would be the best, and the test blind
    saved = load_file(best / FILE)
    assert all(torch.equal(value, saved[name]) for name, value in trainer.terms.learned.state_dict().items())
    assert trainer.evaluate()["eval_loss"] == min(losses)


def test_checkpoint_of_other_objectives_is_refused(tmp_path: Path) -> None:
    """Loaded all the same, projections would start anew, or be dropped, in the middle of a training."""
    settings: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    projected(tmp_path, **settings).train()
    checkpoint = tmp_path / "checkpoint-1"

    def resume(**other: Any) -> None:
        projected(tmp_path / "again", **{**settings, **other}).train(resume_from_checkpoint=str(checkpoint))

    with pytest.raises(UserError, match=r"checkpoint-1 was made with other objectives.*learn nothing\. Start over"):
        resume(terms=[KLDivergence(), Labels()])
    with pytest.raises(UserError, match=r"weight \(24, 16\).*1\.projection"):
        resume(terms=[Labels(), Projected()])
    with pytest.raises(UserError, match=r"\(24, 16\).*\(20, 16\)"):
        resume(teacher_width=20)
    save_file({"other": torch.zeros(1)}, checkpoint / FILE)
    with pytest.raises(UserError, match=r"other \(1,\)"):
        resume()
    (checkpoint / FILE).unlink()
    with pytest.raises(UserError, match=r"they learned nothing"):
        resume()


def test_loading_a_checkpoint_warns_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ "Missing keys: distillation..." at every resumption would teach users to read no warning."""
    settings: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    projected(tmp_path, **settings).train()
    trainer = projected(tmp_path, **settings)
    caplog.set_level(logging.WARNING, logger="transformers")
    logging.getLogger("transformers").addHandler(caplog.handler)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "keys" not in caplog.text


def test_a_share_of_the_training_is_no_other_interval(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint holds steps: "logging_steps: 0.25 != 1" at every resumption would teach users to read no warning."""
    settings: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 0.5, "logging_steps": 0.25}
    projected(tmp_path, **settings).train()
    caplog.set_level(logging.WARNING, logger="transformers")
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        trainer = projected(tmp_path, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert "do not match" not in caplog.text
        assert (trainer.state.logging_steps, trainer.state.save_steps) == (1, 2)
        assert (trainer.args.logging_steps, trainer.args.save_steps) == (0.25, 0.5)
        # What is another interval is still told.
        projected(tmp_path, **{**settings, "logging_steps": 0.5}).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )
        assert "logging_steps: 2 (from args) != 1" in caplog.text
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_nothing_learned_is_exported(tmp_path: Path) -> None:
    """Who loads a published student must not read of keys that nobody knows; by whatever path it was saved."""
    student, teacher = two_models()
    before = set(student.state_dict())
    trainer = quiet(student, tmp_path / "out", teacher, save_strategy="steps", save_steps=3)
    assert set(student.state_dict()) == before | {WEIGHT, BIAS}
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    student.save_pretrained(tmp_path / "user")
    for place in ("out", "elsewhere", "user", "out/checkpoint-3"):
        directory = tmp_path / place
        assert set(load_file(directory / "model.safetensors")) == before
        assert (directory / FILE).exists() == ("checkpoint" in place)
        loaded, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            directory, output_loading_info=True
        )
        assert not any(info.values()), info
        assert all(torch.equal(value, student.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert set(load_file(tmp_path / "out/checkpoint-3" / FILE)) == {WEIGHT[13:], BIAS[13:]}


def test_peft_student(tmp_path: Path) -> None:
    """PEFT chooses by name what it saves, and with `bias="all"` takes everything called bias: a projection's too."""
    import peft

    teacher = two_models()[1]
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], bias="all")
    args: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "optim": "adamw_torch"}
    lora = peft.get_peft_model(two_models()[0], config)
    trainer = quiet(lora, tmp_path, teacher, **args)
    start = trainer.terms.learned["0"].projection.weight.detach().clone()
    trainer.train()
    assert not torch.equal(trainer.terms.learned["0"].projection.weight, start)
    trainer.save_model()
    for place in (tmp_path, tmp_path / "checkpoint-3"):
        saved = load_file(place / "adapter_model.safetensors")
        assert any("lora" in name for name in saved)
        assert any("bias" in name for name in saved)
        assert not [name for name in saved if "distillation" in name or "projection" in name]
    again = peft.get_peft_model(two_models()[0], config)
    resumed = quiet(again, tmp_path, teacher, **args)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    wanted = lora.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())
    merged = lora.merge_and_unload()
    assert not hasattr(merged, "distillation")


def test_second_trainer_replaces_what_the_first_left(tmp_path: Path) -> None:
    """Left behind, the first training's projection would be trained, saved and counted by every later one."""
    student, teacher = two_models()
    before = dict(student.named_parameters())
    first = quiet(student, tmp_path, teacher)
    first.train()
    second = quiet(student, tmp_path, two_models(teacher_width=32)[1])
    assert student.state_dict()[WEIGHT].shape == (32, 16)
    second.train()
    assert second.evaluate()["eval_objective/projected"] > 0
    quiet(student, tmp_path, teacher, Labels())
    assert not hasattr(student, "distillation")
    assert dict(student.named_parameters()).keys() == before.keys()
    assert not [name for name in student._keys_to_ignore_on_save if "distillation" in name]


def test_detached_through_a_wrapper(tmp_path: Path) -> None:
    """PEFT wrapped around a student that was trained before: the old projection sits in the model inside."""
    import peft

    student, teacher = two_models()
    quiet(student, tmp_path, teacher).train()
    lora = peft.get_peft_model(student, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    attach(lora, nn.ModuleDict({"0": nn.Linear(2, 3)}))
    assert [name for name in lora.state_dict() if "distillation" in name] == [
        "distillation.0.weight", "distillation.0.bias",
    ]  # fmt: skip
    detach(lora)
    assert not [name for name in lora.state_dict() if "distillation" in name]


def test_fitter_returns_the_student_alone(tmp_path: Path) -> None:
    """A report that counts the projection says that the student is larger than what is published."""
    student, teacher = two_models()
    parameters = student.num_parameters()
    data = datasets.Dataset.from_list(make_rows("classification"))
    prepared = Prepared(
        train=data, eval=data.select(range(8)), head=Head("AutoModelForSequenceClassification"),
        layout=ExampleRows(width=3), collator=Collator(), evaluator=LogitsEvaluator((), "classes"),
        label_names=None, labelled=True,
    )  # fmt: skip
    tokenizer: Any = None
    training = {"output_dir": str(tmp_path), "max_steps": 2, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    terms: list[Objective] = [Projected(), Attentive(), Labels()]
    fitted = Fitter(prepared, tokenizer).fit(
        student, objectives=terms, training=training, directory=tmp_path, teacher=teacher
    )
    assert fitted.model is student
    assert student.num_parameters() == parameters
    assert not hasattr(student, "distillation")
    assert not student.training
    assert [one.config._attn_implementation for one in (student, teacher)] == ["sdpa", "sdpa"]


# --- evaluation and the rest of the trainer ---------------------------------------------------------------------------


def test_evaluation_before_training_and_prediction(tmp_path: Path) -> None:
    """`evaluate()` on a fresh trainer prepares the model by another path than `train()` does."""
    trainer = projected(tmp_path, max_steps=2, learning_rate=0.0)
    before = trainer.evaluate()["eval_objective/projected"]
    trainer.train()
    assert trainer.evaluate()["eval_objective/projected"] == pytest.approx(before, rel=1e-12)
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.predictions.shape == (13, 3)
    assert predicted.metrics["test_objective/projected"] == pytest.approx(before, rel=1e-12)


def test_what_cannot_know_a_projection_is_refused(tmp_path: Path) -> None:
    """An optimizer made before has no projection among its parameters."""
    student, teacher = two_models()
    args = DistillationArguments(output_dir=str(tmp_path), report_to="none")
    terms: dict[str, Any] = {"teacher": teacher, "objectives": [Projected()]}
    optimizers = (torch.optim.SGD(student.parameters(), lr=0.1), None)
    with pytest.raises(ValueError, match="Pass no `optimizers`"):
        DistillationTrainer(student, args, optimizers=optimizers, **terms)
    compiled = DistillationArguments(output_dir=str(tmp_path), report_to="none", torch_compile=True)
    for objective in (Projected(), Hooked()):
        with pytest.raises(ValueError, match="torch_compile does not work with objectives that"):
            DistillationTrainer(student, compiled, teacher=two_models(teacher_width=16)[1], objectives=[objective])
    assert not hasattr(student, "distillation")


def test_reentrant_checkpointing_is_refused(tmp_path: Path) -> None:
    """It computes layers without gradient first: what a hook saw there, maps of attention too, would train nothing."""
    student, teacher = make_models("classification", dtype=torch.float32)
    settings: dict[str, Any] = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    }
    with pytest.raises(UserError, match="use_reentrant: false"):
        quiet(student, tmp_path, teacher, Attention(), Labels(), **settings)
    quiet(student, tmp_path, teacher, KLDivergence(), Labels(), **settings).train()
    settings["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    quiet(student, tmp_path, teacher, Attention(), Labels(), **settings).train()


def hooks(*models: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for m in models for module in m.modules())


def test_hooks_are_gone_after_every_pass(tmp_path: Path) -> None:
    """A hook that stays sees every later batch: it holds on to the graph of each, until memory ends."""
    student, teacher = two_models(teacher_width=16)
    before = hooks(student, teacher)
    trainer = quiet(student, tmp_path, teacher, Hooked())  # for hidden states Transformers leaves hooks of its own
    seen = []
    trainer.terms[0].register_forward_pre_hook(lambda *_: seen.append(hooks(student, teacher)))
    trainer.train()
    trainer.evaluate()
    assert seen
    assert set(seen) == {before}  # already when the term computes
    assert hooks(student, teacher) == before

    def fail(*_: Any) -> None:
        assert hooks(student, teacher) > before + 1
        raise RuntimeError("out of memory")

    for model in (student, teacher):
        handle = model.classifier.register_forward_hook(fail)
        for action in (trainer.train, trainer.evaluate):
            with pytest.raises(RuntimeError, match="out of memory"):
                action()
            assert hooks(student, teacher) == before + 1
        handle.remove()
    assert "forward" not in student.__dict__


# --- attention computed as plain products -----------------------------------------------------------------------------


@component
class Attentive(Objective):
    """Squared distance of the attention maps of the last layer."""

    name: ClassVar[str] = "attentive"
    unit: ClassVar[Any] = "example"
    outputs: ClassVar[frozenset[str]] = frozenset({"attentions"})
    needs_eager_attention: ClassVar[bool] = True

    def per_example(self, comparison: Comparison) -> Tensor:
        """See `Objective.per_example`."""
        assert comparison.teacher is not None
        mine, theirs = comparison.student["attentions"][-1], comparison.teacher["attentions"][-1]
        distance: Tensor = (mine - theirs).square().sum((1, 2, 3))
        return distance


@pytest.mark.parametrize("checkpointing", [False, True])
def test_attention_is_as_before_after_training(checkpointing: bool, tmp_path: Path) -> None:
    """A student left on plain attention is slower than what is published, and a teacher left on it makes every student
    after it look fast. With activation checkpointing attention is also computed in the backward pass."""
    student, teacher = two_models()
    models = (student, teacher)
    found: list[list[str]] = []
    trainer = quiet(student, tmp_path, teacher, Attentive(), Labels(), **(CHECKPOINTING if checkpointing else {}))

    def implementations() -> list[str]:
        return [one.config._attn_implementation for one in models]

    assert implementations() == ["sdpa", "sdpa"]
    student.bert.encoder.layer[0].intermediate.register_forward_hook(lambda *_: found.append(implementations()))
    trainer.train()
    assert len(found) == 3 * (1 + checkpointing)
    trainer.evaluate()
    trainer.compute_loss(student, trainer._prepare_inputs(next(iter(trainer.get_train_dataloader()))))
    assert all(one == ["eager", "eager"] for one in found)
    assert implementations() == ["sdpa", "sdpa"]
    handle = teacher.register_forward_hook(lambda *_: 1 / 0)
    for action in (trainer.train, trainer.evaluate):
        with pytest.raises(ZeroDivisionError):
            action()
        assert implementations() == ["sdpa", "sdpa"]
    handle.remove()
    trainer.save_model()
    assert "attn_implementation" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    assert not loaded.config.output_attentions


def test_whoever_chose_eager_keeps_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Restoring "the default" would change a model that its owner has set up."""
    student, teacher = two_models()
    student.set_attn_implementation("eager")
    with caplog.at_level(logging.WARNING, "hf_distill.training.terms"):
        quiet(student, tmp_path, teacher, Attentive()).train()
    assert (student.config._attn_implementation, teacher.config._attn_implementation) == ("eager", "sdpa")
    assert caplog.text.count("computes attention with 'sdpa'") == 1


# --- choosing by the data ---------------------------------------------------------------------------------------------


@component
class Observing(PreparedObjective):
    """Counts what it is shown before training."""

    name: ClassVar[str] = "observing"
    unit: ClassVar[Any] = "example"

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        """See `Objective.prepare`."""
        return ObservingTerm(self)


class ObservingTerm(Term):
    """Keeps the logits it was shown."""

    needs_data = True

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self.shown: list[Tensor] = []
        self.settled = 0

    def observe(self, comparison: Comparison) -> None:
        """See `Term.observe`."""
        assert not comparison.student["logits"].requires_grad
        self.shown.append(comparison.rows.student)

    def settle(self) -> str:
        """See `Term.settle`."""
        self.settled += 1
        return f"saw {sum(map(len, self.shown))} examples"

    def forward(self, comparison: Comparison) -> Tensor:
        """See `Term.forward`."""
        return comparison.rows.student.square().sum(-1)


@pytest.mark.parametrize("kind", ["dataset", "list", "stream"])
def test_terms_that_choose_see_the_first_examples_once(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Shown shuffled batches, or with dropout, two processes would choose different layers and average their
    gradients."""
    student, teacher = two_models(dropout=0.3)
    rows = [{**row, "unknown": 1} for row in make_rows("classification", 70)]
    data: Any = {"list": rows, "dataset": datasets.Dataset.from_list(rows)}.get(kind)
    if data is None:
        data = datasets.Dataset.from_list(rows).to_iterable_dataset()
    student.train()
    with caplog.at_level(logging.INFO, "hf_distill.trainer"):
        trainer = DistillationTrainer(
            student, arguments(tmp_path, max_steps=1, per_device_train_batch_size=16), teacher=teacher,
            objectives=[Observing()], train_dataset=data, data_collator=Collator(),
        )  # fmt: skip
    assert student.training
    term: Any = trainer.terms[0]
    assert [len(batch) for batch in term.shown] == [16] * 4
    assert term.settled == 1
    assert "saw 64 examples" in caplog.text
    student.eval()
    with torch.no_grad():
        wanted = torch.cat([student(input_ids=torch.tensor([row["input_ids"]])).logits for row in rows[:64]])
    torch.testing.assert_close(torch.cat(term.shown), wanted, rtol=1e-4, atol=1e-5)
    trainer.train()
    assert term.settled == 1


def test_terms_are_told_apart_by_their_place(tmp_path: Path) -> None:
    """Two projections of one name: the second's weights would overwrite the first's in a checkpoint."""
    trainer = projected(tmp_path, terms=[Projected(), Labels(), Projected(weight=2.0)], max_steps=1)
    assert set(trainer.terms.learned) == {"0", "2"}
    assert all(isinstance(one, ProjectedTerm) for one in trainer.terms.learned.values())
    assert len({id(one) for one in trainer.terms.learned.parameters()}) == 4
    log = train(trainer).logs[0]
    assert log["objective/projected"] != log["objective/projected_2"]
