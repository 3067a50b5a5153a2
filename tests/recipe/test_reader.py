"""Reading recipes: `hf_distill/recipe/`, and the messages of `hf_distill/mistakes.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from hf_distill.component import entry, settings
from hf_distill.data.section import Data
from hf_distill.errors import UserError
from hf_distill.metrics.table import METRICS
from hf_distill.mistakes import attributes
from hf_distill.objectives import OBJECTIVES, PRESETS, KLDivergence, Labels
from hf_distill.objectives.presets import ON_OWN_TEXTS
from hf_distill.recipe.reader import load_recipe
from hf_distill.recipe.recipe import Recipe
from hf_distill.recipe.training_section import (
    BELONGS,
    CONFIG,
    FIXED,
    FOREIGN,
    OWNED,
    RENAMED,
    argument_types,
    training_arguments,
    training_mistakes,
)
from hf_distill.recipe.writer import dump_recipe
from hf_distill.students import STUDENTS, PretrainedStudent
from hf_distill.tasks import TASKS, TextClassification
from hf_distill.teachers import TEACHERS, PretrainedTeacher

RECIPE_FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(RECIPE_FOLDER.glob("**/*.yaml"))
RECIPES = [path for path in RECIPES if "accelerate" not in path.parts]

WHOLE = """\
task: text-classification
data: {path: x.csv}
teacher: {name: pretrained, model: big}
student: {name: pretrained, model: small}
objectives:
  - {name: kl, weight: 0.5, temperature: 2.0}
  - {name: labels, weight: 0.5}
training:
  output_dir: out
  learning_rate: 5e-5
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tests' current directory, so that messages hold short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mistakes(text: str | bytes, *overrides: str) -> list[str]:
    """Return the lines a recipe of this text is refused with."""
    path = Path("r.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        load_recipe(path, overrides)
    assert not any("\n" in line for line in error.value.mistakes)
    return list(error.value.mistakes)


def load(*overrides: str, text: str = WHOLE) -> Recipe:
    """Return the recipe of this text."""
    Path("r.yaml").write_text(text)
    return load_recipe("r.yaml", overrides)


# --- recipes that are right -------------------------------------------------------------------------------------------


def test_a_recipe_is_the_objects_a_python_user_writes() -> None:
    """A field read from YAML but not handed to its component would train with the default."""
    recipe = load()
    assert recipe.task == TextClassification()
    assert recipe.data == Data(path="x.csv")
    assert recipe.teacher == PretrainedTeacher(model="big")
    assert recipe.student == PretrainedStudent(model="small")
    assert recipe.objectives == (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5))
    assert recipe.training == {"output_dir": "out", "learning_rate": 5e-5}


def test_a_name_alone_is_an_entry() -> None:
    """`- kl` must not be another objective than `- {name: kl}`."""
    recipe = load("objectives=[kl, labels]")
    assert recipe.objectives == (KLDivergence(), Labels())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_reads_and_survives_the_round_trip(path: Path) -> None:
    """A recipe that ships must work, and the one saved beside a model must be the one that made it."""
    recipe = load_recipe(path)
    Path("copy.yaml").write_text(dump_recipe(recipe))
    assert load_recipe("copy.yaml") == recipe
    first = path.read_text().partition("\n")[0]
    schema = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / schema).resolve() == RECIPE_FOLDER / "recipe.schema.json"


def test_there_are_recipes() -> None:
    """The test above passes on an empty folder."""
    assert RECIPES


ENTRIES = [
    (section, name, cls)
    for section, table in (("task", TASKS), ("teacher", TEACHERS), ("student", STUDENTS), ("objectives.0", OBJECTIVES))
    for name, cls in table.items()
]
REQUIRED: dict[str, Any] = {
    "model": "some/model",
    "layers": 2,
    "ratio": 0.5,
    "teacher": {"name": "pretrained", "model": "some/model"},
    "teachers": [{"name": "pretrained", "model": "some/model"}] * 2,
    "columns": {"probabilities": ["negative", "positive"]},
    "prompt": "{{ text }} is",
    "verbalizers": {"negative": [" bad"], "positive": " good"},
    "path": "targets",
    "url": ["http://localhost:8000"],
    "noise": 20.0,
    "budget": 8.0,
}
# Entries inside entries, where the one above is refused.
INNER: dict[str, dict[str, Any]] = {"noisy": {"name": "finetuned", "model": "some/model"}}


def _one_of(cls: Any) -> tuple[str, ...]:
    """Return a field of which a value is needed although it has a default: `layers`, or what the student may cost."""
    return getattr(cls, "needs_one_of", ())[:1]


@pytest.mark.parametrize(("section", "name", "cls"), ENTRIES, ids=[f"{section}-{name}" for section, name, _ in ENTRIES])
def test_every_entry_of_every_table_survives_the_round_trip(section: str, name: str, cls: Any) -> None:
    """A component that dumps to something else would make a resumed run another run."""
    fields = cls.__pydantic_fields__
    needed = {key: REQUIRED[key] for key in fields if fields[key].is_required() or key in _one_of(cls)}
    if name in INNER:
        needed["teacher"] = INNER[name]
    recipe = load(f"{section}={ {'name': name, **needed} }")
    if "teacher" in needed:
        needed["teacher"] = TEACHERS[needed["teacher"]["name"]](model="some/model")
    if "teachers" in needed:
        needed["teachers"] = [PretrainedTeacher(model="some/model")] * 2
    assert cls(**needed) in (recipe.task, recipe.teacher, recipe.student, *recipe.objectives)
    assert load(text=dump_recipe(recipe)) == recipe
    assert cls.name == name


@pytest.mark.parametrize(("section", "name", "cls"), ENTRIES, ids=[f"{section}-{name}" for section, name, _ in ENTRIES])
def test_every_field_is_described(section: str, name: str, cls: type) -> None:
    """The schema and the message for a missing key take a field's description from the docstring."""
    assert set(cls.__pydantic_fields__) <= set(attributes(cls))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "override",
    [
        "data.path={train: a.csv, validation: [b.csv, c.csv]}",
        "data.columns={text: 'a column: with colon'}",
        "data.splits={train: 'train[:10]', eval: 'train[10:]'}",
        "data.labels=['no', 'yes', '1', 'null', '~', '1e5', ' x ', '#', 'é', '0x10', '2024-01-01']",
        "data.revision=2024-01-01",
        "student={name: copy_layers, layers: [0, 2]}",
        "teacher={name: finetuned, model: x, training: {learning_rate: 1e-4, lr_scheduler_kwargs: {a: [1, null]}}}",
        "objectives.0.temperature=1e-3",
        "training.learning_rate=1e-07",
        "training.bf16=auto",
        "training.fsdp=true",
        "training.ddp_backend=null",
        "training.run_name='multi\n\nline '",
        "tokenizer=x",
        "evaluation={metrics: [accuracy]}",
        "report={baseline: true, seeds: 3, latency: false}",
        "hub={push: true, repo_id: me/x, private: false}",
    ],
)
def test_values_survive_the_round_trip(override: str) -> None:
    """Text that looks like a number, and the like, must come back as text from the recipe saved beside a model."""
    recipe = load(override)
    assert recipe != load()
    assert load(text=dump_recipe(recipe)) == recipe


def test_a_recipe_built_in_python_can_be_saved() -> None:
    """Paths and enumerations are what Python users write; a crash at the first save would waste their time."""

    class Strategy(str, Enum):
        EPOCH = "epoch"

    recipe = load()
    recipe = Recipe(
        task=recipe.task,
        data=recipe.data,
        teacher=recipe.teacher,
        student=recipe.student,
        objectives=recipe.objectives,
        training={"output_dir": Path("out"), "eval_strategy": Strategy.EPOCH, "report_to": ("none",)},
    )
    again = load(text=dump_recipe(recipe))
    assert again.training == {"output_dir": "out", "eval_strategy": "epoch", "report_to": ["none"]}


def test_only_what_differs_from_a_default_is_dumped() -> None:
    """A dump full of defaults would turn every change of a default into "another recipe"."""
    assert settings(Data(path="x", columns={})) == {"path": "x"}
    assert entry(KLDivergence(weight=1.0)) == {"name": "kl"}
    assert "report" not in dump_recipe(load())


def test_yaml_is_1_2() -> None:
    """`no`, `on` and dates are text in YAML 1.2; read as in 1.1, `eval_strategy: no` would be false."""
    recipe = load("training.eval_strategy=no", "data.labels=[no, on, 2024-01-01]", "training.learning_rate=5e-5")
    assert recipe.training["eval_strategy"] == "no"
    assert recipe.data.labels == ["no", "on", "2024-01-01"]
    assert recipe.training["learning_rate"] == 5e-5


def test_bytes_that_editors_leave() -> None:
    """A byte order mark or CRLF line ends must not become part of a key."""
    Path("r.yaml").write_bytes(b"\xef\xbb\xbf" + WHOLE.replace("\n", "\r\n").encode())
    assert load_recipe("r.yaml") == load()


# --- places -----------------------------------------------------------------------------------------------------------


def test_a_recipe_knows_where_it_was_written() -> None:
    """A mistake found while the data is read must name the line, or the override, that is at fault."""
    recipe = load("objectives.1.weight=0.7", "data.columns={text: a}")
    assert recipe.origin is not None
    assert recipe.origin.lines["objectives[0].temperature"] == 6
    assert recipe.mistake("objectives[0].weight", "x").mistakes == ("r.yaml:6: objectives[0].weight: x",)
    assert recipe.mistake("objectives[1].weight", "x").mistakes == (
        "override 'objectives.1.weight=0.7': objectives[1].weight: x",
    )
    assert recipe.mistake("data.columns.text", "x").mistakes == (
        "override 'data.columns={text: a}': data.columns.text: x",
    )
    assert recipe.mistake("teacher.dtype", "x").mistakes == ("r.yaml:3: teacher.dtype: x",)
    assert recipe.mistake("", "x").mistakes == ("r.yaml:1: x",)
    with pytest.raises(UserError, match=r"^r.yaml:3: teacher.model: gone$"), recipe.locate("teacher"):
        raise UserError("gone", key="model")


# --- recipes that are wrong -------------------------------------------------------------------------------------------

UNREADABLE: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "r.yaml:1: empty."),
    "comment": ("# to do\n", "r.yaml:1: empty."),
    "list": ("- task: x", "r.yaml:1: a recipe is a mapping (task: ..., data: ...), found a list."),
    "text": ("hello", "r.yaml:1: a recipe is a mapping (task: ..., data: ...), found the text 'hello'."),
    "latin-1": (b"a: 1\nb: caf\xe9\n", "r.yaml:2: not UTF-8 text (byte 0xe9). Save the file as UTF-8."),
    "tab": ("data:\n\tpath: x", "r.yaml:2: contains a tab. YAML is indented with spaces."),
    "colon": (
        "a: b\nc: d: e",
        "r.yaml:2: not valid YAML: a ':' is not allowed here. Is the indentation right, does the line above read "
        "'key: value' (with the space), and is text with ': ' in it in quotes?",
    ),
    "indent": (
        "a:\n  - b\n c: 1",
        "r.yaml:3: not valid YAML: this does not fit the lines above. Is the indentation right, and are quotes and "
        "brackets in pairs?",
    ),
    "bracket": (
        "a: 1\nb: [1,\n  2\n",
        "r.yaml:2: not valid YAML: the '[' opened here is not closed, or a comma is missing in it.",
    ),
    "comma": (
        "a: {b: 1 c: 2}",
        "r.yaml:1: not valid YAML: the '{' opened here is not closed, or a comma is missing in it.",
    ),
    "quote": ("a: 1\nb: 'x\nc: 2\n", "r.yaml:2: not valid YAML: the quote opened here is not closed."),
    "at": ("a: @x", "r.yaml:1: not valid YAML: text cannot start with '@'. Put it in quotes."),
    "alias": ("a: *b", "r.yaml:1: not valid YAML: undefined alias 'b'. Text that starts with '*' goes in quotes."),
    "no key": ("a: |\nb", "r.yaml:2: not valid YAML: text without a key. Is a ':' missing here or on the line above?"),
    "closed": ("a: ]", "r.yaml:1: not valid YAML: a value was expected, found ']'."),
    "control": ("a: 1\nb: \x00", "r.yaml:2: not valid YAML: special characters are not allowed."),
    "two": ("a: 1\n---\nb: 2", "r.yaml:2: a second document starts at '---'. One file holds one recipe."),
    "number key": ("a: 1\n2: b", "r.yaml:2: keys must be text. Put 2 in quotes."),
    "list key": ("? [a]\n: 3", "r.yaml:1: keys must be text."),
    "merge": (
        "a: &x {b: 1}\n<<: *x",
        "r.yaml:2: keys must be text. '<<' (merge) is YAML 1.1 and not supported: write the keys out.",
    ),
    "tag": ("a: !env HOME", "r.yaml:1: a: has the tag '!env'. A recipe holds plain values only."),
    "object": (
        "a: !!python/object/apply:os.system ['touch pwned']",
        "r.yaml:1: a: has the tag 'python/object/apply:os.system'. A recipe holds plain values only.",
    ),
    "cast": ("a: !!int x", "r.yaml:1: a: 'x' cannot be read as int."),
    "surrogate": ('a: "\\ud800"', "r.yaml:1: a: '\\ud800' cannot be read as str."),
    "recursion": ("a: &x [*x]", "r.yaml:1: too deep or too large for a recipe. Does an alias contain itself?"),
    "bomb": (
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in ("ab", "bc", "cd", "de")),
        "r.yaml:1: too deep or too large for a recipe. Does an alias contain itself?",
    ),
    "deep": ("[" * 5000, "r.yaml:1: too deep or too large for a recipe. Does an alias contain itself?"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_text_that_is_no_recipe(name: str) -> None:
    """Each is one line at its place, not a parser's traceback, and runs nothing."""
    text, line = UNREADABLE[name]
    assert mistakes(text) == [line]
    assert not Path("pwned").exists()


def test_files_that_cannot_be_read(directory: Path) -> None:
    """A wrong path is the commonest mistake of all; it is no traceback either."""
    Path("reviews.yaml").touch()
    for path, line in {
        "none.yaml": f"none.yaml: no such file (looked from {directory}).",
        "reviews.yml": f"reviews.yml: no such file (looked from {directory}). Did you mean 'reviews.yaml'?",
        ".": ".: this is a directory. Name the recipe inside it.",
    }.items():
        with pytest.raises(UserError) as error:
            load_recipe(path)
        assert error.value.mistakes == (line,)


def test_duplicate_keys() -> None:
    """With the usual loaders the second `learning_rate` wins in silence."""
    assert mistakes(WHOLE + "  learning_rate: 1e-3\ntask: x\n") == [
        "r.yaml:11: training.learning_rate: given twice, first on line 10. Keep one.",
        "r.yaml:12: task: given twice, first on line 1. Keep one.",
    ]


KEYS = (
    "task, data, teacher, student, chain, generations, objectives, stages, training, tokenizer, completions, "
    "evaluation, report, export, hub, preset"
)
OWN_MODEL = "A model goes under 'model': {name: pretrained, model: bert-base}."
# Line of WHOLE that is replaced (11: added) -> the line(s) instead -> what is said, without the file's name.
WRONG: list[tuple[int, str, list[str]]] = [
    # every level's keys
    (11, "lr: 1", [f"11: lr: unknown key. Known: {KEYS}."]),
    (11, "reprot: {}", ["11: reprot: unknown key. Did you mean 'report'?"]),
    (11, "losses: []", ["11: losses: unknown key. It is called 'objectives' here."]),
    (11, "max_steps: 6", ["11: max_steps: unknown key. It belongs in training: 'training.max_steps'."]),
    (
        7,
        "  - {name: labels, weight:2}",
        ["7: objectives[1].weight:2: unknown key. Write a space after the colon: 'weight: 2'."],
    ),
    (2, "data: {path: x, colums: {}}", ["2: data.colums: unknown key. Did you mean 'columns'?"]),
    (2, "data: {path: x, max_seq_length: 8}", ["2: data.max_seq_length: unknown key. It is called 'max_length' here."]),
    (2, "data: {path: x, columns: {txt: a}}", ["2: data.columns.txt: unknown key. Did you mean 'text'?"]),
    (
        2,
        "data: {path: x, splits: {train: a, validation: b}}",
        ["2: data.splits.validation: unknown key. Known: train, eval."],
    ),
    (
        3,
        "teacher: {name: pretrained, model: a, torch_dtype: auto}",
        ["3: teacher.torch_dtype: unknown key. It is called 'dtype' here."],
    ),
    (
        3,
        "teacher: {name: cached, teacher: {name: pretrained, model: a}, push: true}",
        ["3: teacher: push needs a repo_id, such as user/name"],  # of the entry as a whole: no key after a dot
    ),
    (6, "  - {name: kl, temprature: 2}", ["6: objectives[0].temprature: unknown key. Did you mean 'temperature'?"]),
    (6, "  - {name: kl, alpha: 0.5}", ["6: objectives[0].alpha: unknown key. It is called 'weight' here."]),
    (6, "  - {name: kl, beta: 0.5}", ["6: objectives[0].beta: unknown key. It is called 'weight' here."]),
    (6, "  - {name: kl, lambda: 0.5}", ["6: objectives[0].lambda: unknown key. It is called 'weight' here."]),
    (
        6,
        "  - {name: js, beta: 0.5}",
        [
            "6: objectives[0].beta: unknown key. Known: name, weight, group_weights, temperature, "
            "temperature_squared, teacher_share."
        ],
    ),
    (6, "  - {name: js, teacher_share: 1}", ["6: objectives[0].teacher_share: wanted a number below 1, found 1."]),
    (6, "  - {name: ranking, top: 1}", ["6: objectives[0].top: wanted a number of at least 2, found 1."]),
    (6, "  - {name: kl, T: 2}", ["6: objectives[0].T: unknown key. It is called 'temperature' here."]),
    (
        7,
        "  - {name: labels, temperature: 2}",
        [
            "7: objectives[1].temperature: unknown key. Known: name, weight, group_weights, label_smoothing, "
            "class_weights."
        ],
    ),
    (11, "report: {basline: true}", ["11: report.basline: unknown key. Did you mean 'baseline'?"]),
    (11, "evaluation: {metric: [a]}", ["11: evaluation.metric: unknown key. Did you mean 'metrics'?"]),
    (
        11,
        "hub: {push: true, token: hf_secret}",
        [
            "11: hub.token: unknown key. A token never goes in a recipe: set the environment variable HF_TOKEN, or run "
            "`hf auth login`."
        ],
    ),
    # what must be there
    (1, "", [f"1: task: missing. Wanted: a Hub pipeline tag: {', '.join(TASKS)}."]),
    (2, "", ["1: data: missing. Wanted: where the examples come from, such as {path: nyu-mll/glue, name: sst2}."]),
    (3, "", ["1: teacher: missing. Wanted: the model to learn from, such as {name: pretrained, model: ...}."]),
    (4, "student:", ["4: student: missing. Wanted: the model to train, such as {name: pretrained, model: ...}."]),
    (9, "", ["8: training.output_dir: missing. Wanted: the directory for the student and its report."]),
    (9, "  output_dir: ''", ["9: training.output_dir: missing. Wanted: the directory for the student and its report."]),
    (
        3,
        "teacher: {name: pretrained}",
        ["3: teacher.model: missing. Wanted: Hub id, local directory or `package:NAME/PATH`."],
    ),
    (
        3,
        "teacher: {model: x}",
        [f"3: teacher.name: missing. Known: {', '.join(TEACHERS)}; or module:Class."],
    ),
    # names
    (
        1,
        "task: text-clasification",
        ["1: task: unknown task 'text-clasification'. Did you mean 'text-classification'?"],
    ),
    (
        3,
        "teacher: bert-base",
        [f"3: teacher: unknown teacher 'bert-base'. Known: {', '.join(TEACHERS)}. {OWN_MODEL}"],
    ),
    (6, "  - {name: kll}", ["6: objectives[0].name: unknown objective 'kll'. Did you mean 'kl'?"]),
    (
        6,
        "  - {name: 5}",
        [
            f"6: objectives[0].name: wanted text, found the whole number 5. Known: {', '.join(OBJECTIVES)}; or "
            "module:Class."
        ],
    ),
    # shapes
    (
        3,
        "teacher: [a]",
        [
            "3: teacher: wanted a mapping {name: ...} or a name, found a list. "
            f"Known: {', '.join(TEACHERS)}; or module:Class."
        ],
    ),
    (2, "data: x.csv", ["2: data: wanted a mapping (key: value), found the text 'x.csv'. Write {path: x.csv}."]),
    (11, "report:", ["11: report: wanted a mapping (key: value), found nothing (null)."]),
    (11, "tokenizer:", ["11: tokenizer: wanted text, found nothing (null). Give it a value or remove the key."]),
    (
        2,
        "data: {path: {train: [a, 5]}}",
        ["2: data.path.train[1]: wanted text, found the whole number 5. Put it in quotes."],
    ),
    (2, "data: {path: 5}", ["2: data.path: wanted text or a mapping (key: value), found the whole number 5."]),
    (11, "evaluation: {metrics: f1}", ["11: evaluation.metrics: wanted a list, found the text 'f1'. Write [f1]."]),
    (
        4,
        "student: {name: copy_layers, layers: [0, 1.5]}",
        ["4: student.layers[1]: wanted a whole number, found the number 1.5."],
    ),
    # what is listed twice weighs twice
    (
        6,
        "  - {name: hidden, layers: [[1, 2], [2, 4], [1, 2]]}",
        ["6: objectives[0].layers: [1, 2] is listed twice, and would count twice. Keep one."],
    ),
    (
        6,
        "  - {name: relations, of: [queries, keys, queries]}",
        ["6: objectives[0].of: queries is listed twice, and would count twice. Keep one."],
    ),
    # values
    (6, "  - {name: kl, temperature: 0}", ["6: objectives[0].temperature: wanted a number above 0, found 0."]),
    (6, "  - {name: kl, weight: -1}", ["6: objectives[0].weight: wanted a number of at least 0, found -1."]),
    (6, "  - {name: kl, weight: .nan}", ["6: objectives[0].weight: wanted a finite number, found the number nan."]),
    (
        6,
        "  - {name: kl, weight: '0.5'}",
        ["6: objectives[0].weight: wanted a number, found the text '0.5'. Remove the quotes."],
    ),
    (6, "  - {name: kl, weight: true}", ["6: objectives[0].weight: wanted a number, found true."]),
    (2, "data: {path: x, max_length: 0}", ["2: data.max_length: wanted a number above 0, found 0."]),
    (
        2,
        "data: {path: x, max_length: 128.0}",
        ["2: data.max_length: wanted a whole number, found the number 128.0. Write 128."],
    ),
    (11, "report: {seeds: 0}", ["11: report.seeds: wanted a number of at least 1, found 0."]),
    (
        11,
        "report: {baseline: yes}",
        ["11: report.baseline: wanted true or false, found the text 'yes'. Write true: to YAML 1.2, 'yes' is text."],
    ),
    (
        10,
        "  padding_free: off",
        [
            "10: training.padding_free: wanted true, false or 'auto', found the text 'off'. Write false: to YAML "
            "1.2, 'off' is text."
        ],
    ),
    (
        10,
        '  fp16: "True"',
        ["10: training.fp16: wanted true or false, found the text 'True'. Write true, without quotes."],
    ),
    (
        3,
        "teacher: {name: pretrained, model: x, dtype: fp16}",
        [
            "3: teacher.dtype: wanted 'auto', 'float32', 'bfloat16' or 'float16', found the text 'fp16'. Did you mean "
            "'float16'?"
        ],
    ),
    (
        11,
        "evaluation: {metrics: [acuracy, mcc, evaluate/rouge, zzz]}",
        [
            "11: evaluation.metrics: unknown metric 'acuracy'. Did you mean 'accuracy'? Or name one of the Hub's: "
            "evaluate/acuracy.",
            f"11: evaluation.metrics: unknown metric 'zzz'. Known: {', '.join(METRICS)}. Or name one of the Hub's: "
            "evaluate/zzz.",
        ],
    ),
    # training
    (10, "  learning_rate: fast", ["10: training.learning_rate: wanted a number, found the text 'fast'."]),
    (10, "  learning_rate: -1", ["10: training.learning_rate: wanted a number of at least 0, found -1."]),
    (10, "  learning_rate: .inf", ["10: training.learning_rate: wanted a finite number, found the number inf."]),
    (
        10,
        '  fp16: "no"',
        ["10: training.fp16: wanted true or false, found the text 'no'. Write false: to YAML 1.2, 'no' is text."],
    ),
    (10, "  seed: 1.5", ["10: training.seed: wanted a whole number, found the number 1.5."]),
    (10, "  max_steps: 1e3", ["10: training.max_steps: wanted a whole number, found the number 1000.0. Write 1000."]),
    (
        10,
        "  bf16: Auto",
        ["10: training.bf16: wanted true, false or 'auto', found the text 'Auto'. Did you mean 'auto'?"],
    ),
    (10, "  bf16: auto\n  fp16: true", ["11: training.fp16: fp16 and bf16 exclude each other. Keep one."]),
    (
        10,
        "  eval_strategy: epochs",
        ["10: training.eval_strategy: wanted 'no', 'steps' or 'epoch', found the text 'epochs'. Did you mean 'epoch'?"],
    ),
    (
        10,
        "  train_sampling_strategy: by_length",
        [
            "10: training.train_sampling_strategy: wanted 'random', 'sequential', 'group_by_length' or "
            "'batch_rebalance', found the text 'by_length'. Did you mean 'group_by_length'?"
        ],
    ),
    (
        10,
        "  per_device_train_batch_size: 0",
        ["10: training.per_device_train_batch_size: wanted a number of at least 1, found 0."],
    ),
    (10, "  lerning_rate: 1", ["10: training.lerning_rate: unknown key. Did you mean 'learning_rate'?"]),
    (10, "  lr: 1", ["10: training.lr: unknown key. It is called 'learning_rate'."]),
    (10, "  xyz: 1", ["10: training.xyz: unknown key. Names are those of transformers.TrainingArguments."]),
    (
        10,
        "  packing: true",
        [
            "10: training.packing: unknown key. 'packing' is now 'padding_free': it runs the layers without padding. "
            "What joins texts into blocks is packing of task text-generation."
        ],
    ),
    (
        1,
        "task: {name: text-generation, packed: true}",
        ["1: task.packed: unknown key. 'packed' is now 'packing': it joins texts and cuts them into blocks."],
    ),
    (
        10,
        "  evaluation_strategy: epoch",
        ["10: training.evaluation_strategy: unknown to Transformers 5. It is called 'eval_strategy' now."],
    ),
    (10, "  temperature: 2", ["10: training.temperature: not set here: it belongs in an entry of objectives."]),
    (
        10,
        "  push_to_hub: true",
        ["10: training.push_to_hub: not set here: publishing is the `hub:` section: hub: {push: true}."],
    ),
    (
        10,
        "  label_smoothing_factor: 0.1",
        [
            "10: training.label_smoothing_factor: cannot be 0.1: it would have no effect on the loss, which is the "
            "sum of `objectives`. Remove the key."
        ],
    ),
    (
        10,
        "  average_tokens_across_devices: false",
        [
            "10: training.average_tokens_across_devices: cannot be false: the loss would depend on the number of "
            "processes. Remove the key."
        ],
    ),
    (
        3,
        "teacher: {name: finetuned, model: x, training: {output_dir: y, lr: 1, seed: a}}",
        [
            "3: teacher.training.lr: unknown key. It is called 'learning_rate'.",
            "3: teacher.training.seed: wanted a whole number, found the text 'a'.",
            "3: teacher.training.output_dir: not set here. The directory of the result is teacher.output_dir.",
        ],
    ),
    # objectives as a whole
    (
        7,
        "  - {temperature: 2.0, weight: 0.5, name: kl}",
        ["7: objectives[1]: the same as objectives[0]. Keep one; its weight can be larger."],
    ),
]


@pytest.mark.parametrize(("number", "line", "said"), WRONG, ids=[line.strip() or f"-{n}" for n, line, _ in WRONG])
def test_what_a_wrong_recipe_is_told(number: int, line: str, said: list[str]) -> None:
    """Each of these, let through, trains something else than was meant or fails after models were loaded."""
    lines = WHOLE.splitlines()
    lines[number - 1 : number] = [line]
    assert mistakes("\n".join(lines)) == [f"r.yaml:{what}" for what in said]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[]", "an empty list. Wanted: at least one, such as {name: kl, temperature: 2.0}."),
        ("{name: kl}", "wanted a list, each entry after '- ', found a mapping."),
        ("kl", "wanted a list, each entry after '- ', found the text 'kl'. Write [kl]."),
        ("[{name: kl, weight: 0}]", "every weight is 0, so there is nothing to train on. Give one a weight above 0."),
        ("", "missing. Wanted: a list of what is compared, such as [{name: kl, temperature: 2.0}]."),
    ],
)
def test_objectives_that_train_nothing(value: str, said: str) -> None:
    """Without anything to minimise a run would finish, and its student would be its start."""
    assert mistakes(WHOLE, f"objectives={value}") == [f"override 'objectives={value}': objectives: {said}"]


PRESET = "\n".join(line for line in WHOLE.splitlines() if not line.startswith("  - ")).replace(
    "objectives:", "preset: NAME"
)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_read_as_its_objectives(name: str) -> None:
    """The recipe saved beside the model must name the loss itself: what a preset means may change with the version."""
    writes = f"\ncompletions: {ON_OWN_TEXTS[name]}\n" if name in ON_OWN_TEXTS else ""
    recipe = load(text=PRESET.replace("NAME", name) + writes)
    assert recipe.objectives == PRESETS[name]
    saved = dump_recipe(recipe)
    assert "preset" not in saved
    assert load(text=saved) == recipe
    if not writes:
        assert load(f"preset={name}", "objectives=").objectives == PRESETS[name]


@pytest.mark.parametrize("name", ON_OWN_TEXTS)
def test_a_preset_of_own_texts_is_not_run_on_those_of_the_data(name: str) -> None:
    """It would be called by the name of a system that does something else."""
    (said,) = mistakes(PRESET.replace("NAME", name))
    assert f"preset: '{name}' is for texts that the student writes. Add completions" in said


def test_a_mistake_in_a_preset_is_told_at_its_line() -> None:
    """A regression refuses `kl`; without a line for what a preset stands for, the whole recipe would be at fault."""
    recipe = load(text=PRESET.replace("NAME", "modelopt"))
    assert recipe.mistake("objectives[0]", "x").mistakes == ("r.yaml:5: objectives[0]: x",)
    recipe = load("preset=modelopt", text=PRESET.replace("NAME", "dkd"))
    assert recipe.mistake("objectives[0]", "x").mistakes == ("override 'preset=modelopt': objectives[0]: x",)


def test_a_mistake_in_a_key_of_a_preset_says_what_to_write_in_its_place() -> None:
    """`Set relation_heads ...` is no help to somebody whose file has no such key, and no list to put it into."""
    written = '[{"name": "relations", "relation_heads": 48}]'
    hint = f" It comes from preset 'minilmv2'. In its place, write: objectives: {written}"
    text = PRESET.replace("NAME", "minilmv2")
    recipe = load(text=text)
    assert recipe.mistake("objectives[0].relation_heads", "x.").mistakes == (
        f"r.yaml:5: objectives[0].relation_heads: x.{hint}",
    )
    spelled_out = load(text=text.replace("preset: minilmv2", f"objectives: {written}"))
    assert spelled_out.objectives == recipe.objectives
    # Neither where the list is the user's own, nor for what is not in it.
    assert spelled_out.mistake("objectives[0].relation_heads", "x").mistakes[0].endswith(": x")
    assert recipe.mistake("training.learning_rate", "x").mistakes[0].endswith(": x")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("distilkit", "unknown preset 'distilkit'. Did you mean 'distillkit'?"),
        ("zzz", f"unknown preset 'zzz'. Known: {', '.join(PRESETS)}."),
        ("[kl]", f"wanted text, found a list. Known: {', '.join(PRESETS)}."),
    ],
)
def test_presets_that_do_not_exist(value: str, said: str) -> None:
    """A misspelt preset must not train with another loss, nor hide what else is wrong."""
    assert mistakes(PRESET.replace("NAME", value)) == [f"r.yaml:5: preset: {said}"]


def test_a_preset_and_objectives_exclude_each_other() -> None:
    """One of the two would be ignored in silence; the message has what to write to change the preset."""
    said = (
        """given together with objectives. Keep one: 'sparseml' is """
        """[{"name": "kl", "weight": 0.5, "temperature": 2.0}, {"name": "labels", "weight": 0.5}]."""
    )
    assert mistakes(WHOLE + "preset: sparseml\n") == [f"r.yaml:11: preset: {said}"]
    assert mistakes(PRESET.replace("NAME", "sparseml"), "objectives.0.weight=1") == [f"r.yaml:5: preset: {said}"]


def test_all_mistakes_at_once_in_the_order_of_the_file() -> None:
    """One mistake per attempt costs a start of Python each; unordered lines cannot be worked through."""
    text = "objectives: [kll]\nfoo: 1\nreport: {seeds: 0, baselin: 1}\ntraining: {seed: a}\n"
    assert [line.split(": ")[:2] for line in mistakes(text, "hub.psh=1", "tokenizer=5")] == [
        ["r.yaml:1", "objectives[0]"],
        ["r.yaml:1", "task"],
        ["r.yaml:1", "data"],
        ["r.yaml:1", "teacher"],
        ["r.yaml:1", "student"],
        ["r.yaml:2", "foo"],
        ["r.yaml:3", "report.baselin"],
        ["r.yaml:3", "report.seeds"],
        ["r.yaml:4", "training.seed"],
        ["r.yaml:4", "training.output_dir"],
        ["override 'hub.psh=1'", "hub.psh"],
        ["override 'tokenizer=5'", "tokenizer"],
    ]


# --- training arguments -----------------------------------------------------------------------------------------------


def test_every_training_argument_takes_its_default() -> None:
    """A type read wrongly from Transformers' annotations would refuse what Transformers itself does."""
    from dataclasses import MISSING, fields

    from transformers import TrainingArguments

    defaults = {field.name: field.default for field in fields(TrainingArguments) if field.default is not MISSING}
    allowed = {key: value for key, value in defaults.items() if key not in OWNED}
    allowed["logging_nan_inf_filter"] = False  # the one default of theirs that is refused
    assert list(training_mistakes(allowed)) == []


def test_hints_name_arguments_that_exist() -> None:
    """A hint to a name that is gone as well would send people in a circle."""
    known = set(training_arguments())
    assert set(OWNED) <= known
    assert set(FIXED) <= known
    assert set(FOREIGN.values()) <= known
    assert not known & (set(RENAMED) | set(FOREIGN) | set(BELONGS))
    assert {word for hint in RENAMED.values() for word in _called(hint)} <= known


def _called(hint: str) -> list[str]:
    quoted = hint.split("'")[1::2]
    return [word.partition(":")[0] for word in quoted]


@pytest.mark.parametrize("key", OWNED)
def test_training_refuses_what_is_decided_elsewhere(key: str) -> None:
    """Two places for one decision: one of them is ignored in silence."""
    ((where, said),) = training_mistakes({key: None})
    assert where == key
    assert said == f"not set here: {OWNED[key]}"


@pytest.mark.parametrize("key", FIXED)
def test_training_refuses_what_breaks_a_promise(key: str) -> None:
    """`label_smoothing_factor` reaches no loss of ours: the run would differ from what its recipe says."""
    allowed, _ = FIXED[key]
    assert list(training_mistakes({key: allowed})) == []
    other: object = 0.1 if key == "label_smoothing_factor" else not allowed
    assert [where for where, _ in training_mistakes({key: other})] == [key]


def test_types_in_the_source_are_those_of_the_class() -> None:
    """Types are read from Transformers' source; one read wrongly refuses a good value, or takes a bad one."""
    imported, read = training_arguments(), argument_types()
    assert read.keys() == imported.keys()
    # The words of the two levels are computed when the module is imported, and one type is accelerate's.
    assert {name for name, kind in read.items() if kind is None} <= {
        "log_level",
        "log_level_replica",
        "parallelism_config",
    }
    for name, kind in read.items():
        if kind is not None:
            schema = TypeAdapter(kind, config=CONFIG).json_schema()
            assert schema == TypeAdapter(imported[name].type, config=CONFIG).json_schema(), name


def test_a_type_that_the_source_does_not_show_is_asked_of_the_class() -> None:
    """`log_level: loud` must be a mistake although its words are not in the source."""
    ((where, said),) = training_mistakes({"log_level": "loud"})
    assert where == "log_level"
    assert "'warning'" in said
    assert list(training_mistakes({"log_level": "warning"})) == []


@pytest.mark.parametrize("source", ["", "class TrainingArguments(Base):\n    seed: int = 0\n", "class ("])
def test_another_shape_of_the_source_is_no_mistake(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later Transformers that declares its arguments elsewhere must not make every recipe wrong."""
    (tmp_path / "training_args.py").write_text(source)
    monkeypatch.setattr("hf_distill.recipe.training_source.package_folder", lambda: tmp_path)
    argument_types.cache_clear()
    try:
        assert [where for where, _ in training_mistakes({"learning_rate": "fast", "seed": 1})] == ["learning_rate"]
    finally:
        argument_types.cache_clear()


def test_checking_builds_no_training_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """`TrainingArguments(bf16=True)` raises where there is no bf16; a recipe can be checked anywhere."""
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: pytest.fail("built"))
    assert load("training.bf16=true", "training.tf32=true").training["bf16"] is True


def imported_by(code: str) -> tuple[list[str], set[str]]:
    """Return what a fresh Python prints, and which heavy packages it imported."""
    heavy = "transformers datasets accelerate"
    code += f"\nimport sys\nprint(*(name for name in '{heavy}'.split() if name in sys.modules))"
    path = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    *lines, last = done.stdout.splitlines()
    return lines, set(last.split())


def test_broken_yaml_is_told_before_transformers_is_imported() -> None:
    """Waiting seconds for Transformers to hear of a missing quote makes people stop checking."""
    Path("r.yaml").write_text("a: 'x")
    lines, heavy = imported_by(
        "from hf_distill.recipe.reader import load_recipe\n"
        "try: load_recipe('r.yaml')\nexcept ValueError as error: print(error)"
    )
    assert lines == ["r.yaml:1: not valid YAML: the quote opened here is not closed."]
    assert not heavy


def test_mistakes_in_every_section_are_told_before_transformers_is_imported() -> None:
    """`learning_rate: fast` took five seconds to be told, since Transformers' trainer was imported to know its type."""
    text = WHOLE.replace("learning_rate: 5e-5", "learning_rate: fast\n  optim: adam\n  lr: 1").replace(
        "weight", "wieght"
    )
    Path("r.yaml").write_text(text)
    lines, heavy = imported_by(
        "from hf_distill.recipe.reader import load_recipe\n"
        "try: load_recipe('r.yaml', ['data.columns.txt=a'])\nexcept ValueError as error: print(error)"
    )
    assert [line.split(": ")[1] for line in lines] == [
        "objectives[0].wieght",
        "objectives[1].wieght",
        "training.learning_rate",
        "training.optim",
        "training.lr",
        "data.columns.txt",
    ]
    assert not heavy


def test_a_recipe_without_mistakes_is_read_without_transformers() -> None:
    """What `--check` then opens may be a directory that is not there: no reason to wait before saying so."""
    Path("r.yaml").write_text(WHOLE)
    assert not imported_by("from hf_distill import load_recipe\nload_recipe('r.yaml')")[1]


def test_paths_that_are_not_there_are_told_before_anything_is_imported_to_open_them() -> None:
    """`--check` with a misspelt path took as long as a check that opens both models."""
    Path("r.yaml").write_text(WHOLE.replace("big", "./big").replace("small", "./small"))
    lines, heavy = imported_by("from hf_distill.cli import main\nprint(main(['r.yaml', '--check']))")
    assert lines == ["2"]
    assert not heavy


def test_the_tables_are_read_without_transformers() -> None:
    """They are read before a recipe's text is; an import of it in one of them costs every `--check` five seconds."""
    assert not imported_by("import hf_distill.recipe.reader")[1]


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("training.learning_rate=1e-4", "training.learning_rate", 1e-4),
        ("objectives.0.weight=0.7", "objectives.0.weight", 0.7),
        ("objectives[0].weight=0.7", "objectives.0.weight", 0.7),
        ("objectives.2=logits_mse", "objectives.2.name", "logits_mse"),
        ("objectives.2.name=logits_mse", "objectives.2.name", "logits_mse"),
        ("report.baseline=true", "report.baseline", True),
        ("data.columns={text: sentence}", "data.columns.text", "sentence"),
        ("data.columns.text=sentence", "data.columns.text", "sentence"),
        ("data.path=package:a/b=c.csv", "data.path", "package:a/b=c.csv"),
        ("data.splits={train: 'train[:5]', eval: train}", "data.splits.train", "train[:5]"),
        ("task.problem=regression", "task.problem", "regression"),
        ("training.run_name='5'", "training.run_name", "5"),
        ("training.run_name=a b", "training.run_name", "a b"),
        ("teacher={name: finetuned, model: x}", "teacher.model", "x"),
    ],
)
def test_overrides(override: str, path: str, value: object) -> None:
    """An override that lands elsewhere, or as text instead of a number, makes a sweep of equal runs."""
    found: Any = load(override)
    for token in path.split("."):
        if token.isdecimal():
            found = found[int(token)]
        else:
            found = found[token] if isinstance(found, Mapping) else getattr(found, token)
    assert found == value
    assert type(found) is type(value)


def test_an_override_with_a_former_name() -> None:
    """On the command line `training.packing=true` must not become a training with padding, nor any other."""
    assert mistakes(WHOLE, "training.packing=true", "task.name=text-generation", "task.packed=true") == [
        "override 'training.packing=true': training.packing: unknown key. 'packing' is now 'padding_free': it runs the "
        "layers without padding. What joins texts into blocks is packing of task text-generation.",
        "override 'task.packed=true': task.packed: unknown key. 'packed' is now 'packing': it joins texts and cuts "
        "them into blocks.",
    ]


def test_an_override_reaches_into_the_short_form() -> None:
    """`- kl` with `objectives.0.weight=2` must keep its name."""
    text = WHOLE.replace("{name: kl, weight: 0.5, temperature: 2.0}", "kl")
    assert load("objectives.0.weight=2", text=text).objectives[0] == KLDivergence(weight=2.0)


def test_the_last_override_wins_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Scripts append to a base command; where it was a slip, nobody would look for the first value."""
    caplog.set_level("INFO", "hf_distill")
    assert load("training.seed=1", "training.bf16=true", "training.seed=2").training["seed"] == 2
    assert caplog.messages == ["override 'training.seed=2' replaces what 'training.seed=1' has set"]
    load("objectives[0].weight=2", "objectives.0.weight=3")
    assert caplog.messages[1] == "override 'objectives.0.weight=3' replaces what 'objectives[0].weight=2' has set"
    load("objectives=[kl]", "objectives.0.weight=3")
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("nope", "wanted section.key=value, for example training.learning_rate=1e-4."),
        ("=1", "wanted section.key=value, for example training.learning_rate=1e-4."),
        ("a..b=1", "wanted section.key=value, for example training.learning_rate=1e-4."),
        ("--training.seed 1", "wanted section.key=value, for example training.learning_rate=1e-4."),
        ("objectives.9.weight=1", "objectives has 2 entries, counted from 0. objectives.2 would add one."),
        ("objectives.weight=1", "objectives is a list. Name an entry by its number: objectives.0 is the first."),
        ("data.0=1", "data is a mapping, so it has no entry number 0."),
        (
            "data.path.train=a",
            "data.path is the text 'x.csv', which has no keys. Give it whole: data.path={train: ...}.",
        ),
        ("data.columns={a", "not valid YAML: the '{' opened here is not closed, or a comma is missing in it."),
        ("training.seed=1.5", "training.seed: wanted a whole number, found the number 1.5."),
        ("foo.bar=1", f"foo: unknown key. Known: {KEYS}."),
        ("data.columns={txt: a}", "data.columns.txt: unknown key. Did you mean 'text'?"),
    ],
)
def test_overrides_that_are_wrong(override: str, said: str) -> None:
    """The mistake is on the command line: a line number of the file would send people to the wrong place."""
    assert mistakes(WHOLE, override) == [f"override '{override}': {said}"]


def test_an_override_without_a_place_hides_no_other_mistake() -> None:
    """Told one at a time, four mistakes on a command line take four tries."""
    overrides = ("objectives.0.wieght=0.9", "training.lr=1", "objectives.5.weight=1", "foo=1", "nope")
    assert mistakes(WHOLE.replace("output_dir", "output_dri"), *overrides) == [
        "r.yaml:8: training.output_dir: missing. Wanted: the directory for the student and its report.",
        "r.yaml:9: training.output_dri: unknown key. Did you mean 'output_dir'?",
        "override 'objectives.0.wieght=0.9': objectives[0].wieght: unknown key. Did you mean 'weight'?",
        "override 'training.lr=1': training.lr: unknown key. It is called 'learning_rate'.",
        "override 'objectives.5.weight=1': objectives has 2 entries, counted from 0. objectives.2 would add one.",
        f"override 'foo=1': foo: unknown key. Known: {KEYS}.",
        "override 'nope': wanted section.key=value, for example training.learning_rate=1e-4.",
    ]


def test_an_override_that_is_refused_changes_nothing() -> None:
    """The stage that it began would be told as a mistake of its own."""
    override = "stages.0.objectives.1.weight=1"
    assert mistakes(WHOLE, override) == [
        f"override '{override}': stages[0].objectives has 0 entries, counted from 0. stages[0].objectives.0 would add "
        "one."
    ]


def test_a_token_on_the_command_line_is_not_repeated() -> None:
    """Errors go to logs that others read."""
    secret = "hf_" + "a" * 34
    lines = mistakes(WHOLE, f"training.hub_token={secret}")
    lines += mistakes(WHOLE, f"hub={{token: {secret}}}")
    assert len(lines) == 2
    assert "aaaa" not in "".join(lines)


# --- classes from outside ---------------------------------------------------------------------------------------------

PLUGIN = '''
from abc import abstractmethod
from typing import ClassVar
from hf_distill.component import component
from hf_distill.objectives import RowObjective

@component
class Mine(RowObjective):
    """Mine.

    Attributes:
        power: Of it.
    """
    name: ClassVar[str] = "mine"
    power: int = 2
    def rows(self, student, teacher, labels):
        return student

    def __post_init__(self):
        if self.power == 13:
            raise ValueError("13 brings bad luck.")

class Undecorated(Mine):
    pass

@component
class Nameless(RowObjective):
    def rows(self, student, teacher, labels):
        return student

@component
class Abstract(RowObjective):
    name: ClassVar[str] = "abstract"
'''


@pytest.fixture
def _plugin(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("outside.py").write_text(PLUGIN)
    Path("broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(directory)
    monkeypatch.delitem(sys.modules, "outside", raising=False)


@pytest.mark.usefixtures("_plugin")
def test_a_class_from_outside() -> None:
    """It must come back from the saved recipe as itself, not as a name that no table knows."""
    recipe = load("objectives.0={name: 'outside:Mine', power: 3}")
    assert entry(recipe.objectives[0]) == {"name": "mine", "power": 3}
    assert "name: outside:Mine" in dump_recipe(recipe)
    assert load(text=dump_recipe(recipe)) == recipe


@pytest.mark.usefixtures("_plugin")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "no_such_module:X",
            "cannot import 'no_such_module' (ModuleNotFoundError: No module named 'no_such_module'). ",
        ),
        ("broken:X", "cannot import 'broken' (ZeroDivisionError: division by zero at "),
        ("outside:X", "'outside:X' does not exist: the module has no such name."),
        ("json:loads", "'json:loads' is not a subclass of hf_distill.objectives.base.Objective."),
        ("hf_distill.students:PretrainedStudent", "'hf_distill.students:PretrainedStudent' is not a subclass of "),
        ("outside:Undecorated", "'outside:Undecorated' is not a recipe entry. Put `@component` "),
        ("outside:Abstract", "'outside:Abstract' is abstract: it does not define rows."),
        ("outside:Nameless", "'outside:Nameless' has no name. Add `name: ClassVar[str] = ...` to the class."),
    ],
)
def test_classes_from_outside_that_will_not_do(name: str, said: str) -> None:
    """Somebody else's module may fail in any way; to the recipe's author each is one line."""
    (line,) = mistakes(WHOLE, f"objectives.0={name}")
    assert line.startswith(f"override 'objectives.0={name}': objectives[0]: {said}")


@pytest.mark.usefixtures("_plugin")
def test_checks_of_a_class_from_outside_are_told_like_ours() -> None:
    """A component checks its own values by raising ValueError, as pydantic's users do."""
    (line,) = mistakes(WHOLE, "objectives.0={name: outside:Mine, power: 13}")
    assert line.endswith("objectives[0]: 13 brings bad luck.")


def test_nothing_beside_a_recipe_runs_unless_it_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that came with a recipe must not run in the place of an installed module of its name."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("sub").mkdir()
    for name in ("evil", "colorsys"):
        Path(f"sub/{name}.py").write_text("raise SystemExit(3)")
    Path("sub/named_here.py").write_text("import colorsys")
    Path("sub/r.yaml").write_text(WHOLE)
    with pytest.raises(UserError, match="'named_here:X' does not exist"):
        load_recipe("sub/r.yaml", ["student=named_here:X"])
    with pytest.raises(UserError, match="importing 'evil' ended the process"):
        load_recipe("sub/r.yaml", ["student=evil:X"])
    with pytest.raises(UserError, match="another module of this name is found first"):
        load_recipe("sub/r.yaml", ["student=colorsys:X"])
