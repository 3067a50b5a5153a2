"""`reverse_kl_sampled` in a training: which tokens it counts, and where it would be the estimate of nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pytest
import torch
import transformers

from hf_distill import DistillationArguments, DistillationTrainer
from hf_distill.completions.backends import Writer
from hf_distill.completions.sampling import Completion, Sampling
from hf_distill.completions.section import Completions
from hf_distill.errors import UserError
from hf_distill.models.match import mistakes
from hf_distill.models.needs import Gives, TaskFacts
from hf_distill.objectives import KLDivergence, Labels, Objective, ReverseKL, SampledReverseKL
from hf_distill.tasks.language import PadTokens

if TYPE_CHECKING:
    from conftest import MakeModel

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12], [14, 15]]


def written_after(prompt: Sequence[int]) -> tuple[int, ...]:
    return tuple((7 * prompt[0] + at) % 30 + 3 for at in range(1 + prompt[0] % 4))


class Scripted(Writer):
    """Writes what the prompt decides."""

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Completion]:
        return [Completion(written_after(one), ended=True) for one in prompts]


@pytest.fixture
def models(make_model: MakeModel) -> Callable[[], tuple[Any, Any, Any]]:
    student, teacher = (make_model("llama-lm", layers=layers, seed=layers) for layers in (1, 2))

    def load() -> tuple[Any, Any, Any]:
        every = [
            transformers.AutoModelForCausalLM.from_pretrained(one, dtype=torch.float64) for one in (student, teacher)
        ]
        return (*every, transformers.AutoTokenizer.from_pretrained(student))  # type: ignore[return-value]

    return load


def trainer_of(
    models: tuple[Any, Any, Any],
    directory: Path,
    objectives: Sequence[Objective],
    completions: Completions | None,
    **settings: Any,
) -> DistillationTrainer:
    student, teacher, tokenizer = models
    rows = [{"input_ids": [*one, 4, 5, 6], "labels": [-100] * len(one) + [4, 5, 6]} for one in PROMPTS]
    given = {"per_device_train_batch_size": 4, "max_steps": 1, "learning_rate": 0.0, "logging_steps": 1, **settings}
    trainer = DistillationTrainer(
        student,
        DistillationArguments(output_dir=str(directory), use_cpu=True, report_to=[], seed=3, **given),
        teacher=teacher,
        objectives=objectives,
        completions=completions,
        data_collator=PadTokens(0),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    if trainer.rollouts is not None:
        trainer.rollouts.writer = Scripted()
    return trainer


def by_hand(student: Any, teacher: Any, prompts: Sequence[list[int]]) -> tuple[float, list[torch.Tensor]]:
    """Return the mean of `log q_y - log p_y` over all written tokens, and its policy gradient."""
    values, parts = [], []
    for prompt in prompts:
        ids = torch.tensor([[*prompt, *written_after(prompt)]])
        q, p = (
            model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
            for model in (student, teacher)
        )
        values.append((q - p).detach())
        parts.append((values[-1] * q).sum())
    count = sum(map(len, values))
    gradient = torch.autograd.grad(sum(parts) / count, [*student.parameters()])  # type: ignore[arg-type]
    return torch.cat(values).sum().item() / count, list(gradient)


@pytest.mark.parametrize(("batch", "chunked"), [(4, True), (4, False), (1, True)])
def test_the_mean_over_the_tokens_that_the_student_drew(
    models: Any, tmp_path: Path, batch: int, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token read one place beside would be another text's; one of the prompt, or of padding, nobody drew."""
    if not chunked:
        monkeypatch.setattr(DistillationTrainer, "_open_heads", lambda self: None)
    three = models()
    split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 4 // batch}
    trainer = trainer_of(three, tmp_path, (SampledReverseKL(),), Completions(by="student", max_new_tokens=4), **split)
    expected, gradient = by_hand(three[0], three[1], PROMPTS)
    found: list[torch.Tensor] = []

    class Note(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            found.extend(one.grad.clone() for one in model.parameters())

    trainer.args.max_grad_norm = 0.0
    trainer.add_callback(Note())
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-7)
    torch.testing.assert_close(found, gradient, rtol=1e-7, atol=1e-12)


def test_rows_of_the_data_are_left_out_of_sum_and_number(models: Any, tmp_path: Path) -> None:
    """Counted in the number, they would make the loss of a step the smaller, the fewer texts the student writes."""
    three = models()
    completions = Completions(by="student", max_new_tokens=4, share=0.5)
    trainer = trainer_of(three, tmp_path, (SampledReverseKL(), Labels()), completions, max_steps=3)
    taken: list[list[list[int]]] = []
    assert trainer.rollouts is not None
    before = trainer.rollouts.of_step

    def noted(*args: Any) -> Any:
        made = before(*args)
        taken.append([one["input_ids"][: one["prompt_length"]] for one in made if one["labels"][-1] == -1])
        return made

    trainer.rollouts.of_step = noted  # type: ignore[method-assign]
    trainer.train()
    logs = [one["objective/reverse_kl_sampled"] for one in trainer.state.log_history if "loss" in one]
    assert any(0 < len(one) < 4 for one in taken)
    assert logs == pytest.approx([by_hand(three[0], three[1], one)[0] if one else 0.0 for one in taken], rel=1e-6)


@pytest.mark.parametrize(
    ("completions", "words"),
    [
        (None, "does not write"),
        (Completions(by="mixture"), "another model"),
        (Completions(by="student", temperature=0.7), "temperature 0.7"),
        (Completions(by="student", top_p=0.9), "top_p 0.9"),
        (Completions(by="student", reuse=2), "2 steps"),
    ],
)
def test_texts_that_the_student_did_not_draw_are_refused(
    models: Any, tmp_path: Path, completions: Completions | None, words: str
) -> None:
    """There its gradient is that of no divergence, and the loss falls all the same."""
    with pytest.raises(UserError, match=words) as raised:
        trainer_of(models(), tmp_path, (SampledReverseKL(),), completions)
    assert raised.value.key == "objectives[0]"


def test_labels_of_texts_that_all_are_written_are_refused(models: Any, tmp_path: Path) -> None:
    """A term that is 0 throughout looks as if the student knew its labels."""
    with pytest.raises(UserError, match="share"):
        trainer_of(models(), tmp_path, (KLDivergence(), Labels()), Completions(by="student"))


def test_what_a_teacher_has_to_give() -> None:
    """A cache has no probability of a token that was not likely; one number a token is no divergence."""
    drawn = TaskFacts(not_drawn="")
    top, one = Gives("it", classes="top", top=8), Gives("it", classes=None, written=True)
    both = Gives("it", classes="top", top=8, written=True)
    sampled, exact = SampledReverseKL().needs(), SampledReverseKL(top=8).needs()
    assert [*mistakes(sampled, top, drawn)]
    assert not [*mistakes(sampled, one, drawn), *mistakes(sampled, Gives("it"), drawn)]
    assert not [*mistakes(exact, both, drawn), *mistakes(exact, Gives("it"), drawn)]
    assert [*mistakes(exact, one, drawn)]
    assert "top to 8" in next(mistakes(SampledReverseKL(top=9).needs(), both, drawn)).text
    assert "one number a token" in next(mistakes(ReverseKL().needs(), one, drawn)).text
    assert (
        "temperature 2"
        in next(mistakes(sampled, Gives("it", written=True, classes="top", temperature=2.0), drawn)).text
    )


def test_special_tokens_that_do_not_count(models: Any, tmp_path: Path) -> None:
    """A teacher that uses other special tokens would teach that none of the student's is ever right."""
    three = models()
    end = min(three[2].all_special_ids)
    counts = []
    for counted in (True, False):
        completions = Completions(by="student", max_new_tokens=4, special_tokens=counted)
        trainer = trainer_of(models(), tmp_path / str(counted), (ReverseKL(),), completions)
        assert trainer.rollouts is not None
        trainer.rollouts.writer.write = lambda prompts, *_: [Completion((9, end), ended=True) for _ in prompts]  # type: ignore[method-assign]
        keep = trainer.weighing.count
        rows: list[float] = []

        def noted(inputs: Any, units: Any, keep: Any = keep, rows: Any = rows) -> Any:
            rows.append(float(units["row"].sum()))
            return keep(inputs, units)

        trainer.weighing.count = noted  # type: ignore[method-assign]
        trainer.train()
        counts.append(rows)
    assert counts == [[8.0], [4.0]]
