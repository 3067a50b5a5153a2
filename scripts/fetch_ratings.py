"""Fetch rated sentences of three kinds: product reviews, newspaper editorials and tweets, 13,098 in all.

    python scripts/fetch_ratings.py [--into data/ratings]

`train.csv` and `validation.csv` have the columns `sentence`, `rating` (the mean of at least twenty people's ratings in
[-4, 4]), and `source` (`product`, `editorial`, `tweet`): a regression task, and groups of rows for which a student may
be worse than for others. `movies.csv` has 3,000 labelled movie-review sentences of `data/quickstart/train.csv`, by hash
since that file is in the order of its labels. All are in the source archive of vaderSentiment 0.5, as those of
`fetch_quickstart.py` (C.J. Hutto and E.E. Gilbert, "VADER", ICWSM 2014; MIT licence), and are checked against their
sha256.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _fetching import is_whole, run_all
from fetch_quickstart import HELD_OUT as HELD_OUT_MOVIES
from fetch_quickstart import MOVIES, download_ratings, read_ratings, with_labels

from hf_distill.errors import UserError
from hf_distill.files.atomic import write_atomic

SOURCES = {
    "product": "amazonReviewSnippets_GroundTruth.txt",
    "editorial": "nytEditorialSnippets_GroundTruth.txt",
    "tweet": "tweets_GroundTruth.txt",
}
HELD_OUT = 1_500
MOVIES_TO_TRAIN_ON = 3_000
SPLITS = {
    "train.csv": "b5726200e1d72ef4223b41ff01e7956f7da23dfe1722a8074266b1a6ab1c348d",
    "validation.csv": "279a27240e8b3d187281018336fcbcf73d7c8dfbc3dc835256ab6d7355df17fe",
    "movies.csv": "6803350ad95bf3dc45838fffc4dc51064a8847b72285db0994eb8c77128d20f9",
}

Row = tuple[object, ...]


def fetch(into: Path) -> None:
    """Write the files of `SPLITS` into a directory.

    Raises:
        UserError: They could not be fetched, or are not what they should be.
    """
    if all(is_whole(into / name, digest) for name, digest in SPLITS.items()):
        print(f"{into}: already there", flush=True)
        return
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        archive = download_ratings(scratch)
        rows = [(*one, source) for source, name in SOURCES.items() for one in read_ratings(archive, name)]
        reviews = with_labels(read_ratings(archive, MOVIES))
    for (name, digest), content in zip(SPLITS.items(), (*split(rows), movies(reviews)), strict=True):
        write_atomic(into / name, content)
        if not is_whole(into / name, digest):
            raise UserError(f"{into / name}: not the expected content. Please report this; it is a bug.")
    print(f"{into}: {len(rows) - HELD_OUT:,} sentences to train on, {HELD_OUT:,} to evaluate", flush=True)


def split(rows: list[tuple[str, float, str]]) -> tuple[str, str]:
    """Return train and validation: the hash of its sentence places each row, and the first are held out."""
    ordered = sorted(rows, key=_by_hash)
    held_out = {sentence for sentence, *_ in ordered[:HELD_OUT]}
    columns = ("sentence", "rating", "source")
    # A sentence that occurs twice is on one side only.
    return (
        _csv(columns, [row for row in ordered if row[0] not in held_out]),
        _csv(columns, [row for row in ordered if row[0] in held_out]),
    )


def movies(rows: list[tuple[str, str]]) -> str:
    """Return labelled movie-review sentences, none of which `fetch_quickstart.py` holds out."""
    ordered = sorted(rows, key=_by_hash)
    held_out = {sentence for sentence, _ in ordered[:HELD_OUT_MOVIES]}
    return _csv(("sentence", "label"), [row for row in ordered if row[0] not in held_out][:MOVIES_TO_TRAIN_ON])


def _by_hash(row: tuple[Any, ...]) -> bytes:
    return hashlib.sha256(row[0].encode()).digest()


def _csv(columns: Row, rows: Sequence[Row]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return file.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Fetch them; return the exit status: 0, or 2 with one line on stderr that says what failed."""
    parser = argparse.ArgumentParser(description="Fetch rated sentences of three kinds.")
    parser.add_argument("--into", type=Path, default=Path("data/ratings"), help="directory for the data (%(default)s)")
    into = parser.parse_args(arguments).into
    return run_all([lambda: fetch(into)])


if __name__ == "__main__":
    sys.exit(main())
