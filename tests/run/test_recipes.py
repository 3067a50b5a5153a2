"""Every recipe of `recipes/`, run: its own task, objectives, stages and kind of student, on tiny models and data.

A new recipe is found by itself. It needs a line in `FAMILIES` if it names a kind of model that is not there, and one in
`VALUES` if its data has a new role.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import NEGATIVE, NEUTRAL, POSITIVE
from ruamel.yaml import YAML
from scoring_server import NAME, scoring

from hf_distill.recipe.reader import load_recipe
from hf_distill.recipe.writer import dump_recipe

if TYPE_CHECKING:
    from conftest import MakeModel

    from hf_distill.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
# Those of several parties need each other's results; `test_publishing.py` runs them in turn.
NOT_ALONE = ("accelerate", "federated")
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name not in NOT_ALONE)

# What a model's name contains, the first that fits -> kind of tiny model. Twelve heads, as BERT has them, and a width
# of 48, so that heads and relation heads of real models divide what is here.
WIDE = {"hidden_size": 48, "num_attention_heads": 12}
FAMILIES: dict[str, tuple[str, dict[str, int]]] = {
    "roberta|xlm-r": ("roberta", WIDE),
    "distilbert": ("distilbert", {"dim": 48, "n_heads": 12}),
    "bart": ("bart", {}),
    "t5|pegasus": ("t5", {}),
    "llama|smollm|qwen": ("llama", {**WIDE, "num_key_value_heads": 6}),
    "gpt2|gemma": ("gpt2", {}),
    "bert|minilm|mpnet": ("bert", WIDE),
}
# Task -> what the tiny models with its head are called in `conftest.MakeModel`.
HEADS = {
    "text-generation": "-lm",
    "fill-mask": "-mlm",
    "token-classification": "-tokens",
    "question-answering": "-qa",
    "sentence-similarity": "-bare",
}
# Where a task's own lengths are made for longer texts than these.
TASKS: dict[str, dict[str, int]] = {
    "question-answering": {"stride": 8},
    "summarization": {"max_target_length": 16, "max_new_tokens": 8, "num_beams": 2},
}
# Classes of an entailment model.
NLI = ["contradiction", "entailment", "neutral"]
LENGTH = 40
ROWS = {"train": 48, "validation": 16}
TRANSFER = 24
# Teachers of an entry that trains several.
COUNT = 3
PER_DEVICE = 4


class Example:
    """One made-up row, by role."""

    def __init__(self, index: int, labels: list[str] | None) -> None:
        self.chance = random.Random(index)
        self.index = index
        self.labels = labels

    def sentence(self) -> str:
        words = [self.chance.choice(NEUTRAL) for _ in range(self.chance.randint(3, 8))]
        return " ".join([*words, self.chance.choice((POSITIVE, NEGATIVE)[self.index % 2]), "."])

    def label(self) -> int | str:
        if self.labels:
            return self.index % len(self.labels)
        return ("negative", "positive")[self.index % 2]

    def answers(self, context: str) -> dict[str, Any]:
        word = context.split()[1]
        return {"text": [word], "answer_start": [context.index(f" {word}") + 1]}


# Role -> what stands there. `answers` are words of the context.
VALUES: Mapping[str, Callable[[Example], Any]] = {
    **dict.fromkeys(
        (
            *("text", "text_pair", "negative", "question", "context", "summary"),
            *("source", "target", "prompt", "completion"),
        ),
        Example.sentence,
    ),
    "label": Example.label,
    "group": lambda example: f"group {example.index % 3}",
    "tokens": lambda example: ["the", "film", "great", "plot"],
    "tags": lambda example: ["O", ("B-ART", "B-PLOT")[example.index % 2], "I-ART", "O"],
    "messages": lambda example: [
        {"role": "user", "content": example.sentence()},
        {"role": "assistant", "content": example.sentence()},
    ],
    "translation": lambda example: {"en": example.sentence(), "de": example.sentence()},
}


def write_data(recipe: Recipe, directory: Path) -> dict[str, str]:
    """Write the splits, with the recipe's columns."""
    task, columns = recipe.task, recipe.data.columns
    roles = {*columns, *(role for role, needed in task.roles.items() if needed)}
    if task.label_role in task.roles and task.name not in ("sentence-similarity", "translation"):
        roles.add(task.label_role)
    roles = roles or {"text"}
    files = {}
    for split, size in (ROWS | ({"transfer": TRANSFER} if recipe.data.transfer else {})).items():
        rows = []
        for index in range(size):
            example = Example(index, recipe.data.labels)
            row = {role: VALUES[role](example) for role in sorted(roles - {"answers"})}
            if task.name == "sentence-similarity" and "label" in roles:
                row["label"] = round(5 * example.chance.random(), 2)
            if "answers" in roles:
                row["answers"] = example.answers(row["context"])
            rows.append({columns.get(role, role): value for role, value in row.items()})
        path = directory / f"{split}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        files[split] = str(path)
    return files


def tiny(
    name: str, recipe: Recipe, make_model: MakeModel, *, head: bool, seed: int, labels: list[str] | None = None
) -> str:
    """Return a tiny model of the same kind as the one named, as deep, up to twelve layers."""
    lower = name.lower()
    found = next((known for pattern, known in FAMILIES.items() if re.search(pattern, lower)), None)
    assert found is not None, f"{name}: add its kind to FAMILIES"
    kind, settings = found
    said = re.search(r"l-?(\d+)(?!\d*[mb])", lower)
    depth = int(said[1]) if said else 6 if "distil" in lower else 12
    kind += HEADS.get(recipe.task.name, "") if head else "-bare"
    labels = labels or recipe.data.labels or ["negative", "positive"]
    return str(make_model(kind, layers=depth, labels=labels, seed=seed, **settings))


def entries(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield an entry of a recipe, and the teachers inside it."""
    yield entry
    inner = [entry["teacher"]] if isinstance(entry.get("teacher"), dict) else entry.get("teachers", [])
    for one in inner:
        yield from entries(one)


def shrink_entry(entry: dict[str, Any], side: str, recipe: Recipe, make_model: MakeModel, seed: int) -> None:
    """Give an entry a tiny model, few teachers and two steps."""
    if "count" in entry:
        entry["count"] = COUNT
    if entry["name"] == "prompted":
        entry |= {"model": str(make_model("llama-lm", seed=seed)), "prompt": "{{ text }} is"}
    elif "model" in entry:
        headless = entry["name"] == "finetuned" or (side == "student" and entry["name"] == "pretrained")
        encoder = recipe.task.name not in ("text-generation", "fill-mask", "summarization", "translation")
        labels = NLI if entry["name"] == "zero_shot" else None
        head = not (headless and encoder)
        entry["model"] = tiny(entry["model"], recipe, make_model, head=head, seed=seed, labels=labels)
    if "training" in entry:
        entry["training"] |= {"max_steps": 2}
    if "context" in entry:  # tiny models read 64 tokens
        entry["context"] |= {"prompt": "the film is "}
    entry.pop("output_dir", None)


def shrink(path: Path, directory: Path, make_model: MakeModel, serve: Callable[[str], str]) -> Path:
    """Write the recipe with tiny models and data, two steps for every training; the rest is as it was.

    Args:
        path: The recipe.
        directory: For everything.
        make_model: Makes the models.
        serve: Returns the address of a server of a model.
    """
    recipe = load_recipe(path)
    content: dict[str, Any] = YAML(typ="safe", pure=True).load(dump_recipe(recipe))
    files = write_data(recipe, directory)
    transfer = {"transfer": {"path": files.pop("transfer")}} if recipe.data.transfer else {}
    content["data"] = {
        "path": files,
        **transfer,
        **{key: content["data"][key] for key in ("columns", "labels") if key in content["data"]},
        "max_length": min(recipe.data.max_length or LENGTH, LENGTH),
    }
    task = content["task"] if isinstance(content["task"], dict) else {"name": content["task"]}
    content["task"] = {**task, **TASKS.get(recipe.task.name, {})}
    students = content.get("chain") or [content["student"]]
    for seed, side, given in [*((0, "student", one) for one in students), (1, "teacher", content["teacher"])]:
        for one in entries(given):
            shrink_entry(one, side, recipe, make_model, seed)
    if content["teacher"]["name"] == "served":
        content["teacher"] |= {"url": serve(content["teacher"]["model"]), "model": NAME, "path": str(directory)}
    for seed, peer in enumerate(content["teacher"].get("peers", ()), 2):
        peer["model"] = tiny(peer["model"], recipe, make_model, head=True, seed=seed)
    if "tokenizer" in content:
        content["tokenizer"] = content["teacher"]["model"]
    content["training"] |= {
        "output_dir": str(directory / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": PER_DEVICE,
        "per_device_eval_batch_size": 8,
        "bf16": False,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    if (completions := content.get("completions")) is not None:
        completions |= {"max_new_tokens": 8, **({"prompt_tokens": 8} if "prompt_tokens" in completions else {})}
    for stage in content.get("stages", ()):
        stage["training"] = {**stage.get("training", {}), "max_steps": 2}
    content["report"] = {**content.get("report", {}), "latency": False, "seeds": 1}
    content.pop("hub", None)
    shrunk = directory / "recipe.yaml"
    shrunk.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return shrunk


@pytest.fixture
def serve() -> Iterator[Callable[[str], str]]:
    """Function that starts a server of a model and returns its address."""
    with ExitStack() as servers:
        yield lambda model: servers.enter_context(scoring(Path(model)).running()).url


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(path: Path, tmp_path: Path, make_model: MakeModel, serve: Callable[[str], str]) -> None:
    """A recipe that reads and is never run may name layers, columns or arguments that its own task refuses."""
    from hf_distill import distill

    whole = load_recipe(path)
    shrunk = load_recipe(shrink(path, tmp_path, make_model, serve))
    assert [stage.objectives for stage in shrunk.plan] == [stage.objectives for stage in whole.plan]
    assert [type(part) for part in (shrunk.task, shrunk.teacher, shrunk.student)] == [
        type(part) for part in (whole.task, whole.teacher, whole.student)
    ]
    report = distill(shrunk)
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    # With prompts alone the metric is the agreement with the teacher, which the teacher has none of.
    teacher = [] if report.metric == "agreement" else ["teacher"]
    for model in (*teacher, "student", *(["baseline"] if whole.report.baseline else [])):
        assert math.isfinite(written[model]["metrics"][report.metric]), model
    trained = [name for name in report.history if name.startswith("student")]
    assert len(trained) == len(whole.plan)
    for name in trained:
        assert max(entry["step"] for entry in report.history[name]) == 2
    losses = [entry["loss"] for name in trained for entry in report.history[name] if "loss" in entry]
    assert losses
    assert all(loss > 0 and math.isfinite(loss) for loss in losses)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_doctor_looks_at_a_recipe(
    path: Path, tmp_path: Path, make_model: MakeModel, serve: Callable[[str], str]
) -> None:
    """A check that stops at a kind of teacher or task says that a good run will fail."""
    from hf_distill.run.doctor.examination import examine

    found = examine(load_recipe(shrink(path, tmp_path, make_model, serve)))
    assert not [one for one in found if one.found.startswith("stopped by")]
    assert {"memory", "speed", "disk", "machine"} <= {one.check for one in found}


def test_recipes_are_found() -> None:
    """A glob that finds nothing would let the test above pass without a recipe."""
    assert {"bert", "tinybert"} <= {path.stem for path in RECIPES}
