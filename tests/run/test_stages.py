"""Stages: several trainings in a row, read from a recipe, run, resumed, reported; objectives refused before loading."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from reports import RECIPE, whole
from runs import WriteRecipe, run, same, weights

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.objectives import PRESETS, KLDivergence, Labels, LogitsMSE, RowObjective
from hf_distill.recipe.reader import load_recipe
from hf_distill.recipe.recipe import Recipe, Stage
from hf_distill.recipe.writer import dump_recipe
from hf_distill.report.model_card import objectives
from hf_distill.report.recipe_facts import recipe_of
from hf_distill.run.dry_run import check

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

TEXT = """\
task: text-classification
data: {path: x.csv}
teacher: {name: pretrained, model: big}
student: {name: pretrained, model: small}
stages:
  - objectives:
      - logits_mse
    training: {num_train_epochs: 10}
  - preset: distillkit
training: {output_dir: out, learning_rate: 1e-4}
"""
# The second stage differs from the first in every way that a stage can.
STAGES: list[dict[str, Any]] = [
    {"objectives": [{"name": "logits_mse"}], "training": {"num_train_epochs": 2, "learning_rate": 2e-3}},
    {"objectives": [{"name": "kl", "temperature": 2.0}, {"name": "labels"}], "training": {"warmup_steps": 0.2}},
]


def load(directory: Path, text: str = TEXT, *overrides: str) -> Recipe:
    path = directory / "r.yaml"
    path.write_text(text)
    return load_recipe(path, overrides)


def mistakes(directory: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as error:
        load(directory, text, *overrides)
    return [line.replace(f"{directory}/", "") for line in error.value.mistakes]


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_stages_are_read_and_written(tmp_path: Path) -> None:
    """A stage lost in the recipe saved beside the model would make a resumed run another one."""
    recipe = load(tmp_path)
    first = Stage(objectives=(LogitsMSE(),), training={"num_train_epochs": 10})
    assert recipe.stages == recipe.plan == (first, Stage(objectives=PRESETS["distillkit"]))
    assert recipe.objectives == ()
    assert load(tmp_path, dump_recipe(recipe)) == recipe
    assert load(tmp_path, RECIPE).plan == (
        Stage(objectives=(KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5))),
    )


def test_a_part_of_a_stage_can_be_overridden(tmp_path: Path) -> None:
    """A key of an entry given by its name alone must not replace the entry; a new key of `training` must be taken."""
    changed = load(tmp_path, TEXT, "stages.0.objectives.0.weight=2", "stages.1.training.max_steps=3")
    assert changed.stages[0].objectives == (LogitsMSE(weight=2.0),)
    assert changed.stages[1].training == {"max_steps": 3}


def test_mistakes_have_the_line_of_their_stage(tmp_path: Path) -> None:
    """Two stages have the same keys: a mistake told at the wrong one is looked for in vain."""
    recipe = load(tmp_path)
    place = f"{tmp_path}/r.yaml"
    assert recipe.mistake("stages[0].objectives[0].weight", "x").mistakes == (
        f"{place}:7: stages[0].objectives[0].weight: x",
    )
    assert recipe.mistake("stages[1].objectives[1]", "x").mistakes == (f"{place}:9: stages[1].objectives[1]: x",)
    assert recipe.mistake("stages[0].training.seed", "x").mistakes == (f"{place}:8: stages[0].training.seed: x",)


MISSING = "missing. Wanted: a list of what is compared, such as [{name: kl, temperature: 2.0}]."
SAME = "It is the same for all stages, under training."


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("[]", ["stages: wanted a list, each entry after '- ', such as {objectives: [...]}; an empty list."]),
        ("{a: 1}", ["stages: wanted a list, each entry after '- ', such as {objectives: [...]}; found a mapping."]),
        ("[kl]", ["stages[0]: wanted a mapping {objectives: [...], training: {...}}, found the text 'kl'."]),
        ("[{training: {seed: 1}}]", [f"stages[0].objectives: {MISSING}",
                                     "stages[0].training.seed: not set here. All stages use training.seed; "
                                     "report.seeds counts up from it."]),
        ("[{objectives: [kll], epochs: 2}]",
         ["stages[0].objectives[0]: unknown objective 'kll'. Did you mean 'kl'?",
          "stages[0].epochs: unknown key. Known: objectives, training, completions, preset."]),
        ("[{loss: [kl]}]", [f"stages[0].objectives: {MISSING}",
                            "stages[0].loss: unknown key. It is called 'objectives' here."]),
        ("[{preset: gkdd}]", ["stages[0].preset: unknown preset 'gkdd'. Did you mean 'gkd'?"]),
        ("[{objectives: [{name: kl, weight: 0}]}]",
         ["stages[0].objectives: every weight is 0, so there is nothing to train on. Give one a weight above 0."]),
        ("[{objectives: [kl], training: {lr: 1, output_dir: x, bf16: auto, num_train_epochs: many}}]",
         ["stages[0].training.lr: unknown key. It is called 'learning_rate'.",
          "stages[0].training.num_train_epochs: wanted a number, found the text 'many'.",
          "stages[0].training.output_dir: not set here. All stages of a run are stored under training.output_dir.",
          f"stages[0].training.bf16: not set here. {SAME}"]),
        ("[{objectives: [kl], training: 3}]",
         ["stages[0].training: wanted a mapping (key: value), found the whole number 3."]),
    ],
)  # fmt: skip
def test_what_a_wrong_stage_is_told(stages: str, said: list[str], tmp_path: Path) -> None:
    """Each of these, let through, trains something else than was meant, or two stages in one directory."""
    text = "\n".join(line for line in RECIPE.splitlines() if not line.startswith(("objectives:", "  - ")))
    found = mistakes(tmp_path, f"{text}\nstages: {stages}\n")
    assert sorted(line.partition(": ")[2] for line in found) == sorted(said)
    assert {line.partition(": ")[0] for line in found} == {f"r.yaml:{len(text.splitlines()) + 1}"}


def test_objectives_stand_at_the_top_or_in_the_stages(tmp_path: Path) -> None:
    """Of two places that name the loss one would be ignored without a word."""
    assert mistakes(tmp_path, TEXT + "objectives: [kl]\n") == [
        "r.yaml:11: objectives: given together with stages. Each stage has its own: remove this, or the stages."
    ]


# --- the run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def staged(write_recipe: WriteRecipe) -> WriteRecipe:
    """A recipe of two stages, of 16 and 8 steps."""

    def write(**sections: Any) -> Path:
        return write_recipe(**{"objectives": None, "stages": STAGES, **sections})

    return write


def test_two_stages_are_two_runs_one_after_the_other(
    staged: WriteRecipe, write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage could start from the student's first weights, keep the optimiser's state, or train another loss."""
    report = run(staged(report={"baseline": True, "latency": False}), drawn=True)
    said = capsys.readouterr().out
    for kind in ("Student", "Baseline"):
        assert [f"{kind}: stage {number} of 2" in said for number in (1, 2)] == [True, True]
    # The same by hand: a run of its own for each stage, the second starting from what the first saved.
    by_hand = {"student": {"name": "copy_layers", "layers": 2}}
    for number, stage in enumerate(STAGES):
        place = tmp_path / f"by hand {number}"
        training = {**stage["training"], "output_dir": str(place)}
        run(write_recipe(objectives=stage["objectives"], training=training, **by_hand))
        by_hand = {"student": {"name": "pretrained", "model": str(place)}}
    out = tmp_path / "out"
    assert same(weights(out / "_runs" / "student-stage-1"), weights(tmp_path / "by hand 0"))
    assert same(weights(out), weights(tmp_path / "by hand 1"))
    assert not same(weights(out), weights(tmp_path / "by hand 0"))
    assert not list(out.glob("**/checkpoint-*"))
    # The baseline has the same budget, stage by stage, and no teacher.
    steps = {name: max(entry["step"] for entry in history) for name, history in report.history.items()}
    assert steps == dict.fromkeys(("student stage 1", "baseline stage 1"), 16) | dict.fromkeys(
        ("student stage 2", "baseline stage 2"), 8
    )
    learned = {key for entry in report.history["baseline stage 1"] for key in entry if key.startswith("objective/")}
    assert learned == {"objective/labels"}
    assert sorted(folder.name for folder in (out / "_runs").iterdir()) == [
        "baseline", "baseline-stage-1", "student-stage-1",
    ]  # fmt: skip
    assert report.settings["stage 2"] == "kl, labels"
    assert "labels alone" in report.settings["baseline"]
    assert {"student stage 1", "student stage 2 training"} <= report.settings["seconds"].keys()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Stages one after the other." in page
    assert "stage 1 of 2: `logits_mse`" in (out / "README.md").read_text(encoding="utf-8")
    # Again: all is found, nothing is trained.
    written = (out / "model.safetensors").stat().st_mtime_ns
    run(staged(report={"baseline": True, "latency": False}))
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert capsys.readouterr().out.count("found finished") == 4


def test_metrics_of_a_stage_that_does_not_train_the_head_are_told_apart(
    staged: WriteRecipe, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """TinyBERT's first stage moves layers alone: its accuracy is that of a random head, shown like any other."""
    report = run(
        staged(
            stages=[{"objectives": [{"name": "hidden"}]}, {"objectives": [{"name": "kl"}]}],
            training={"disable_tqdm": False},
        ),
        drawn=True,
    )
    shown = capsys.readouterr().err
    assert shown.count("of a head that is not trained here: accuracy ") == 1
    assert shown.index("not trained here") < shown.index("kl ")
    assert [report.settings[f"stage {number}"] for number in (1, 2)] == ["hidden (the head is not trained)", "kl"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("In stage 1 the student&#39;s head is not trained.") == 1


def test_a_run_that_dies_in_its_second_stage_ends_with_the_same_weights(
    staged: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed, the second stage could start over from another student, or the first be trained once more on top."""
    from hf_distill.trainer import DistillationTrainer

    class Dead(BaseException):
        pass

    def die(self: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(self.args.output_dir) == out and self.state.global_step == 6:
            raise Dead
        return step(self, *args, **kwargs)

    training = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "no"}
    run(staged(training={**training, "output_dir": str(tmp_path / "whole")}))
    out, step = tmp_path / "out", DistillationTrainer.training_step
    path = staged(training=training)
    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_step", die)
        with pytest.raises(Dead):
            run(path)
    assert (out / "checkpoint-4" / "trainer_state.json").exists()
    assert not (out / "report.json").exists()
    first = (out / "_runs" / "student-stage-1" / "model.safetensors").stat().st_mtime_ns
    run(path)
    assert (out / "_runs" / "student-stage-1" / "model.safetensors").stat().st_mtime_ns == first
    assert same(weights(tmp_path / "whole"), weights(out))


def test_only_the_last_stage_of_the_first_seed_is_pushed(
    staged: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that is half trained, or that of another seed, could end up in the user's repository."""
    from hf_distill.run import preparation as opening
    from hf_distill.run.fit import Fitter

    trained = {}

    def fit(self: Any, model: Any, *, training: Any, directory: Path, **_: Any) -> Any:
        trained[Path(directory).name] = ("hub_model_id" in training, training["seed"], training["learning_rate"])
        raise_after = len(trained) == 4
        known = {"history": [], "seconds": 0.0, "reused": False, "layers": {}}
        fitted = SimpleNamespace(model=model, trainer=SimpleNamespace(source=None), **known)
        if raise_after:
            raise KeyboardInterrupt
        return fitted

    monkeypatch.setattr(opening, "_claim_repository", lambda *_: {"hub_model_id": "me/x"})
    monkeypatch.setattr(Fitter, "fit", fit)
    monkeypatch.setattr(Fitter, "reopen", lambda _, fitted, hooks: fitted.model)
    with pytest.raises(KeyboardInterrupt):
        run(staged(hub={"push": True}, report={"seeds": 2, "latency": False}))
    assert trained == {
        "student-stage-1": (False, 42, 2e-3),
        "out": (True, 42, 1e-3),
        "student-seed-43-stage-1": (False, 43, 2e-3),
        "student-seed-43": (False, 43, 1e-3),
    }


def test_a_stage_hands_on_its_best_model(staged: WriteRecipe) -> None:
    """With `load_best_model_at_end` the next stage could still start from the last model, and nobody would see it."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": None}
    wild = {"num_train_epochs": 4, "learning_rate": 0.3, "max_grad_norm": 100.0, "train_sampling_strategy": "random"}
    first = {**STAGES[0], "training": {**best, **wild}}
    still = {**STAGES[0], "training": {"num_train_epochs": 1, "learning_rate": 0.0}}
    report = run(staged(stages=[first, still]))
    losses = {
        name: [entry["eval_loss"] for entry in history if "eval_loss" in entry]
        for name, history in report.history.items()
    }
    assert min(losses["student stage 1"]) < losses["student stage 1"][-1] * 0.9, "or the test says nothing"
    assert losses["student stage 2"] == pytest.approx([min(losses["student stage 1"])])


def test_epochs_of_a_stage_that_steps_would_overrule(staged: WriteRecipe) -> None:
    """`max_steps` goes before `num_train_epochs`, wherever they stand: the stage would take the steps of all others."""
    stages = [{"objectives": ["kl"], "training": {"num_train_epochs": 2}}, {"objectives": ["kl"]}]
    path = staged(stages=stages, training={"max_steps": 5})
    with pytest.raises(UserError, match=r"stages\[0\].training.num_train_epochs: .*max_steps: -1"):
        check(load_recipe(path))
    check(load_recipe(path, ["stages.0.training.max_steps=-1"]))


def test_a_stage_s_arguments_are_checked_against_each_other_first(staged: WriteRecipe, tmp_path: Path) -> None:
    """What only Transformers finds must be told before the first stage trains for hours, at the stage's own line."""
    stages = [STAGES[0], {**STAGES[1], "training": {"logging_steps": 0}}]
    with pytest.raises(UserError, match=r"recipe\.yaml:1: stages\[1\]\.training\.logging_steps: .*logging_steps"):
        run(staged(stages=stages))
    assert not (tmp_path / "out").exists()


def test_plots_put_stages_one_after_the_other() -> None:
    """Both stages count steps from 0: drawn on top of each other, the curve of a student would zigzag."""
    from hf_distill.report.curves import Quantity, panels

    def history(*steps: int) -> list[dict[str, float]]:
        return [{"step": step, "objective/kl": 1.0 / step} for step in steps]

    parts = {"student stage 1": history(5, 10), "student stage 2": history(2, 4), "baseline": history(1, 3)}
    curves = panels(whole(history=parts))[Quantity("objective/kl")]
    assert curves["student", False].steps == [5, 10, 12, 14]
    assert curves["baseline", False].steps == [1, 3]


def test_the_card_names_the_stage_of_each_term() -> None:
    """A list of terms without their stages describes a loss that nobody minimised."""
    recipe = {**recipe_of(RECIPE), "stages": STAGES}
    lines = objectives({key: value for key, value in recipe.items() if key != "objectives"})
    assert [line.partition(" (")[0] for line in lines] == [
        "stage 1 of 2: `logits_mse`", "stage 2 of 2: `kl`", "stage 2 of 2: `labels`",
    ]  # fmt: skip


def test_recipes_built_in_python(staged: WriteRecipe) -> None:
    """What the reader refuses must be refused from Python too: an empty plan would load both models first."""
    from dataclasses import replace

    from hf_distill import distill

    recipe = load_recipe(staged())
    for wrong, said in (
        (replace(recipe, stages=()), "objectives: nothing to train on"),
        (replace(recipe, objectives=(Labels(),)), "objectives: given together with stages"),
        (replace(recipe, stages=(Stage(objectives=()),)), r"stages\[0\]\.objectives: nothing to train on"),
    ):
        with pytest.raises(UserError, match=said):
            distill(wrong)


# --- objectives are refused before anything loads ---------------------------------------------------------------------


@component
class Deep(RowObjective):
    """Needs a layer that a model may not have.

    Attributes:
        weight: Factor of the term.
        layer: Which one.
    """

    name: ClassVar[str] = "deep"
    within_batch: ClassVar[bool] = True
    by_token: ClassVar[bool] = True

    layer: int = 0

    def check(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """Refuse a layer that the student has not."""
        if self.layer >= student.num_hidden_layers:
            raise UserError(f"the student has {student.num_hidden_layers} layers.", key="layer")
        assert teacher.num_hidden_layers == 4

    def rows(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Return the squared difference."""
        assert teacher is not None
        return (student - teacher).square().sum(-1)


DEEP = "test_stages:Deep"


@pytest.fixture
def never_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any loading of weights fail."""
    from transformers import PreTrainedModel

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(refuse))


@pytest.fixture
def deep(staged: WriteRecipe, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a recipe in block style, with `Deep` at the end of the second stage, and return its path."""
    import sys

    monkeypatch.setitem(sys.modules, "test_stages", sys.modules[__name__])

    def write(layer: int) -> Path:
        path = staged(stages=[{"objectives": ["kl"]}])
        text = dump_recipe(load_recipe(path))
        old = "stages:\n- objectives:\n  - name: kl\n"
        assert old in text
        new = f"{old}- objectives:\n  - name: kl\n  - name: {DEEP}\n    layer: {layer}\n"
        path.write_text(text.replace(old, new))
        return path

    return write


@pytest.mark.usefixtures("never_load")
def test_an_objective_that_does_not_fit_the_models_is_one_line(deep: Any, tmp_path: Path) -> None:
    """A layer that a model has not would be found after both models were loaded, with a traceback."""
    from hf_distill import distill
    from hf_distill.run.dry_run import check

    path = deep(2)
    line = 1 + path.read_text().splitlines().index("    layer: 2")
    said = f"{path}:{line}: stages[1].objectives[1].layer: the student has 2 layers."
    for judge in (check, distill):
        with pytest.raises(UserError) as error:
            judge(load_recipe(path))
        assert error.value.mistakes == (said,)
    assert not (tmp_path / "out").exists()


def test_what_depends_on_the_batch_is_said(
    deep: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss promises not to depend on the batch's split; a term that breaks the promise must be named."""
    from hf_distill.run.fit import Fitter

    path = deep(1)
    said = "deep compares the examples of one micro-batch with each other"
    plan = check(load_recipe(path)).splitlines()
    assert [line[:12] for line in plan if said in line] == ["note        "]
    assert [line for line in plan if line.startswith("stage")] == [
        "stage 1     as in training",
        "stage 2     as in training",
    ]

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Fitter, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        run(path)
    assert said in capsys.readouterr().out


def test_pairs_of_a_single_example(staged: WriteRecipe) -> None:
    """One example at a time has no other to be compared with: the term would be 0 at every step, without a word."""
    stages = [{"objectives": ["kl"]}, {"objectives": ["labels", "relational"]}]
    path = staged(stages=stages, training={"per_device_train_batch_size": 1})
    with pytest.raises(UserError, match=r"stages\[1\].objectives\[1\]: 'relational' .*per_device_train_batch_size"):
        check(load_recipe(path))
    check(load_recipe(path, ["stages.1.training.per_device_train_batch_size=2"]))


def test_tokens_are_not_compared_where_each_model_has_its_own(deep: Any) -> None:
    """Position 5 of two tokenizers is another word: the term would compare what has nothing to do with each other."""
    from dataclasses import replace

    from hf_distill.run.checks import check_plan
    from hf_distill.run.pairing import open_pair

    recipe = load_recipe(deep(1))
    pair = open_pair(recipe)
    check_plan(recipe, pair)
    with pytest.raises(UserError, match=r"stages\[1\]\.objectives\[1\]: 'deep' compares the models token by token"):
        check_plan(recipe, replace(pair, teacher_tokenizer=pair.tokenizer))


@pytest.mark.usefixtures("never_load")
def test_smoothing_and_regression(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """It has no meaning for numbers, and was told in the first step, after both models had been loaded."""
    rows = [f"a great film,{score}" for score in (4.5, 0.5, 3.25, 1.5)]
    (tmp_path / "scores.csv").write_text("\n".join(["text,score", *rows]) + "\n")
    path = write_recipe(
        data={
            "path": str(tmp_path / "scores.csv"),
            "columns": {"label": "score"},
            "splits": {"train": "train", "eval": "train"},
        },
        teacher={"name": "pretrained", "model": str(make_model("bert", labels=["score"]))},
        objectives=[{"name": "logits_mse"}, {"name": "labels", "label_smoothing": 0.1}],
    )
    with pytest.raises(UserError, match=r"objectives\[1\]\.label_smoothing: smoothing spreads a label over classes"):
        run(path)


@pytest.mark.usefixtures("never_load")
def test_an_objective_of_another_task(write_recipe: WriteRecipe) -> None:
    """Vectors of texts exist in one task only; elsewhere the term would fail inside the first batch."""
    from hf_distill.run.dry_run import check

    path = write_recipe(objectives=["kl", "sentence_embedding"])
    for judge in (check, run):
        with pytest.raises(UserError, match=r"objectives\[1\]: 'sentence_embedding' is for sentence-similarity"):
            judge(load_recipe(path) if judge is check else path)


@pytest.mark.usefixtures("never_load")
@pytest.mark.parametrize("name", ["similarity_preserving", "relational", "contrastive"])
def test_an_embedding_of_another_task(name: str, write_recipe: WriteRecipe) -> None:
    """Other tasks' models return no vector of a text: the term would fail inside the first batch."""
    path = write_recipe(objectives=["kl", {"name": name, "of": "embedding"}])
    said = (
        r"yaml:\d+: objectives\[1\]\.of: 'embedding' is what models of the task sentence-similarity return.* Use mean"
    )
    for judge in (check, run):
        with pytest.raises(UserError, match=said):
            judge(load_recipe(path) if judge is check else path)
    check(load_recipe(path, ["objectives.1.of=mean"]))


@pytest.mark.usefixtures("never_load")
def test_several_gpus_in_one_process(write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started without a launcher on a machine with four GPUs, a run would load both models and then stop."""
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", 4)
    with pytest.raises(UserError, match=r"training: 4 GPUs in one process .*accelerate launch") as error:
        run(write_recipe())
    assert len(error.value.mistakes) == 1
