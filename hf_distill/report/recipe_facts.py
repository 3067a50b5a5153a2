"""What a report tells of its recipe: names of models and data, without secrets and without paths of a machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from hf_distill.report.markdown import inline_code, markdown

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
DATA_FILE = re.compile(r"\.(csv|tsv|jsonl?|parquet|txt|text|arrow|gz|zip|xz)$")
# Recipe keys whose value is a model or a dataset: a Hub id or a path.
LOCATIONS = ("model", "path", "tokenizer")


@dataclass(frozen=True)
class Place:
    """The name of a model or dataset as the card may show it.

    Attributes:
        name: Hub id, or the last component of a local path.
        on_hub: Whether it is a Hub id.
    """

    name: str
    on_hub: bool

    @property
    def link(self) -> Markup:
        """The model's name in markdown; a link if it is on the Hub."""
        return self._link("https://huggingface.co")

    @property
    def data_link(self) -> Markup:
        """The dataset's name in markdown; a link if it is on the Hub."""
        return self._link("https://huggingface.co/datasets")

    def _link(self, site: str) -> Markup:
        if not self.on_hub:
            return inline_code(self.name)
        return Markup("".join(("[", markdown(self.name), f"]({site}/{quote(self.name)})")))


def place(location: str) -> Place:
    """Return the name of a model or dataset for the card; of a local path only the last component.

    `package:NAME/PATH` is shown whole: it is the same on every machine and says where to get the file.

    >>> place("google-bert/bert-base-uncased")
    Place(name='google-bert/bert-base-uncased', on_hub=True)
    >>> place("package:tiny_models/bert"), place("/home/me/secret/bert/")
    (Place(name='package:tiny_models/bert', on_hub=False), Place(name='bert', on_hub=False))
    """
    if location.startswith("package:"):
        return Place(location, False)
    on_hub = HUB_ID.fullmatch(location) is not None and not location.startswith(".")
    if on_hub and not DATA_FILE.search(location) and not Path(location).exists():
        return Place(location, True)
    return Place(last_part(location), False)


def last_part(location: str) -> str:
    """Return the last component of a location; `local` if it has none."""
    parts = [part for part in re.split(r"[/\\:]", location) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else "local"


def recipe_of(text: str) -> dict[str, Any]:
    """Return a resolved recipe's YAML as plain values."""
    from ruamel.yaml import YAML

    content = YAML(typ="safe", pure=True).load(text) if text.strip() else {}
    return content if isinstance(content, dict) else {}


def public(recipe: Any, key: str = "") -> Any:
    """Return a recipe without secrets, and with only the last component of local paths.

    >>> public({"data": {"path": "/home/me/train.csv"}, "training": {"output_dir": "runs/a", "seed": 1}})
    {'data': {'path': 'train.csv'}, 'training': {'output_dir': 'a', 'seed': 1}}
    """
    if isinstance(recipe, Mapping):
        # Below `path` all values are files: {split: [file, ...]}.
        shown = {name: value for name, value in recipe.items() if not str(name).endswith("token")}
        return {name: public(value, "path" if key == "path" else str(name)) for name, value in shown.items()}
    if isinstance(recipe, (list, tuple)):
        return [public(value, key) for value in recipe]
    if not isinstance(recipe, str):
        return recipe
    if key in LOCATIONS:
        return place(recipe).name
    path_like = recipe.startswith(("/", "~", "./", "../")) or "\\" in recipe or recipe.count("/") > 1
    return last_part(recipe) if path_like or key.endswith(("_dir", "_path", "_file", "_checkpoint")) else recipe


def model_name(recipe: Mapping[str, Any]) -> str:
    """Return the student's name: its Hub id if it has one, else the name of its directory."""
    hub, training = recipe.get("hub") or {}, recipe.get("training") or {}
    return str(hub.get("repo_id") or last_part(str(training.get("output_dir") or "student")))


def teachers(recipe: Mapping[str, Any]) -> list[Place]:
    """Return every model that the `teacher` section names."""
    return list(dict.fromkeys(place(name) for name in models_of(recipe.get("teacher"))))


def models_of(entry: Any) -> Iterator[str]:
    """Yield the names of all models in a part of a recipe."""
    if isinstance(entry, Mapping):
        for key, value in entry.items():
            if key in ("model", "models") and not isinstance(value, Mapping):
                names = value if isinstance(value, list) else [value]
                yield from (name for name in names if isinstance(name, str))
            else:
                yield from models_of(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from models_of(value)


def datasets(recipe: Mapping[str, Any]) -> list[Place]:
    """Return the dataset, or its files; then those of the transfer rows."""
    data = recipe.get("data") or {}
    path = data.get("path")
    files = [*(path.values() if isinstance(path, Mapping) else [path]), (data.get("transfer") or {}).get("path")]
    flat = [name for item in files for name in (item if isinstance(item, list) else [item]) if isinstance(name, str)]
    return list(dict.fromkeys(place(name) for name in flat))
