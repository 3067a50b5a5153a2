"""Chains and generations: recipes with several students, each the teacher of the next one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from forked import start, status, two_processes
from runs import WriteRecipe, run, same, weights

from hf_distill import DistillationTrainer, UserError, load_recipe
from hf_distill.objectives import LogitsMSE
from hf_distill.recipe.recipe import Recipe
from hf_distill.recipe.writer import dump_recipe
from hf_distill.report.ancestors import Ancestor
from hf_distill.report.report import Report
from hf_distill.run.ancestry import ancestors
from hf_distill.run.beside import mean_of
from hf_distill.run.cache_command import capture
from hf_distill.run.chain import trainings
from hf_distill.run.dry_run import check
from hf_distill.teachers.pretrained import PretrainedTeacher

LINKS: list[Any] = [
    {"name": "copy_layers", "layers": 3},
    {"name": "copy_layers", "layers": 1, "training": {"learning_rate": 2e-3}, "objectives": ["logits_mse"]},
]
FRESH = {"name": "from_config", "overrides": {"num_hidden_layers": 2}}


@pytest.fixture
def chain(write_recipe: WriteRecipe, make_model: Any) -> WriteRecipe:
    """Write a recipe with a cached teacher of four layers and a chain of three and one; keywords replace sections."""
    teacher = {"name": "pretrained", "model": str(make_model("bert", layers=4, seed=1))}

    def write(**sections: Any) -> Path:
        given = {"student": None, "chain": LINKS, "teacher": {"name": "cached", "teacher": teacher}}
        return write_recipe(**{**given, **sections})

    return write


@pytest.fixture
def generations(chain: WriteRecipe) -> WriteRecipe:
    """Write a recipe of several generations of a new model with two layers."""

    def write(number: Any, **sections: Any) -> Path:
        return chain(**{"student": FRESH, "chain": None, "generations": number, **sections})

    return write


def told(look: Callable[[Recipe], Any], path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        look(load_recipe(path, overrides))
    (line,) = caught.value.mistakes
    return line


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_a_chain_is_read_written_and_overridden(chain: WriteRecipe, tmp_path: Path) -> None:
    """What is lost of a link in the recipe beside the model would make the same command refuse its own directory."""
    recipe = load_recipe(chain(), ["chain.0.layers=2", "chain.1.training.seed=3"])
    assert [one.student.layers for one in recipe.chain] == [2, 1]  # type: ignore[attr-defined]
    assert recipe.student == recipe.chain[-1].student
    assert recipe.chain[1].objectives == (LogitsMSE(),)
    assert recipe.chain[1].training == {"learning_rate": 2e-3, "seed": 3}
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("given", [3, {"count": 3, "learn_from": "all", "ensemble": True}])
def test_generations_are_read_and_written(generations: WriteRecipe, given: Any, tmp_path: Path) -> None:
    """A number and a mapping must say the same."""
    recipe = load_recipe(generations(given))
    assert recipe.generations is not None
    assert recipe.generations.count == 3
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("chain=[]", "chain", "layers: 2}]; found an empty list"),
        ("chain=copy_layers", "chain", "wanted a list of students"),
        ("chain.1=null", "chain[1]", "wanted a mapping"),
        ("student={name: copy_layers, layers: 1}", "chain", "given together with student"),
        ("generations=2", "generations", "given together with chain"),
        ("chain.0.training.output_dir=x", "chain[0].training.output_dir", "_chain inside it"),
        ("chain.1.training.fp16=true", "chain[1].training.fp16", "the same for the whole chain"),
        ("chain.0.lagers=1", "chain[0].lagers", "Did you mean 'layers'"),
        ("chain.1.trainng={}", "chain[1].trainng", "Did you mean 'training'"),
        ("chain.1.objectives=[]", "chain[1].objectives", "an empty list"),
    ],
)
def test_mistakes_in_the_text_of_a_chain(chain: WriteRecipe, override: str, key: str, words: str) -> None:
    """Each of these would train something else than what was meant, or stop after the first student."""
    line = told(check, chain(), override)
    assert f": {key}: " in line
    assert words in line


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("chain.1={name: from_config, overrides: {num_hidden_layers: 6}}", "chain[1]", "not make anything smaller"),
        (
            "chain.1.layers=4",
            "chain[1].layers",
            "between 1 and 3, the number of layers of its teacher",
        ),  # of the student before, not of the teacher
        ("chain.1.objectives=[{name: hidden, layers: [[1, 4]]}]", "chain[1].objectives[0].layers", "no layer 4"),
        ("chain.0.training.num_train_epochs=0", "chain[0].training.num_train_epochs", "nothing would be trained"),
    ],
)
def test_every_link_is_checked_before_the_first_is_trained(
    chain: WriteRecipe, override: str, key: str, words: str, tmp_path: Path
) -> None:
    """The second student's mistake would show after the hours of the first one; `--check` and run tell the same."""
    path = chain(
        teacher={"name": "pretrained", "model": json.loads(chain().read_text())["teacher"]["teacher"]["model"]}
    )
    lines = [told(look, path, override) for look in (check, lambda recipe: run(path, override))]
    assert lines[0] == lines[1]
    assert f": {key}: " in lines[0]
    assert words in lines[0]
    assert not (tmp_path / "out").exists()


def test_what_does_not_go_together_is_refused(generations: WriteRecipe, chain: WriteRecipe, tmp_path: Path) -> None:
    """Generations that go on from each other's weights are not born again; compared with itself, all is the same."""
    path = generations(2)
    assert ": generations.count: " in told(check, path, "generations=0")
    assert ": generations: " in told(check, path, "generations=many")
    assert "starts from fresh ones" in told(check, path, "student={name: copy_layers, layers: 2}")
    assert ": generations.ensemble: " in told(check, path, "generations={count: 1, ensemble: true}")
    assert ": report.direct: " in told(check, path, "report.direct=true")
    assert ": report.direct: " in told(check, chain(chain=LINKS[:1]), "report.direct=true")
    alone = {"name": "lora", "model": str(tmp_path), "merge": False}
    assert "cannot teach the next student" in told(trainings, chain(chain=[alone, LINKS[0]]))
    own = "teacher={name: ema}"
    assert "no first teacher" in told(check, generations(2, objectives=["kl", "labels"]), own)
    trainings(load_recipe(generations(1, objectives=["kl", "labels"]), [own]))


def test_check_says_what_every_link_would_do(chain: WriteRecipe, tmp_path: Path) -> None:
    """The teachers between do not exist yet: nobody would know their sizes, or read the path of a temporary one."""
    lines = check(load_recipe(chain(report={"direct": True}))).split("\n")
    out = tmp_path / "out"
    starts = [number for number, line in enumerate(lines) if line.startswith(("Link", "For comparison"))]
    first, direct, last = ("\n".join(lines[here:end]) for here, end in zip(starts, [*starts[1:], None], strict=True))
    assert str(out / "_chain" / "link-1") in first
    assert "bert, 4 layers of 32" in first
    assert "objective   kl" in first
    assert "bert, 1 layer of 32" in direct
    assert f"teacher     cached (teacher pretrained (model {out / '_chain' / 'link-1'})): bert, 3 layers of 32" in last
    assert "learning_rate 0.002" in direct
    assert "objective   kl" not in last
    assert not out.exists()


def test_a_link_that_grows_is_noted(chain: WriteRecipe) -> None:
    """An assistant smaller than its student is mostly a slip of the pen."""
    assert "chain[1]: 15.4 K" not in check(load_recipe(chain()))
    assert "note        chain[1]: 32.5 K parameters" in check(
        load_recipe(chain(chain=[LINKS[1], {"name": "from_config", "overrides": {"num_hidden_layers": 3}}]))
    )


# --- the run ----------------------------------------------------------------------------------------------------------


def test_a_chain_is_its_links_one_after_the_other(chain: WriteRecipe, tmp_path: Path) -> None:
    """Each student must have learned from the one before, from its own losses and arguments; else it is just a list."""
    report = run(chain())
    first = tmp_path / "out" / "_chain" / "link-1"
    own = load_recipe(tmp_path / "recipe.yaml")
    base = {key: value for key, value in json.loads((tmp_path / "recipe.yaml").read_text()).items() if key != "chain"}
    for number, (link, teacher) in enumerate(
        zip(LINKS, (base["teacher"]["teacher"]["model"], str(first)), strict=True)
    ):
        alone = {key: value for key, value in link.items() if key not in ("training", "objectives")}
        changed = {
            **base,
            "teacher": {"name": "cached", "teacher": {"name": "pretrained", "model": teacher}},
            "student": alone,
            "objectives": link.get("objectives", base["objectives"]),
            "training": {
                **base["training"],
                **link.get("training", {}),
                "output_dir": str(tmp_path / f"alone-{number}"),
            },
        }
        (tmp_path / "alone.yaml").write_text(json.dumps(changed))
        run(tmp_path / "alone.yaml")
        found = first if number == 0 else tmp_path / "out"
        assert same(weights(found), weights(tmp_path / f"alone-{number}"))
    assert load_recipe(tmp_path / "out" / "recipe.yaml") == own  # of the whole chain, which runs again
    assert [one.name for one in report.lineage] == [Path(base["teacher"]["teacher"]["model"]).name, "link-1", "out"]
    assert [one.parameters for one in report.lineage] == [
        report.lineage[0].parameters,
        report.teacher.parameters,
        report.student.parameters,
    ]


def test_a_chain_killed_in_its_second_link_resumes(chain: WriteRecipe, tmp_path: Path) -> None:
    """A resumed chain could train its first student anew, or its second one from others; nobody would see."""
    training = {"save_strategy": "steps", "save_steps": 4, "per_device_train_batch_size": 8}
    whole = chain(training={**training, "output_dir": str(tmp_path / "whole")})
    run(whole)
    path, save = chain(training=training), DistillationTrainer._save_checkpoint

    def killed(self: Any, *given: Any) -> None:
        save(self, *given)
        if Path(self.args.output_dir).name == "out":
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        DistillationTrainer._save_checkpoint = killed  # type: ignore[method-assign]
        run(path)

    assert status(start(work)) == -signal.SIGKILL
    first = tmp_path / "out" / "_chain" / "link-1" / "model.safetensors"
    written = first.stat().st_mtime_ns
    assert (tmp_path / "out" / "checkpoint-4").is_dir()
    report = run(path)
    assert first.stat().st_mtime_ns == written
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "out"))
    # Another first link is another chain; started over, it replaces all of its students.
    assert "layers is 3 there and 2 here" in told(check, path, "chain.0.layers=2")
    again = run(path, "chain.0.layers=2", restart=True)
    assert again.lineage[1].parameters != report.lineage[1].parameters
    assert first.stat().st_mtime_ns != written


def test_the_direct_way_is_the_run_without_the_assistant(chain: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Compared with a student of another teacher, or of other steps, a chain could be said to help when it does not."""
    tuned = {"name": "finetuned", "model": str(make_model("bert-bare", layers=4)), "training": {"max_steps": 3}}
    teacher = {"name": "cached", "teacher": tuned}
    report = run(chain(teacher=teacher, report={"direct": True, "seeds": 2, "latency": False}))
    folders = [place.parents[2].name for place in (tmp_path / "out").rglob("_teacher/*/model.safetensors")]
    assert folders == ["link-1"]  # trained once
    last = load_recipe(tmp_path / "recipe.yaml").chain[-1]
    given = json.loads((tmp_path / "recipe.yaml").read_text())
    alone = {
        **{key: value for key, value in given.items() if key != "chain"},
        "student": {"name": "copy_layers", "layers": 1},
        "objectives": ["logits_mse"],
        "training": {**given["training"], **last.training, "output_dir": str(tmp_path / "alone")},
        "report": {"seeds": 2, "latency": False},
    }
    alone["teacher"] = {
        "name": "cached",
        "teacher": {**tuned, "output_dir": str(tmp_path / "out/_chain/link-1/_teacher")},
    }
    (tmp_path / "alone.yaml").write_text(json.dumps(alone))
    other = run(tmp_path / "alone.yaml")
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "out" / "_chain" / "direct"))
    assert [one.student for one in report.direct] == [one.student for one in other.seeds]
    assert any("taught by the first teacher directly" in line for line in report.verdict())
    assert report.direct_error is not None, "an interval that is not of the same rows in pairs is far too wide"
    assert Report.load(tmp_path / "out").direct == report.direct


def test_generations_start_anew_and_their_mean_is_evaluated(generations: WriteRecipe, tmp_path: Path) -> None:
    """Begun from each other's weights, or all from the same, they would be one longer training, or one student."""
    report = run(generations({"count": 3, "learn_from": "all", "ensemble": True}), "training.max_steps=2")
    out = tmp_path / "out"
    places = [out / "_chain" / "generation-1", out / "_chain" / "generation-2", out]
    recipes = [one.recipe for one in trainings(load_recipe(tmp_path / "recipe.yaml"))]
    assert [one.training["seed"] for one in recipes] == [42, 43, 44]
    assert [len(list(one.teacher.members())) for one in recipes] == [1, 1, 2]
    first, second = (weights(place)["bert.encoder.layer.0.attention.self.query.weight"] for place in places[:2])
    assert not first.allclose(second, atol=0.05)

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    rows = [line.rsplit(",", 1) for line in _eval_file(tmp_path).read_text().splitlines()[1:]]
    total: Any = 0
    for place in places:
        model = AutoModelForSequenceClassification.from_pretrained(place)
        total = total + np.stack(
            [
                model(**tokenizer(text.strip('"'), return_tensors="pt")).logits[0].softmax(-1).detach().double().numpy()
                for text, _ in rows
            ]
        )
    guesses = [model.config.id2label[int(one)] for one in total.argmax(-1)]
    right = sum(guess == label for guess, (_, label) in zip(guesses, rows, strict=True)) / len(rows)
    assert report.together["accuracy"] == pytest.approx(right)
    assert f"The mean of all generations has {100 * right:.1f}" in report.verdict()[0]
    assert [one.name for one in report.lineage][1:] == ["generation-1", "generation-2", "out"]
    # The directories of all three belong to this recipe, although their teachers were only planned.
    assert "Generation 3 of 3" in check(load_recipe(tmp_path / "recipe.yaml", ["training.max_steps=2"]))


def _eval_file(directory: Path) -> Path:
    return Path(json.loads((directory / "recipe.yaml").read_text())["data"]["path"]["validation"])


def test_the_cache_command_asks_the_first_teacher(chain: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """The teacher of the last student does not exist yet; the run must find what was stored."""
    own = {"name": "pretrained", "model": str(make_model("bert", layers=4, seed=9))}
    recipe = load_recipe(chain(teacher={"name": "cached", "teacher": own}))
    assert not capture(recipe).found
    assert capture(recipe).found
    assert not (tmp_path / "out").exists()


def test_two_processes_train_the_same_chain(chain: WriteRecipe, tmp_path: Path) -> None:
    """Each process would look for teachers of its own, or wait for the other without end."""
    # As in `test_run.py`: dropout differs between processes, and Adam makes whole steps of rounding errors.
    training = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    links = [{"name": "from_config", "overrides": {"num_hidden_layers": layers, **still}} for layers in (2, 1)]
    alone = run(chain(chain=links, training={**training, "output_dir": str(tmp_path / "one")}))
    two = chain(
        chain=links, training={**training, "output_dir": str(tmp_path / "two"), "per_device_train_batch_size": 4}
    )
    two_processes(lambda: run(two, "training.use_cpu=true") and None, tmp_path / "results")
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(ours[name].sub(theirs[name]).abs().max() < 1e-4 for name in ours)
    found = Report.load(tmp_path / "two")
    assert [one.parameters for one in found.lineage] == [one.parameters for one in alone.lineage]


# --- the lineage ------------------------------------------------------------------------------------------------------


def test_a_lineage_goes_on_from_a_student_of_ours(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A student of a student would name the one before as its origin, and the licence of the first would be unknown."""
    run(write_recipe(training={"output_dir": str(tmp_path / "one")}))
    teacher = {"name": "pretrained", "model": str(tmp_path / "one")}
    last = {"name": "copy_layers", "layers": 1}
    report = run(write_recipe(teacher=teacher, student=last, training={"output_dir": str(tmp_path / "two")}))
    assert [one.name for one in report.lineage][1:] == ["one", "two"]
    assert report.lineage[1].made == "copy_layers (layers 2)"
    assert len({one.rows for one in report.lineage}) == 1
    assert report.lineage[1].value == report.headline("teacher")
    card = (tmp_path / "two" / "README.md").read_text()
    assert "## Lineage" in card
    assert "first teacher" in report.verdict()[0]
    assert ">Lineage</h2>" in (tmp_path / "two" / "report.html").read_text()

    # On other rows nothing is said about what was kept of the first; an unreadable report is no lineage.
    three = write_recipe(teacher=teacher, student=last, training={"output_dir": str(tmp_path / "three")})
    other = run(three, "data.splits.eval=validation[:16]")
    assert other.lineage[0].rows != other.lineage[2].rows
    assert "first teacher" not in other.verdict()[0]
    assert "(on other rows)" in (tmp_path / "three" / "README.md").read_text()
    shutil.copytree(tmp_path / "one", tmp_path / "odd")
    (tmp_path / "odd" / "report.json").write_text('{"lineage": [{"nom": 3}]}')
    odd = write_recipe(
        teacher={**teacher, "model": str(tmp_path / "odd")}, training={"output_dir": str(tmp_path / "4")}
    )
    assert [one.name for one in run(odd).lineage] == ["odd", "4"]


@pytest.mark.parametrize("trusts", [False, True])
def test_the_mean_opens_generations_as_their_run_did(trusts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Students with code of their own would be refused in the report, after the training of all of them."""
    asked = []

    def load(*_: Any, **how: Any) -> None:
        asked.append(how["trust_remote_code"])
        raise InterruptedError

    monkeypatch.setattr("hf_distill.models.loading.load_model", load)
    run: Any = SimpleNamespace(recipe=SimpleNamespace(trusts_code=trusts), prepared=SimpleNamespace(head=None))
    with pytest.raises(InterruptedError):
        mean_of(run, (Path("one"), Path("two")))
    assert asked == [trusts]


@pytest.mark.parametrize(
    "wrong",
    [
        {"parameters": 10**400},
        {"bytes": -1},
        {"latency_ms": float("inf")},
        {"value": float("nan")},
        {"name": ""},
        {"name": "x" * 100_000},
        {"name": ["a"]},
        None,
    ],
)
def test_a_stranger_s_lineage_that_is_none(wrong: Any, tmp_path: Path) -> None:
    """A number that no report can show, or a table without an end, would stop a run after its training."""
    (tmp_path / "model").mkdir()
    lineage = [{"name": "first", **(wrong or {})}] * (1 if wrong else 300)
    (tmp_path / "model" / "report.json").write_text(json.dumps({"lineage": lineage}))
    teacher = PretrainedTeacher(model=str(tmp_path / "model"))
    assert ancestors(teacher) == (Ancestor(name="model"),)
    (tmp_path / "model" / "report.json").write_text(
        json.dumps({"lineage": [{"name": "first", "of later versions": 1}]})
    )
    assert ancestors(teacher) == (Ancestor(name="first"),)
