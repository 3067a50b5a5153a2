"""`DistillationTrainer.hyperparameter_search`, as a user of Transformers expects it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from invariants.cases import Collator, arguments, make_model, make_models, make_rows

from hf_distill import DistillationTrainer
from hf_distill.objectives import Attention, Hidden, KLDivergence, Labels, Objective

RATES = (1e-5, 1e-2, 1e-3)


def searching(path: Path, objectives: tuple[Objective, ...] | None, **settings: Any) -> DistillationTrainer:
    import datasets

    data = datasets.Dataset.from_list(make_rows("classification"))
    settings = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "logging_steps": 1, **settings}
    return DistillationTrainer(
        None,
        arguments(path, per_device_train_batch_size=4, disable_tqdm=True, **settings),
        teacher=make_models("classification", dtype=torch.float32)[1],
        objectives=objectives,
        model_init=made,
        train_dataset=data,
        eval_dataset=data,
        data_collator=Collator(),
    )


def made() -> Any:
    return make_model("classification", 1, seed=1, dtype=torch.float32)


@pytest.mark.parametrize("second", [Labels(weight=0.5), Attention(weight=0.5)])
def test_every_trial_is_a_training_of_its_own(second: Objective, tmp_path: Path) -> None:
    """The second trial ended in an AttributeError; with layers, counts or losses of another student it would have
    numbers of another training. Without `compute_objective` agreement and objectives would be added up."""
    optuna = pytest.importorskip("optuna")
    terms = (KLDivergence(weight=0.5), second)
    trainer = searching(tmp_path / "search", terms, save_strategy="steps", save_steps=3)
    seen: list[float] = []
    best: Any = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", RATES)},
        compute_objective=None,
        n_trials=3,
        backend="optuna",
        hp_name=lambda trial: f"try-{trial.number}",
        sampler=optuna.samplers.GridSampler({"learning_rate": RATES}, seed=0),
        study_name="one",
        storage=(storage := optuna.storages.InMemoryStorage()),
    )
    trials = optuna.load_study(study_name="one", storage=storage).trials
    assert sorted(one.params["learning_rate"] for one in trials) == sorted(RATES)
    for one in trials:
        rate = one.params["learning_rate"]
        alone = searching(tmp_path / f"alone-{rate}", terms, learning_rate=rate)
        alone.train()
        seen.append(alone.evaluate()["eval_loss"])
        assert one.value == pytest.approx(seen[-1], rel=1e-5)
    assert best.objective == pytest.approx(min(seen), rel=1e-5)
    assert sorted(one.name for one in (tmp_path / "search").iterdir()) == ["try-0", "try-1", "try-2"]
    trainer.args.learning_rate = 1e-3  # the trainer can be used after the search
    assert trainer.train().global_step == 3


def test_projections_are_those_of_the_student(tmp_path: Path) -> None:
    """What an objective learns would stay that of the first student: no optimizer would train it, and a trial begin
    where the one before has ended. A checkpoint is loaded into what belongs to the student of this training."""
    pytest.importorskip("optuna")
    terms = (KLDivergence(weight=0.5), Hidden(weight=0.5, projection="always", layers="similarity"))
    trainer = searching(tmp_path, terms, save_strategy="steps", save_steps=2, max_steps=4, eval_steps=4)
    best: Any = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)},
        n_trials=3,
        backend="optuna",
    )
    trainer.args.learning_rate = best.hyperparameters["learning_rate"]
    trainer.train()
    learned = dict(trainer.terms.learned.named_parameters())
    trained = {id(one) for group in trainer.optimizer.param_groups for one in group["params"]}
    assert learned
    assert {id(one) for one in learned.values()} <= trained
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best.objective, rel=1e-5)
    whole = {name: one.detach().clone() for name, one in trainer.terms.learned.named_parameters()}
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(one.equal(whole[name]) for name, one in trainer.terms.learned.named_parameters())
