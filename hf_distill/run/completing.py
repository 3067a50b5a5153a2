"""Completions that are written before students train: by the teacher, once, and found again by later runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill import parallel
from hf_distill.completions.ends import end_ids
from hf_distill.completions.filtering import CompletionFilter
from hf_distill.completions.store import Store
from hf_distill.component import entry
from hf_distill.data.example_columns import PROMPT_LENGTH, held
from hf_distill.data.label_names import IGNORED
from hf_distill.errors import UserError
from hf_distill.models.quantization import is_placed
from hf_distill.run.completion_checks import OF_DATA
from hf_distill.run.requirements import check_steps
from hf_distill.tasks.language import token_features
from hf_distill.tasks.text_prompts import without_completion

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.completions.sampling import Completion
    from hf_distill.models.target_model import TargetSource
    from hf_distill.run.run import Run


def write_completions(run: Run, teacher: TargetSource) -> None:
    """Let the teacher write what students learn (`completions.by: teacher`), and what eval rows lack.

    Eval rows keep the completion that the data has. For the others the teacher writes it, whoever writes in training,
    so that perplexity and agreement are those on the teacher's own texts, and the same in every run.

    Raises:
        UserError: The teacher cannot write, or nothing is left to train on.
    """
    own = run.recipe.completions
    missing = [] if own.by == "data" else without_completion(run.prepared.eval)
    if own.by != "teacher" and not missing:
        return
    with run.stage("completions"), run.recipe.locate("completions"):
        model, prepared = writing_model(run, teacher), run.prepared
        written = partial(completions_of, run, model, teacher.fingerprint())
        facts: dict[str, Any] = {}
        if own.by == "teacher":
            rows = range(len(prepared.train))
            kept = CompletionFilter(own)
            found = written(prepared.train, rows, own.per_prompt)
            train = with_completions(prepared.train, kept.of_rows(prompts_of(prepared.train, rows), found))
            run.narrator.say(kept.in_words())
            if not len(train):
                raise UserError(f"nothing is left to learn: {kept.in_words()}.", key="by")
            check_steps(run.recipe, len(train), len(train), parallel.processes())
            facts["train"] = kept.facts()
            prepared = replace(prepared, train=train, labelled=True)
        if missing:
            facts["eval_rows_written_by_the_teacher"] = len(missing)
            made = _filled(prepared.eval, missing, written(prepared.eval, missing))
            prepared = replace(prepared, eval=made)
        if own.by == "teacher" and run.recipe.report.baseline:
            facts["baseline"] = OF_DATA
            run.of_data = replace(run.fitter, prepared=replace(run.prepared, eval=prepared.eval))
        run.completions = facts
        run.prepared = prepared
        run.fitter = replace(run.fitter, prepared=prepared)


def writing_model(run: Run, teacher: TargetSource) -> Any:
    """Return the model of a teacher that writes.

    Raises:
        UserError: It is not one language model, or has other tokens than the student.
    """
    models = [] if run.stored is not None else [*teacher.models.values()]
    if len(models) != 1 or not hasattr(models[0], "generate"):
        raise UserError(
            "the teacher would write completions, and it is not one language model that runs here. Name one "
            "(teacher: {name: pretrained, model: ...}); or give the eval rows completions, and let the student write.",
            key="by",
        )
    if run.prepared.for_teacher is not None or run.prepared.in_teacher_ids is not None:
        raise UserError(
            "the teacher would write completions in tokens that are not the student's. Let it write a data set first, "
            "in a run of its own with a student that has all of its tokens (hf-distill generate --by teacher), and "
            "learn from the texts.",
            key="by",
        )
    return models[0]


def completions_of(
    run: Run, model: Any, fingerprint: str, split: Dataset, rows: Sequence[int], per_prompt: int = 1
) -> list[list[Completion]]:
    """Return what a model writes for some rows of a tokenised split: stored before, or written now.

    Args:
        run: The run.
        model: The model that writes.
        fingerprint: Hash of what decides what it writes.
        split: The tokenised split.
        rows: The rows.
        per_prompt: Number of completions of a prompt.
    """
    own, tokenizer = run.recipe.completions, run.fitter.tokenizer

    with _placed(model, run.args.device):
        store = Store(
            partial(own.backend.open, model, tokenizer),
            [fingerprint, entry(own.backend), list(end_ids(model, tokenizer))],
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


def with_completions(split: Dataset, completions: Sequence[Sequence[Completion]]) -> Dataset:
    """Return a tokenised split with other completions, whose tokens are labels: a row for each.

    Args:
        split: The tokenised split.
        completions: Those of each row; a row without one is left out.
    """
    from datasets import Dataset, concatenate_datasets

    sources = [row for row, found in enumerate(completions) for _ in found]
    chosen = split.select(sources)
    columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", "length", PROMPT_LENGTH)}
    for prompt, one in zip(prompts_of(split, sources), (one for found in completions for one in found), strict=True):
        columns["input_ids"].append([*prompt, *one.ids])
        columns["labels"].append([IGNORED] * len(prompt) + list(one.ids))
        columns["length"].append(len(prompt) + len(one.ids))
        columns[PROMPT_LENGTH].append(len(prompt))
    made = Dataset.from_dict(columns, features=token_features(numbers=[PROMPT_LENGTH]))
    if names := held(split):
        made = concatenate_datasets([made, chosen.select_columns(names).flatten_indices()], axis=1)
    return made


def _filled(split: Dataset, rows: Sequence[int], found: Sequence[Sequence[Completion]]) -> Dataset:
    """Return a tokenised split in which some rows have the completions written for them, in the same order."""
    from datasets import concatenate_datasets

    made = with_completions(split.select(rows), found)
    others = np.setdiff1d(np.arange(len(split)), rows)
    if not len(others):
        return made
    both = concatenate_datasets([split.select(others).select_columns(made.column_names), made])
    return both.select(np.argsort([*others, *rows]))
