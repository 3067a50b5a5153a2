"""Split a table into rows that keep their label and rows that lose it, taken at random.

    python scripts/hide_labels.py data/quickstart/train.csv --labelled 8000 --into outputs/private-data

writes `labelled.csv` and `unlabelled.csv`: for recipes with `data.transfer`, if no real texts lack one.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import sys
from pathlib import Path

from hf_distill.errors import UserError
from hf_distill.files.atomic import write_atomic


def hide_labels(source: Path, labelled: int, into: Path, *, label: str = "label", seed: int = 0) -> None:
    """Write `labelled.csv`, some rows of `source`, and `unlabelled.csv`, the others without the column of labels.

    Args:
        source: A CSV file with a header.
        labelled: Number of rows that keep their label.
        into: Directory for both files; created if it does not exist.
        label: Name of the column of labels.
        seed: Which rows: the same ones for the same seed.

    Raises:
        UserError: There is no such column, or there are not more rows than that.
    """
    with source.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), list(reader.fieldnames or ())
    if label not in names:
        raise UserError(f"{source} has no column '{label}'. It has: {', '.join(names)}.")
    if not 0 < labelled < len(rows):
        raise UserError(f"wanted a number of labelled rows between 1 and {len(rows) - 1:,}, found {labelled:,}.")
    random.Random(seed).shuffle(rows)
    into.mkdir(parents=True, exist_ok=True)
    write_atomic(into / "labelled.csv", _table(rows[:labelled], names))
    write_atomic(into / "unlabelled.csv", _table(rows[labelled:], [name for name in names if name != label]))
    print(f"{into}: {labelled:,} rows with a label, {len(rows) - labelled:,} without", flush=True)


def _table(rows: list[dict[str, str]], names: list[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main() -> int:
    """Read the command line, write the files; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--labelled", type=int, required=True, help="how many rows keep their label")
    parser.add_argument("--into", type=Path, required=True, help="directory for labelled.csv and unlabelled.csv")
    parser.add_argument("--label", default="label", help="name of the column of labels")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        hide_labels(given.source, given.labelled, given.into, label=given.label, seed=given.seed)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
