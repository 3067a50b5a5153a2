"""What teaches while a student trains: one contract for a model, a cache, and whatever else gives targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.inspection import base_model, taken_by
from hf_distill.models.mixing import Mean
from hf_distill.models.needs import Gives
from hf_distill.models.quantization import is_placed
from hf_distill.models.target_rows import SparseRows

if TYPE_CHECKING:
    import torch

# Prefix of the columns of a batch and of a data set that hold targets: apart from those under `two_tokenizers.PREFIX`,
# which are a teacher's inputs.
PREFIX = "cached_"
# Column of a split: which row of the cache belongs to an example.
ROW = f"{PREFIX}row"

# Runs one of a source's `models`, by its name, on the batch that is being taught; returns what its `forward` does.
# The trainer provides it: it knows of padding, precision, heads taken apart and the outputs that objectives want.
RunModel = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True)
class Targets:
    """What a source gives for one batch.

    Attributes:
        outputs: As a model's forward pass returns them: what the layout reads logits from, and hidden states and
            attention where an objective asked for them.
        rows: The rows of the batch, where there are no outputs to take logits from; None where there are.
        mixed: Outputs of several models, of which the mean is taken; empty where there is one.
        mean: How these are averaged; None where there is one model.
        spans: Logarithm of the probability of each span of the text, `(batch, spans)`, 0 where there is none, by the
            numbers of `rows.written.Written.span`; None where it follows from the outputs.
        softened: Temperature -> outputs of a mean of distributions that was taken before, which is right at that
            temperature only; empty for anything else.
    """

    outputs: Mapping[str, Any] = field(default_factory=dict)
    rows: SparseRows | None = None
    mixed: tuple[Mapping[str, Any], ...] = ()
    mean: Mean | None = None
    spans: Tensor | None = None
    softened: Mapping[float, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Learner:
    """How one of a source's models trains while it teaches.

    Attributes:
        taught_by: Names of the models, `student` among them, whose mean distribution it learns from by the objectives
            of the training; empty if it learns from labels alone.
        learning_rate: Peak of its learning rate, which follows the student's schedule; None for the student's.
    """

    taught_by: tuple[str, ...] = ()
    learning_rate: float | None = None


@dataclass(frozen=True)
class Writing:
    """A model that writes and does not run here.

    Attributes:
        open: Returns what writes (a `completions.backends.Writer`).
        key: What decides what it writes beside prompts and sampling; JSON values.
    """

    open: Callable[[], Any]
    key: Any


class TargetSource(nn.Module, ABC):
    """What a student learns from.

    It is an attribute of the trainer, never a part of the student, and never goes through `accelerator.prepare`: it is
    out of the optimizer and of every export.

    Attributes:
        config: Configuration of the model whose targets these are.
        label_losses: Sum and number of `-log p` of the labels of every example of the eval split, `(rows, 2)`, where
            that is known of a teacher that is not there to be evaluated; NaN for an example with a label that is not.
            None where the source can be evaluated.
    """

    config: Any
    label_losses: Any = None

    # ---- What it is ----

    @property
    def model(self) -> Any:
        """The module that stands for it: `trainer.teacher`, what objectives look at and reports measure."""
        return self

    @property
    def measured(self) -> Any:
        """The model whose size and speed a report has; None where there is none."""
        return None

    @property
    def copied(self) -> Any:
        """The model that students copy layers or sizes from."""
        return self.model

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """The models that run for a batch, by what messages call them; none where targets are read from the batch."""
        return {}

    @property
    def writing(self) -> nn.Module | None:
        """The model that can write texts as it does; None where no single model is the teacher."""
        return None

    def writer(self, tokenizer: Any) -> Writing | None:
        """Return what writes texts as it does, of a model that runs elsewhere; None for all others."""
        return None

    @property
    @abstractmethod
    def takes(self) -> frozenset[str]:
        """Names of what it reads of an example or a batch."""

    @property
    def gives_outputs(self) -> bool:
        """Whether `targets` gives all that predicting takes, so that the teacher can be evaluated by it."""
        return True

    @property
    def gives_rows(self) -> bool:
        """Whether `targets` gives sparse rows of its own and no outputs, so that a cache stores these."""
        return False

    @property
    def runs_in_training(self) -> bool:
        """Whether `targets` can be asked while a student trains; if not, they are stored before."""
        return True

    @property
    def by_temperature(self) -> bool:
        """Whether its distributions at one temperature do not follow from those at another, as for their mean."""
        return False

    def fingerprint(self) -> str:
        """Return a hash of what decides its targets."""
        return model_fingerprint(self.model)

    def facts(self) -> Mapping[str, Any]:
        """Return what the report and the model card say about it, beyond its scores: values by their name in words.

        They are in `settings["teacher"]` of a report: `{"privacy": {"epsilon": 2.3, "delta": 1e-5}}`. Empty for most.
        """
        return {}

    def who(self) -> str:
        """Return the sentence that tells readers of a report who its teacher is; "" where that is a model of its own.

        Such as `The teacher here is the mean of 2 peers that trained beside the student.`
        """
        return ""

    @abstractmethod
    def gives(self) -> Gives:
        """Return what it gives; an objective that needs more is refused before anything runs (see `models.match`)."""

    def predicting(self, layout: Any) -> Any:
        """Return the model that is evaluated in its place.

        Args:
            layout: Which logits count (`rows.base.RowLayout`).
        """
        return self.model

    def parts(self, layout: Any) -> Mapping[str, nn.Module]:
        """Return the models whose scores a report shows beside the teacher's own, by name; mostly none.

        Args:
            layout: Which logits count (`rows.base.RowLayout`).
        """
        return {}

    def settle(self, layout: Any, loss: Callable[..., float]) -> None:
        """Decide what depends on labelled rows of the train split; called once by a run, after the teacher was loaded.

        Args:
            layout: Which logits count (`rows.base.RowLayout`).
            loss: Returns the mean label loss of a model on those rows; its second argument is the data as the model
                reads it, if that is one of `Prepared.for_members`.
        """

    def for_objectives(self, objectives: Iterable[Any], student: Any, collate: Any) -> tuple[TargetSource, Any]:
        """Return it, and the collator of its batches, without what these objectives do not read.

        Args:
            objectives: Of a training; none where the teacher itself is evaluated.
            student: Configuration of the student.
            collate: Makes the batches.
        """
        return self, collate

    def losses_of(self, split: Any, collate: Any) -> Any:
        """Return `label_losses` for the eval split, of a teacher whose only way to be evaluated that is; else None.

        Args:
            split: The eval split.
            collate: Makes batches of it.
        """
        return self.label_losses

    # ---- What it does in a training ----

    def read_by(self, layout: Any, tokenizer: Any) -> None:
        """Get to know which logits count, and how texts became tokens; called before the first batch, maybe again.

        Args:
            layout: Which logits count (`rows.base.RowLayout`).
            tokenizer: That of the student; None if it is not known.

        Raises:
            UserError: What it gives does not belong to these tokens.
        """

    def place(self, device: torch.device) -> None:
        """Freeze it and move its models to a device, but for those that are spread over several."""
        self.model.eval().requires_grad_(False)
        for model in self.models.values():
            if not is_placed(model, device):
                model.to(device)

    @property
    def follows_student(self) -> bool:
        """Whether its targets depend on the student that trains."""
        return False

    @property
    def learners(self) -> Mapping[str, Learner]:
        """How each of `models` trains meanwhile, by its name; empty where none does.

        Either all train or none does. Their outputs are in `Targets.mixed`, in the order of `models`. The trainer runs
        them in training mode with gradients, and gives each an optimizer like the student's; what it stores of a source
        are the weights (`saved_state`).
        """
        return {}

    @property
    def exported(self) -> Mapping[str, nn.Module]:
        """Models that are saved beside the finished student, by folder."""
        return {}

    def for_seed(self, seed: int) -> TargetSource:
        """Return what teaches the student of a seed: itself, unless its models begin with random weights of the seed.

        Args:
            seed: Of the student, if a run trains several.
        """
        return self

    def for_training(self) -> TargetSource:
        """Return what one training of a run is given: itself, unless each needs its own."""
        return self

    def next_stage(self, trained: TargetSource) -> TargetSource:
        """Return what teaches the same student in the next stage of a run, before `for_training`.

        Args:
            trained: What the stage before was given, as that has left it.
        """
        return self

    def at_end(self, trained: TargetSource) -> TargetSource:
        """Return what a report calls the teacher.

        Args:
            trained: What the training of the saved student was given, as that has left it.
        """
        return self

    def begin(self, student: nn.Module) -> None:
        """Look at the student that will train, before each training (and before a checkpoint is loaded)."""

    def after_step(self, student: nn.Module, step: int) -> None:
        """Follow an optimizer step that was taken.

        Args:
            student: After the step, without wrapper of a distributed training.
            step: Its number, from 1.
        """

    def of_step(self, batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the micro-batches of an optimiser step, with what this source adds to them; mostly as they are.

        Called once a step in every process, before the units are counted, for what is asked for all rows at once.

        Args:
            batches: The collated micro-batches, on the device.
        """
        return list(batches)

    def saved_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs of it, so that a resumed training has the same targets; mostly nothing."""
        return {}

    def load_saved_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `saved_state` returned."""

    @abstractmethod
    def targets(self, batch: Mapping[str, Any], run: RunModel) -> Targets:
        """Return the targets of a batch.

        Args:
            batch: As it reads it: with its own tokens, where it has a tokenizer of its own.
            run: Runs one of `models` on it.
        """


class LiveModel(TargetSource):
    """A model that runs beside the student.

    Args:
        model: The teacher, its head trained; wrapped or not.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Not a submodule: its names, hooks and mode are the user's.
        self._held = (model,)
        self.config = getattr(base_model(model), "config", None)
        self._takes: frozenset[str] | None = None

    @property
    def model(self) -> Any:
        """The model itself."""
        return self._held[0]

    @property
    def measured(self) -> Any:
        """The model itself."""
        return self._held[0]

    @property
    def writing(self) -> nn.Module | None:
        """The model itself."""
        return self._held[0]

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """The model, under the name `teacher`."""
        return {"teacher": self._held[0]}

    @property
    def takes(self) -> frozenset[str]:
        """The names that its `forward` takes."""
        if self._takes is None:
            self._takes = taken_by(self._held[0])
        return self._takes

    def gives(self) -> Gives:
        """Return everything."""
        return Gives.everything()

    def train(self, mode: bool = True) -> LiveModel:
        """Set the mode of the model."""
        self._held[0].train(mode)
        return self

    def targets(self, batch: Mapping[str, Any], run: RunModel) -> Targets:
        """Run the model."""
        return Targets(run("teacher"))


class MadeOfStudent(LiveModel):
    """A model that was made of the student, at the end of its training.

    Args:
        model: The model.
        who: The sentence that tells readers of a report who their teacher is.
    """

    def __init__(self, model: nn.Module, who: str) -> None:
        super().__init__(model)
        self._who = who

    @property
    def follows_student(self) -> bool:
        """Always true: it is the student's own."""
        return True

    def who(self) -> str:
        """Return the sentence."""
        return self._who


def as_source(teacher: nn.Module | None) -> TargetSource | None:
    """Return a teacher as a source of targets: itself if it is one, a model wrapped, None for none."""
    return teacher if teacher is None or isinstance(teacher, TargetSource) else LiveModel(teacher)
