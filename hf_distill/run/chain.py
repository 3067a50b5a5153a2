"""Turns a recipe with several students, each the teacher of the next one, into one recipe for each of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.component import entry
from hf_distill.errors import UserError
from hf_distill.files.ownership import CHAIN
from hf_distill.formatting import count
from hf_distill.mistakes import join
from hf_distill.models.outline import has_class, outline
from hf_distill.recipe.recipe import Hub, Link, Recipe
from hf_distill.recipe.writer import describe_entry, dump_recipe
from hf_distill.run.best_model import check_saving
from hf_distill.run.checks import check_plan
from hf_distill.run.directory import RunDirectory, stored_recipe
from hf_distill.run.pairing import open_pair
from hf_distill.run.requirements import check_trainings, output_directory
from hf_distill.run.student_cost import choose_student
from hf_distill.students.base import with_head
from hf_distill.teachers.ensemble.teacher import EnsembleTeacher
from hf_distill.teachers.pretrained import PretrainedTeacher

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.models.loading import Head
    from hf_distill.models.pair import Pair
    from hf_distill.students import Student
    from hf_distill.teachers.base import Teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChainRun:
    """One run of a chain.

    Attributes:
        recipe: Its recipe: one student, and the model before it as the teacher.
        stored: The recipe that is written into its directory: of the last student that of the whole chain.
        title: Which run this is, such as `Student 1 of 2: copy_layers (layers 4)`; empty for the only one.
        direct: Whether its student is only for comparison: the last one of a chain, taught by the first teacher.
        together: Directories of all generations, if their mean is evaluated in the report of this run.
    """

    recipe: Recipe
    stored: Recipe
    title: str = ""
    direct: bool = False
    together: tuple[Path, ...] = ()

    def with_student(self, student: Student) -> ChainRun:
        """Return the run with another shape of its student."""
        return replace(self, recipe=self.recipe.with_student(student), stored=self.stored.with_student(student))

    def check_place(self, *, restart: bool) -> None:
        """Refuse a directory that this run must not use. Writes nothing.

        Args:
            restart: Start over: the directory may hold a run of another recipe.

        Raises:
            UserError: It holds another recipe's run, an active run, or files of something else.
        """
        place = RunDirectory(output_directory(self.recipe), dump_recipe(self.stored))
        with self.recipe.locate("training"):
            place.check(restart)


def trainings(recipe: Recipe, models: Path | None = None) -> tuple[ChainRun, ...]:
    """Return the runs of a recipe in their order: one for each student; of a recipe with one student, itself.

    The last student is stored in `output_dir`, those before it in `_chain` inside it.

    Args:
        recipe: The recipe.
        models: Directory in which the students are looked for as teachers. Default: where they are stored.

    Raises:
        UserError: These students cannot follow each other.
    """
    links = _links(recipe)
    _check(recipe, len(links) > 1)
    if len(links) == 1 and not recipe.chain:
        return (ChainRun(replace(recipe, generations=None), recipe),)
    output = Path(recipe.training["output_dir"])
    word = "link" if recipe.chain else "generation"
    folders = [output / CHAIN / f"{word}-{number}" for number in range(1, len(links))]
    found = []
    for number, link in enumerate(links):
        last = number == len(links) - 1
        before = [str(models / folder.name if models else folder) for folder in folders[:number]]
        own = replace(
            recipe,
            chain=(),
            generations=None,
            student=link.student,
            teacher=_teacher(recipe, before),
            objectives=link.objectives or recipe.objectives,
            stages=() if link.objectives else recipe.stages,
            training={
                **recipe.training,
                **_seed(recipe, number),
                **link.training,
                "output_dir": str(output if last else folders[number]),
            },
            report=recipe.report if last else replace(recipe.report, baseline=False, seeds=1),
            hub=recipe.hub if last else Hub(),
            places=_places(recipe, link, number),
        )
        if last and recipe.report.direct:
            found.append(_direct(recipe, own, output))
        title = f"{word.capitalize()} {number + 1} of {len(links)}: {describe_entry(entry(link.student))}"
        stored = replace(own, teacher=_teacher(recipe, list(map(str, folders[:number]))))
        mean = last and recipe.generations is not None and recipe.generations.ensemble
        found.append(
            ChainRun(own, recipe if last else stored, title, together=(*folders, output.expanduser()) if mean else ())
        )
    return tuple(found)


def _direct(recipe: Recipe, last: Recipe, output: Path) -> ChainRun:
    """Return the run that trains the last student of a chain with the first teacher."""
    own = replace(
        last,
        teacher=recipe.teacher,
        training={**last.training, "output_dir": str(output / CHAIN / "direct")},
        report=replace(recipe.report, baseline=False, direct=False),
        hub=Hub(),
        places={key: place for key, place in last.places.items() if key != "teacher"},
    )
    return ChainRun(own, own, "For comparison: the last student, taught by the first teacher directly", direct=True)


def _links(recipe: Recipe) -> tuple[Link, ...]:
    times = 1 if recipe.generations is None else recipe.generations.count
    return recipe.chain or (Link(student=recipe.student),) * times


def _teacher(recipe: Recipe, before: list[str]) -> Teacher:
    """Return the teacher of a student of a chain.

    Args:
        recipe: The recipe of the chain.
        before: The directories of the students before it.
    """
    if not before:
        return recipe.teacher
    every = recipe.generations is not None and recipe.generations.learn_from == "all"
    models: list[Teacher] = [
        PretrainedTeacher(model=one, trust_remote_code=recipe.trusts_code) for one in (before if every else before[-1:])
    ]
    return recipe.teacher.for_next(models[0] if len(models) == 1 else EnsembleTeacher(teachers=models))


def _mean(models: Sequence[Path]) -> EnsembleTeacher:
    return EnsembleTeacher(teachers=[PretrainedTeacher(model=str(one)) for one in models])


def _seed(recipe: Recipe, number: int) -> dict[str, int]:
    """Return the seed of a generation, as each starts from other weights; of a chain, nothing."""
    from transformers import TrainingArguments

    default = TrainingArguments.__dataclass_fields__["seed"].default
    return {} if recipe.chain else {"seed": recipe.training.get("seed", default) + number}


def _places(recipe: Recipe, link: Link, number: int) -> dict[str, str]:
    """Return where the author of a chain wrote the keys of one of its runs."""
    if not recipe.chain:
        return {"teacher": "student"} if number else {}
    own = f"chain[{number}]"
    before = {"teacher": f"chain[{number - 1}]"} if number else {}
    losses = {"objectives": f"{own}.objectives"} if link.objectives else {}
    return {**before, "student": own, **losses, **{f"training.{key}": f"{own}.training.{key}" for key in link.training}}


def _check(recipe: Recipe, several: bool) -> None:
    """Refuse what does not fit together, where there are several students and where there are not.

    Raises:
        UserError: There is something.
    """
    _check_options(recipe)
    if not several:
        return
    if recipe.teacher.keeps_private:
        raise recipe.mistake(
            "teacher",
            "the rows with a label are private, and only its targets are protected: a chain has other teachers. Wanted "
            "one student.",
        )
    if recipe.teacher.follows_student:
        raise recipe.mistake(
            "teacher",
            "its targets come from the student that trains, so that there is no first teacher of a chain. Wanted a "
            "model, such as {name: finetuned, model: ...}.",
        )
    for path, student in recipe.students[:-1] or recipe.students:
        if student.not_teaching is not None:
            raise recipe.mistake(path, f"it cannot teach the next student: {student.not_teaching}.")
    if not recipe.chain and recipe.student.cost is not None:
        raise recipe.mistake(
            f"student.{recipe.student.cost.kind}",
            "all generations have one shape, and each would choose its own by its teacher. Say the shape.",
        )
    if not recipe.chain and recipe.student.copies_teacher:
        raise recipe.mistake(
            "student",
            "it copies the teacher's weights, and each generation starts from fresh ones. Write "
            f"{recipe.student.apart_from_teacher('...')}, or take from_config with start: random.",
        )


def _check_options(recipe: Recipe) -> None:
    if recipe.report.direct and len(recipe.chain) < 2:
        raise recipe.mistake(
            "report.direct",
            "it compares a chain of two or more students with its last one alone. The first generation, and the only "
            "student of a chain, learn from the first teacher anyway. Leave it out.",
        )
    if recipe.report.direct and recipe.student.cost is not None:
        raise recipe.mistake(
            "report.direct",
            f"the last student is chosen by its {recipe.student.cost.kind}, and may be another one where the first "
            "teacher teaches it. Say its shape, or leave this out.",
        )
    if recipe.generations is not None and recipe.generations.ensemble:
        if recipe.generations.count < 2:
            raise recipe.mistake("generations.ensemble", "a mean needs two generations or more.")
        try:
            _mean([Path("a"), Path("b")]).check_task(recipe.task)
        except UserError as error:
            raise recipe.mistake("generations.ensemble", error.mistakes[0]) from error


# ---- Checks before anything is trained -------------------------------------------------------------------------------


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
            if not run.direct:
                parameters.append(sizes(run.recipe, pair))
            found.describe(run, pair)
    for line in check_sizes(recipe, parameters[0][0], [one for _, one in parameters]):
        if parallel.is_first_of_machine():
            logger.warning(line)
