"""Backends and mixtures in a training: who writes, and which trainings cannot write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import MakeModel
from writers import opened, writer

from hf_distill import DistillationArguments, DistillationTrainer
from hf_distill.completions.backends import ContinuousBatching
from hf_distill.completions.sampling import Sampling
from hf_distill.completions.section import Completions
from hf_distill.errors import UserError
from hf_distill.models.target_model import TargetSource
from hf_distill.objectives import ReverseKL
from hf_distill.tasks.language import PadTokens
from hf_distill.training.token_batches import Uncollated
from hf_distill.training.writing_models import beside, check_any_text, check_whole

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]


def trainer_of(make_model: MakeModel, directory: Path, **completions: Any) -> DistillationTrainer:
    student, tokenizer = opened(make_model("llama-lm", layers=1))
    teacher, _ = opened(make_model("llama-lm", layers=2, seed=1))
    return DistillationTrainer(
        student,
        DistillationArguments(
            output_dir=str(directory), use_cpu=True, report_to=[], max_steps=2, per_device_train_batch_size=4
        ),
        teacher=teacher,
        objectives=[ReverseKL()],
        completions=Completions(**{"by": "student", "max_new_tokens": 6, **completions}),
        data_collator=PadTokens(0),
        train_dataset=datasets.Dataset.from_list([{"input_ids": one, "labels": [-100] * len(one)} for one in PROMPTS]),
        processing_class=tokenizer,
    )


def written(trainer: DistillationTrainer) -> list[list[int]]:
    """What is written for the prompts, as rows of a step."""
    assert trainer.rollouts is not None
    rows = trainer.rollouts.of_step([Uncollated([{"input_ids": one} for one in PROMPTS])], 0)
    return [row["input_ids"][row["prompt_length"] :] for row in rows]


@pytest.mark.parametrize(("share", "author"), [(0.0, "model"), (1.0, "teacher")])
def test_mixture(make_model: MakeModel, tmp_path: Path, share: float, author: str) -> None:
    """`by: mixture` with the wrong model or share would train, on texts of somebody else."""
    trainer = trainer_of(make_model, tmp_path, by="mixture", teacher_share=share, temperature=0.0)
    alone = writer(getattr(trainer, author), trainer.processing_class).write(PROMPTS, Sampling(6, 0.0), seed=0)
    assert written(trainer) == [list(one.ids) for one in alone]
    trainer.train()


def test_mixture_needs_one_teacher_of_the_same_tokens(make_model: MakeModel, tmp_path: Path) -> None:
    """A teacher that cannot write, or writes other tokens under the same ids, must not take part."""
    trainer = trainer_of(make_model, tmp_path)
    mixture = Completions(by="mixture")
    assert isinstance(trainer.source, TargetSource)
    for source in (None, type("Cached", (), {"gives": trainer.source.gives, "writing": None})()):
        with pytest.raises(UserError, match="live teacher") as caught:
            beside(mixture, source, trainer.layout)
        assert caught.value.key == "by"
    layout = type("Layout", (), {"left_out": (3,)})()
    with pytest.raises(UserError, match="mean something else"):
        beside(mixture, trainer.source, layout)
    assert beside(Completions(by="student"), trainer.source, trainer.layout) is None


def test_targets_of_the_data_are_not_those_of_other_texts() -> None:
    """Stored rows would be compared with what the student wrote in their place."""
    with pytest.raises(UserError, match="generate") as caught:
        check_any_text(type("Stored", (), {"takes": frozenset({"cached_row"})})())
    assert caught.value.key == "by"
    check_any_text(None)


def test_sharded_weights_are_refused() -> None:
    """A student of which a process has a part would hang, or write nonsense."""
    for divided, stage in ((True, None), (False, 3)):
        with pytest.raises(UserError, match="DDP") as caught:
            check_whole(divided, stage)
        assert caught.value.key == "by"
    check_whole(False, None)
    check_whole(False, 2)


def test_backends_write_the_same_in_a_training(make_model: MakeModel, tmp_path: Path) -> None:
    """Greedy, continuous batching trains the same student as `generate`."""
    plain = trainer_of(make_model, tmp_path / "generate", temperature=0.0)
    paged = trainer_of(make_model, tmp_path / "paged", temperature=0.0, backend=ContinuousBatching())
    assert written(plain) == written(paged)
    for one in (plain, paged):
        one.train()
    for ours, theirs in zip(plain.model.parameters(), paged.model.parameters(), strict=True):
        assert ours.equal(theirs)
