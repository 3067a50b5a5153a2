"""Add a column `length` to tables of texts: `short`, `medium` or `long`, by the number of words.

    python scripts/group_by_length.py data/ratings/movies.csv data/quickstart/validation.csv --into data/lengths

writes files of the same names, for a recipe with groups (`data.columns.group`) where the data has none of its own.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hf_distill.errors import UserError
from hf_distill.files.atomic import write_atomic

SHORT, MEDIUM = 8, 25
GROUP = "length"


def length_of(text: str) -> str:
    """Return the group of a text: up to 8 words, up to 25, or more.

    >>> length_of("dull"), length_of("word " * 9), length_of("word " * 26)
    ('short', 'medium', 'long')
    """
    words = len(text.split())
    return "short" if words <= SHORT else "medium" if words <= MEDIUM else "long"


def group_by_length(sources: Sequence[Path], into: Path, *, column: str = "sentence") -> None:
    """Write each of some CSV files with a further column.

    Args:
        sources: CSV files with a header.
        into: Directory for the new ones; created if it does not exist.
        column: Name of the column of texts.

    Raises:
        UserError: A file has no such column, or has a column of that name already.
    """
    made = {}
    for source in sources:
        with source.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), list(reader.fieldnames or ())
        if column not in names:
            raise UserError(f"{source} has no column '{column}'. It has: {', '.join(names)}.")
        if GROUP in names:
            raise UserError(f"{source} has a column '{GROUP}' already. Name it in the recipe, or leave it out here.")
        text = io.StringIO()
        writer = csv.DictWriter(text, [*names, GROUP], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, GROUP: length_of(row[column])} for row in rows)
        made[into / source.name] = text.getvalue()
        counts = Counter(length_of(row[column]) for row in rows)
        print(f"{into / source.name}: {', '.join(f'{name} {count:,}' for name, count in counts.most_common())}")
    into.mkdir(parents=True, exist_ok=True)
    for path, content in made.items():
        write_atomic(path, content)


def main() -> int:
    """Read the command line, write the files; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--into", type=Path, required=True, help="directory for the new files")
    parser.add_argument("--column", default="sentence", help="name of the column of texts")
    given = parser.parse_args()
    try:
        group_by_length(given.sources, given.into, column=given.column)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
