"""Completions that are written before students train: by the teacher, once, and found again by later runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill import parallel
from hf_distill.completions.ends import end_ids
from hf_distill.completions.filtering import CompletionFilter
from hf_distill.completions.store import Store
from hf_distill.data.example_columns import PROMPT_LENGTH, held
from hf_distill.data.label_names import IGNORED, UNLABELLED
from hf_distill.data.labelled import has_label
from hf_distill.data.two_tokenizers import ALIGNED_AT, MARK, PREFIX, TEACHER_PROMPT
from hf_distill.errors import UserError
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.quantization import is_placed
from hf_distill.models.target_model import Writing
from hf_distill.run.completion_checks import CANNOT_WRITE, OF_DATA, OTHER_TOKENS, writes_eval
from hf_distill.run.requirements import check_steps
from hf_distill.tasks.language import token_features
from hf_distill.tasks.text_prompts import without_completion
from hf_distill.training.rollouts import teacher_columns

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.completions.sampling import Completion
    from hf_distill.models.target_model import TargetSource
    from hf_distill.run.run import Run
    from hf_distill.tasks import Prepared


def write_completions(run: Run, teacher: TargetSource) -> None:
    """Let the teacher write what students learn (`completions.by: teacher`), and what eval rows lack.

    Eval rows keep the completion that the data has. For the others the teacher writes it, whoever writes in training,
    so that perplexity and agreement are those on the teacher's own texts, and the same in every run. If the teacher is
    not one model that runs here, the student writes them as it is before the training, and they are not labels.

    Raises:
        UserError: The teacher cannot write, or nothing is left to train on.
    """
    own = run.recipe.completions
    missing = [] if own.by == "data" else without_completion(run.prepared.eval)
    if own.by != "teacher" and not missing:
        return
    facts: dict[str, Any] = {}
    before = run.prepared
    with run.stage("completions"), run.recipe.locate(""):
        if own.by == "teacher":
            _write_train(run, teacher, facts)
        if missing:
            _write_eval(run, teacher, missing, facts)
        if own.by == "teacher" and run.recipe.report.baseline:
            facts["baseline"] = OF_DATA
            run.of_data = replace(run.fitter, prepared=replace(before, eval=run.prepared.eval))
    run.completions = facts


def _write_train(run: Run, teacher: TargetSource, facts: dict[str, Any]) -> None:
    own, split = run.recipe.completions, run.prepared.train
    rows, chosen = range(len(split)), CompletionFilter(own)
    model, key = writing_model(run, teacher), teacher.fingerprint()
    found = chosen.of_rows(prompts_of(split, rows), completions_of(run, model, key, split, rows, own.per_prompt))
    train = with_completions(split, found)
    run.narrator.say(chosen.in_words())
    if not len(train):
        raise UserError(f"nothing is left to learn: {chosen.in_words()}.", key="completions.by")
    check_steps(run.recipe, len(train), len(train), parallel.processes())
    facts["train"] = chosen.facts()
    _learn_from(run, replace(run.prepared, train=train, labelled=True))


def _write_eval(run: Run, teacher: TargetSource, rows: Sequence[int], facts: dict[str, Any]) -> None:
    prepared, (by, model, key) = run.prepared, eval_writer(run, teacher)
    found = completions_of(run, model, key, prepared.eval, rows)
    facts[f"eval_rows_written_by_the_{by}"] = len(rows)
    _learn_from(run, _evaluated_on(prepared, rows, found, labels=by == "teacher"))


def _evaluated_on(
    prepared: Prepared, rows: Sequence[int], found: Sequence[Sequence[Completion]], *, labels: bool
) -> Prepared:
    """Return data with completions of some eval rows, also as a teacher reads them that has a context."""
    split, evaluator, theirs = _filled(prepared.eval, rows, found, labels=labels), prepared.evaluator, None
    if not has_label(split).any():  # then the agreement with the teacher is the only metric
        evaluator = replace(evaluator, names=())
    if prepared.for_teacher is not None:
        theirs = _evaluated_on(prepared.for_teacher, rows, found, labels=labels)
    return replace(prepared, eval=split, evaluator=evaluator, for_teacher=theirs)


def eval_writer(run: Run, teacher: TargetSource) -> tuple[str, Any, str]:
    """Return who writes the completions that eval rows lack: teacher or student, the model, and its fingerprint.

    Raises:
        UserError: The teacher should, and cannot.
    """
    if writes_eval(run.recipe, run.prepared) == "teacher":
        return "teacher", writing_model(run, teacher), teacher.fingerprint()
    student = run.new_student(teacher, run.args.seed)
    return "student", student, model_fingerprint(student)


def _learn_from(run: Run, prepared: Prepared) -> None:
    run.prepared = prepared
    run.fitter = replace(run.fitter, prepared=prepared)


def writing_model(run: Run, teacher: TargetSource) -> Any:
    """Return the model of a teacher that writes, or a `Writing` if it does not run here.

    Raises:
        UserError: It is not one language model, or has other tokens than the student.
    """
    elsewhere = teacher.writer(run.fitter.tokenizer) if run.recipe.teacher.writes else None
    models: list[Any] = [] if run.stored is not None else [*teacher.models.values()]
    if elsewhere is None and (len(models) != 1 or not hasattr(models[0], "generate")):
        raise UserError(CANNOT_WRITE, key="completions.by")
    if run.prepared.for_teacher is not None or run.prepared.in_teacher_ids is not None:
        raise UserError(OTHER_TOKENS, key="completions.by")
    return elsewhere or models[0]


def completions_of(
    run: Run, model: Any, fingerprint: str, split: Dataset, rows: Sequence[int], per_prompt: int = 1
) -> list[list[Completion]]:
    """Return what a model writes for some rows of a tokenised split: stored before, or written now.

    Args:
        run: The run.
        model: The model that writes, or a `Writing`.
        fingerprint: Hash of what decides what it writes.
        split: The tokenised split.
        rows: The rows.
        per_prompt: Number of completions of a prompt.
    """
    own, tokenizer = run.recipe.completions, run.fitter.tokenizer

    if isinstance(model, Writing):
        placed: Any = nullcontext()
        opened, writes = model.open, model.key
    else:
        placed, opened = _placed(model, run.args.device), partial(own.backend.open, model, tokenizer)
        writes = [fingerprint, dict(own.backend.deciding()), list(end_ids(model, tokenizer))]
    with placed:
        store = Store(
            opened,
            writes,
            own.sampling,
            per_prompt,
            run.args.seed,
            say=run.narrator.say,
        )
        return store.of(prompts_of(split, rows))


@contextmanager
def _placed(model: Any, device: Any) -> Iterator[None]:
    """Context manager: put a model on a device, and back where it was."""
    if is_placed(model, device):
        yield
        return
    before = model.device
    model.to(device)
    try:
        yield
    finally:
        model.to(before)


def prompts_of(split: Dataset, rows: Sequence[int]) -> list[list[int]]:
    """Return the tokens of the prompts of some rows of a tokenised split."""
    chosen = split.select(rows)
    return [ids[:length] for ids, length in zip(chosen["input_ids"], chosen[PROMPT_LENGTH], strict=True)]


def with_completions(split: Dataset, completions: Sequence[Sequence[Completion]], *, labels: bool = True) -> Dataset:
    """Return a tokenised split with other completions: a row for each, also as a teacher reads it that has a context.

    Args:
        split: The tokenised split.
        completions: Those of each row; a row without one is left out.
        labels: Whether their tokens are labels; else they are only compared with the teacher.
    """
    from datasets import Dataset, Features, concatenate_datasets

    sources = [row for row, found in enumerate(completions) for _ in found]
    chosen = split.select(sources)
    columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", "length", PROMPT_LENGTH)}
    for prompt, one in zip(prompts_of(split, sources), (one for found in completions for one in found), strict=True):
        columns["input_ids"].append([*prompt, *one.ids])
        learned = list(one.ids) if labels else [UNLABELLED] * len(one.ids)
        columns["labels"].append([IGNORED] * len(prompt) + learned)
        columns["length"].append(len(prompt) + len(one.ids))
        columns[PROMPT_LENGTH].append(len(prompt))
    features = token_features(numbers=[PROMPT_LENGTH])
    if TEACHER_PROMPT in split.column_names:
        theirs = _read_by_the_teacher(chosen, [one for found in completions for one in found])
        features = Features({**features, **{name: split.features[name] for name in theirs}})
        columns |= theirs
    made = Dataset.from_dict(columns, features=features)
    if names := held(split):
        made = concatenate_datasets([made, chosen.select_columns(names).flatten_indices()], axis=1)
    return made


def _read_by_the_teacher(split: Dataset, completions: Sequence[Completion]) -> dict[str, list[Any]]:
    """Return the columns of a teacher with a context: its own prompt, then the completion of each row."""
    rows = zip(split.select_columns([MARK, TEACHER_PROMPT, PROMPT_LENGTH]), completions, strict=True)
    made = [teacher_columns(row, row[PROMPT_LENGTH], one) for row, one in rows]
    columns = {name: [one[name] for one in made] for name in (MARK, TEACHER_PROMPT, ALIGNED_AT)}
    return {**columns, f"{PREFIX}length": [len(ids) for ids in columns[MARK]]}


def _filled(split: Dataset, rows: Sequence[int], found: Sequence[Sequence[Completion]], *, labels: bool) -> Dataset:
    """Return a tokenised split in which some rows have the completions written for them, in the same order."""
    from datasets import concatenate_datasets

    made = with_completions(split.select(rows), found, labels=labels)
    others = np.setdiff1d(np.arange(len(split)), rows)
    if not len(others):
        return made
    both = concatenate_datasets([split.select(others).select_columns(made.column_names), made])
    return both.select(np.argsort([*others, *rows]))
