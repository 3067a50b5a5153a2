"""A teacher given as data: its targets are columns of the data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models.needs import Gives
from hf_distill.teachers.base import FineTune, Teacher, config_of_student, under

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models.loading import Head
    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.objectives import Objective
    from hf_distill.students import Student
    from hf_distill.tasks import Prepared, Setup, Task
    from hf_distill.teachers.given.target_columns import Array
    from hf_distill.teachers.given.token_columns import CompletionTargets, Names

Classes = Literal["probabilities", "logits"]
# Name of this teacher in messages.
GIVEN = "a teacher given as data"
What = Literal[Classes, "logprobs", "top_token_ids", "top_logprobs", "token_ids"]
# Sets of columns that can hold the targets of a language model.
_OF_TOKENS: tuple[set[What], ...] = ({"logprobs"}, {"top_token_ids", "top_logprobs"})


@component
class GivenTeacher(Teacher):
    """No model: the targets are columns of the data.

    For a classifier, probabilities or logits of every class. For a language model, log-probabilities of the most likely
    tokens at every position of a completion, as servers return them; they can only be used at temperature 1.

    The report has the metrics of the targets on the eval split, but no size or speed.

    Attributes:
        columns: Columns that hold the targets. For text-classification `probabilities` or `logits`: one column with a
            list in every row (`{probabilities: soft}`), or one column per class (`{probabilities: [negative,
            positive]}`). For text-generation `logprobs`, as a server wrote them, or `top_token_ids` and `top_logprobs`,
            with a list for each position; and `token_ids`, the tokens of the completion, if the data has them.
        labels: Names of the classes, in the order of the list or of the columns. Default: the names of the columns.
    """

    name: ClassVar[str] = "given"

    columns: dict[What, str | list[str]]
    labels: list[str] | None = None

    def __post_init__(self) -> None:
        """Refuse missing or contradictory columns, and classes without an order."""
        if self.of_tokens:
            self._check_tokens()
            return
        if len(self.columns) != 1 or not set(self.columns) <= {"probabilities", "logits"}:
            raise ValueError("columns: wanted either probabilities or logits, such as {probabilities: COLUMN}")
        (columns,) = self.columns.values()
        if isinstance(columns, str) and self.labels is None:
            raise ValueError(
                f"which class is which in the lists of '{columns}' is not known. Name the classes in their order: "
                "labels: [name of the first, ...]"
            )
        names = self.classes
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"wanted two classes or more, each named once; found {', '.join(names) or 'none'}")
        if not isinstance(columns, str) and len(columns) != len(names):
            raise ValueError(f"labels: {len(names)} names for {len(columns)} columns; wanted one for each")

    @property
    def of_tokens(self) -> bool:
        """Whether the targets are those of a language model."""
        return not set(self.columns).isdisjoint({"logprobs", "top_token_ids", "top_logprobs", "token_ids"})

    def _check_tokens(self) -> None:
        if set(self.columns) - {"token_ids"} not in _OF_TOKENS:
            raise ValueError(
                "columns: of a language model wanted either logprobs, or top_token_ids and top_logprobs; and token_ids "
                f"where the data has them; found {', '.join(self.columns)}"
            )
        if not all(isinstance(one, str) for one in self.columns.values()):
            raise ValueError("columns: of a language model wanted one column for each")
        if self.labels is not None:
            raise ValueError("labels: are names of classes, and tokens have none. Leave them out")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the targets."""
        (columns,) = self.columns.values()
        return tuple(self.labels if self.labels is not None else columns)

    @property
    def is_without_model(self) -> bool:
        """Always true: the targets are columns of the data."""
        return True

    @property
    def not_cached(self) -> str:
        """Why given targets are not stored again."""
        return "the targets of a teacher given as data are stored already: use it without cached"

    @property
    def has_head(self) -> bool:
        """Always true: the classes have an order."""
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the data that hold the targets, each once."""
        found: list[str] = []
        for columns in self.columns.values():
            found += [columns] if isinstance(columns, str) else columns
        return tuple(dict.fromkeys(found))

    def config(self) -> PretrainedConfig:
        """Return a default configuration with the names of the classes."""
        from transformers import PretrainedConfig

        return self._named(PretrainedConfig())

    def config_beside(self, student: Student) -> PretrainedConfig:
        """Return the configuration of the student's checkpoint, with the teacher's class names.

        Raises:
            UserError: The student copies layers or sizes of a teacher model, and there is none.
        """
        return self._named(config_of_student(student, "the teacher is given as data"))

    def _named(self, config: PretrainedConfig) -> PretrainedConfig:
        if self.of_tokens:
            return config
        config.id2label = dict(enumerate(self.classes))
        config.label2id = {name: at for at, name in enumerate(self.classes)}
        config.architectures = None
        return config

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description that `--check` prints."""
        return "no model, targets from the data"

    def load(self, head: Head, fine_tune: FineTune) -> PreTrainedModel:
        """Raise: there is no model, and no run calls this."""
        raise AssertionError("a teacher given as data has no model to load")

    def check_task(self, task: Task) -> None:
        """Refuse a task without targets by row, and columns that do not fit the task."""
        if task.name not in ("text-classification", "text-generation"):
            raise UserError(
                f"targets given as data are those of text-classification or text-generation, but the task is "
                f"{task.name}. Take a model as the teacher: {{name: pretrained, model: ...}}.",
                key="name",
            )
        if self.of_tokens != task.compares_tokens:
            wanted = (
                "logprobs, or top_token_ids and top_logprobs" if task.compares_tokens else "probabilities or logits"
            )
            raise UserError(
                f"{', '.join(self.columns)} given for {task.name}; wanted {wanted}: the column that holds them.",
                key="columns",
            )
        if getattr(task, "examples", None) not in (None, "completion"):
            raise UserError(
                "log-probabilities of tokens are given for prompts and completions, and the task learns from "
                f"{getattr(task, 'examples', None)}. Take a model as the teacher: {{name: pretrained, model: ...}}.",
                key="columns",
            )

    def check_pair(self, task: Task, every: Sequence[Objective], pair: Pair) -> None:
        """Refuse a tokenizer that differs from the student's: its tokens would not be those of the targets."""
        if self.of_tokens and pair.left_out:
            raise UserError(
                "the recipe's tokenizer and the student's differ in special tokens, and the tokens of the data are to "
                "be those of both. Leave out tokenizer."
            )

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what the columns give to objectives."""
        if self.of_tokens:
            return Gives(GIVEN, classes="top", temperature=1.0, exact_logits=False)
        return Gives(GIVEN, exact_logits="logits" in self.columns)

    def prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource]]:
        """Return the prepared data, and the same with the targets of the columns."""
        from hf_distill.teachers.given.cache import numbered, replaying

        if task.compares_tokens:
            return self._prepare_tokens(task, splits, beside, setup, pair)
        prepared = task.prepare(numbered(splits), setup)
        layout = prepared.layout
        with under("teacher"):
            logits = self.read(beside, exclusive=layout.has_named_classes if layout.has_classes else None)
        return replaying(prepared, logits, pair.teacher, self.gives(task, (), pair))

    def _prepare_tokens(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource]]:
        """Return what `prepare` returns, for a language model's targets (most likely tokens at every position)."""
        from hf_distill.tasks.text_tokens import COMPLETION_IDS
        from hf_distill.teachers.given.cache import numbered, replaying_tokens
        from hf_distill.teachers.given.token_columns import Names

        task.look(splits, setup)
        names = Names.of(pair)
        with under("teacher"):
            given = self.read_tokens(splits, beside, names)
        named = {
            name: split.remove_columns([one for one in (COMPLETION_IDS,) if one in split.column_names]).add_column(
                COMPLETION_IDS, [row.tokens for row in given[name]]
            )
            for name, split in numbered(splits).items()
        }
        gives = self.gives(task, (), pair)
        return replaying_tokens(task.prepare(named, setup), given, pair.teacher, names.classes, gives)

    def look(self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], pair: Pair) -> None:
        """Check the targets of a language model in the first rows, as `prepare` does in all rows."""
        from hf_distill.teachers.given.token_columns import Names

        if task.compares_tokens:
            self.read_tokens(splits, beside, Names.of(pair))

    def read_tokens(
        self, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], names: Names
    ) -> dict[str, list[CompletionTargets]]:
        """Return the most likely tokens at every position of each completion.

        Args:
            splits: The columns that the student reads.
            beside: The same rows, with the columns in `reads`.
            names: The student's tokens.

        Raises:
            UserError: A row has no targets, impossible ones, or those of another text; `key` names the setting.
        """
        from hf_distill.teachers.given.token_columns import read_tokens  # imports torch

        for name, split in splits.items():
            kinds = [
                str(getattr(split.features[role], "dtype", "lists"))
                for role in ("prompt", "completion")
                if role in split.features
            ]
            if len(kinds) < 2 or any(kind not in ("string", "large_string") for kind in kinds):
                raise UserError(
                    f"log-probabilities of tokens are given for a prompt and its completion, both texts; the {name} "
                    f"split has other examples ({', '.join(split.column_names)}). Write what the chat template makes "
                    "of a conversation into a column for the prompt, and what the teacher said into one for the "
                    "completion.",
                    key="columns",
                )
        return read_tokens(splits, beside, {what: str(column) for what, column in self.columns.items()}, names)

    def read(self, splits: Mapping[str, Dataset], *, exclusive: bool | None) -> dict[str, Array]:
        """Return the targets: split -> logits, float32 `(rows, classes)`.

        Args:
            splits: Splits with the columns in `reads`.
            exclusive: Whether each example has exactly one class, or any number; None if there are no classes.

        Raises:
            UserError: A row has no targets, or impossible ones; `key` names the setting.
        """
        from hf_distill.teachers.given.target_columns import read_targets  # imports torch

        ((named, columns),) = self.columns.items()
        what: Classes = "logits" if named == "logits" else "probabilities"
        if exclusive is None:
            raise UserError("targets of classes are given, but the labels are numbers (regression).", key="columns")
        return {
            name: read_targets(split, name, columns, len(self.classes), what, exclusive=exclusive)
            for name, split in splits.items()
        }
