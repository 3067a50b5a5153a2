"""A teacher that is trained first: what it learns from, through which parameters, and when it stops."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import start, status
from prepared import refused
from runs import WriteRecipe, run, same, weights
from safetensors.torch import load_file

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.models.loading import Head, load_model
from hf_distill.models.lora import Lora, merged
from hf_distill.objectives import KLDivergence, Labels
from hf_distill.run.dry_run import check
from hf_distill.run.fit import Fitter
from hf_distill.teachers import FinetunedTeacher

CLASSIFY = "AutoModelForSequenceClassification"
LORA = {"r": 4, "alpha": 8, "dropout": 0.1}


@pytest.mark.parametrize(
    ("kind", "auto_class", "head", "targets"),
    [
        ("bert-bare", CLASSIFY, {"classifier", "bert.pooler"}, 2 * 2),
        ("roberta", "AutoModelForTokenClassification", {"classifier"}, 2 * 2),
        ("bert-bare", "AutoModelForQuestionAnswering", {"qa_outputs"}, 2 * 2),
        ("llama", "AutoModelForCausalLM", set(), 2 * 2),
    ],
)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_adapters_and_head_train_alone_and_are_merged(
    make_model: Any, kind: str, auto_class: str, head: set[str], targets: int, use_rslora: bool
) -> None:
    """Another weight could move, the new head stay random, or the merge lose the adapters: nothing would tell."""
    settings = {"num_labels": 3} if "LM" not in auto_class and "Question" not in auto_class else {}
    model, _ = load_model(str(make_model(kind, layers=2)), Head(auto_class, settings))
    base = {name: value.clone() for name, value in model.state_dict().items()}
    lora = Lora(r=4, alpha=8, use_rslora=use_rslora)
    torch.manual_seed(0)
    wrapped = lora.wrap(model)
    trained = {name: one for name, one in wrapped.named_parameters() if one.requires_grad}
    adapters = {name for name in trained if "lora_" in name}
    assert len(adapters) == 2 * targets
    whole = {name.removeprefix("base_model.model.").split(".modules_to_save")[0] for name in {*trained} - adapters}
    assert whole == head
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    wrapped(input_ids=ids)[0].square().sum().backward()
    assert {name for name, one in wrapped.named_parameters() if one.grad is not None} == {*trained}
    with torch.no_grad():
        for one in trained.values():
            one.add_(0.1 * torch.randn_like(one))
    wrapped.eval()
    layers = {name.partition(".lora_A")[0] for name in adapters if "lora_A" in name}
    deltas = {}
    for name in layers:  # by hand: W + s B A
        down, up = (trained[f"{name}.lora_{part}.default.weight"].double() for part in "AB")
        deltas[name.removeprefix("base_model.model.")] = 8 / (4**0.5 if use_rslora else 4) * up @ down
    with torch.no_grad():
        before = wrapped(input_ids=ids)[0]
        plain = merged(wrapped)
        assert torch.allclose(plain(input_ids=ids)[0], before, atol=1e-5)
    assert plain is model
    assert all(one.requires_grad for one in plain.parameters())
    state = plain.state_dict()
    assert state.keys() == base.keys()
    for name, value in base.items():
        layer = name.removesuffix(".weight")
        if layer in deltas:
            assert torch.allclose(state[name].double(), value.double() + deltas[layer], atol=1e-6)
        elif not name.startswith(tuple(head)):
            assert torch.equal(state[name], value)


def test_a_lora_teacher_is_small_in_training_and_whole_afterwards(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer could hold all weights, a checkpoint be whole, or a student copy layers without the adapters."""
    from hf_distill.trainer import DistillationTrainer

    sizes: list[int] = []
    files: list[set[str]] = []
    create, save = DistillationTrainer.create_optimizer, DistillationTrainer._save_checkpoint

    def created(self: Any, *given: Any) -> Any:
        made = create(self, *given)
        sizes.append(sum(one.numel() for group in self.optimizer.param_groups for one in group["params"]))
        return made

    def saved(self: Any, *given: Any) -> None:
        save(self, *given)
        files.append({file.name for file in Path(self.args.output_dir).glob("checkpoint-*/[!_]*.safetensors")})

    monkeypatch.setattr(DistillationTrainer, "create_optimizer", created)
    monkeypatch.setattr(DistillationTrainer, "_save_checkpoint", saved)
    model = make_model("bert-bare", layers=2)
    teacher = {"name": "finetuned", "model": str(model), "lora": LORA, "training": {"num_train_epochs": 2}}
    teacher |= {"output_dir": str(tmp_path / "teachers"), "objectives": [{"name": "labels", "label_smoothing": 0.1}]}
    student = {"name": "copy_layers", "layers": 1}
    path = write_recipe(teacher=teacher, student=student)
    assert "lora (r 4, alpha 8, dropout 0.1)" in check(load_recipe(path))
    run(path)
    (folder,) = (tmp_path / "teachers").iterdir()
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    adapters, head = 2 * 2 * 2 * 4 * width, width * (width + 1) + 2 * (width + 1)
    assert sizes[0] == adapters + head
    assert sizes[0] < sizes[1]
    assert files[0] == {"adapter_model.safetensors"}
    trained, first = weights(folder), load_file(model / "model.safetensors")
    assert not any("lora" in name for name in trained)
    # The query moved, the key did not.
    moved = {
        part: not trained[f"bert.encoder.layer.0.attention.self.{part}.weight"].equal(
            first[next(name for name in first if name.endswith(f"layer.0.attention.self.{part}.weight"))]
        )
        for part in ("query", "key", "value")
    }
    assert moved == {"query": True, "key": False, "value": True}
    sizes.clear()
    run(write_recipe(teacher=teacher, student=student, training={"output_dir": str(tmp_path / "second")}))
    assert len(sizes) == 1  # the student alone
    for change in ({"lora": {**LORA, "dropout": 0.2}}, {"lora": False}, {"objectives": ["labels"]}):
        run(write_recipe(teacher={**teacher, **change}, student=student, training={"max_steps": 1}), restart=True)
    assert len(list((tmp_path / "teachers").iterdir())) == 4


EARLY = {"patience": 2, "metric": "accuracy", "min_delta": 0.01, "share": 8}


def test_early_stopping_takes_the_best_of_held_out_rows_and_resumes(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could look at the report's own rows, keep the last weights, or count anew after a resume and train longer."""
    from hf_distill.trainer import DistillationTrainer

    def finetuned(directory: str) -> Path:
        teacher = {"name": "finetuned", "model": str(make_model("bert-bare", layers=2)), "early_stopping": EARLY}
        teacher |= {"output_dir": str(tmp_path / directory), "lora": True}
        teacher["training"] = {"num_train_epochs": 12, "learning_rate": 3e-3, "lr_scheduler_type": "constant"}
        return write_recipe(
            teacher=teacher,
            student={"name": "copy_layers", "layers": 1},
            training={"output_dir": str(tmp_path / f"out-{directory}"), "max_steps": 1},
        )

    kept: list[float] = []
    fit = Fitter.fit

    def fitted(self: Any, model: Any, **options: Any) -> Any:
        made = fit(self, model, **options)
        predictions, _ = self.predict(made.model, options["training"])
        kept.append(self.prepared.evaluator.evaluate(predictions)["accuracy"])
        return made

    monkeypatch.setattr(Fitter, "fit", fitted)
    report = run(finetuned("whole"))
    monkeypatch.undo()
    history = report.history["teacher"]
    found = [(entry["eval_accuracy"], entry["step"]) for entry in history if "eval_accuracy" in entry]
    assert len(found) < 12
    assert all((8 * value) == pytest.approx(round(8 * value)) for value, _ in found)
    best, waited, stopped = -1.0, 0, 0
    for number, (value, _) in enumerate(found, 1):
        waited = 0 if value - best > 0.01 else waited + 1
        best = max(best, value)
        if waited == 2:
            stopped = number
            break
    assert stopped == len(found)
    assert kept[0] == best  # of the weights that teach
    told = report.settings["teacher"]["training of the teacher"]["early stopping"]
    at = next(step for value, step in found if value == best)
    assert told == {"accuracy": best, "best step": at, "last step": 7 * stopped, "held-out rows": 8}
    assert max(entry["step"] for entry in history) == 7 * stopped  # 56 rows in batches of 8

    path = finetuned("cut")
    save = DistillationTrainer._save_checkpoint

    def killed(self: Any, *given: Any) -> None:
        save(self, *given)
        if self.state.global_step == 7 * (stopped - 1):
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        DistillationTrainer._save_checkpoint = killed  # type: ignore[method-assign]
        run(path)

    assert status(start(work)) == -signal.SIGKILL
    assert [one["step"] for one in run(path).history["teacher"]] == [one["step"] for one in history]
    (one,), (other,) = ((tmp_path / name).iterdir() for name in ("whole", "cut"))
    assert same(weights(one), weights(other))


def test_what_a_finetuned_teacher_is_refused_with(write_recipe: WriteRecipe, make_model: Any) -> None:
    """Without a line of its own each would fail in the middle of a training, or be ignored."""
    model = str(make_model("bert-bare"))

    def told(**settings: Any) -> str:
        with pytest.raises(UserError) as caught:
            check(load_recipe(write_recipe(teacher={"name": "finetuned", "model": model, **settings})))
        (line,) = caught.value.mistakes
        return line.partition("recipe.yaml:")[2].partition(" ")[2]

    assert told(objectives=["labels", "kl"]).startswith("teacher: objectives[1]: 'kl' compares with a teacher")
    assert told(objectives=[{"name": "labels", "weight": -1}]).startswith("teacher.objectives[0].weight: ")
    assert told(objectives=["labels"], lora={"rank": 2}).startswith("teacher.lora.rank: unknown key")
    assert told(lora={"r": 0}).startswith("teacher.lora.r: wanted")
    assert told(lora={"target_modules": ["q_proj"]}).startswith(
        "teacher.lora.target_modules: no linear layer is called q_proj. There are: query, key, value, dense"
    )
    assert told(early_stopping={"patience": 0}).startswith("teacher.early_stopping.patience: wanted")
    assert "Did you mean 'accuracy'?" in told(early_stopping={"metric": "acc"})
    assert told(early_stopping={"metric": "acc"}).startswith("teacher.early_stopping.metric: ")
    assert told(early_stopping={}, training={"metric_for_best_model": "loss"}).startswith("teacher: training.metric")
    with pytest.raises(UserError, match="no teacher of its own"):
        FinetunedTeacher(model=model, objectives=[KLDivergence()])  # type: ignore[arg-type]
    assert FinetunedTeacher(model=model, objectives=[Labels()], lora=Lora(r=2)).fine_tuning["training"].lora == Lora(
        r=2
    )  # type: ignore[arg-type]


def test_too_few_labelled_rows_to_hold_any_out(write_recipe: WriteRecipe, make_model: Any) -> None:
    """Nothing would be left to train on."""
    teacher = {"name": "finetuned", "model": str(make_model("bert-bare", layers=2)), "early_stopping": {"share": 64}}
    path = write_recipe(teacher=teacher)
    _, line = refused(run, path)
    assert refused(lambda one: check(load_recipe(one)), path)[1] == line
    assert "teacher.early_stopping.share: cannot hold out 64 of 64 rows" in line


def test_trainings_with_balanced_weights_are_found_again(
    write_recipe: WriteRecipe, make_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished training has no train split to count labels in: the same command again would stop at its teacher."""
    labels = {"name": "labels", "class_weights": "balanced"}
    teacher = {"name": "finetuned", "model": str(make_model("bert-bare", layers=2)), "objectives": [labels]}
    path = write_recipe(teacher=teacher, objectives=[{"name": "kl"}, labels])
    first = run(path)
    capsys.readouterr()
    assert run(path).student.metrics == first.student.metrics
    assert capsys.readouterr().out.count("not trained again") == 2


def test_a_trained_teacher_is_found_by_a_student_with_fewer_tokens(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """Its rows in another order, because the student splits words of the eval split, made every such run train anew."""
    from conftest import WORDS

    model = make_model("bert-bare", layers=2, vocab=("abcd", "a", "##b", "##c", "##d", *WORDS))
    rows = [(f"{WORDS[at % 5]} {WORDS[at % 3]} {WORDS[at % 7]}", at % 2) for at in range(16)]
    rare = [("abcd abcd", 0), (f"{WORDS[0]} {WORDS[1]} {WORDS[2]}", 1), ("abcd", 1), (WORDS[3], 0)]
    for name, split in (("train", rows), ("validation", rare)):
        lines = ["sentence,label", *(f"{text},{label}" for text, label in split)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    files = {name: str(tmp_path / f"{name}.csv") for name in ("train", "validation")}
    whole = {"name": "copy_layers", "layers": 1}
    for number, student in enumerate((whole, {"name": "prune_vocabulary", "student": whole})):
        run(
            write_recipe(
                data={"path": files, "columns": {"text": "sentence", "label": "label"}},
                teacher={"name": "finetuned", "model": str(model), "output_dir": str(tmp_path / "teachers")},
                student=student,
                training={"output_dir": str(tmp_path / str(number)), "max_steps": 1},
            )
        )
    assert len(list((tmp_path / "teachers").iterdir())) == 1
