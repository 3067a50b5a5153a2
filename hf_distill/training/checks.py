"""Checks that the objectives, models, data and arguments of one training fit together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import datasets
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_distill import parallel
from hf_distill.data import column
from hf_distill.data.two_tokenizers import MARK
from hf_distill.errors import UserError
from hf_distill.mistakes import describe
from hf_distill.models.decoders import check_ends
from hf_distill.models.inspection import base_model, wrapper_of
from hf_distill.models.needs import TaskFacts
from hf_distill.models.sharing import place_of
from hf_distill.models.target_model import TargetSource
from hf_distill.objectives import OBJECTIVES, Objective
from hf_distill.objectives.fit import check_fit
from hf_distill.rows.base import RowLayout
from hf_distill.rows.examples import ExampleRows
from hf_distill.training.label_values import reaches_models
from hf_distill.training.sharded import deepspeed_stage, engine, fsdp_version

IDS = "input_ids"


def check_types(*, model: Any, args: Any, teacher: Any, objectives: Any, layout: Any) -> None:
    """Refuse arguments of a wrong type, such as the name of a model or an objective in place of the object.

    Raises:
        TypeError: An argument has a wrong type; the message says which, what was wanted and what was found.
    """
    if model is not None and not isinstance(model, nn.Module):
        hint = f" Load it: AutoModelFor....from_pretrained('{model}')." if isinstance(model, str) else ""
        raise TypeError(f"model: wanted a model, found {_described(model)}.{hint}")
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise TypeError(
            f"teacher: wanted a model, its id or path, or PretrainedTeacher(model=...), found {_described(teacher)}."
        )
    if isinstance(model, nn.Module) and (wrapper := wrapper_of(model)) is not None:
        compiled = " For torch.compile set torch_compile=True in args." if wrapper == "OptimizedModule" else ""
        raise TypeError(
            f"model: wanted the student itself, found it inside a {wrapper}. Pass the model inside.{compiled}"
        )
    if args is not None and not isinstance(args, TrainingArguments):
        hint = f" Write DistillationArguments({next(iter(args), '')}=...)." if isinstance(args, dict) else ""
        raise TypeError(f"args: wanted DistillationArguments, found {_described(args)}.{hint}")
    if layout is not None and not isinstance(layout, RowLayout):
        raise TypeError(f"layout: wanted a hf_distill.rows.base.RowLayout, found {_described(layout)}.")
    if objectives is None:
        return
    if isinstance(objectives, str | dict) or not isinstance(objectives, Iterable):
        hint = f" Write [{_class_of(objectives)}()]."
        raise TypeError(f"objectives: wanted a list of objectives, found {_described(objectives)}.{hint}")
    for index, one in enumerate(objectives):
        if not isinstance(one, Objective):
            found = f"found {_described(one)}. Write {_class_of(one)}()."
            raise TypeError(f"objectives[{index}]: wanted an objective, {found}")


def _described(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else describe(value)


def _class_of(value: Any) -> str:
    """Return the class name of the objective that was meant by a class, a name or a recipe entry."""
    for one in (value, type(value)):
        if isinstance(one, type) and issubclass(one, Objective):
            return one.__name__
    name = value.get("name") if isinstance(value, dict) else value
    close = get_close_matches(name, OBJECTIVES, n=1) if isinstance(name, str) else []
    return OBJECTIVES[close[0] if close else "kl"].__name__


def check_parallelism(trainer: Trainer) -> None:
    """Refuse kinds of parallelism that the loss does not support.

    Raises:
        ValueError: One is not supported; the message says which, and what to use instead.
    """
    asked = parallel.launched_engine()
    if asked is not None and asked != engine(trainer):
        raise ValueError(
            f"{asked} was asked for, and this trainer uses {engine(trainer) or 'DDP, or one process'}: accelerate has "
            f"no {asked} on {trainer.args.device.type}. Start several processes on accelerators, or leave {asked} out."
        )
    stage = deepspeed_stage(trainer)
    if max(trainer.get_tp_size(), trainer.get_cp_size(), trainer.get_sp_size()) > 1:
        raise ValueError(
            "tensor, context and sequence parallelism of the student are not supported: Transformers cannot resume a "
            "training whose model is split when it is loaded. Load it whole, and shard it by FSDP."
        )
    if (version := fsdp_version(trainer)) not in (None, 2):
        raise ValueError(
            f"FSDP version {version} is not supported. Use version 2: fsdp_config: {{version: 2}}, or "
            "accelerate launch --fsdp_version 2."
        )
    optimizer = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    in_backward = stage is not None or any(word in optimizer for word in ("lomo", "layerwise"))
    if in_backward and (on_nan := getattr(trainer.args, "on_nan", "stop")) != "stop":
        raise ValueError(
            f"on_nan: {on_nan} cannot skip a step that DeepSpeed, or an optimizer such as "
            f"{optimizer}, takes while gradients are computed. Use on_nan: stop."
        )


def check_objectives(trainer: Any, source: TargetSource | None, *, labelled: bool | None) -> None:
    """Refuse objectives that need something that these models and data do not give.

    Args:
        trainer: The trainer, with its objectives, layout, student and data.
        source: The source of the targets; None if there is no teacher.
        labelled: Whether the train split has labels; None if that is not known.

    Raises:
        UserError: There is no objective, or one needs something that is not there.
    """
    if not trainer.objectives:
        raise UserError("no objective: pass at least one, e.g. KLDivergence(temperature=2.0).")
    ours = getattr(base_model(trainer.model), "config", None)
    theirs = None if source is None else source.config
    split = trainer.known_rows
    gives = None if source is None else source.gives()
    if gives is not None and isinstance(split, datasets.Dataset):
        gives = replace(gives, own_tokens=MARK in split.column_names)
    if gives is not None and getattr(trainer.layout, "mapping", None) is not None:
        gives = gives.by_texts()
    facts = facts_of(split, trainer.layout, labelled=labelled)
    if split is not None:
        facts = replace(facts, **trainer.completions.facts())
    configs = None if ours is None or theirs is None else (ours, theirs)
    for index, objective in enumerate(trainer.objectives):
        check_fit(objective, gives, facts, configs, f"objectives[{index}]")


def facts_of(split: Any, layout: RowLayout, *, labelled: bool | None) -> TaskFacts:
    """Return what objectives may ask about the data of a training.

    Args:
        split: Its train split.
        layout: Which logits count.
        labelled: Whether the train split has labels; None where that is not known.
    """
    return TaskFacts(
        classes=layout.has_classes,
        vectors=layout.vectors,
        spans=layout.has_spans,
        labelled=labelled,
        texts=_texts(split) if layout.vectors else None,
        translated=not getattr(layout, "pairs", True),
    )


def _texts(split: Any) -> int | None:
    """Return how many texts an example has, by the first example; None if it is one text, or cannot be read."""
    known = isinstance(split, datasets.Dataset) and split.format["type"] != "custom" and len(split)
    ids = split[0].get(IDS) if known else None
    return len(ids) if ids and isinstance(ids[0], list) else None


def check_data(trainer: Any, layout: RowLayout, teacher: nn.Module | None) -> None:
    """Refuse texts whose end a classifier would not find, before the first step.

    Raises:
        UserError: There is such a text; the message names its row.
    """
    if not isinstance(layout, ExampleRows):
        return
    splits: dict[str, Any] = {"train": trainer.known_rows, "eval": trainer.eval_dataset}
    for model, name in ((trainer.model, IDS), (teacher, MARK), (teacher, IDS)):
        config: Any = None if model is None else getattr(base_model(model), "config", None)
        for split, data in splits.items():
            columns = data.column_names if reaches_models(data, trainer.data_collator) else []
            own = model is teacher and name == IDS and MARK in columns
            if config is not None and name in columns and not own:
                check_ends(column(data, name), config, split)


def check_separate(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher whose weights would change when the student is trained.

    Raises:
        ValueError: Both are the same model, or share weights that are trained.
    """
    trained = {place_of(parameter) for parameter in student.parameters() if parameter.requires_grad} - {None}
    if teacher is student or any(place_of(parameter) in trained for parameter in teacher.parameters()):
        raise ValueError(
            "the teacher is the student, or shares weights with it that are trained: it would change with every step. "
            "Make the student from a copy, e.g. copy.deepcopy(teacher)."
        )
