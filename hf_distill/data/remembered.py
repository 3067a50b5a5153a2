"""Remember which files a Hub dataset has, so that it can be read again without a network."""

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
# An address with a commit. A commit never changes, so its cached files need no network; a branch may change.
_URL = re.compile(r"hf://datasets/(?P<repo>[^@]+)@(?P<commit>[0-9a-f]{40})/(?P<file>.+)")


def remember(asked: Mapping[str, Any], files: Mapping[str, Sequence[File]], features: Features | None) -> None:
    """Store which files a repository has.

    Args:
        asked: Its id, configuration and revision.
        files: Split -> its files on the Hub.
        features: Column types that its data card declares.
    """
    stored = {
        "files": {split: [file.path for file in some] for split, some in files.items()},
        "features": None if features is None else features.to_dict(),
    }
    try:
        place = _place(asked)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, json.dumps(stored))
    except OSError as error:  # this run does not need it
        logger.info("%s: %s", place, error.strerror)


def recall(asked: Mapping[str, Any]) -> tuple[dict[str, list[File]], Features | None] | None:
    """Return the stored files (split -> files) and column types of a repository; None if nothing is stored."""
    from datasets import Features

    try:
        stored = json.loads(_place(asked).read_bytes())
        files = {split: [File(path, path) for path in paths] for split, paths in stored["files"].items()}
        features = None if stored["features"] is None else Features.from_dict(stored["features"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    logger.warning("cannot reach the Hub: '%s' is read from the local cache, as it was last time", asked["path"])
    return files, features


def in_cache(path: str) -> str | None:
    """Return the path in the Hub's cache of a file given by an address with a commit; None if it is not cached."""
    from huggingface_hub import try_to_load_from_cache

    found = _URL.fullmatch(path)
    if found is None:
        return None
    there = try_to_load_from_cache(found["repo"], found["file"], revision=found["commit"], repo_type="dataset")
    return there if isinstance(there, str) else None


def _place(asked: Mapping[str, Any]) -> Path:
    from datasets import config
    from huggingface_hub import constants

    key = [asked["path"], asked.get("name"), asked.get("revision"), constants.ENDPOINT]
    return Path(os.fspath(config.HF_DATASETS_CACHE), _FOLDER, f"{fingerprint(*map(str, key))}.json")
