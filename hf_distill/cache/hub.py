"""A cache as a data set on the Hub: published, and taken from there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill.cache.shards import CACHE
from hf_distill.errors import UserError, first_line

if TYPE_CHECKING:
    from hf_distill.cache.format import Kept

CARD = "README.md"
_FILES = [CACHE, CARD, "*.arrow"]

_WHOLE = """Columns: `example`, a hash of what the teacher read; {names}, its output {by} in {precision}."""
_SPARSE = """Columns: `example`, a hash of what the teacher read; and, position after position, as bytes:

| column | numpy type | for each position |
|---|---|---|
| `indices` | {number} | the {top} likeliest tokens{drawn} |
| `log_probabilities` | {precision} | theirs, at temperature {temperature:g} |
| `remaining` | {precision} | logarithm of the mass of all other tokens |
"""


_STATES = "`{name}`, hidden states of layer {states} in {precision}, {width} entries each, {of}"
_VECTORS = {
    "tokens": "those of the tokens one after the other, without padding",
    "mean": "the mean of the tokens of a text",
    "first": "that of the first token of a text",
    "last": "that of the last token of a text",
}


def card(kept: Kept) -> str:
    """Return the README of a cache, with what `datasets.load_dataset` has to know."""
    if not kept.is_sparse:
        names = ", ".join(f"`{name}`" for name in kept.outputs)
        by = "for each token" if kept.by_token else "for each example"
        body = _WHOLE.format(names=names, by=by, precision=kept.precision)
    else:
        number = {2: "uint16", 3: "uint8, 3 bytes a number, the lowest first", 4: "uint32"}[kept.index_bytes]
        drawn = f", then {kept.tail} drawn from all others, which stand for an equal part of `remaining` each"
        body = _SPARSE.format(number=number, drawn=drawn if kept.tail else "", **kept.as_dict())
    for one in kept.states:
        words = {"name": one.name, "states": one.states, "precision": one.precision, "width": one.width}
        body += f"\n- {_STATES.format(**words, of=_VECTORS[one.states.of])}"
    return f"""---
tags:
- hf_distill
- knowledge-distillation
configs:
- config_name: default
  data_files: "*.arrow"
---

# Answers of a teacher

Made by `hf_distill`: what a teacher says to every distinct example of a data set, so that students learn from it
without running it. `{CACHE}` says of which teacher, and holds the checksums.

{body}
"""


def push(path: Path, repo_id: str) -> None:
    """Publish a complete cache; files that are there already are not sent again."""
    from huggingface_hub import HfApi

    HfApi().upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=path,
        allow_patterns=_FILES,
        commit_message="Answers of a teacher, kept by hf_distill",
    )


def fetch(repo_id: str) -> Path:
    """Download a cache, or find it downloaded, and return its directory.

    Raises:
        UserError: It is not there, or the Hub is not.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"cannot take the cache from the data set '{repo_id}' on the Hub: {first_line(error)} Make it "
            "with push: true, or leave repo_id out.",
            key="repo_id",
        ) from error
