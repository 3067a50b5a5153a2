"""`Opened`: what a run of a recipe would have loaded, each part made on first use and once, as the run makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psutil

from hf_distill import parallel
from hf_distill.files.ownership import TEACHERS
from hf_distill.run.chain import trainings
from hf_distill.run.doctor.finding import CannotCheck
from hf_distill.run.found import look
from hf_distill.run.preparation import open_run

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.run.run import Run
    from hf_distill.tasks import Prepared
    from hf_distill.teachers.base import FineTuning
    from hf_distill.trainer import DistillationTrainer

T = TypeVar("T")

# Trainers of the doctor write nothing, and no tracker hears of them.
QUIET = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_strategy": "no",
}


class _Once(Generic[T]):
    """A property that is computed once; if that fails, later checks that ask for it are skipped.

    Args:
        what: What is made, as in `the teacher`.
        make: Makes it.
    """

    def __init__(self, what: str, make: Callable[[Opened], T]) -> None:
        self._what, self._make = what, make
        self.__doc__ = make.__doc__

    def __get__(self, opened: Opened, _: type[Opened]) -> T:
        name = self._make.__name__
        if name in opened.failed:
            raise CannotCheck(f"{self._what} could not be loaded")
        if name not in opened.made:
            try:
                opened.made[name] = self._make(opened)
            except CannotCheck:
                raise
            except Exception:
                opened.failed.add(name)
                raise
        made: T = opened.made[name]
        return made


def once(what: str) -> Callable[[Callable[[Opened], T]], _Once[T]]:
    """Return a decorator that makes a method a property which is computed once."""
    return lambda make: _Once(what, make)


class Opened:
    """What a run would have loaded, each part made on first use and once. Nothing is written outside `scratch`.

    Of a chain of students (`chain`, `generations`), it is the run of the first student.

    Args:
        recipe: The recipe, which `--check` has found nothing wrong with.
        scratch: A directory for what trainers must write; the caller removes it.

    Attributes:
        recipe: The recipe of the run, of a chain that of its first student.
        scratch: The directory.
        made: What was made, by the name of its property.
        failed: Names of what could not be made.
        training: The run's training arguments, before they were changed for trainers of the doctor.
        base_bytes: Resident memory of the process when data was read and no model loaded; 0 before that.
    """

    def __init__(self, recipe: Recipe, scratch: Path) -> None:
        self.recipe = trainings(recipe)[0].recipe
        self.scratch = scratch
        self.made: dict[str, Any] = {}
        self.failed: set[str] = set()
        self.base_bytes = 0
        self.training: dict[str, Any] = {}
        self._splits: dict[str, Dataset] = {}
        self._untrained: list[str] = []

    @once("the data")
    def run(self) -> Run:
        """The run as it is before a model is loaded. Its trainers write into `scratch`."""
        run = open_run(self.recipe, restart=False, claims=False, read=self._splits.update)
        run.teachers = (run.directory.path / TEACHERS, run.training)
        self.training = run.training
        run.training = {**run.training, **QUIET, "output_dir": str(self.scratch)}
        self.base_bytes = psutil.Process().memory_info().rss
        return run

    @property
    def splits(self) -> dict[str, Dataset]:
        """The raw splits `train`, `eval` and maybe `transfer`, columns named by role; rows as the run chooses them."""
        _ = self.run  # reads them
        return self._splits

    @property
    def pair(self) -> Pair:
        """Configurations and tokenizers."""
        return self.run.pair

    @property
    def prepared(self) -> Prepared:
        """The tokenised data. The rows of `data.transfer` are the last of `train`."""
        return self.run.prepared

    @once("the teacher")
    def teacher(self) -> TargetSource:
        """The teacher. A model that the run fine-tunes first is loaded if it was trained before, else with a new head.

        `trained_teacher` is for checks of what it predicts. The targets of a `cached` teacher come from its model.
        """
        source = self.run.load_teacher(self._find_trained)
        source.place(self.run.args.device)
        return source

    def _find_trained(self, model: PreTrainedModel, how: FineTuning) -> PreTrainedModel:
        """Return a teacher as an earlier run has fine-tuned it, or as it is (this is a `teachers.base.FineTune`)."""
        planned = self.run.plan_fine_tuning(model, how)
        if look(planned.directory, planned.directory.name, parallel.started()).finished:
            model = how.load(model, planned.directory)
        else:
            self._untrained.append(how.which)
        model.train(False)
        return model

    @property
    def trained_teacher(self) -> TargetSource:
        """The teacher, for checks of what it predicts.

        Raises:
            CannotCheck: The run trains it first, and has not done so yet.
        """
        teacher = self.teacher
        if self._untrained:
            raise CannotCheck("the run fine-tunes this teacher first. Once it has, this can be checked")
        return teacher

    def new_student(self) -> PreTrainedModel:
        """Return another student as its training begins; it may be trained or changed."""
        return self.run.new_student(self.teacher, self.run.args.seed)

    @once("the student")
    def student(self) -> PreTrainedModel:
        """The student as its training begins. Checks must not change it: `new_student` makes one for them."""
        return self.new_student()

    def new_trainer(
        self, student: PreTrainedModel | None = None, rows: Sequence[int] | None = None, **training: Any
    ) -> DistillationTrainer:
        """Return a trainer as the first stage begins with.

        Args:
            student: The student; default: another one.
            rows: Those that it trains on, as indices of its train split; None for all.
            **training: Training arguments in place of the recipe's.

        Raises:
            CannotCheck: Student and teacher cannot run side by side.
        """
        if not self.teacher.runs_in_training and self.run.stored is None:
            raise CannotCheck("the targets of this teacher must be stored before a student can train")
        student = self.new_student() if student is None else student
        return self.run.first_trainer(self.teacher, student, self.scratch, {**QUIET, **training}, rows)

    @once("the trainer")
    def trainer(self) -> DistillationTrainer:
        """A trainer as the first stage begins with, of a student of its own. Checks do not train with it."""
        return self.new_trainer()
