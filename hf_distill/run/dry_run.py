"""`--check`: opens what is local (configurations, tokenizers, the first rows) and says what a run would do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.component import entry, settings
from hf_distill.data.example_columns import EXAMPLE_ROLES, examples_in_words
from hf_distill.data.loading import PEEK, Sample, apart, peek
from hf_distill.data.transfer import TRANSFER
from hf_distill.errors import UserError
from hf_distill.formatting import count, counted, readable_lines
from hf_distill.locations import resolve, sibling
from hf_distill.metrics.evaluate_library import is_here
from hf_distill.metrics.table import AGREEMENT
from hf_distill.mistakes import join
from hf_distill.models.adapters import find_adapter
from hf_distill.models.loading import names_code
from hf_distill.models.outline import outline
from hf_distill.models.pair import Pair
from hf_distill.models.parts import Parts
from hf_distill.models.tokenizers import tokenizer_name
from hf_distill.objectives.features import FeatureObjective
from hf_distill.objectives.hidden import Hidden, Hint, Patient
from hf_distill.outside import may_run
from hf_distill.recipe.plugins import outside_code
from hf_distill.recipe.writer import describe_entry
from hf_distill.run.best_model import check_best_metric, check_saving
from hf_distill.run.chain import ChainRun, trainings
from hf_distill.run.checks import check_plan, cut_off, frozen_of, remarks, student_in_words
from hf_distill.run.completion_checks import check_targets, completions_in_words
from hf_distill.run.directory import stored_recipe
from hf_distill.run.launch import check_launch
from hf_distill.run.pairing import open_pair, open_student, open_teacher
from hf_distill.run.planned_chain import check_sizes, planned, sizes
from hf_distill.run.preparation import (
    check_prepared,
    complete,
    locating_data,
    prepare,
    settle_vocabulary,
    setup_of,
)
from hf_distill.run.requirements import check_steps, check_trainings, output_directory
from hf_distill.run.student_cost import choose_student
from hf_distill.run.train_rows import look_at
from hf_distill.run.vocabulary import in_words, needs_rows
from hf_distill.tasks.tokenising import remembering
from hf_distill.teachers.base import described
from hf_distill.training.labelled import describe_labels, labels_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.models.loading import Head
    from hf_distill.objectives import Objective
    from hf_distill.recipe.recipe import Recipe, Stage


# After sizes of a student whose part of the vocabulary is not known yet.
UNCUT = "; before its vocabulary is cut"


@dataclass
class _Findings:
    """What `--check` has found: lines of the plan, mistakes, notes, what was not checked.

    If the models could be opened, also these, the head, and the recipe with the shape that was chosen for the student;
    if all data could be read, also the names of the metrics.
    """

    plan: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    pair: Pair | None = None
    recipe: Recipe | None = None
    head: Head | None = None
    metrics: Sequence[str] = ()

    def settle(self, before: Sequence[str], after: Sequence[str]) -> None:
        """Put lines of the plan in the place of others, which follow each other."""
        start = self.plan.index(before[0])
        self.plan[start : start + len(before)] = after


def check(recipe: Recipe, *, claims: bool = True, metric: str = "") -> str:
    """Check a recipe with all that is on this machine, without loading weights, training or writing.

    Models and data on the Hub are not downloaded: they are listed as not checked.

    Args:
        recipe: The recipe.
        claims: Whether what is checked writes into the output directory.
        metric: A metric that the report must have; empty for none. Checked where all data is on this machine.

    Returns:
        What a run would do, line by line.

    Raises:
        UserError: There are mistakes; one line for each.
    """
    check_launch()
    runs = trainings(recipe)
    if len(runs) > 1:
        lines = _check_each(recipe)
    else:
        found = _look(runs[0], claims=claims)
        if metric and found.metrics and metric not in (*found.metrics, AGREEMENT):
            known = ", ".join((*found.metrics, AGREEMENT))
            raise UserError(f"{metric}: models are evaluated by {known}. Add it to evaluation.metrics.")
        found.notes += _larger(found)
        lines = _lines(runs[0].recipe, found)
    return readable_lines("\n".join(" ".join(line.split("\n")) for line in lines))


def _check_each(recipe: Recipe) -> list[str]:
    """Check every run of a chain; return the lines of the first one, and what is different in the others."""
    lines: list[str] = []
    parameters: list[tuple[int | None, int]] = []
    head: Head | None = None
    with planned(recipe) as chain:
        for run in chain.runs:
            # What a student predicts, and with it how it reads the data as a teacher, is known from the run before.
            found = _look(run, data=not parameters or head is not None)
            known = [chain.text(line) for line in _lines(run.recipe, found)]
            lines += [f"{run.title}: {run.recipe.training['output_dir']}", *(one for one in known if one not in lines)]
            if found.pair is None:
                return [*lines, "not checked the other students: the teacher of each is the one before"]
            if not run.direct:
                parameters.append(sizes(run.recipe, found.pair))
            head = found.head
            chain.describe(run, found.pair, head)
        first, students = parameters[0][0], [one for _, one in parameters]
        return [*lines, *(f"note        {line}" for line in check_sizes(recipe, first, students))]


def _look(run: ChainRun, *, data: bool = True, claims: bool = True) -> _Findings:
    """Return what there is to say about one run.

    Args:
        run: The run.
        data: Whether its data is checked too.
        claims: Whether its directory is checked too.

    Raises:
        UserError: There are mistakes; one line for each.
    """
    recipe, found = run.recipe, _Findings()
    for step in (_check_pair, _check_training, *([_check_data] if data else [])):
        try:
            step(recipe, found)
        except UserError as error:
            found.mistakes += [line for line in error.mistakes if line not in found.mistakes]
    shaped = run.with_student((found.recipe or recipe).student)
    try:
        # Without the student's shape it is not known whether a run that is there is of this recipe.
        if claims:
            check_targets(run.recipe)
            shaped.check_place(restart=shaped.recipe.student.cost is not None)
    except UserError as error:
        found.mistakes += error.mistakes
    if found.mistakes:
        raise UserError(*found.mistakes)
    return found


def _lines(recipe: Recipe, found: _Findings) -> list[str]:
    """Return what a run would do, line by line."""
    plan = [
        *found.plan,
        *_stages(recipe, found.pair),
        f"training    {describe_entry(recipe.training)}",
        f"report      {_report(recipe)}",
    ]
    if recipe.export.formats:
        plan.append(f"export      {describe_entry(settings(recipe.export))}")
    if recipe.hub.push:
        plan.append(f"hub         push to {recipe.hub.repo_id or Path(recipe.training['output_dir']).name}")
    plan += [f"code        {line}" for line in outside_code(recipe)]
    plan += [f"note        {line}" for line in (*remarks(recipe, found.pair), *cut_off(recipe), *found.notes)]
    unread = [f"{path}: its code runs in a run, and not in --check" for path, _ in recipe.unread]
    return [*plan, *(f"not checked {line}" for line in (*unread, *found.unchecked))]


def is_local(source: str | None) -> bool:
    """Return whether a model named in a recipe can be opened without the Hub.

    Raises:
        UserError: It is meant as a local path, which does not exist.
    """
    if (adapter := find_adapter(source)) is not None:
        return is_local(adapter.base)
    if source is None or os.path.exists(resolve(source)):
        return True
    folder = os.path.dirname(source)
    if folder and any(Path(folder).glob("*/config.json")) and not _is_cached(source):
        raise UserError(
            f"no such directory: '{source}' (looked from {Path.cwd()}), although there are other models in '{folder}'."
            f"{sibling(source)}",
            key="model",
        )
    return False


def _is_cached(model: str) -> bool:
    """Return whether a model was downloaded from the Hub before, although a local folder has the name of its owner."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "config.json"), str)


def _check_pair(recipe: Recipe, found: _Findings) -> None:
    local = {"teacher": True, "student": True}
    mistakes: list[str] = []
    sources = [("teacher", path, one.source, one.trusts_code) for path, one in recipe.teacher.members()]
    trusted = bool(getattr(recipe.student, "trust_remote_code", False))
    sources.append(("student", "", recipe.student.source, trusted))
    for side, path, source, trusts in sources:
        here, runs_code = True, False
        try:
            with recipe.locate(join(side, path)):
                here = is_local(source)
                runs_code = here and trusts and not may_run() and names_code(source)
        except UserError as error:
            mistakes += error.mistakes
        local[side] &= here and not runs_code
        if runs_code:
            found.unchecked.append(f"{side} {source}: its own Python code runs in a run, and not in --check")
        elif not here:
            adapter = find_adapter(source)
            of = f"{side} {source}" if adapter is None else f"{side} {source}, an adapter for {adapter.base}"
            hint = sibling(adapter.base if adapter else str(source), having="config.json")
            found.unchecked.append(
                f"{of}: no such directory, so taken as a Hub id; --check downloads nothing{'.' if hint else ''}{hint}"
            )
    if mistakes:
        raise UserError(*mistakes)
    if not all(local.values()):
        check_plan(recipe, None)
        teacher = open_teacher(recipe) if local["teacher"] and not recipe.teacher.is_without_model else None
        student = open_student(recipe) if local["student"] and recipe.student.source else None
        if student:
            frozen_of(recipe, student)
            student_in_words(recipe, student)
        sizes = {
            "teacher": recipe.teacher.in_words(teacher, lambda config: _size(recipe, config)) if teacher else "",
            "student": _size(recipe, student) if student else "",
        }
        for side, size in sizes.items():
            line = f"{side:<11} {describe_entry(entry(getattr(recipe, side)))}"
            found.plan.append(": ".join(filter(None, (line, size))))
        if recipe.student.cost is not None:
            found.unchecked.append(f"student: which shape meets {recipe.student.cost}; that needs the configurations")
        return
    recipe = found.recipe = _with_shape(recipe, found)
    pair = open_pair(recipe)
    check_plan(recipe, pair)
    found.pair = pair
    every = [objective for stage in recipe.plan for objective in stage.objectives]
    found.plan += [
        f"task        {recipe.task.name}",
        f"teacher     {describe_entry(entry(recipe.teacher))}: "
        f"{recipe.teacher.in_words(pair.teacher, lambda config: _size(recipe, config))}",
        *_student(recipe, pair, UNCUT if needs_rows(recipe, pair) else ""),
        *([f"cache       {cached}"] if (cached := recipe.teacher.cached_in_words(recipe.task, every, pair)) else []),
        f"tokenizer   {_tokenizer(pair)}",
    ]


def _student(recipe: Recipe, pair: Pair, note: str = "") -> list[str]:
    """Return the lines about the student, with the sizes of both models.

    Args:
        recipe: The recipe.
        pair: Teacher and student.
        note: Added to the sizes of the student.
    """
    return [
        f"student     {describe_entry(entry(recipe.student))}: {_size(recipe, pair.student)}{note}",
        *(f"student     {line}" for line in student_in_words(recipe, pair.student)),
        *_parameters(recipe, pair, note),
    ]


def _check_data(recipe: Recipe, found: _Findings) -> None:
    """Read the data as the run will: all of small data, the first rows of large data."""
    with recipe.locate("data"):
        sample = peek(recipe.data, recipe.task.roles, recipe.teacher.reads, label=recipe.task.label_role)
    if sample is None:
        found.unchecked.append("data: it is on the Hub, and --check downloads nothing")
        return
    for split, rows in apart(sample.splits)[0].items():
        whole, wanted = sample.whole, recipe.data.splits.get(split)
        if split == TRANSFER and recipe.data.transfer is not None:
            whole, wanted = sample.whole_transfer, recipe.data.transfer.split
        size = f"{len(rows):,} rows, the first" if whole else "the first row"
        found.plan.append(f"{split:<11} {wanted}, {size}: {describe_entry(_by_role(rows[0]))}")
    if not sample.whole:
        found.unchecked.append(f"data: all rows after the first {PEEK:,}")
    if not sample.whole_transfer:
        some = f"all rows after the first {PEEK:,}" if TRANSFER in sample.splits else "it is on the Hub"
        found.unchecked.append(f"data.transfer: {some}")
    if (augment := recipe.data.augment) is not None:
        found.plan.append(f"augment     {describe_entry(entry(augment))}: {augment.in_words()}")
        with recipe.locate("data.augment"):
            found.unchecked += [f"data.augment: {on_hub}"] if (on_hub := augment.check()) else []
    if found.pair is not None:
        _check_rows(recipe, found, found.pair, sample)


def _check_rows(recipe: Recipe, found: _Findings, pair: Pair, sample: Sample) -> None:
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        # Otherwise not: a part of the data may lack classes, and a metric on the Hub would be downloaded.
        if sample.whole and all(map(is_here, recipe.evaluation.metrics)):
            with locating_data(recipe):
                splits, chosen = look_at(recipe.task, recipe.data, sample, setup_of(recipe, pair))
            found.plan += chosen
            with remembering({}):
                before, pair = pair, settle_vocabulary(recipe, pair, splits)
                prepared, _ = prepare(recipe, pair, splits)
            found.pair = pair
            if any(line.endswith(UNCUT) for line in found.plan):
                found.settle(_student(recipe, before, UNCUT), _student(recipe, pair))
                found.settle([f"tokenizer   {_tokenizer(before)}"], [f"tokenizer   {_tokenizer(pair)}"])
            found.plan += [line.replace("vocabulary: ", "vocabulary  ", 1) for line in in_words(recipe, pair)]
            found.head, found.metrics = prepared.head, prepared.evaluator.names
            written = recipe.completions.by != "data"  # the lines about completions say which rows have one
            if not written and (labels := describe_labels(prepared, recipe.teacher.answers)) is not None:
                found.plan.append(labels.replace("labels: ", "labels      ", 1))
            found.plan += [
                line.replace("completions: ", "completions ", 1) for line in completions_in_words(recipe, prepared)
            ]
            found.plan += prepared.shown if prepared.for_teacher is None else prepared.for_teacher.shown
            lines, odd = check_prepared(recipe, prepared)
            if not found.mistakes:  # else the training arguments may be wrong
                check_best_metric(recipe, prepared)
            labelled = labels_of(prepared)["train_rows_with_label"]
            check_steps(recipe, len(prepared.train), labelled, parallel.started())
            found.plan += [
                line.replace("pseudo-labels: ", "pseudo      ", 1) if line.startswith("pseudo") else _column(line)
                for line in lines
            ]
            found.notes += odd
        else:
            found.unchecked += ["data.select: it needs all rows"] if recipe.data.select is not None else []
            found.unchecked += ["student: which tokens stay needs all rows"] if needs_rows(recipe, pair) else []
            splits, beside = complete(recipe, sample.splits)
            with locating_data(recipe):
                counts = recipe.task.look(splits, setup_of(recipe, pair))
            with recipe.locate("teacher"):
                recipe.teacher.look(recipe.task, splits, beside, pair)
            some = "" if sample.whole else f" (in its first {PEEK:,} rows)"
            found.plan += [f"{_column(line)}{some}" for line in examples_in_words(splits)]
            if counts is not None:
                found.plan += [f"classes     {line}{some}" for line in counts.in_words()]
                found.notes += [f"{counts.one_class()}{some}"] if counts.single is not None else []
    finally:
        if not quiet:
            enable_progress_bars()


def _by_role(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with group and weight as the recipe calls them."""
    roles = {name: role for role, name in EXAMPLE_ROLES.items()}
    return {roles.get(name, name): value for name, value in row.items()}


def _column(line: str) -> str:
    """Return `classes of train: ...` as a line of the plan: `classes     train: ...`."""
    what, _, rest = line.partition(" of ")
    return f"{what:<11} {rest}"


def _check_training(recipe: Recipe, found: _Findings) -> None:
    check_saving(recipe)
    check_trainings(recipe)


def _size(recipe: Recipe, config: PretrainedConfig) -> str:
    """Return layers, width and number of parameters of a configuration's model, without making its weights."""
    model = outline(recipe.task.auto_class, config, trust_remote_code=recipe.trusts_code)
    text = config.get_text_config()
    layers = text.num_hidden_layers
    return (
        f"{config.model_type}, {counted(layers, 'layer')} of {text.hidden_size}, "
        f"{count(model.num_parameters())} parameters"
    )


def _with_shape(recipe: Recipe, found: _Findings) -> Recipe:
    """Return the recipe with the shape of a student that is asked for by its cost; nothing is measured."""
    if recipe.student.cost is None:
        return recipe
    student, line = choose_student(recipe, stored_recipe(output_directory(recipe)), None)
    found.plan.append(line.replace("student: ", "cost        ", 1))
    return replace(recipe, student=student)


def _parameters(recipe: Recipe, pair: Pair, note: str) -> Iterator[str]:
    """Yield where the parameters of teacher and student are, and what their files weigh; the student's with a note."""

    def parts(config: PretrainedConfig) -> Parts:
        return Parts.of(outline(recipe.task.auto_class, config, trust_remote_code=recipe.trusts_code))

    student = parts(pair.student)
    teachers = [parts(config) for config in described(recipe.teacher, pair.teacher)]
    for number, teacher in enumerate(teachers, 1):
        which = f" {number}" if len(teachers) > 1 else ""
        yield f"parameters  teacher{which}: {teacher.in_words()}"
    line = f"parameters  student: {student.in_words()}"
    if len(teachers) == 1:
        line += f"; {student.against(teachers[0])}"
    yield line + note


def _larger(found: _Findings) -> list[str]:
    """Return the note that a student is larger than its teacher, if it is and both sizes are known."""
    if found.pair is None or found.recipe is None or any(line.endswith(UNCUT) for line in found.plan):
        return []
    teacher, student = sizes(found.recipe, found.pair)
    if teacher is None or student <= teacher or len(described(found.recipe.teacher, found.pair.teacher)) != 1:
        return []
    return [
        f"the student ({count(student)} parameters) is larger than its teacher ({count(teacher)}): this run will not "
        "make anything smaller"
    ]


def _tokenizer(pair: Pair) -> str:
    length = "no limit" if pair.max_length is None else f"at most {pair.max_length} tokens"

    def words(tokenizer: PreTrainedTokenizerBase) -> str:
        return f"{tokenizer_name(tokenizer)}, {len(tokenizer)} tokens"

    if pair.members:
        teachers = ", ".join(words(both.teacher_tokenizer or pair.tokenizer) for both in pair.members)
        return f"student {words(pair.tokenizer)}; teachers {teachers}; inputs of {length}"
    if pair.teacher_tokenizer is None:
        return f"{words(pair.tokenizer)}; inputs of {length}"
    return f"student {words(pair.tokenizer)}; teacher {words(pair.teacher_tokenizer)}; inputs of {length}"


def _report(recipe: Recipe) -> str:
    seeds = counted(recipe.report.seeds, "seed")
    return f"{'with' if recipe.report.baseline else 'without'} baseline, {seeds}"


def _stages(recipe: Recipe, pair: Pair | None) -> Iterator[str]:
    for number, stage in enumerate(recipe.plan, 1):
        if recipe.stages:
            own = "" if stage.completions is None else f"; completions: {_written(recipe, stage)}"
            yield f"stage {number:<5} {describe_entry(stage.training) or 'as in training'}{own}"
        for objective in stage.objectives:
            yield f"objective   {describe_entry(entry(objective))}{_layers(objective, pair) if pair else ''}"


def _written(recipe: Recipe, stage: Stage) -> str:
    """Return who writes in a stage with completions of its own, and what else differs: `by student, share 0.5`."""
    own, shared = recipe.completions_in(stage), recipe.completions
    others = [name for name in {**settings(shared), **settings(own)} if name not in ("by", "backend")]
    differ = {} if own.by == "data" else {name: getattr(own, name) for name in others}
    return describe_entry({"by": own.by, **{k: v for k, v in differ.items() if v != getattr(shared, k)}})


def _layers(objective: Objective, pair: Pair) -> str:
    """Return `: layers [[1, 2], [2, 4]]`, pairs of student and teacher, for an objective that compares layers."""
    if not isinstance(objective, FeatureObjective):
        return ""
    if objective.layers == "similarity":
        return ": layers are paired by their similarity, measured before training"
    student, teacher = objective.stacks(pair.student, pair.teacher)
    widths = ""
    if isinstance(objective, Hidden | Patient | Hint) and student.width != teacher.width:
        widths = f", through learned projections from {student.width} to {teacher.width}"
    return f": layers {[list(both) for both in objective.pairs(student, teacher)]}{widths}"
