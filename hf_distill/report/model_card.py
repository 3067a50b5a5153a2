"""Write the student's model card: origin, comparison with the teacher, usage, recipe."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hf_distill.formatting import readable, readable_lines
from hf_distill.objectives.schedule import in_words, is_schedule
from hf_distill.report.group_text import groups_shown, heading, notes
from hf_distill.report.lineage import generations, is_long
from hf_distill.report.markdown import fenced, inline_code, literal, markdown
from hf_distill.report.recipe_facts import (
    HUB_ID,
    Place,
    datasets,
    model_name,
    models_of,
    place,
    public,
    recipe_of,
    teachers,
)
from hf_distill.report.rendering import TEMPLATES
from hf_distill.report.text import (
    TITLES,
    flat,
    metric_names,
    metric_title,
    rows,
    speed_note,
    trained_on,
    undefined,
    who_teaches,
)
from hf_distill.report.verdict import verdict
from hf_distill.report.written import sections

if TYPE_CHECKING:
    from hf_distill.report.results import Results

# Groups of the eval split in the table.
GROUPS = 10
# Prompts whose texts are shown; the page has more.
SAMPLES = 2
# Arguments for calling `pipeline(...)`; for other tasks, one text.
CALLS = {
    "question-answering": 'question="...", context="..."',
    "fill-mask": '"... <mask> ..."',
    "zero-shot-classification": '"...", candidate_labels=["...", "..."]',
}
# Library that loads the model, if it is not Transformers.
LIBRARIES = {"sentence-similarity": "sentence-transformers"}


def last_link(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with the losses of the last student of its chain, if that one has its own."""
    own = ((recipe.get("chain") or [{}])[-1]).get("objectives")
    return {**recipe, "objectives": own, "stages": None} if own else {**recipe}


def objectives(recipe: Mapping[str, Any]) -> list[Markup]:
    """Return a line for each term of the loss: stage, weight, settings, and the formula from its docstring."""
    stages = recipe.get("stages") or [recipe]
    lines = []
    for number, stage in enumerate(stages, 1):
        start = f"stage {number} of {len(stages)}: " if len(stages) > 1 else ""
        lines += [Markup(start + _objective(entry)) for entry in stage.get("objectives") or ()]
    return lines


def _objective(entry: Mapping[str, Any]) -> str:
    from hf_distill.objectives import OBJECTIVES

    name = str(entry.get("name"))
    settings = {"weight": entry.get("weight", 1.0), **{key: entry[key] for key in entry if key != "name"}}
    known = OBJECTIVES.get(name)
    if known is not None and "temperature" in getattr(known, "__dataclass_fields__", {}):
        settings.setdefault("temperature", known.__dataclass_fields__["temperature"].default)
    values = ", ".join(f"{key} {in_words(value)}" for key, value in settings.items())
    start = f"{inline_code(name)} ({markdown(values)})"
    if known is None or not known.formula():
        return start
    return f"{start}: {known.formula()}{f'. {known.paper}' if known.paper else ''}"


def _data(report: Results, recipe: Mapping[str, Any], name: str) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    places = datasets(recipe)
    named = _bases(report, recipe)
    first = [one.name for one in report.lineage[:1] if one.on_hub and HUB_ID.fullmatch(one.name)]
    data = recipe.get("data") or {}
    measured_on = readable(_eval_data(data))
    metrics = {key: report.student.metrics.get(key) for key in metric_names(report)}
    results = [
        EvalResult(
            task_type=readable(report.task),
            dataset_type=measured_on,
            dataset_name=measured_on,
            dataset_config=_readable_or_none(data.get("name")),
            dataset_split=_readable_or_none((data.get("splits") or {}).get("eval")),
            metric_type=readable(metric_title(key)),
            metric_value=round(float(value), 6),
        )
        for key, value in metrics.items()
        if value is not None and math.isfinite(value)
    ]
    return ModelCardData(
        library_name=LIBRARIES.get(report.task, "transformers"),
        pipeline_tag=readable(report.task),
        tags=["distillation", "hf_distill"],
        base_model=_one_or_more(named or first),
        datasets=[item.name for item in places if item.on_hub] or None,
        metrics=[result.metric_type for result in results] or None,
        model_name=readable(name.split("/")[-1]),
        eval_results=results or None,
    )


def _bases(report: Results, recipe: Mapping[str, Any]) -> list[str]:
    """Return the models on the Hub that it learned from; of adapters, the one with which they are loaded."""
    found = teachers(recipe)
    if report.settings.get("loaded_with"):
        student = recipe.get("student") or (recipe.get("chain") or [{}])[-1]
        found = list(map(place, models_of(student)))
    return [one.name for one in found if one.on_hub]


def _eval_data(data: Mapping[str, Any]) -> str:
    """Return the name of the dataset, or of the first file, on which the metrics were measured."""
    path = data.get("path")
    if isinstance(path, Mapping):
        split = str((data.get("splits") or {}).get("eval", "")).partition("[")[0]
        path = path.get(split) or path.get("eval") or next(iter(path.values()), None)
    first = next(iter(path), None) if isinstance(path, list) else path
    return place(first).name if isinstance(first, str) else "unknown"


def _readable_or_none(value: Any) -> str | None:
    return None if value is None else readable(value)


def _one_or_more(names: list[str]) -> str | list[str] | None:
    return names[0] if len(names) == 1 else names or None


def _made(entry: Mapping[str, Any]) -> Markup:
    """Return a recipe entry for a model in words, with the entries inside it.

    Such as `copy_layers (layers 6)`, or `cached (path a) around ensemble (weights 1 and 2) of finetuned (model [...])
    and pretrained (model [...])`.
    """
    inner, several, count = entry.get("teacher"), entry.get("teachers"), entry.get("count")
    written = {key: value for key, value in entry.items() if key not in ("name", "teacher", "teachers")}
    start, end = str(inline_code(entry.get("name", "not named"))), ""
    if isinstance(inner, Mapping):
        end = f" around {_made(inner)}"
    if isinstance(several, (list, Mapping)):
        named = several.items() if isinstance(several, Mapping) else (("", one) for one in several)
        texts = [f"{markdown(f'{name}: ') if name else ''}{_made(one)}" for name, one in named]
        end, written = f" of {f'{count} ' if count else ''}{_listed(texts)}", {**written, "count": None}
    details = ", ".join(filter(None, (_setting(*one) for one in written.items() if one[1] is not None)))
    return Markup("".join((start, f" ({details})" if details else "", end)))


def _setting(key: str, value: Any) -> str:
    """Return a setting of an entry in words, as markdown."""
    if key in ("model", "models") and not isinstance(value, Mapping):
        return f"model {_listed([place(str(one)).link for one in (value if isinstance(value, list) else [value])])}"
    if isinstance(value, Mapping) and "name" in value:
        return f"{markdown(key.replace('_', ' '))} {_made(value)}"
    if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        texts = [str(_made(one)) if isinstance(one, Mapping) and "name" in one else str(markdown(one)) for one in value]
        return f"{markdown(key.replace('_', ' '))} {_listed(texts)}"
    return ", ".join(str(markdown(_plain(name, one))) for name, one in public({key: value}).items())


def _plain(name: str, value: Any) -> str:
    """Return the name of a setting and its value in words: `training (num train epochs 3, bf16 true)`."""
    words = name.replace("_", " ")
    if isinstance(value, Mapping) and not is_schedule(value):
        return f"{words} ({', '.join(_plain(str(key), one) for key, one in value.items())})"
    if isinstance(value, list):
        return f"{words} {_listed([str(one) for one in value])}"
    return f"{words} {str(value).lower() if isinstance(value, bool) else in_words(value)}"


def _listed(texts: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def card(report: Results) -> str:
    """Return the text of `README.md`, from the report alone and without a network."""
    from huggingface_hub import ModelCard
    from jinja2 import Environment, FileSystemLoader

    recipe = recipe_of(report.recipe)
    name = model_name(recipe)
    # Names of classes, models and files are foreign text: everything is escaped except `Markup` made here.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), finalize=markdown, keep_trailing_newline=True, autoescape=False
    )
    text = environment.get_template("model_card.md.jinja").render(
        card_data=Markup(_data(report, recipe, name).to_yaml()),
        name=name,
        task=report.task,
        library=LIBRARIES.get(report.task, "transformers"),
        teachers=teachers(recipe),
        unnamed=_unnamed(report),
        data=datasets(recipe),
        data_name=(recipe.get("data") or {}).get("name"),
        objectives=objectives(last_link(recipe)),
        student=_made(recipe.get("student") or {}),
        chain=[_made(link) for link in recipe.get("chain") or ()],
        generations=(recipe.get("generations") or {}).get("count"),
        lineage=generations(report),
        link=lambda model: Place(model.name, model.on_hub).link,
        teacher=_made(recipe.get("teacher") or {}),
        # Those of the teacher before the last student; the card names the first one of a chain.
        facts=[] if is_long(report) else list(flat(report.settings.get("teacher") or {})),
        student_facts=list(flat(report.settings.get("student") or {})),
        adapter=_adapter(report, name),
        tokenizers=report.settings.get("tokenizers"),
        titles=[TITLES[model] for model in report.models],
        rows=[(row.label, row.headline, [row.cells[key] for key in report.models]) for row in rows(report)],
        notes=[line for line in (who_teaches(report), *undefined(report)) if line],
        speed_note=speed_note(report),
        whom=[
            (heading(one), one.by, groups_shown(report, one, GROUPS), notes(report, one, GROUPS))
            for one in report.for_whom
        ],
        sections=sections(report, samples=SAMPLES),
        trained_on=trained_on(report),
        verdict=verdict(report),
        call=Markup(CALLS.get(report.task, '"..."')),
        literal=literal,
        recipe=fenced(readable_lines(_dump(public(recipe))), "yaml") if recipe else "",
    )
    return str(ModelCard(text))


def _adapter(report: Results, name: str) -> dict[str, Markup] | None:
    """Return class and arguments with which a student is loaded of which adapters alone are saved; None for others."""
    found = report.settings.get("loaded_with")
    if not isinstance(found, Mapping):
        return None
    labels = found.get("labels") or ()
    given = {key: found[key] for key in ("num_labels", "problem_type") if key in found}
    arguments = [str(literal(name)), *(f"{key}={json.dumps(value)}" for key, value in given.items())]
    if labels:
        names = [literal(label) for label in labels]
        arguments.append(f"id2label={{{', '.join(f'{index}: {label}' for index, label in enumerate(names))}}}")
        arguments.append(f"label2id={{{', '.join(f'{label}: {index}' for index, label in enumerate(names))}}}")
    return {"class": Markup(found["class"]), "arguments": Markup(", ".join(arguments))}


def _unnamed(report: Results) -> str:
    """Return what a student learned from, where the recipe names no model."""
    if report.teacher.parameters is None:
        return "targets that were given as data"
    same = report.teacher.parameters == report.student.parameters
    return "a teacher of its own size" if same else "a larger model"


def _dump(content: Any) -> str:
    from ruamel.yaml import YAML

    buffer = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = None
    writer.width = 4096
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(content, buffer)
    return buffer.getvalue().strip()
