"""Checks all runs of a chain before the first one begins, though the students between do not exist yet."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.errors import UserError
from hf_distill.files.ownership import CHAIN
from hf_distill.formatting import count
from hf_distill.mistakes import join
from hf_distill.models.outline import has_class, outline
from hf_distill.recipe.recipe import Recipe
from hf_distill.run.best_model import check_saving
from hf_distill.run.chain import ChainRun, trainings
from hf_distill.run.checks import check_plan
from hf_distill.run.completion_checks import check_targets
from hf_distill.run.directory import stored_recipe
from hf_distill.run.pairing import open_pair
from hf_distill.run.requirements import check_trainings, output_directory
from hf_distill.run.student_cost import choose_student
from hf_distill.students.base import with_head

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.models.loading import Head
    from hf_distill.models.pair import Pair

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """The runs of a chain whose students do not exist yet.

    As a teacher, each of them is found in a temporary directory, with a configuration and a tokenizer (`describe`), but
    without weights.

    Attributes:
        runs: The runs, in their order.
        folder: The temporary directory.
        stored: Where the students will be.
    """

    runs: tuple[ChainRun, ...]
    folder: str
    stored: str

    def text(self, line: str) -> str:
        """Return a line with the directory where a student will be in place of the temporary one."""
        return line.replace(self.folder, self.stored)

    def describe(self, run: ChainRun, pair: Pair, head: Head | None = None) -> None:
        """Write what is known of the student of a run before it is trained.

        Args:
            run: The run.
            pair: Its models.
            head: The head of the task, if the data was read.
        """
        folder = Path(self.folder) / Path(run.recipe.training["output_dir"]).name
        _describe(folder, run.recipe, pair, head)


@contextmanager
def planned(recipe: Recipe) -> Iterator[Planned]:
    """Context manager: the runs of a chain before the first of them; errors name the directories as they will be."""
    with TemporaryDirectory() as made:
        found = Planned(trainings(recipe, Path(made)), made, str(Path(recipe.training["output_dir"]) / CHAIN))
        try:
            yield found
        except UserError as error:
            raise UserError(*map(found.text, error.mistakes)) from error


def _describe(folder: Path, recipe: Recipe, pair: Pair, head: Head | None) -> None:
    config: Any = copy.deepcopy(pair.student)
    if head is not None:
        with_head(config, head)
    model = outline(recipe.task.auto_class, config, trust_remote_code=recipe.trusts_code)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    pair.tokenizer.save_pretrained(folder)


def sizes(recipe: Recipe, pair: Pair) -> tuple[int | None, int]:
    """Return the numbers of parameters of teacher and student; of a teacher without a model of the task, None."""

    def parameters(config: PretrainedConfig) -> int:
        return outline(recipe.task.auto_class, config, trust_remote_code=recipe.trusts_code).num_parameters()

    known = not recipe.teacher.is_without_model and has_class(pair.teacher, recipe.task.auto_class)
    return parameters(pair.teacher) if known else None, parameters(pair.student)


def check_sizes(recipe: Recipe, first: int | None, students: list[int]) -> list[str]:
    """Refuse a chain that ends larger than it began; return lines about students that are larger than their teacher.

    Args:
        recipe: The recipe of the chain.
        first: Parameters of the first teacher; None if it has no model.
        students: Parameters of the students.

    Raises:
        UserError: The last student is larger than the first teacher.
    """
    path = recipe.students[-1][0]
    if first is not None and students[-1] > first:
        raise recipe.mistake(
            path,
            f"the last student has {count(students[-1])} parameters and the first teacher {count(first)}: this would "
            "not make anything smaller. Choose a smaller student.",
        )
    return [
        f"{join('chain', number)}: {count(later)} parameters, more than its teacher's {count(earlier)}"
        for number, (earlier, later) in enumerate(pairwise(students), 1)
        if later > earlier
    ]


def check_models(recipe: Recipe, restart: bool) -> None:
    """Check models, objectives, trainings and directories of all runs of a chain, before the first one begins.

    Args:
        recipe: The recipe of the chain.
        restart: Whether all runs start over.

    Raises:
        UserError: There is a mistake; nothing has been trained or written.
    """
    parameters: list[tuple[int | None, int]] = []
    with planned(recipe) as found:
        for given in found.runs:
            run = given
            check_saving(run.recipe)
            check_trainings(run.recipe)
            if run.recipe.student.cost is not None:  # a time is guessed here, and measured when the run begins
                held = None if restart else stored_recipe(output_directory(run.recipe))
                run = run.with_student(choose_student(run.recipe, held, None)[0])
            run.check_place(restart=restart)
            pair = open_pair(run.recipe)
            check_plan(run.recipe, pair)
            check_targets(run.recipe)
            if not run.direct:
                parameters.append(sizes(run.recipe, pair))
            found.describe(run, pair)
    for line in check_sizes(recipe, parameters[0][0], [one for _, one in parameters]):
        if parallel.is_first_of_machine():
            logger.warning(line)
