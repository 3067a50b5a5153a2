"""Several teachers together: students learn from the weighted mean of their distributions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from hf_distill.component import component
from hf_distill.data.label_names import label_names, positions
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.inspection import LABELS, base_model, taken_by
from hf_distill.models.needs import Gives
from hf_distill.models.outline import head_kind
from hf_distill.models.target_model import RunModel, Targets, TargetSource
from hf_distill.models.target_rows import MixtureRows, upcast
from hf_distill.rows.base import IMPOSSIBLE, RowLayout
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.spans import CONTEXT_MASK, SpanRows
from hf_distill.teachers.base import FineTune, FineTuning, Teacher, under

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

    from hf_distill.models.loading import Head
    from hf_distill.models.pair import Pair
    from hf_distill.objectives import Objective
    from hf_distill.tasks import Prepared, Setup, Task

# What an ensemble gives to objectives: rows, but no hidden states or attention.
GIVES = Gives("an ensemble")


@component
class EnsembleTeacher(Teacher):
    """Several models: students learn from the weighted mean of their distributions (of regression: of their values).

    Each distribution is softened before it is averaged, by the temperature of every objective (Hinton et al. 2015,
    arXiv 1503.02531, section 3). Objectives without one compare at temperature 1, as do the reported predictions.

    Attributes:
        teachers: Two or more entries, `pretrained` or `finetuned`. Their labels are matched by name to the first one's.
            A student that copies layers copies those of the first.
        weights: Weight of each teacher in the mean. Only their ratio counts. Default: the same for all.
    """

    name: ClassVar[str] = "ensemble"

    teachers: list[Teacher]
    weights: list[float] | None = None

    def __post_init__(self) -> None:
        """Refuse entries without a model, and wrong weights."""
        if len(self.teachers) < 2:
            raise ValueError(f"wanted two teachers or more, found {len(self.teachers)}")
        for index, one in enumerate(self.teachers):
            if one.is_without_model or one.caches or one.own_inputs or [path for path, _ in one.members()] != [""]:
                raise ValueError(f"teachers[{index}]: wanted a model, pretrained or finetuned; found {one.name}")
        if self.weights is not None and (len(self.weights) != len(self.teachers) or min(self.weights) <= 0):
            raise ValueError(f"weights: wanted {len(self.teachers)} numbers above 0, one for each teacher")
        headed = [index for index, one in enumerate(self.teachers) if one.has_head]
        if headed and headed[0]:
            raise ValueError(
                f"teachers[0] is trained by this run, and teachers[{headed[0]}] brings its labels. List that one first"
            )

    @property
    def is_quantized(self) -> bool:
        """Whether any of the teachers is quantized."""
        return any(one.is_quantized for one in self.teachers)

    @property
    def has_head(self) -> bool:
        """Whether the first teacher's checkpoint has a trained head."""
        return self.teachers[0].has_head

    @property
    def fine_tuning(self) -> Mapping[str, FineTuning]:
        """Key path -> training of each teacher that the run trains first."""
        return {f"{path}.{key}": how for path, one in self.members() for key, how in one.fine_tuning.items()}

    @property
    def output_directories(self) -> tuple[str | None, ...]:
        """Directories of the teachers that the run trains first."""
        return tuple(place for one in self.teachers for place in one.output_directories)

    @property
    def not_cached(self) -> str:
        """Why the targets of an ensemble cannot be stored."""
        return (
            "an ensemble cannot be cached: the mean of distributions is another one at every temperature, so that "
            "what is stored would be right at one of them only. Take the ensemble itself"
        )

    def members(self) -> Iterator[tuple[str, Teacher]]:
        """Yield path and entry of each teacher."""
        return ((f"teachers[{index}]", one) for index, one in enumerate(self.teachers))

    def every_entry(self) -> Iterator[Teacher]:
        """Yield this entry and the teachers inside it."""
        yield self
        yield from self.teachers

    def config(self) -> PretrainedConfig:
        """Return the configuration of the first teacher."""
        with under("teachers[0]"):
            return self.teachers[0].config()

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description of each teacher that `--check` prints."""
        return "; ".join(size(one.config()) for one in self.teachers)

    def check_task(self, task: Task) -> None:
        """Refuse a task without distributions or values to average."""
        for path, one in self.members():
            with under(path):
                one.check_task(task)
        if task.name == "sentence-similarity":
            raise UserError(
                f"{task.name} compares vectors of texts, and those of several models have no common mean. Take one of "
                "the teachers.",
                key="name",
            )

    def check_pair(self, task: Task, every: Sequence[Objective], pair: Pair) -> None:
        """Refuse teachers whose labels or vocabulary differ from the first teacher's."""
        for path, one in list(self.members())[1:]:
            with under(path):
                config = one.config()
                if task.compares_tokens:
                    _check_vocabulary(config, pair)
                elif one.has_head and task.head_kind == "labels":
                    _order(pair.teacher, config)

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what an ensemble gives to objectives: rows only."""
        return GIVES

    def prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
        """Return the prepared data; refuse metrics of generated texts, as a mean of models generates none."""
        prepared, stored = super().prepare(task, splits, beside, setup, pair)
        if any(map(prepared.evaluator.generates, prepared.evaluator.names)):
            raise UserError(
                "metrics of generated texts need one model that writes them, and the teacher is an ensemble. Wanted "
                "metrics of its distributions, such as perplexity.",
                key="metrics",
            )
        return prepared, stored

    def load(self, head: Head, fine_tune: FineTune) -> TargetSource:
        """Return the ensemble, with every teacher loaded or trained first."""
        seed, models = torch.initial_seed(), []
        for index, (path, one) in enumerate(self.members()):
            # Each teacher gets its own new head: the same one whether the teachers before it were trained or loaded.
            torch.manual_seed(seed + index)
            with under(path):
                models.append(one.load(head, fine_tune))
        return Ensemble(models, self.weights)


class Ensemble(TargetSource):
    """Models whose distributions are averaged.

    Args:
        models: Models with trained heads and the same classes.
        weights: Weight of each model, above 0; None for equal weights.

    Raises:
        UserError: The classes differ.
    """

    def __init__(self, models: Sequence[Any], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)
        given = [1.0] * len(models) if weights is None else weights
        self.weights = tuple(weight / sum(given) for weight in given)
        self.config = base_model(models[0]).config
        classifies = head_kind(type(base_model(models[0])).__name__) == "labels"
        self.columns = [_order(self.config, base_model(one).config) if classifies else None for one in models]
        self._taken = [taken_by(one) for one in models]

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """The models by name: `teacher 1`, `teacher 2`, ..."""
        return {f"teacher {number}": one for number, one in enumerate(self.members, 1)}

    @property
    def takes(self) -> frozenset[str]:
        """The columns of a batch that any of the models reads."""
        return frozenset().union(*self._taken)

    @property
    def measured(self) -> Any:
        """The model whose size and speed are measured: the whole ensemble."""
        return self

    @property
    def copied(self) -> Any:
        """The model whose layers a student copies: the first."""
        return self.members[0]

    @property
    def device(self) -> torch.device:
        """Device of the first model."""
        return next(self.members[0].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the first model's weights."""
        return next(one.dtype for one in self.members[0].parameters() if one.is_floating_point())

    @property
    def is_quantized(self) -> bool:
        """Whether the first model's weights are quantized."""
        return bool(getattr(self.members[0], "is_quantized", False))

    def fingerprint(self) -> str:
        """Return a fingerprint of the models and their weights in the mean."""
        return fingerprint([model_fingerprint(one) for one in self.members], self.weights)

    def gives(self) -> Gives:
        """Return what it gives to objectives: rows only."""
        return GIVES

    def predicting(self, layout: RowLayout) -> nn.Module:
        """Return a module with the ensemble's predictions at temperature 1."""
        return Predictor(self, layout)

    def targets(self, batch: Mapping[str, Any], run: RunModel) -> Targets:
        """Return the outputs of every model, with the weights of the mean."""
        outputs = (run(name) for name in self.models)
        return Targets(mixed=tuple(map(_reordered, outputs, self.columns)), weights=self.weights)

    def forward(self, **inputs: Any) -> list[Mapping[str, Any]]:
        """Return the outputs of every model, with classes in the order of the first.

        Args:
            inputs: The columns of `takes`.
        """
        given = ({name: value for name, value in inputs.items() if name in taken} for taken in self._taken)
        outputs = [model(**one) for model, one in zip(self.members, given, strict=True)]
        return [_reordered(one, columns) for one, columns in zip(outputs, self.columns, strict=True)]


class Predictor(nn.Module):
    """An ensemble as one model, whose logits are those of the mean distribution at temperature 1.

    Args:
        ensemble: The ensemble.
        layout: Row layout of the task.
    """

    def __init__(self, ensemble: Ensemble, layout: RowLayout) -> None:
        super().__init__()
        self.ensemble, self.layout, self.config = ensemble, layout, ensemble.config
        self.takes = ensemble.takes.union(layout.columns) - LABELS

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        """Return the outputs that the layout reads.

        Args:
            inputs: The columns of `takes`.
        """
        logits = [self.layout.logits(one) for one in self.ensemble(**inputs)]
        mean = _mean(self.layout, logits, self.ensemble.weights, inputs)
        parts = mean.unbind(-1) if len(self.layout.outputs) > 1 else (mean,)
        return dict(zip(self.layout.outputs, parts, strict=True))


def _mean(layout: RowLayout, logits: list[Tensor], weights: tuple[float, ...], inputs: Mapping[str, Any]) -> Tensor:
    """Return the logits of the mean distribution of several models, in the shape of their logits."""

    def mixed(members: Sequence[Tensor]) -> Tensor:
        return MixtureRows.of(members, weights, (1.0,)).at(1.0)

    if not layout.has_classes:
        return torch.stack([weight * one for weight, one in zip(weights, logits, strict=True)]).sum(0)
    if isinstance(layout, ExampleRows) and layout.kind == "binary":
        no, yes = mixed([torch.stack((torch.zeros_like(one), one), -1) for one in logits]).unbind(-1)
        return yes - no
    if isinstance(layout, SpanRows):
        hidden = (inputs[CONTEXT_MASK if CONTEXT_MASK in inputs else "attention_mask"] == 0).unsqueeze(1)
        return mixed([upcast(one).transpose(1, 2).masked_fill(hidden, IMPOSSIBLE) for one in logits]).transpose(1, 2)
    return mixed([one[..., : getattr(layout, "classes", None)] for one in logits])


def _order(first: Any, other: Any) -> tuple[int, ...] | None:
    """Return the other model's column for each class of the first; None if names are missing or in the same order.

    Raises:
        UserError: The models have different classes.
    """
    if first.num_labels != other.num_labels:
        raise UserError(
            f"its head has {other.num_labels} outputs, the first teacher's {first.num_labels}. Wanted teachers that "
            "were trained on the same classes.",
            key="model",
        )
    ours, theirs = label_names(first), label_names(other)
    if not ours or not theirs:
        return None
    try:
        order = positions(ours, theirs, whose="this teacher")
    except UserError as error:
        raise UserError(f"{error} Wanted teachers that were trained on the same classes.", key="model") from error
    return None if order == tuple(range(len(order))) else order


def _reordered(outputs: Mapping[str, Any], columns: tuple[int, ...] | None) -> Mapping[str, Any]:
    return outputs if columns is None else {**outputs, "logits": outputs["logits"][..., list(columns)]}


def _check_vocabulary(config: PretrainedConfig, pair: Pair) -> None:
    """Refuse a vocabulary with fewer entries than the compared tokens."""
    from hf_distill.rows.inferred import vocabulary

    columns = config.get_text_config().vocab_size
    wanted = vocabulary(pair.student, pair.teacher, pair.tokenizer)
    if wanted is not None and columns < wanted:
        raise UserError(
            f"its vocabulary has {columns:,} entries, and {wanted:,} tokens are compared. Wanted teachers with the "
            "same vocabulary.",
            key="model",
        )
