"""Upload a cache to the Hub as a data set, and download it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill.cache.shards import CACHE
from hf_distill.errors import UserError, first_line

if TYPE_CHECKING:
    from hf_distill.cache.format import Kept

CARD = "README.md"
# Record of targets that were published without their texts (`cache.published`).
PUBLISHED = "published.json"
_FILES = [CACHE, PUBLISHED, CARD, "*.arrow", "*.parquet"]

_WHOLE = """Columns: `example`, a hash of what the teacher read; {names}, its output {by} in {precision}."""
_SPARSE = """Columns: `example`, a hash of what the teacher read; and, position after position, as bytes:

| column | numpy type | for each position |
|---|---|---|
| `indices` | {number} | the {top} likeliest tokens{drawn} |
| `log_probabilities` | {precision} | theirs, at temperature {temperature:g} |
| `remaining` | {precision} | logarithm of the probability of all other tokens |
"""


_STATES = "`{name}`, hidden states of layer {states} in {precision}, {width} entries each, {of}"
_VECTORS = {
    "tokens": "one vector for each token, without padding",
    "mean": "the mean over the tokens of a text",
    "first": "the vector of the first token of a text",
    "last": "the vector of the last token of a text",
}


def card(kept: Kept) -> str:
    """Return the README of a cache, with the metadata that `datasets.load_dataset` needs."""
    if not kept.is_sparse:
        names = ", ".join(f"`{name}`" for name in kept.outputs)
        by = "for each token" if kept.by_token else "for each example"
        body = _WHOLE.format(names=names, by=by, precision=kept.precision)
    else:
        number = {2: "uint16", 3: "uint8, 3 bytes a number, the lowest first", 4: "uint32"}[kept.index_bytes]
        drawn = f", then {kept.tail} sampled from all others, each of which stands for an equal part of `remaining`"
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

# Targets of a teacher

Made by `hf_distill`: the outputs of a teacher for every distinct example of a data set, so that students can be trained
without running it. `{CACHE}` names the teacher and holds the checksums.

{body}
"""


def push(path: Path, repo_id: str) -> None:
    """Upload a complete cache; files that the Hub has already are not uploaded again."""
    from huggingface_hub import HfApi

    HfApi().upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=path,
        allow_patterns=_FILES,
        commit_message="Targets of a teacher, stored by hf_distill",
    )


def fetch(repo_id: str) -> Path:
    """Download a cache unless it is there already, and return its directory.

    Raises:
        UserError: There is no such data set, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"cannot download the cache from the data set '{repo_id}' on the Hub: {first_line(error)} Make it "
            "with push: true, or leave repo_id out.",
            key="repo_id",
        ) from error
