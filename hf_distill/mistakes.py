"""Turn pydantic's errors into messages for the author of a recipe, with the right name for keys of other systems."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from math import isfinite
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from hf_distill.errors import UserError, did_you_mean

# pydantic's error type -> what was wanted; `{...}` is filled from the context of pydantic's error.
WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "dict_type": "a mapping (key: value)",
    "dataclass_type": "a mapping (key: value)",
    "dataclass_exact_type": "an object of {class_name}",
    "list_type": "a list",
    "tuple_type": "a list",
    "none_required": "null",
    "literal_error": "{expected}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "string_too_short": "text of at least {min_length} characters",
}

BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
SHORT = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
SHORT |= {"8bit": "int8", "llm_int8": "int8", "4bit": "nf4", "int4": "nf4", "fp4": "nf4"}

# Texts that YAML 1.1 and other systems read as true or false.
BOOLEANS = {
    **dict.fromkeys(("yes", "on", "y", "true", "1"), "true"),
    **dict.fromkeys(("no", "off", "n", "false", "0"), "false"),
}

# Keys of other systems -> ours; used only if the entry has our key.
ELSEWHERE = {
    **dict.fromkeys(("alpha", "beta", "lambda", "gamma", "coefficient", "coef", "factor", "scale"), "weight"),
    **dict.fromkeys(("T", "tau", "temp"), "temperature"),
    **dict.fromkeys(("type", "kind", "method", "class", "key"), "name"),
    **dict.fromkeys(("model_name_or_path", "model_id", "pretrained_model_name_or_path", "checkpoint"), "model"),
    **dict.fromkeys(("num_layers", "num_hidden_layers", "n_layers"), "layers"),
    **dict.fromkeys(("dataset_name", "dataset", "file", "files", "data_files", "data_dir"), "path"),
    **dict.fromkeys(("config", "config_name", "dataset_config_name", "subset"), "name"),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "max_len"), "max_length"),
    **dict.fromkeys(("torch_dtype", "precision"), "dtype"),
    **dict.fromkeys(
        ("quantization_config", "quantize", "quant", "load_in_8bit", "load_in_4bit", "bits"), "quantization"
    ),
    **dict.fromkeys(("hub_model_id", "repo", "model_repo"), "repo_id"),
    **dict.fromkeys(("push_to_hub",), "push"),
    **dict.fromkeys(("datasets", "train_data"), "data"),
    **dict.fromkeys(("loss", "losses", "criterion", "criterions", "objective"), "objectives"),
    **dict.fromkeys(("teacher_model",), "teacher"),
    **dict.fromkeys(("student_model",), "student"),
    **dict.fromkeys(("train", "trainer", "args", "training_args", "training_arguments"), "training"),
    **dict.fromkeys(("metrics", "eval"), "evaluation"),
    **dict.fromkeys(("from", "initial", "begin", "first"), "start"),
    **dict.fromkeys(("to", "final", "last", "stop"), "end"),
    **dict.fromkeys(("steps", "num_steps", "duration", "fraction", "until"), "over"),
    **dict.fromkeys(("rank", "lora_r", "lora_rank"), "r"),
    **dict.fromkeys(("schedule", "curve", "mode"), "shape"),
}
# In an entry with one of these keys, a Greek letter means a mixing factor inside the loss, not its `weight`.
SHARES = {"teacher_share", "skew", "head_mass", "target_weight"}
# A key's former name -> its name, and what it does; only said where the entry has a key of the new name.
FORMER = {
    "packing": (
        "padding_free",
        "it runs the layers without padding. What joins texts into blocks is packing of task text-generation.",
    ),
    "packed": ("packing", "it joins texts and cuts them into blocks."),
}
COSTS = ("size", "parameters", "latency")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
TOKEN = "unknown key. A token never goes in a recipe: set the environment variable HF_TOKEN, or run `hf auth login`."


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message for a key that an entry does not have.

    >>> unknown_key("alpha", ["name", "weight", "temperature"])
    "unknown key. It is called 'weight' here."
    >>> unknown_key("temprature", ["name", "weight", "temperature"])
    "unknown key. Did you mean 'temperature'?"
    """
    choices = list(known)
    if glued := glued_key(key):
        return f"unknown key. {glued}"
    if former := former_name(key, choices):
        return f"unknown key. {former}"
    if key in ("token", "hub_token", "use_auth_token"):
        return TOKEN
    inside = key in ("alpha", "beta", "lambda", "gamma") and SHARES & set(choices)
    if ELSEWHERE.get(key) in choices and not inside:
        return f"unknown key. It is called '{ELSEWHERE[key]}' here."
    if key in COSTS and "student" in choices:
        share = " The share of weights to delete is 'ratio';" if "ratio" in choices else ""
        inner = f"what a student may cost is a key of the one inside: student: {{name: copy_layers, {key}: ...}}."
        return f"unknown key.{share} {inner if share else inner[0].upper() + inner[1:]}"
    return f"unknown key.{did_you_mean(key, choices)}"


def former_name(key: str, known: Iterable[str]) -> str | None:
    """Return what a key is called now, if it was renamed; None for any other.

    >>> former_name("packed", ["packing"])
    "'packed' is now 'packing': it joins texts and cuts them into blocks."
    """
    name, does = FORMER.get(key, ("", ""))
    return f"'{key}' is now '{name}': {does}" if name in known else None


def glued_key(key: str) -> str | None:
    """Return what to do about a key that holds its value, as YAML reads `{text:review}`; None for any other.

    >>> glued_key("text:review")
    "Write a space after the colon: 'text: review'."
    """
    name, _, value = key.partition(":")
    return f"Write a space after the colon: '{name}: {value}'." if name and value else None


def attributes(cls: type) -> dict[str, str]:
    """Return field -> its text in the `Attributes:` sections of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(vars(base).get("__doc__") or "").partition("Attributes:\n")
        # A section ends at the next line that is not indented.
        block = re.split(r"\n(?=\S)", section)[0]
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {6,}.*)*)", block, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def explain(error: ValidationError, data: Any, path: str, cls: type | None = None) -> Iterator[tuple[str, str]]:
    """Yield path and message of each mistake that pydantic found.

    Args:
        error: The error from validating `data`.
        data: The validated data: mappings, lists and plain values.
        path: Path of `data` in the recipe.
        cls: The component whose fields `data` are; None for other data.
    """
    # pydantic reports each member of a union; they are joined into one line.
    wrong: dict[str, list[dict[str, Any]]] = {}
    values: dict[str, Any] = {}
    told: list[tuple[str, str]] = []
    for item in error.errors(include_url=False):
        where, value, owner = _find(data, item, path, cls)
        if item["type"] == "unexpected_keyword_argument":
            known = [*getattr(owner, "__pydantic_fields__", ())]
            told.append((where, unknown_key(where.rpartition(".")[2], _keys(owner, known))))
        elif item["type"] == "missing":
            said = attributes(owner).get(str(item["loc"][-1]), "") if owner else ""
            wanted = f" Wanted: {said.partition('. ')[0].removesuffix('.')}." if said else ""
            told.append((where, f"missing.{wanted}"))
        elif isinstance(item.get("ctx", {}).get("error"), UserError):
            own = item["ctx"]["error"]
            told += [
                (".".join(part for part in (where, key) if part), line)
                for key, line in zip(own.keys, own.mistakes, strict=True)
            ]
        else:
            wrong.setdefault(where, []).append({**item, "texts": _may_hold_texts(cls, item["loc"])})
            values[where] = value
    yield from told
    places = [*wrong, *(where for where, _ in told)]
    for where, items in wrong.items():
        # Of the members of a union, the user meant the one that matched more of the value.
        if not any(other.startswith((f"{where}.", f"{where}[")) for other in places):
            yield where, _sentence(_meant(items), values[where])


def _keys(cls: type | None, known: list[str]) -> list[str]:
    return ["name", *known] if hasattr(cls, "name") else known


def _meant(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the errors without "or a schedule" if the value is a wrong number: the user meant a number."""
    plain = [item for item in items if item["type"] not in ("dataclass_type", "dataclass_exact_type")]
    return plain or items


def _find(data: Any, item: Mapping[str, Any], path: str, cls: type | None) -> tuple[str, Any, type | None]:
    """Return path and value of an error, and the component whose key it concerns.

    pydantic puts the names of union members into the location; they are left out of the path.
    """
    location = item["loc"]
    owner = cls
    for index, token in enumerate(location):
        if (isinstance(data, dict) and token in data) or (isinstance(data, list | tuple) and token in range(len(data))):
            data, path = data[token], join(path, token)
            if index < len(location) - 1:
                owner = component_of(owner, token)
        elif index == len(location) - 1 and item["type"] == "missing":
            path = join(path, token)
    return path, data, owner


def component_of(cls: type | None, key: str | int) -> type | None:
    """Return the component class that a component's field may hold, such as `Schedule` for a weight; else None."""
    info = getattr(cls, "__pydantic_fields__", {}).get(key)
    for kind in [] if info is None else _kinds(info.annotation):
        if hasattr(kind, "__pydantic_fields__"):
            found: type = kind
            return found
    return None


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and those inside it."""
    yield annotation
    for kind in reversed(get_args(annotation)):
        yield from _kinds(kind)


def _may_hold_texts(cls: type | None, location: tuple[str | int, ...]) -> bool:
    """Return whether a list at a place in a component may hold texts; also if its field is not known."""
    for token in location:
        info = getattr(cls, "__pydantic_fields__", {}).get(token)
        if info is None:
            return True
        if (inner := component_of(cls, token)) is None:
            lists = [kind for kind in _kinds(info.annotation) if get_origin(kind) is list]
            within = [kind for one in lists for kind in _kinds(one)]
            return not lists or any(kind in (str, Any) or isinstance(kind, str) for kind in within)
        cls = inner
    return True


def _sentence(items: list[dict[str, Any]], value: Any) -> str:
    """Return the message: what was wanted, what was found and what to do."""
    kinds = [item["type"] for item in items]
    if not all(kind in WANTED for kind in kinds):
        item = next(item for item in items if item["type"] not in WANTED)
        if "error" in item.get("ctx", {}):
            return f"{item['ctx']['error']}"
        return f"{item['msg'].replace('Input should', 'it should')}, found {describe(value)}."
    wanted = " or ".join(dict.fromkeys(WANTED[item["type"]].format(**_readable(item.get("ctx", {}))) for item in items))
    wanted = wanted.replace("true or false or", "true, false or")
    # "wanted a number above 0, found -1" instead of "found the whole number -1": the type is not the mistake.
    found = str(value) if set(kinds) <= BOUNDS else describe(value)
    return f"wanted {wanted}, found {found}.{_advice(kinds, items, value)}"


def _readable(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the context of an error for the message: `1` for `1.0`, and a long list of words cut short."""
    shown = dict(context)
    for key, bound in context.items():
        if isinstance(bound, float) and bound.is_integer():
            shown[key] = int(bound)
    words = str(context.get("expected", "")).split(", ")
    if len(words) > 14:
        shown["expected"] = f"one of {len(words) + 1} words ({', '.join(words[:4])}, ...)"
    return shown


def _advice(kinds: list[str], items: list[dict[str, Any]], value: Any) -> str:
    """Return what to do, if the rest of the message does not make it clear."""
    expected = " ".join(str(item.get("ctx", {}).get("expected", "")) for item in items)
    options = re.findall(r"'([^']*)'", expected)
    if isinstance(value, str) and (close := get_close_matches(SHORT.get(value, value), options, n=1)):
        return f" Did you mean '{close[0]}'?"
    if value is None:
        return " Give it a value or remove the key."
    if "bool_type" in kinds and str(value).lower() in BOOLEANS:
        meant, why = BOOLEANS[str(value).lower()], ""
        if isinstance(value, str):
            why = ", without quotes" if value.lower() == meant else f": to YAML 1.2, '{value}' is text"
        return f" Write {meant}{why}."
    if isinstance(value, str) and {"int_type", "float_type"} & set(kinds) and _is_number(value):
        return " Remove the quotes."
    if isinstance(value, float) and "int_type" in kinds and value.is_integer():
        return f" Write {int(value)}."
    if kinds == ["string_type"] and isinstance(value, int | float):
        return " Put it in quotes."
    if "float_type" in kinds and isinstance(value, str) and (percent := _PERCENT.fullmatch(value.strip())):
        return f" Write {float(percent[1]) / 100:g}."
    if isinstance(value, str) and any(item["type"] == "list_type" and item["texts"] for item in items):
        return f" Write [{value}]."
    return ""


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))  # `nan` in quotes is a text
    except ValueError:
        return False


def join(path: str, token: str | int) -> str:
    """Return the path of an entry; with an empty token, that of the entry it is part of.

    >>> join(join("objectives", 1), "weight")
    'objectives[1].weight'
    """
    if isinstance(token, int):
        return f"{path}[{token}]"
    return ".".join(part for part in (path, token) if part)


def describe(value: Any) -> str:
    """Return a value and its YAML type (or Python class) in words, for "found ...".

    >>> describe("fast"), describe(1.5), describe(None)
    ("the text 'fast'", 'the number 1.5', 'nothing (null)')
    """
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if not isinstance(value, int | float):
        return f"an object of {type(value).__name__}"
    return f"the {'whole ' if isinstance(value, int) else ''}number {value}"
