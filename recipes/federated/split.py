"""Split the quickstart's movie reviews among three parties of different sizes and classes, and public texts."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

# Party -> number of its rows, and share of positive ones.
PARTIES = {"one": (250, 0.3), "two": (500, 0.5), "three": (1000, 0.7)}
PUBLIC = 3000


def split(train: Path, validation: Path, target: Path, public: int = PUBLIC, scale: float = 1.0) -> None:
    """Write `NAME/private.csv` for each party, and `public.csv` and `eval_texts.csv` without labels.

    Args:
        train: Labelled sentences, `sentence` and `label`.
        validation: The server's labelled eval rows.
        target: Directory to write into.
        public: Number of public texts.
        scale: Factor of the parties' sizes.
    """
    rows = _read(train)
    random.Random(0).shuffle(rows)
    left: dict[str, list[Sequence[str]]] = {"positive": [], "negative": []}
    for row in rows:
        left[row[1]].append(row)
    for name, (size, share) in PARTIES.items():
        count = round(size * scale)
        wanted = {"positive": round(count * share), "negative": count - round(count * share)}
        _write(
            target / name / "private.csv",
            ("sentence", "label"),
            [left[one].pop() for one in wanted for _ in range(wanted[one])],
        )
    rest = [row for some in left.values() for row in some]
    random.Random(1).shuffle(rest)
    _write(target / "public.csv", ("sentence",), ((text,) for text, _ in rest[:public]))
    _write(target / "eval_texts.csv", ("sentence",), ((text,) for text, _ in _read(validation)))


def _read(path: Path) -> list[Sequence[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [(row["sentence"], row["label"]) for row in csv.DictReader(file)]


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


if __name__ == "__main__":
    split(Path("data/quickstart/train.csv"), Path("data/quickstart/validation.csv"), Path("outputs/federated"))
