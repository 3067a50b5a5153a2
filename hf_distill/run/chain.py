"""Turns a recipe with several students, each the teacher of the next one, into one recipe for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill.component import entry
from hf_distill.errors import UserError
from hf_distill.export.section import Export
from hf_distill.files.ownership import CHAIN
from hf_distill.recipe.recipe import Hub, Link, Recipe
from hf_distill.recipe.writer import describe_entry, dump_recipe
from hf_distill.run.directory import RunDirectory
from hf_distill.run.requirements import output_directory
from hf_distill.teachers.ensemble.teacher import EnsembleTeacher
from hf_distill.teachers.pretrained import PretrainedTeacher

if TYPE_CHECKING:
    from hf_distill.students import Student
    from hf_distill.teachers.base import Teacher


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
            export=recipe.export if last else Export(),
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
        export=Export(),
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
