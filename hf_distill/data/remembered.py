"""Where the files of a repository on the Hub are, kept for machines and times without a network."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.data.texts import File
from hf_distill.files.atomic import write_atomic
from hf_distill.files.fingerprint import fingerprint

if TYPE_CHECKING:
    from datasets import Features

logger = logging.getLogger(__name__)

_FOLDER = "hf_distill-hub"
# A commit never changes, so its files in the cache need no network; a branch does.
_URL = re.compile(r"hf://datasets/(?P<repo>[^@]+)@(?P<commit>[0-9a-f]{40})/(?P<file>.+)")


def remember(asked: Mapping[str, Any], files: Mapping[str, Sequence[File]], features: Features | None) -> None:
    """Write down what a repository holds.

    Args:
        asked: Its id, configuration and revision.
        files: Split -> its files on the Hub.
        features: Types that its card declares.
    """
    kept = {
        "files": {split: [file.path for file in some] for split, some in files.items()},
        "features": None if features is None else features.to_dict(),
    }
    try:
        place = _place(asked)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, json.dumps(kept))
    except OSError as error:  # of no use to this run
        logger.info("%s: %s", place, error.strerror)


def recall(asked: Mapping[str, Any]) -> tuple[dict[str, list[File]], Features | None] | None:
    """Return what a repository held when it was last read: split -> files, and types; None where it never was."""
    from datasets import Features

    try:
        kept = json.loads(_place(asked).read_bytes())
        files = {split: [File(path, path) for path in paths] for split, paths in kept["files"].items()}
        features = None if kept["features"] is None else Features.from_dict(kept["features"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    logger.warning("the Hub is not reached: '%s' is read as it was last time", asked["path"])
    return files, features


def in_cache(path: str) -> str | None:
    """Return the file in the cache of the Hub that an address with a commit means; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = _URL.fullmatch(path)
    if found is None:
        return None
    there = try_to_load_from_cache(found["repo"], found["file"], revision=found["commit"], repo_type="dataset")
    return there if isinstance(there, str) else None


def _place(asked: Mapping[str, Any]) -> Path:
    from datasets import config
    from huggingface_hub import constants

    said = [asked["path"], asked.get("name"), asked.get("revision"), constants.ENDPOINT]
    return Path(os.fspath(config.HF_DATASETS_CACHE), _FOLDER, f"{fingerprint(*map(str, said))}.json")
