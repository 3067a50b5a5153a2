"""Checks, before weights are loaded, that the objectives of each stage can compare teacher and student."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.formatting import count
from hf_distill.mistakes import join
from hf_distill.objectives.fit import check_fit
from hf_distill.objectives.presets import PRESETS
from hf_distill.run.completion_checks import check_completions
from hf_distill.run.data_options import check_data_options
from hf_distill.run.export_checks import check_exports
from hf_distill.run.harness import check_installed
from hf_distill.run.private_rows import check_private
from hf_distill.run.text_ends import ends_in_words
from hf_distill.run.training_defaults import sampling_remark, within_batch
from hf_distill.training.argument_checks import check_with_arguments

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.completions.section import Completions
    from hf_distill.models.outline import HeadKind
    from hf_distill.models.pair import Pair
    from hf_distill.objectives import Objective
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.students.freezing import Frozen


def objectives_of(recipe: Recipe) -> Iterator[tuple[str, Objective]]:
    """Return an iterator over key path and objective of all stages: `("stages[0].objectives[1]", ...)`."""
    return ((path, objective) for path, objective, _, _ in _settings_of(recipe))


def _settings_of(recipe: Recipe) -> Iterator[tuple[str, Objective, dict[str, Any], Completions]]:
    """Yield key path, objective, training arguments and who writes, for each objective of each stage."""
    for index, stage in enumerate(recipe.plan):
        for number, objective in enumerate(stage.objectives):
            path = join(join(recipe.stage_path(index), "objectives"), number)
            yield path, objective, {**recipe.training, **stage.training}, recipe.completions_in(stage)


def check_plan(recipe: Recipe, pair: Pair | None) -> None:
    """Refuse objectives that cannot compare these two models.

    Args:
        recipe: The recipe.
        pair: Its models; None where they cannot be looked at, and all that is asked is whether the task fits.

    Raises:
        UserError: A line for each mistake.
    """
    _check_shape(recipe)
    check_push(recipe)
    _check_lengths(recipe)
    _check_metrics(recipe)
    _check_writing(recipe)
    _check_harness(recipe)
    check_exports(recipe, None if pair is None else pair.student)
    if recipe.teacher.is_quantized:
        _check_as_loaded(recipe, "quantized")
    if recipe.teacher.is_offloaded:
        _check_as_loaded(recipe, "offloaded")
    if recipe.teacher.keeps_private:
        check_private(recipe)
    check_data_options(recipe)
    with recipe.locate("completions"):
        check_completions(recipe)
    mistakes: list[str] = []
    if pair is not None:
        frozen_of(recipe, pair.student)
        student_in_words(recipe, pair.student)
    every = [objective for _, objective in objectives_of(recipe)]
    asked = pair
    try:
        with recipe.locate("teacher"):
            recipe.teacher.check_task(recipe.task)
            if pair is not None:
                recipe.teacher.check_pair(recipe.task, every, pair)
    except UserError as error:
        mistakes += error.mistakes
        asked = None  # told once, not again for every objective
    gives = recipe.teacher.gives(recipe.task, every, asked)
    gives = replace(gives, own_tokens=gives.own_tokens or (pair is not None and pair.own_tokens))
    if recipe.task.aligns_tokens and pair is not None and pair.own_tokens:
        gives = gives.by_texts()
        for key in ("own_samples", "speculative"):
            if getattr(recipe.evaluation, key):
                mistakes.append(
                    str(recipe.mistake(f"evaluation.{key}", "teacher and student have different tokens. Leave it out."))
                )
    configs = None if pair is None else (pair.student, pair.teacher)
    for path, objective, training, completions in _settings_of(recipe):
        try:
            with recipe.locate(path):
                check_fit(objective, gives, replace(recipe.task.facts(), **completions.facts()), configs)
                check_with_arguments(objective.needs(), training)
        except UserError as error:
            mistakes += error.mistakes
    if mistakes:
        raise UserError(*mistakes)


def frozen_of(recipe: Recipe, student: PretrainedConfig) -> Frozen | None:
    """Return what of the student is not trained; None where all of it is.

    Args:
        recipe: The recipe.
        student: Its student's configuration.

    Raises:
        UserError: A part that is to be frozen is not there, or nothing is left to train.
    """
    if not recipe.student.freeze:
        return None
    from hf_distill.models.outline import outline
    from hf_distill.students.freezing import find_frozen

    with recipe.locate("student"):
        model = outline(recipe.task.auto_class, student, trust_remote_code=recipe.trusts_code)
        return find_frozen(model, recipe.student.freeze)


def student_in_words(recipe: Recipe, student: PretrainedConfig) -> Sequence[str]:
    """Return what the entry of the student says about what becomes of it.

    Args:
        recipe: The recipe.
        student: Its student's configuration.

    Raises:
        UserError: A setting of the entry does not fit the model.
    """
    from hf_distill.models.outline import outline

    with recipe.locate("student"):
        model = outline(recipe.task.auto_class, student, trust_remote_code=recipe.trusts_code)
        return recipe.student.described(model, followed=recipe.teacher.follows_student)


def _merged(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each model that is an adapter merged into its base model."""
    from hf_distill.models.adapters import find_adapter

    teachers = [("teacher", one.source) for _, one in recipe.teacher.members()]
    for side, source in (*teachers, ("student", recipe.student.vocabulary)):
        if (adapter := find_adapter(source)) is not None:
            whole = "; trained and saved whole" if side == "student" else ""
            yield f"{side}: {adapter.describe_merge()}{whole}"


def _not_trained(recipe: Recipe, pair: Pair) -> Iterator[str]:
    frozen = frozen_of(recipe, pair.student)
    if frozen is None:
        return
    shared = f"; {', '.join(frozen.shared[:3])} too, the same tensor as one of them" if frozen.shared else ""
    yield (
        f"freeze: {count(frozen.trained)} of {count(frozen.total)} parameters of the student are trained; not trained: "
        f"{', '.join(recipe.student.freeze)}{shared}"
    )


def remarks(recipe: Recipe, pair: Pair | None) -> list[str]:
    """Return lines about the loss and the batches of a run that its user should know.

    Args:
        recipe: The recipe.
        pair: Its models; None if they cannot be opened.
    """
    lines = [sampling_remark(recipe), recipe.completions.backend.remark]
    if any({**recipe.training, **stage.training}.get("save_only_model") for stage in recipe.plan):
        lines.append(
            "save_only_model: checkpoints lack the optimizer, so that an interrupted training starts from the beginning"
        )
    if within := within_batch(recipe):
        verb = "compares" if len(within) == 1 else "compare"
        lines.append(
            f"{', '.join(within)} {verb} the examples of one micro-batch with each other: unlike other terms, the loss "
            "depends on per_device_train_batch_size, gradient accumulation and the number of processes"
        )
    lines += _half_seen(recipe, pair)
    causal = recipe.task.auto_class == "AutoModelForCausalLM"
    if causal and recipe.completions.by == "data" and any(one.objectives == PRESETS["gkd"] for one in recipe.plan):
        lines.append(
            "js is computed on the texts of the data. In GKD the student writes: half of them in TRL "
            "(completions: {by: student, share: 0.5})"
        )
    if leaves_head((objective for _, objective in objectives_of(recipe)), recipe.task.head_kind):
        lines.append(
            "no objective trains the head of the student: it stays as it is at the start, copied from a model or "
            "random, and metrics are computed from its predictions. Add an objective on logits or labels, or a stage "
            "with one"
        )
    if pair is not None and (classes := _classes(recipe, pair)) is not None:
        lines += _all_classes(recipe, classes)
    if pair is not None:
        lines += [*_merged(recipe), *_not_trained(recipe, pair), *ends_in_words(recipe, pair)]
    return [line for line in lines if line]


def _half_seen(recipe: Recipe, pair: Pair | None) -> Iterator[str]:
    """Yield a line if a teacher's likeliest tokens show but a part of what is compared on the student's own texts."""
    if not recipe.completions.in_training:
        return
    every = [objective for _, objective in objectives_of(recipe)]
    gives = recipe.teacher.gives(recipe.task, every, pair)
    names = dict.fromkeys(one.name for one in every if one.needs().by_student)
    if gives.classes == "top" and gives.top is not None and names:
        verb = "weighs" if len(names) == 1 else "weigh"
        instead = f" (or reverse_kl_sampled with top: {gives.top})" if gives.written else ""
        yield (
            f"{', '.join(names)} {verb} tokens by the student's probability, and {gives.whose} gives its likeliest "
            f"{gives.top:,}: what the student writes outside counts as one token, so that some half of the divergence "
            f"is seen (51 to 62 % for 64 tokens). A teacher that runs here gives all{instead}"
        )


def _all_classes(recipe: Recipe, classes: int) -> Iterator[str]:
    for path, objective in objectives_of(recipe):
        field, wanted = objective.needs().likeliest or ("", 0)
        if wanted > classes:
            there = f"there are {classes:,} classes: all of them are compared"
            yield f"{path}.{field} is {wanted:,}, and {there}"


def _classes(recipe: Recipe, pair: Pair) -> int | None:
    """Return the number of classes, or of tokens for a language model; None if only the data shows it."""
    from hf_distill.rows.inferred import vocabulary

    if recipe.task.head_kind == "tokens":
        classes = vocabulary(pair.student, pair.teacher, pair.tokenizer)
        return None if classes is None else classes - sum(one < classes for one in pair.left_out)
    head = pair.teacher_head or pair.student_head
    return head.num_labels if head is not None and recipe.task.head_kind == "labels" else None


def leaves_head(objectives: Iterable[Objective], kind: HeadKind) -> bool:
    """Whether a training leaves the head of a classifier, or of a question answerer, as it finds it.

    Args:
        objectives: Of the training.
        kind: What the head predicts. The head of a language model mostly shares weights with the embeddings, and a
            sentence encoder has no head.
    """
    return kind in ("labels", "spans") and not any(
        objective.needs().head and objective.has_weight for objective in objectives
    )


def cut_off(recipe: Recipe) -> list[str]:
    """Return lines about schedules that are longer than the training, if the recipe gives `max_steps`."""
    return [
        f"{path}.{field} {text}"
        for path, objective, training, _ in _settings_of(recipe)
        if (steps := training.get("max_steps", -1)) > 0
        for field, text in objective.cut_off(steps).items()
    ]


def check_push(recipe: Recipe) -> None:
    """Refuse to push a student that nobody else could load.

    Raises:
        UserError: The student is not whole, and what is missing is not on the Hub.
    """
    if recipe.hub.push and (why := recipe.student.not_pushed) is not None:
        raise recipe.mistake("hub.push", f"{why}.")


def _check_shape(recipe: Recipe) -> None:
    """Refuse mistakes that only a recipe built in Python can have: for a file, the reader refuses them."""
    if recipe.stages and recipe.objectives:
        raise recipe.mistake("objectives", "given together with stages. Each stage has its own: remove one of the two.")
    if recipe.data.transfer is not None:
        with recipe.locate("data"):
            recipe.task.check_transfer()
        if not any(objective.has_weight and not objective.needs().labels for _, objective in objectives_of(recipe)):
            raise recipe.mistake(
                "data.transfer",
                "no objective learns from the teacher, and these texts have no label: nothing would be learned from "
                "them. Add one, such as {name: kl}.",
            )
    if recipe.data.label_separator is not None and not recipe.task.several_labels:
        raise recipe.mistake(
            "data.label_separator", f"{recipe.task.name} has no rows with several labels in one text. Leave it out."
        )
    for role, columns in recipe.data.columns.items():
        if isinstance(columns, list) and not (recipe.task.several_labels and role == recipe.task.label_role):
            raise recipe.mistake(f"data.columns.{role}", "wanted one column: several are for labels, one a class.")
    for index, stage in enumerate(recipe.plan):
        path = join(recipe.stage_path(index), "objectives")
        if not any(objective.has_weight for objective in stage.objectives):
            raise recipe.mistake(path, "nothing to train on. Wanted: at least one with a weight above 0.")


def _check_lengths(recipe: Recipe) -> None:
    """Refuse `num_train_epochs` in a stage if the recipe's `max_steps` overrides it."""
    steps = recipe.training.get("max_steps", -1)
    for index, stage in enumerate(recipe.stages):
        if steps > 0 and "num_train_epochs" in stage.training and "max_steps" not in stage.training:
            raise recipe.mistake(
                f"stages[{index}].training.num_train_epochs",
                f"training.max_steps, {steps}, overrides it, so it would change nothing. Remove one of them, or add "
                "max_steps: -1 here.",
            )


# Settings of `evaluation` for models that continue texts.
WRITING = ("own_samples", "speculative", "lm_eval")


def _check_writing(recipe: Recipe) -> None:
    """Refuse evaluations of what models write for tasks whose models do not continue texts."""
    for key in WRITING if not recipe.task.writes else ():
        if getattr(recipe.evaluation, key):
            raise recipe.mistake(
                f"evaluation.{key}",
                f"for models that continue texts, as those of text-generation; those of {recipe.task.name} do not. "
                "Leave it out.",
            )


def _check_harness(recipe: Recipe) -> None:
    """Refuse tasks of the harness if it is not installed, or a file of one is not there."""
    if recipe.evaluation.lm_eval:
        with recipe.locate("evaluation"):
            check_installed(recipe.evaluation.lm_eval)


def _check_metrics(recipe: Recipe) -> None:
    """Refuse metrics whose package or script is missing; metrics on the Hub are not downloaded for this check."""
    from hf_distill.metrics.evaluate_library import check_here
    from hf_distill.metrics.text import check_packages

    names: Sequence[str] = recipe.evaluation.metrics or getattr(recipe.task, "own_metrics", [])
    with recipe.locate("evaluation"):
        check_packages(names)
        check_here(names)


def _check_as_loaded(recipe: Recipe, how: str) -> None:
    """Refuse settings that do not work with the weights of a teacher that is quantized or offloaded."""
    if recipe.student.copies_teacher:
        raise recipe.mistake(
            "student",
            f"its weights would be copied from the teacher, whose weights are {how} in this run. Let it start from "
            "weights that are not: "
            f"{recipe.student.apart_from_teacher(str(next(recipe.teacher.members())[1].source))}",
        )
    for key in ("bf16_full_eval", "fp16_full_eval"):
        if recipe.training.get(key):
            raise recipe.mistake(
                f"training.{key}",
                f"would convert all weights of the teacher when it is evaluated, and they are {how}. Remove it.",
            )
