"""Opens the configurations and tokenizers of teacher and student, without weights, and checks that they fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_distill.data.label_names import label_names, positions
from hf_distill.data.vocabularies import left_out, show_tokens
from hf_distill.errors import UserError
from hf_distill.mistakes import join
from hf_distill.models.adapters import check_task as check_adapter
from hf_distill.models.inspection import positions_of
from hf_distill.models.loading import open_tokenizer
from hf_distill.models.outline import has_class, has_head, outline
from hf_distill.models.pair import Pair
from hf_distill.models.quantization import check_loadable
from hf_distill.models.tokenizers import longest_input
from hf_distill.objectives.guard import guarded
from hf_distill.tasks.aligned_texts import check_bytes
from hf_distill.teachers.base import under

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.recipe.recipe import Recipe
    from hf_distill.tasks import Task
    from hf_distill.teachers.base import Teacher

logger = logging.getLogger(__name__)

PROBE = "The Quick brown fox's 12 jumps - naïve, (über) 北京!"


def open_pair(recipe: Recipe) -> Pair:
    """Open both configurations and the tokenizers, and check that the teacher can teach the student.

    Raises:
        UserError: A model does not exist, the teacher has no trained head, label names differ, vocabularies differ in a
            task that compares token by token, or `max_length` is more than a model takes.
    """
    auto_class = recipe.task.auto_class
    teacher = open_teacher(recipe)
    teacher_head = teacher if recipe.teacher.has_head else None
    with recipe.locate("student"), guarded(recipe.student, "student"):
        student = recipe.student.config(teacher)
        _check_architecture(student, recipe.task)
        own = recipe.student.own_config()
        check_adapter(recipe.student.source, recipe.task.auto_class)
        check_loadable(recipe.student.source, own)
        student_head = own if own is not None and has_head(own, auto_class) else None
        # A language model's configuration also has label names, which mean nothing.
        if teacher_head is not None and student_head is not None and recipe.task.head_kind == "labels":
            _check_labels(student_head, teacher_head)
    with recipe.locate("teacher"):
        for path, one in recipe.teacher.members():
            with under(path):
                check_loadable(one.source, one.config() if path else teacher)
    every = list(recipe.teacher.members())
    # Teachers that each read tokens of their own are compared with the student one by one.
    groups = [[one] for one in every] if recipe.teacher.members_apart else [every]
    reads: list[_Reads] = []
    with recipe.locate(""):
        for group in groups:
            reads.append(_tokenizers(recipe, group, reads[0].tokenizer if reads else None))
    tokenizer = reads[0].tokenizer
    configs = [teacher, *(group[0][1].config() for group in groups[1:])]
    for group, config, its in zip(groups, configs, reads, strict=True):
        with recipe.locate(join("teacher", group[0][0]) if len(groups) > 1 else "teacher"):
            _check_vocabulary(its.teacher or tokenizer, config, its.left_out)
    with recipe.locate("student"):
        _check_vocabulary(tokenizer, student, reads[0].left_out)
    opened = (tokenizer, *(its.teacher or tokenizer for its in reads))
    with recipe.locate("data"):
        limit = _longest_input(recipe.data.max_length, (*configs, student), opened)
    first = Pair(teacher, student, tokenizer, reads[0].teacher, teacher_head, student_head, limit, reads[0].left_out)
    if not recipe.teacher.members_apart:
        return first
    members = tuple(
        replace(first, teacher=config, teacher_tokenizer=own.teacher, teacher_head=config if one.has_head else None)
        for ((_, one),), config, own in zip(groups, configs, reads, strict=True)
    )
    return replace(first, teacher_tokenizer=None, members=members)


def open_teacher(recipe: Recipe) -> PretrainedConfig:
    """Open the teacher's configuration, and check that the teacher can do the task.

    Raises:
        UserError: It does not exist, its architecture cannot do the task, or it has no trained head.
    """
    with recipe.locate("teacher"), guarded(recipe.teacher, "teacher"):
        teacher = recipe.teacher.config_beside(recipe.student)
        for path, one in recipe.teacher.members():
            with under(path):
                config = one.config() if path else teacher
                if one.own_inputs or (path and one.is_without_model):
                    continue
                check_adapter(one.source, recipe.task.auto_class)
                _check_architecture(config, recipe.task)
                if one.trusts_code:
                    # Registers a class of its own code: a student that is made from it has no checkpoint to find it in.
                    outline(recipe.task.auto_class, config, trust_remote_code=True)
                if one.has_head:
                    _check_trained(config, recipe.task.auto_class)
    return teacher


def open_student(recipe: Recipe) -> PretrainedConfig | None:
    """Open the configuration of the student's own checkpoint, and check that the student can do the task.

    Returns:
        The configuration; None if the student has no checkpoint of its own.

    Raises:
        UserError: It does not exist, or its architecture cannot do the task.
    """
    with recipe.locate("student"), guarded(recipe.student, "student"):
        student = recipe.student.own_config()
        check_adapter(recipe.student.source, recipe.task.auto_class)
        check_loadable(recipe.student.source, student)
        if student is not None:
            _check_architecture(student, recipe.task)
    return student


# ---- Heads -----------------------------------------------------------------------------------------------------------


def _check_architecture(config: PretrainedConfig, task: Task) -> None:
    """Refuse a model whose architecture cannot do the task."""
    from hf_distill.tasks import TASKS

    def fits(other: Task) -> bool:
        try:
            other.check_model(config)
        except UserError:
            return False
        return has_class(config, other.auto_class)

    if not has_class(config, task.auto_class):
        able = sorted(name for name, known in TASKS.items() if fits(known()))
        raise UserError(
            f"there is no {config.model_type} model with a head for {task.name} (wanted "
            f"...{task.auto_class.removeprefix('AutoModel')}). Choose another model, or a task it has a head for: "
            f"{', '.join(able) or 'there is none'}.",
            key="model",
        )
    task.check_model(config)


def _check_trained(teacher: PretrainedConfig, auto_class: str) -> None:
    """Refuse a teacher saved with another head. If its configuration does not say, it is checked while loading."""
    if teacher.architectures and not has_head(teacher, auto_class):
        raise UserError(
            f"this checkpoint is a {teacher.architectures[0]}: it has no trained head for the task (wanted "
            f"...{auto_class.removeprefix('AutoModel')}), and would teach noise. Name a fine-tuned model, or let "
            "this run fine-tune it: teacher: {name: finetuned, model: ...}.",
            key="model",
        )


def _check_labels(student: PretrainedConfig, teacher: PretrainedConfig) -> None:
    way_out = "Start from a checkpoint without a head for this task, or from one trained on the same classes."
    if student.num_labels != teacher.num_labels:
        raise UserError(
            f"its head has {student.num_labels} outputs, the teacher's {teacher.num_labels}. {way_out}", key="model"
        )
    ours, theirs = label_names(student), label_names(teacher)
    if ours and theirs:
        try:
            positions(ours, theirs, whose="the teacher")
        except UserError as error:
            raise UserError(f"{error} {way_out}", key="model") from error


# ---- Tokenizers ------------------------------------------------------------------------------------------------------


class _Reads(NamedTuple):
    """What teacher and student read.

    Attributes:
        tokenizer: Tokenizer of both, or of the student alone.
        teacher: The teacher's own tokenizer; None if it reads the student's tokens.
        left_out: Ids of the tokens that are not compared.
    """

    tokenizer: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase | None
    left_out: tuple[int, ...] = ()


def _tokenizers(
    recipe: Recipe, members: Sequence[tuple[str, Teacher]], of_student: PreTrainedTokenizerBase | None = None
) -> _Reads:
    """Open the tokenizer of the run, and the teacher's own if it differs from the student's.

    The tokenizer of a teacher that makes its own inputs is its own, and is not compared with the student's.

    If the models are compared token by token, and their vocabularies differ only in special or unused tokens, one
    tokenizer is used for both, and the tokens that differ are left out of the comparison.

    Args:
        recipe: Names the models and perhaps a tokenizer, which is then used for both.
        members: Key path and entry of the teacher's models that read the same tokens.
        of_student: The tokenizer of the run, if it is open already.

    Raises:
        UserError: The models number or split tokens differently, and one tokenizer would have to be used for both.
    """
    opened = _open_tokenizers(recipe, members, of_student)
    _check_alike(recipe, opened)
    (first, tokenizer), *others = opened.items()
    apart: set[int] = set()
    for side, other in others:
        fault, way_out = _difference(first, tokenizer, side, other)
        if fault is not None and recipe.task.compares_tokens and (some := left_out(tokenizer, other)):
            if first != "tokenizer" and _split(tokenizer) != _split(other):
                raise UserError(
                    f"{first} and {side} have the same ordinary tokens but split text differently (case, accents). Say "
                    "which tokenizer to use for both: tokenizer: ...",
                    key="student.model",
                )
            apart.update(some)
            logger.warning(
                "the vocabularies of %s and %s differ in special or unused tokens: %s. They are left out of the "
                "comparison of the two models",
                *(first, side, show_tokens(tokenizer, other, some)),
            )
            continue
        if fault is None:
            continue
        aligned = recipe.task.aligns_tokens and len(members) == 1
        if first == "student" and (recipe.task.own_tokenizers or aligned):
            for whose, one in (("student", tokenizer), (side, other)) if aligned else ():
                check_bytes(one, whose)
            return _Reads(_with_padding(tokenizer, "student.model"), _with_padding(other, f"{side}.model"))
        why = f"{recipe.task.name} compares the models token by token, so both have to read the same tokens."
        if recipe.task.own_tokenizers:
            why, way_out = (
                "One tokenizer cannot be used for both.",
                "Leave out `tokenizer`: each model then uses its own.",
            )
        # The message is at the student's key: the student is easier to replace than the teacher.
        raise UserError(f"{fault} {why} {way_out}", key=f"{'student' if first == 'student' else side}.model")
    return _Reads(_with_padding(tokenizer, "tokenizer"), _of_own_inputs(members), tuple(sorted(apart)))


def _of_own_inputs(members: Sequence[tuple[str, Teacher]]) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a teacher that makes its own inputs; None for other teachers, and without a model."""
    for path, one in members:
        if one.own_inputs and one.source is not None:
            side = join("teacher", path)
            return _with_padding(_tokenizer_of(one.opening, one.source, side), f"{side}.model")
    return None


def _check_alike(recipe: Recipe, opened: Mapping[str, PreTrainedTokenizerBase]) -> None:
    """Refuse teachers that read other tokens than each other."""
    if "tokenizer" in opened:  # which feeds all of them, if it can
        return
    first, *others = [side for side in opened if side.startswith("teacher")] or [""]
    for side in others:
        fault, _ = _difference(first, opened[first], side, opened[side])
        if fault is not None:
            way_out = "choose teachers of one family"
            if recipe.task.own_tokenizers:
                way_out += ", or store the targets of each: teachers: [{name: cached, teacher: {...}}, ...]"
            raise UserError(
                f"{fault} Teachers that run beside the student read the same tokens: {way_out}.", key=f"{side}.model"
            )


def _open_tokenizers(
    recipe: Recipe, members: Sequence[tuple[str, Teacher]], of_student: PreTrainedTokenizerBase | None
) -> dict[str, PreTrainedTokenizerBase]:
    """Return the tokenizers that exist of `tokenizer`, `student` and `teacher`, in this order; at least one."""
    opened: dict[str, PreTrainedTokenizerBase] = {}
    if recipe.tokenizer is not None and of_student is None:
        opened["tokenizer"] = open_tokenizer(recipe.tokenizer)
    failed: list[UserError] = []
    student = {name: getattr(recipe.student, name, None) for name in ("revision", "trust_remote_code")}
    teachers = [(join("teacher", path), one.opening, one.source) for path, one in members if not one.own_inputs]
    sources = (("student", student, recipe.student.vocabulary), *teachers)
    if of_student is not None:
        opened["student" if recipe.tokenizer is None else "tokenizer"] = of_student
        sources = tuple(teachers)
    for side, opening, source in sources:
        if source is None:
            continue
        try:
            opened[side] = _tokenizer_of(opening, source, side)
        except UserError as error:
            failed.append(error)
    if not opened:
        raise failed[-1] if failed else UserError("no model here has a tokenizer. Name one.", key="tokenizer")
    for fault in failed:
        logger.warning("%s So it cannot be checked whether that model uses the same tokens.", fault)
    return opened


def _with_padding(tokenizer: PreTrainedTokenizerBase, key: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer, with the end of text as its padding token if it has none."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            whose = "it" if key == "tokenizer" else "its tokenizer"
            raise UserError(f"{whose} has neither a padding token nor an end of text to pad with.", key=key)
        # Decoders have none. Padding is masked, so any token would do; by convention it is the end of text.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_of(opening: Mapping[str, Any], source: str, side: str) -> PreTrainedTokenizerBase:
    return open_tokenizer(
        source,
        key=f"{side}.model",
        revision=opening["revision"],
        trust_remote_code=bool(opening["trust_remote_code"]),
    )


def _difference(
    first: str, tokenizer: PreTrainedTokenizerBase, side: str, other: PreTrainedTokenizerBase
) -> tuple[str | None, str]:
    """Return how two tokenizers differ, None if they do not, and what to do about it."""
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    if ours != theirs:
        fault = f"the vocabularies of {first} and {side} differ ({_example(ours, theirs)})."
        return fault, "Choose a student of the teacher's family, or student: {name: copy_layers, ...}."
    # A tokenizer that the recipe names was chosen for the way it splits text.
    if first != "tokenizer" and tokenizer(PROBE)["input_ids"] != other(PROBE)["input_ids"]:
        fault = (
            f"{first} and {side} have the same vocabulary but split text differently (case, accents, special tokens)."
        )
        return fault, "Say which tokenizer to use for both: tokenizer: ..."
    return None, ""


def _split(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    return ids


def _example(ours: dict[str, int], theirs: dict[str, int]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)} tokens"
    # The first by id: a fast tokenizer returns its vocabulary in another order every time.
    token = min((token for token, number in ours.items() if theirs.get(token) != number), key=ours.__getitem__)
    return f"{token!r} is number {ours[token]} in one and {theirs.get(token, 'missing')} in the other"


def _check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, left_out: tuple[int, ...] = ()
) -> None:
    rows: int | None = getattr(config.get_text_config(), "vocab_size", None)
    highest = max(set(tokenizer.get_vocab().values()).difference(left_out))
    if rows is not None and highest >= rows:
        raise UserError(
            f"the tokenizer has a token number {highest}, but the model's vocabulary ends at {rows - 1}. "
            "Name the tokenizer that belongs to the model: tokenizer: ...",
            key="model",
        )


# ---- Length ----------------------------------------------------------------------------------------------------------


def _longest_input(
    wanted: int | None, configs: tuple[PretrainedConfig, ...], tokenizers: tuple[PreTrainedTokenizerBase, ...]
) -> int | None:
    limits = [limit for limit in map(positions_of, configs) if limit is not None]
    if limits and wanted is not None and wanted > min(limits):
        raise UserError(
            f"{wanted} tokens are more than the models take; wanted at most {min(limits)}.", key="max_length"
        )
    return longest_input(configs, tokenizers) if wanted is None else wanted
