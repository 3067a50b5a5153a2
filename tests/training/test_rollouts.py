"""Completions that the student writes while it trains: which tokens count, by what they are divided, resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pytest
import torch
import transformers
from forked import two_processes

from hf_distill import DistillationArguments, DistillationTrainer
from hf_distill.completions.backends import Writer
from hf_distill.completions.sampling import Completion, Sampling
from hf_distill.completions.section import Completions
from hf_distill.errors import NotFinite, UserError
from hf_distill.objectives import KLDivergence, Labels, Objective, ReverseKL
from hf_distill.rows.base import Rows, SparseRows
from hf_distill.training.rollout_log import RolloutLog
from hf_distill.training.rollouts import Rollouts
from hf_distill.training.token_batches import Uncollated

if TYPE_CHECKING:
    from conftest import MakeModel

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15], [16, 17, 18, 19], [20, 21], [22], [23, 24, 25]]


class Scripted(Writer):
    """Writes what the test says, of a length that the prompt decides; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[Sequence[int]], int]] = []

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Completion]:
        self.asked.append((list(prompts), seed))
        return [
            Completion(tuple((7 * one[0] + at) % 30 + 3 for at in range(one[0] % 6)), ended=True) for one in prompts
        ]


@pytest.fixture
def pair(make_model: MakeModel) -> Callable[[], tuple[Any, Any, Any]]:
    """Return a function that loads student, teacher and tokenizer, in float64."""
    student, teacher = (make_model("llama-lm", layers=layers, seed=layers) for layers in (1, 2))

    def load() -> tuple[Any, Any, Any]:
        models = [
            transformers.AutoModelForCausalLM.from_pretrained(one, dtype=torch.float64) for one in (student, teacher)
        ]
        return (*models, transformers.AutoTokenizer.from_pretrained(student))  # type: ignore[return-value]

    return load


def prompts() -> datasets.Dataset:
    return datasets.Dataset.from_list([{"input_ids": one, "labels": [-100] * len(one)} for one in PROMPTS])


def trainer_of(
    models: tuple[Any, Any, Any],
    directory: Path,
    objectives: Sequence[Objective] = (ReverseKL(),),
    completions: Completions | None = None,
    data: Any = None,
    model_init: Callable[[], Any] | None = None,
    **settings: Any,
) -> DistillationTrainer:
    from hf_distill.tasks.language import PadTokens

    student, teacher, tokenizer = models
    given = {"per_device_train_batch_size": 8, "max_steps": 2, "learning_rate": 0.0, "logging_steps": 1, **settings}
    return DistillationTrainer(
        student,
        DistillationArguments(output_dir=str(directory), use_cpu=True, report_to=[], seed=3, **given),
        teacher=teacher,
        objectives=objectives,
        completions=completions or Completions(by="student", max_new_tokens=6),
        data_collator=PadTokens(0),
        train_dataset=prompts() if data is None else data,
        processing_class=tokenizer,
        model_init=model_init,
    )


def losses(trainer: DistillationTrainer) -> list[float]:
    trainer.train()
    return [one["loss"] for one in trainer.state.log_history if "loss" in one]


def by_hand(student: Any, teacher: Any, rows: Sequence[tuple[list[int], tuple[int, ...]]]) -> float:
    """Return the sum of the reverse KL over all written tokens, divided by their number; each row by itself."""
    total, count = 0.0, 0
    for prompt, written in rows:
        if not written:
            continue
        ids = torch.tensor([[*prompt, *written]])
        with torch.no_grad():
            q, p = (model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for model in (student, teacher))
        total += float((q.exp() * (q - p)).sum())
        count += len(written)
    return total / count


@pytest.mark.parametrize("batch", [8, 4, 1])
def test_the_loss_is_the_mean_over_all_written_tokens_of_the_step(
    pair: Any, tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a token of a short completion would weigh more, and the loss change with the batch split."""
    models = pair()
    trainer = trainer_of(models, tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch)
    assert trainer.rollouts is not None
    trainer.rollouts.writer = Scripted()
    expected = by_hand(
        models[0], models[1], [(one, tuple((7 * one[0] + at) % 30 + 3 for at in range(one[0] % 6))) for one in PROMPTS]
    )
    assert losses(trainer) == pytest.approx([expected] * 2, rel=1e-7)
    assert [len(asked) for asked, _ in trainer.rollouts.writer.asked] == [8, 8]  # once a step, whatever the split


def test_two_processes_have_the_loss_of_one(pair: Any, tmp_path: Path) -> None:
    """Otherwise tokens of a process that wrote less would weigh more, and the loss depend on the number of GPUs."""

    def work(batch: int = 4) -> tuple[list[float], dict[str, float]]:
        trainer = trainer_of(pair(), tmp_path / "run", per_device_train_batch_size=batch, save_strategy="no")
        assert trainer.rollouts is not None
        trainer.rollouts.writer = Scripted()
        found = losses(trainer)
        return found, {name: trainer.state.log_history[0][name] for name in ("completion_length", "own_acceptance")}

    one, (first, second) = work(8), two_processes(work, tmp_path / "results")
    assert first[0] == pytest.approx(one[0], rel=1e-7)
    assert second[0] == first[0]
    assert first[1]["completion_length"] == one[1]["completion_length"]  # of all processes


def test_a_student_with_adapters_writes_with_them(pair: Any, tmp_path: Path) -> None:
    """Otherwise the base model would write, and the student learn on another model's texts."""
    from hf_distill.models.lora import Lora

    student, teacher, tokenizer = pair()
    adapted = Lora(r=2, target_modules=["q_proj", "v_proj"]).wrap(student)
    with torch.no_grad():
        for name, one in adapted.named_parameters():
            if "lora_B" in name:
                one.normal_(std=2.0)
    trainer = trainer_of(
        (adapted, teacher, tokenizer), tmp_path, completions=Completions(by="student", max_new_tokens=6, temperature=0)
    )
    assert trainer.rollouts is not None
    rows = trainer.rollouts.of_step([Uncollated([{"input_ids": one} for one in PROMPTS])], 0)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        ids = list(prompt)
        for token in row["input_ids"][len(prompt) :]:
            with torch.no_grad():
                assert int(adapted(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
    expected = by_hand(
        adapted, teacher, [(one, tuple(row["input_ids"][len(one) :])) for one, row in zip(PROMPTS, rows, strict=True)]
    )
    assert losses(trainer)[0] == pytest.approx(expected, rel=1e-6)


def test_what_the_student_wrote_is_no_label(pair: Any, tmp_path: Path) -> None:
    """Otherwise `labels` would teach the student its own samples (self-imitation)."""
    data = datasets.Dataset.from_list(
        [{"input_ids": [*one, 4, 5, 6], "labels": [-100] * len(one) + [4, 5, 6]} for one in PROMPTS]
    )
    completions = Completions(by="student", max_new_tokens=4, share=0.5)
    trainer = trainer_of(pair(), tmp_path, (KLDivergence(), Labels()), completions, data, max_steps=4)
    counted = []
    keep = trainer.weighing.count
    trainer.weighing.count = lambda inputs, units: counted.append(units) or keep(inputs, units)  # type: ignore[func-returns-value, method-assign, assignment]
    trainer.train()
    labels = [int(units["label"].sum()) for units in counted]
    rows = [int(units["row"].sum()) for units in counted]
    assert all(one % 3 == 0 for one in labels)
    assert 0 < sum(labels) < 4 * 8 * 3
    assert all(one > other for one, other in zip(rows, labels, strict=True))


def test_a_share_of_the_rows_is_the_same_for_every_batch_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise 8 x 1 and 4 x 2, or an epoch's last step with a short batch, would train on other rows."""
    data = [{"input_ids": [*one, 4, 5], "labels": [-100] * len(one) + [4, 5]} for one in PROMPTS]
    made = []
    for sizes in ((8,), (4, 4), (2, 2, 2, 2), (5, 3), (3, 3, 2)):
        rollouts, rows = Rollouts(Completions(by="student", share=0.5), Scripted(), seed=1), iter(data)
        made.append(rollouts.of_step([Uncollated([next(rows) for _ in range(size)]) for size in sizes], 5))
    assert all(one == made[0] for one in made)
    kept = [row for row in made[0] if row["labels"][-1] == 5]
    assert 0 < len(kept) < 8
    # As accelerate deals batches out: 3 rows for each process, then 1.
    monkeypatch.setattr("hf_distill.parallel.processes", lambda: 2)
    found: dict[int, Any] = {}
    for rank in (0, 1):
        monkeypatch.setattr("hf_distill.parallel.rank", lambda rank=rank: rank)
        places = [*range(3 * rank, 3 * rank + 3), 6 + rank]
        window = [Uncollated([data[at] for at in places[:3]]), Uncollated([data[places[3]]])]
        rollouts = Rollouts(Completions(by="student", share=0.5), Scripted(), seed=1)
        found |= zip(places, rollouts.of_step(window, 5), strict=True)
    assert [found[at] for at in range(8)] == made[0]


def test_several_completions_of_a_prompt_leave_the_number_of_rows(pair: Any) -> None:
    """Otherwise `per_prompt` would multiply the memory of a step."""
    rollouts = Rollouts(Completions(by="student", per_prompt=4), Scripted(), seed=1)
    rows = rollouts.of_step([Uncollated([{"input_ids": one} for one in PROMPTS])], 0)
    assert [row["prompt_length"] for row in rows] == [3] * 4 + [4] * 4


def test_a_resumed_training_writes_the_same(pair: Any, tmp_path: Path) -> None:
    """Otherwise a killed run would end with other weights than an uninterrupted one."""
    settings = {"learning_rate": 1e-2, "max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4}
    whole = trainer_of(pair(), tmp_path / "whole", **settings)
    whole.train()
    again = trainer_of(pair(), tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, one), (_, other) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert losses(whole)  # it can train again
    assert whole.state.log_history[0]["writing_share"] > 0


@pytest.mark.parametrize("at", [2, 3])
def test_completions_are_used_again_under_the_present_student(pair: Any, tmp_path: Path, at: int) -> None:
    """Otherwise `reuse` would write anew, ask the teacher again, or end with other weights after a resume."""
    completions = Completions(by="student", max_new_tokens=6, reuse=2)
    settings = {"learning_rate": 1e-2, "max_steps": 5, "save_steps": 1, "per_device_train_batch_size": 4}
    whole = trainer_of(pair(), tmp_path / "whole", completions=completions, gradient_accumulation_steps=2, **settings)
    assert whole.rollouts is not None
    scored: list[int] = []
    whole.teacher.model.register_forward_pre_hook(
        lambda _, __, kwargs: scored.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    inner, asked = whole.rollouts.writer, []
    write = inner.write
    inner.write = lambda *given: asked.append(1) or write(*given)  # type: ignore[func-returns-value, method-assign, assignment]
    whole.train()
    assert len(asked) == 3  # steps 0, 2 and 4
    assert sum(scored) == 3 * 8  # each token once
    logs = [one for one in whole.state.log_history if "loss" in one]
    assert [one.get("staleness", 0) for one in logs] == [0, 1, 0, 1, 0]
    assert logs[1]["loss"] != logs[0]["loss"]
    again = trainer_of(pair(), tmp_path / "again", completions=completions, gradient_accumulation_steps=2, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{at}"))
    for (name, one), (_, other) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_targets_that_follow_the_student_are_those_of_the_present_step(pair: Any, tmp_path: Path) -> None:
    """Otherwise `reuse` would hold the targets of a moving average, and compare with one of some steps ago."""
    from hf_distill.teachers.ema import Ema

    student, _, tokenizer = pair()
    trainer = trainer_of(
        *((student, Ema(0.5, warm_up=False), tokenizer), tmp_path),
        completions=Completions(by="student", max_new_tokens=6, reuse=2),
        learning_rate=1e-2,
        max_steps=4,
        save_strategy="no",
    )
    asked: list[int] = []
    ask = trainer.source.targets  # type: ignore[union-attr]
    trainer.source.targets = lambda *given: asked.append(1) or ask(*given)  # type: ignore[func-returns-value, method-assign, assignment, union-attr]
    trainer.train()
    assert len(asked) == 4


def test_the_student_that_trains_is_the_one_that_writes(pair: Any, tmp_path: Path) -> None:
    """Otherwise a student of `model_init` would learn from the texts of another one."""
    _student, teacher, tokenizer = pair()
    trainer = trainer_of((None, teacher, tokenizer), tmp_path, max_steps=1, model_init=lambda: pair()[0])
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert trainer.rollouts.writer._model is trainer.model  # type: ignore[union-attr, attr-defined]


@pytest.mark.parametrize("how", ["stream", "dispatched", "tensors", "padded left", "padded right", "workers"])
def test_data_of_any_form_has_the_same_prompts(pair: Any, tmp_path: Path, how: str) -> None:
    """Otherwise a stream could not train, tensors break a checkpoint, and padding be a part of the prompt."""
    data: Any = prompts()
    settings: dict[str, Any] = {"save_strategy": "no"}
    share = 1.0
    if how == "stream":
        data = data.to_iterable_dataset()
    elif how == "dispatched":
        settings |= {"accelerator_config": {"dispatch_batches": True}}
    elif how == "tensors":
        data, settings = data.with_format("torch"), {"save_steps": 1}
        share = 0.5
    elif how == "workers":
        settings |= {"dataloader_num_workers": 1, "dataloader_pin_memory": True}
    else:
        left = how == "padded left"
        data = datasets.Dataset.from_list([padded(one, 6 - len(one), left=left) for one in PROMPTS])
    # Greedy, so that the order of the rows does not matter.
    completions = Completions(by="student", max_new_tokens=6, temperature=0, reuse=2, share=share)
    found = losses(trainer_of(pair(), tmp_path / "run", data=data, completions=completions, **settings))
    plain = trainer_of(pair(), tmp_path / "plain", completions=completions, save_strategy="no")
    assert found == pytest.approx(losses(plain), rel=1e-6)


def padded(ids: list[int], pads: int, *, left: bool) -> dict[str, list[int]]:
    """Return a tokenised prompt with padding."""
    pad, real = [0] * pads, [1] * len(ids)
    mask = [*pad, *real] if left else [*real, *pad]
    return {"input_ids": [*pad, *ids] if left else [*ids, *pad], "attention_mask": mask, "labels": [-100] * 6}


def test_the_logs_say_how_near_the_models_are(pair: Any, tmp_path: Path) -> None:
    """Otherwise a collapse (loops, texts without end, a student that leaves its teacher) would go unseen."""
    trainer = trainer_of(pair(), tmp_path, completions=Completions(by="student", max_new_tokens=2), max_steps=1)
    trainer.train()
    (log,) = [one for one in trainer.state.log_history if "loss" in one]
    assert log["own_reverse_kl"] == pytest.approx(log["loss"], rel=1e-4)  # fewer than 32 rows: all of them
    assert log["own_forward_kl"] > 0
    assert 0 < log["own_acceptance"] < 1
    assert log["completion_length"] > 0
    assert log["ended"] + log["cut"] == pytest.approx(1)


def test_a_sparse_teacher_shows_a_part_of_the_figures() -> None:
    """Otherwise the overlap with a teacher's few likeliest tokens would be 1, and one number a token look like none."""
    torch.manual_seed(0)
    student, teacher, places = torch.randn(4, 90), torch.randn(4, 90), torch.zeros(4, dtype=torch.long)
    figures = {}
    for kept in (0, 8, 90):
        stored = SparseRows.of(teacher, kept)
        log = RolloutLog(torch.device("cpu"))
        log.begin_step(0)
        log.look(Rows(student, stored, torch.full((4,), -100), places, 1))
        figures[kept] = log.read()
    assert figures[0] == {}
    assert 0 < figures[8]["own_reverse_kl"] < figures[90]["own_reverse_kl"]
    assert {"own_overlap", "own_teacher_mass", "own_student_mass"}.isdisjoint(figures[8])
    assert 0 < figures[90]["own_overlap"] < 1


def test_a_collapse_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise a student that never stops, or writes one text for all prompts, would train on."""
    log = RolloutLog(torch.device("cpu"))
    for _ in range(3):
        log.add([Completion((7,) * 40, ended=False)] * 20)
        log.read()
    text = " ".join(caplog.messages)
    assert len(caplog.messages) == 3  # once each
    assert "does not stop" in text
    assert "loops" in text
    assert "the same" in text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_student_that_is_not_finite_writes_nothing(pair: Any, tmp_path: Path, temperature: float) -> None:
    """Otherwise NaN would be drawn as some token (the likeliest one is the NaN), or end in an index error of torch."""
    models = pair()
    models[0].lm_head.weight.data[7] = float("nan")
    completions = Completions(by="student", max_new_tokens=6, temperature=temperature)
    with pytest.raises(NotFinite, match="no token can be drawn"):
        trainer_of(models, tmp_path, completions=completions).train()


def test_a_row_without_a_prompt_is_a_mistake() -> None:
    """Otherwise the student would be asked to continue nothing."""
    rollouts = Rollouts(Completions(by="student"), Scripted(), seed=1)
    with pytest.raises(UserError, match="no prompt"):
        rollouts.of_step([Uncollated([{"input_ids": [4, 5], "labels": [4, 5]}])], 0)


def test_a_teacher_with_tokens_of_its_own_has_none_of_what_was_written() -> None:
    """Otherwise it would read the student's ids as if they were its own."""
    rollouts = Rollouts(Completions(by="student"), Scripted(), seed=1)
    with pytest.raises(UserError, match="tokens of its own"):
        rollouts.of_step([Uncollated([{"input_ids": [4, 5], "teacher_input_ids": [1, 2, 3]}])], 0)


def test_the_teacher_of_itself_has_no_loss(pair: Any, tmp_path: Path) -> None:
    """Otherwise the rows of the two models are not the same tokens."""
    student, _, tokenizer = pair()
    twin = pair()[0]
    assert losses(trainer_of((student, twin, tokenizer), tmp_path)) == pytest.approx([0.0, 0.0], abs=1e-12)
