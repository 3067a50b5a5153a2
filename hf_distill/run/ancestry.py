"""Finds out from which models a student descends: its teacher, and its teacher's teachers if that is one of ours."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.component import entry
from hf_distill.data.fingerprints import dataset_fingerprint
from hf_distill.files.fingerprint import fingerprint
from hf_distill.locations import resolve
from hf_distill.recipe.writer import describe_entry
from hf_distill.report.ancestors import Ancestor, read_lineage
from hf_distill.report.files import REPORT
from hf_distill.report.recipe_facts import model_name, place, public

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.report.results import ModelResult
    from hf_distill.run.run import Run
    from hf_distill.tasks import Task
    from hf_distill.teachers.base import Teacher


def eval_rows(task: Task, splits: Mapping[str, Dataset]) -> str:
    """Return a fingerprint of the rows on which models are evaluated, whatever their tokenizers."""
    rows = splits["eval"]
    return fingerprint(task.name, dataset_fingerprint(rows.select_columns([*set(rows.column_names) & {*task.roles}])))


def lineage_of(run: Run, metric: str, models: Mapping[str, ModelResult]) -> tuple[Ancestor, ...]:
    """Return the models from the first teacher to the student of a run.

    Args:
        run: The run.
        metric: Its headline metric.
        models: `teacher` and `student` as they were measured.
    """
    before = parallel.asked_once(lambda: ancestors(run.recipe.teacher))
    recipe = run.recipe
    student = Ancestor(
        name=model_name({"hub": {"repo_id": recipe.hub.repo_id}, "training": recipe.training}),
        on_hub=recipe.hub.push and "/" in (recipe.hub.repo_id or ""),
        made=describe_entry(public(entry(recipe.student))),
    )

    def measured(one: Ancestor, model: ModelResult) -> Ancestor:
        value = model.metrics.get(metric)
        return replace(
            one,
            parameters=model.parameters,
            bytes=model.bytes,
            latency_ms=None if model.latency is None else model.latency.single.median_ms,
            metric=metric,
            value=None if value is None or not math.isfinite(value) else float(value),
            rows=run.eval_rows,
        )

    if len(before) == 1 or len(list(recipe.teacher.members())) == 1:  # else these are the figures of a mean
        before = (*before[:-1], measured(before[-1], models["teacher"]))
    return (*before, measured(student, models["student"]))


def ancestors(teacher: Teacher) -> tuple[Ancestor, ...]:
    """Return the lineage of a teacher, itself at the end; of several, of the last one if all others are in it."""
    members = [one for _, one in teacher.members() if one.source is not None]
    found = [_lineage_of_model(one) for one in members]
    longest = max(found, key=len, default=())
    if longest and all(one and _same(one, longest[: len(one)]) for one in found):
        return longest
    return (Ancestor(name=_names(members) or teacher.name, on_hub=len(members) == 1 and _on_hub(members[0])),)


def _same(one: Sequence[Ancestor], other: Sequence[Ancestor]) -> bool:
    """Return whether two lineages have the same models; figures of the same model may differ, such as its speed."""
    models = [[(its.name, its.parameters, its.rows) for its in every] for every in (one, other)]
    return models[0] == models[1]


def _names(members: list[Teacher]) -> str:
    return ", ".join(dict.fromkeys(place(one.source or one.name).name for one in members))


def _on_hub(teacher: Teacher) -> bool:
    return place(teacher.source or "").on_hub


def _lineage_of_model(teacher: Teacher) -> tuple[Ancestor, ...]:
    """Return the lineage of a model that this package has trained, from the report beside its weights; else nothing."""
    content = _report_of(teacher) if teacher.has_head and teacher.source is not None else None
    try:
        found = read_lineage(content or {})
    except (ValueError, TypeError, AttributeError):  # a report.json of something else
        return ()
    if not found:
        return ()
    if _on_hub(teacher):  # its report has the name of a directory if it was pushed without a repo_id
        return (*found[:-1], replace(found[-1], name=place(teacher.source or "").name, on_hub=True))
    return found


def _report_of(teacher: Teacher) -> Mapping[str, Any] | None:
    """Return the content of the report.json beside a model, in its directory or its repository; None without one."""
    from transformers.utils.hub import cached_file

    try:
        file = cached_file(
            resolve(str(teacher.source)),
            REPORT,
            revision=teacher.opening["revision"],
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        content = None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    except Exception:  # whatever is wrong with it, the lineage begins with this teacher
        return None
    return content if isinstance(content, dict) else None
