"""Opens a run: checks all that can be checked before weights are loaded, then claims the output directory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.component import settings
from hf_distill.data import apart, load_splits
from hf_distill.data.example_columns import EXAMPLE_ROLES, examples_in_words
from hf_distill.data.holdout import check_size
from hf_distill.data.transfer import TRANSFER
from hf_distill.data.transfer_rows import append_transfer, counting_from
from hf_distill.errors import UserError
from hf_distill.files.shared import check_shared
from hf_distill.mistakes import join
from hf_distill.models.pair import Pair
from hf_distill.objectives.guard import guarded
from hf_distill.recipe.plugins import outside_code
from hf_distill.recipe.writer import dump_recipe
from hf_distill.run import watch
from hf_distill.run.ancestry import eval_rows
from hf_distill.run.arrival import Arrival
from hf_distill.run.best_model import check_best_metric, check_saving
from hf_distill.run.checks import check_plan, check_push, remarks
from hf_distill.run.completion_checks import check_targets, completions_in_words
from hf_distill.run.console import Narrator
from hf_distill.run.data_options import check_sure_rows
from hf_distill.run.directory import RunDirectory, stored_recipe
from hf_distill.run.fit import Fitter
from hf_distill.run.group_checks import check_groups
from hf_distill.run.launch import check_launch, load_in_every_process, use_all_cores, use_cpu_if_needed, waiting
from hf_distill.run.pairing import open_pair
from hf_distill.run.parts import parts
from hf_distill.run.requirements import check_steps, check_trainings, output_directory, repeated_rows
from hf_distill.run.run import Run
from hf_distill.run.shape_latency import ShapeLatency
from hf_distill.run.student_cost import choose_student
from hf_distill.run.train_rows import chosen, with_new_rows
from hf_distill.run.training_defaults import resolve_bf16, training_defaults
from hf_distill.run.vocabulary import in_words, prepared_for, with_vocabulary
from hf_distill.tasks import Setup
from hf_distill.tasks.base import classes_of
from hf_distill.tasks.class_counts import ClassCounts
from hf_distill.tasks.text_prompts import check_own
from hf_distill.tasks.tokenising import remembering
from hf_distill.training.labelled import describe_labels, labels_of

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.models.target_model import TargetSource
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.tasks import Prepared
    from hf_distill.training_args import DistillationArguments

logger = logging.getLogger(__name__)


def open_run(
    recipe: Recipe,
    restart: bool,
    *,
    for_teacher: bool = False,
    claims: bool = True,
    read: Callable[[Mapping[str, Dataset]], Any] = len,
    whole: Recipe | None = None,
) -> Run:
    """Check everything that can be checked before weights are loaded, then claim the output directory.

    Args:
        recipe: The recipe.
        restart: Start over in a directory that holds another or a finished run.
        for_teacher: Only the teacher's targets are wanted: the directory is neither checked nor claimed, unless the
            teacher is trained there.
        claims: Whether the run may write. If not, the directory is neither checked nor claimed, no repository is
            created, and nothing is printed.
        read: Called with the raw splits.
        whole: The recipe that is stored in the directory: that of the chain of which this is the last run. Default:
            `recipe`.

    Raises:
        UserError: There is a mistake in the recipe, its data or the launch; nothing has been written.
    """
    threads = use_all_cores()
    check_saving(recipe)
    check_trainings(recipe)
    path = output_directory(recipe)
    held = None if restart else stored_recipe(path)
    training, precision = _settle(recipe, held)
    args = _arguments(recipe, training)
    # Again: some mistakes of a launch show only after the arguments have connected the processes.
    check_launch()
    watch.connect()
    loading = load_in_every_process()
    recipe, shape = _with_shape(recipe, held, args)
    directory = RunDirectory(
        path, dump_recipe(_with_precision((whole or recipe).with_student(recipe.student), training))
    )
    trains_here = None in recipe.teacher.output_directories
    with recipe.locate("training"):
        if claims and (not for_teacher or trains_here):
            directory.check(restart, for_teacher=for_teacher)
    narrator = Narrator(enabled=claims and parallel.is_first())
    outside = (f"runs code from outside: {one}" for one in outside_code(recipe))
    for line in filter(None, (threads, waiting(), loading, precision, shape, *outside)):
        narrator.say(line)
    check_push(recipe)
    hub = _claim_repository(recipe, directory.path) if claims and recipe.hub.push else {}
    targets = _claim_targets(recipe) if claims else ""
    pair = open_pair(recipe)
    check_plan(recipe, pair)
    if not for_teacher:
        check_targets(recipe)
    for line in remarks(recipe, pair):
        narrator.say(line)
    with parallel.first_process_first():
        splits = load(recipe, pair, narrator.say)
        with remembering({}):  # a vocabulary is chosen by the tokenised data, and then the data is prepared
            pair = settle_vocabulary(recipe, pair, splits)
            prepared, stored = prepare(recipe, pair, splits)
    for line in in_words(recipe, pair):
        narrator.say(line)
    read(splits)
    written = recipe.completions.by != "data"  # the lines about completions say which rows have one
    if not written and (labels := describe_labels(prepared, recipe.teacher.answers)) is not None:
        narrator.say(labels)
    for line in completions_in_words(recipe, prepared):
        narrator.say(line)
    lines, odd = check_prepared(recipe, prepared)
    check_best_metric(recipe, prepared)
    for line in lines:
        narrator.say(line)
    for line in odd if parallel.is_first() else ():
        logger.warning(line)
    check_steps(recipe, len(prepared.train), labels_of(prepared)["train_rows_with_label"], parallel.processes())
    for line in filter(None, [repeated_rows(recipe, len(prepared.train), parallel.processes())]):
        narrator.say(line)
    with recipe.locate("training"):
        if claims and not for_teacher:
            check_shared(directory.path, "output_dir")
            parallel.asked_once(lambda: directory.claim(restart))
        elif claims and trains_here:
            check_shared(directory.path, "output_dir")
            parallel.asked_once(directory.claim_teachers)
    arrival = Arrival()
    fitter = Fitter(prepared, pair.tokenizer, pair.teacher_tokenizer, settings(recipe.task), arrival.at)
    run = Run(
        recipe,
        training,
        directory,
        pair,
        prepared,
        fitter,
        narrator,
        hub,
        args,
        targets_repository=targets,
        stored=stored and (replace(fitter, prepared=stored[0]), stored[1]),
        eval_rows=eval_rows(recipe.task, splits),
        arrival=arrival,
    )
    arrival.parts = parts(run)
    return run


def load(recipe: Recipe, pair: Pair, say: Callable[[str], None]) -> dict[str, Dataset]:
    """Return the raw splits of a run, `train`, `eval` and maybe `transfer`, with columns named by role.

    They are read first. What else `data` asks for changes `train` and `transfer` here, in this order: choose rows, add
    rows. `prepare` appends the transfer rows to `train` at the end.

    Raises:
        UserError: The data cannot be read or changed so; the message has the place in the recipe.
    """
    with recipe.locate("data"):
        splits = load_splits(recipe.data, recipe.task.roles, recipe.teacher.reads, label=recipe.task.label_role)
    with locating_data(recipe):
        if recipe.data.select is not None:
            splits = chosen(recipe.task, recipe.data.select, splits, setup_of(recipe, pair), say)
        if recipe.data.augment is not None:
            splits = with_new_rows(recipe.task, recipe.data.augment, splits, say)
    return splits


def prepare(
    recipe: Recipe, pair: Pair, splits: Mapping[str, Dataset]
) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
    """Return what the task makes of the splits; transfer rows are the last of its train split.

    Returns:
        The prepared data. If the teacher is given as data, also the same data with its targets in every batch, and
        their source; else None.

    Raises:
        UserError: The data does not fit the task or the teacher; the message has the place in the recipe.
    """
    return prepared_for(pair, lambda one: _prepare(recipe, one, splits))


def settle_vocabulary(recipe: Recipe, pair: Pair, splits: Mapping[str, Dataset]) -> Pair:
    """Return the pair with the student's part of the vocabulary, which depends on the data."""
    return with_vocabulary(recipe, pair, splits, lambda one: _prepare(recipe, one, splits))


def _prepare(
    recipe: Recipe, pair: Pair, splits: Mapping[str, Dataset]
) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
    own_rows, transfer_rows = len(splits["train"]), len(splits.get(TRANSFER, ()))
    splits, beside = complete(recipe, splits)
    setup = replace(setup_of(recipe, pair), transfer_rows=transfer_rows)
    with locating_data(recipe), guarded(recipe.task, "task"), counting_from(own_rows):
        found = recipe.teacher.prepare(recipe.task, splits, beside, setup, pair)
    _check_held(recipe, splits, found[0])
    if transfer_rows and not found[0].transfer_rows:  # a task from outside
        raise recipe.mistake(
            "data.transfer",
            f"{recipe.task.name} does not say which rows they became. Set Prepared.transfer_rows in it.",
        )
    return found


def _check_held(recipe: Recipe, splits: Mapping[str, Dataset], prepared: Prepared) -> None:
    """Refuse a task from outside that drops groups or weights.

    Raises:
        UserError: It does.
    """
    for role, name in EXAMPLE_ROLES.items():
        if name in splits["train"].column_names and name not in prepared.train.column_names:
            raise recipe.mistake(
                f"data.columns.{role}",
                f"{recipe.task.name} does not keep the {role} of an example. Tokenise in it with "
                f"hf_distill.tasks.tokenising.tokenise, which does, or keep the column '{name}' in Prepared.",
            )


def complete(recipe: Recipe, splits: Mapping[str, Dataset]) -> tuple[dict[str, Dataset], dict[str, Dataset]]:
    """Return `train`, with the transfer rows at its end, and `eval`; and the further columns of the same rows.

    Raises:
        UserError: The transfer rows do not fit those of train.
    """
    with recipe.locate("data"):
        return apart(append_transfer(splits, recipe.task.label_role))


@contextmanager
def locating_data(recipe: Recipe) -> Iterator[None]:
    """Context manager: add the recipe's file, line and section to a mistake that a task finds in its data."""
    try:
        yield
    except UserError as error:
        # A mistake that is not about the data has a key with its own section.
        own = error.key.partition(".")[0] in ("task", "teacher", "student", "completions")
        with recipe.locate("" if own else "evaluation" if hasattr(recipe.evaluation, error.key) else "data"):
            raise


def setup_of(recipe: Recipe, pair: Pair) -> Setup:
    """Return the models, tokenizers and settings for which the task prepares the data."""
    several = recipe.data.columns.get(recipe.task.label_role)
    return Setup(
        tokenizer=pair.tokenizer,
        teacher_tokenizer=pair.teacher_tokenizer,
        teacher=pair.teacher_head,
        student=pair.student_head,
        configs=(pair.teacher, pair.student),
        max_length=pair.max_length,
        label_names=recipe.data.labels or (several if isinstance(several, list) else None),
        label_separator=recipe.data.label_separator,
        metrics=recipe.evaluation.metrics,
        left_out=pair.left_out,
        completions=recipe.completions,
        evaluation=recipe.evaluation,
    )


def _settle(recipe: Recipe, held: Mapping[str, Any] | None) -> tuple[dict[str, Any], str | None]:
    """Return all training arguments, with device and precision chosen, and a line about the precision.

    A resumed run uses the precision with which it began: with another one it would not end with the same weights.

    Args:
        recipe: The recipe.
        held: The recipe stored in the output directory, if there is a run to resume.
    """
    training = use_cpu_if_needed({**training_defaults(recipe), **recipe.training})
    section = (held or {}).get("training")
    begun = section.get("bf16") if isinstance(section, dict) else None
    if training.get("bf16") == "auto" and isinstance(begun, bool):
        return {**training, "bf16": begun}, f"bf16: {'on' if begun else 'off'} (as this run began)"
    return resolve_bf16(training)


def _with_precision(recipe: Recipe, training: Mapping[str, Any]) -> Recipe:
    """Return the recipe with `bf16: auto` replaced by what was chosen."""
    if recipe.training.get("bf16") != "auto":
        return recipe
    return replace(recipe, training={**recipe.training, "bf16": training["bf16"]})


def _with_shape(
    recipe: Recipe, held: Mapping[str, Any] | None, args: DistillationArguments
) -> tuple[Recipe, str | None]:
    """Return the recipe with the shape of a student that is asked for by its cost, and a line about it.

    The first process chooses, and measures if the cost is a time; the others take its choice.
    """
    if recipe.student.cost is None:
        return recipe, None

    def timing(one: Recipe) -> ShapeLatency:
        pair = open_pair(one)
        check_plan(one, pair)
        with one.locate("data"):
            splits = load_splits(one.data, one.task.roles, one.teacher.reads, label=one.task.label_role)
        return ShapeLatency(one, pair.teacher, prepare(one, pair, splits)[0], args.device, args.eval_batch_size)

    student, line = parallel.asked_once(lambda: choose_student(recipe, held, timing))
    return replace(recipe, student=student), line


def _arguments(recipe: Recipe, training: Mapping[str, Any]) -> DistillationArguments:
    """Build the training arguments once; this checks them against the machine, and connects the processes."""
    from hf_distill.training_args import DistillationArguments, check_devices

    try:
        # Copied, since Transformers writes defaults into the mappings that are passed.
        args = DistillationArguments(**deepcopy(dict(training)))
        check_devices(args)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise recipe.mistake("training", " ".join(str(error).split())) from error
    return args


def _claim_repository(recipe: Recipe, directory: Path) -> dict[str, Any]:
    from hf_distill.run.hub import check_rights

    with recipe.locate("hub"):
        repository = check_rights(recipe.hub.repo_id, recipe.hub.private, str(directory))
    return {"push_to_hub": True, "hub_model_id": repository, "hub_private_repo": recipe.hub.private}


def _claim_targets(recipe: Recipe) -> str:
    """Create the repository for a teacher's stored targets if they will be published; return its id, else ""."""
    if recipe.teacher.published is None:
        return ""
    from hf_distill.run.hub import check_rights

    with recipe.locate("teacher"):
        return check_rights(*recipe.teacher.published, "", repo_type="dataset")


def check_one_class(recipe: Recipe, counts: ClassCounts) -> None:
    """Refuse a train split with labels of one class only, if anything learns from labels.

    Raises:
        UserError: All labels are of one class, and an objective, a teacher or the baseline learns from them.
    """
    learned = bool(recipe.teacher.fine_tuning) or recipe.report.baseline
    learned = learned or any(objective.unit == "label" for stage in recipe.plan for objective in stage.objectives)
    if counts.single is not None and learned:
        raise recipe.mistake("data.splits.train", counts.one_class())


def check_prepared(recipe: Recipe, prepared: Prepared) -> tuple[list[str], list[str]]:
    """Check what only the data shows: whether objectives and classes fit it.

    Returns:
        Lines that say how often each class and each group occurs, and of which rows the teacher must be sure; and
        remarks about classes that are rare or missing, and on what the report cannot say of groups.

    Raises:
        UserError: They do not fit, or labels are learned and all of the train split are of one class.
    """
    _check_objectives(recipe, prepared)
    _check_held_out(recipe, prepared)
    sure = check_sure_rows(recipe, prepared)
    lines = [*examples_in_words({"train": prepared.train, "eval": prepared.eval}), *([sure] if sure else [])]
    with recipe.locate("data"):
        odd = check_groups(prepared)
    counts = classes_of(prepared)
    if counts is None:
        return lines, odd
    check_one_class(recipe, counts)
    return [*(f"classes of {line}" for line in counts.in_words()), *lines], [*counts.remarks(), *odd]


def _check_held_out(recipe: Recipe, prepared: Prepared) -> None:
    """Refuse to hold out all labelled rows for the early stopping of a teacher."""
    for path, how in recipe.teacher.fine_tuning.items():
        if how.early_stopping is not None:
            try:
                check_size(how.early_stopping.share, labels_of(prepared)["train_rows_with_label"])
            except UserError as error:
                place = join("teacher", path.removesuffix("training") + "early_stopping.share")
                raise recipe.mistake(place, str(error)) from error


def _check_objectives(recipe: Recipe, prepared: Prepared) -> None:
    pseudo = recipe.data.pseudo_labels
    written = (pseudo is not None and not pseudo.soft) or recipe.completions.by == "teacher"
    for index, stage in enumerate(recipe.plan):
        with recipe.locate(recipe.stage_path(index)):
            known = replace(prepared, labelled=prepared.labelled or written)
            completions = recipe.completions_in(stage)
            if recipe.completions.in_training and completions.by == "data":
                check_own(prepared.train)
            recipe.task.check(stage.objectives, known, completions)
    if recipe.teacher.fine_tuning and not prepared.labelled:
        raise recipe.mistake(
            "teacher", "the train split has no labels to fine-tune the teacher on. Name a fine-tuned model."
        )
    if recipe.report.baseline and not prepared.labelled:
        raise recipe.mistake(
            "report.baseline", "a baseline learns from labels, but the train split has none. Set it to false."
        )
