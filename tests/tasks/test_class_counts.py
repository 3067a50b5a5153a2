"""How often each class occurs: what a sorted file does to two slices of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from runs import run

from hf_distill.data.shared_rows import shared_rows, warn_of_shared_rows
from hf_distill.errors import UserError
from hf_distill.tasks.class_counts import ClassCounts, count_classes


def counts(train: Any, judged: Any, width: int = 2, names: Any = ("no", "yes")) -> ClassCounts:
    found = count_classes(
        {"train": Dataset.from_dict({"labels": train}), "eval": Dataset.from_dict({"labels": judged})}, width, names
    )
    assert found is not None
    return found


def test_counts_of_every_kind_of_label() -> None:
    """Rows without a label, words and several labels a row: each is counted once, where it is known."""
    found = counts([0, 1, 1, -100], [1])
    assert list(found.in_words()) == ["train: yes 2, no 1", "eval: yes 1, no 0"]
    tags = counts([[-100, 0, 1, -1], [1, -100]], [[0]])
    assert (tags.unit, list(tags.in_words())) == ("words", ["train: yes 2, no 1", "eval: yes 0, no 1"])
    several = counts([[1.0, 1.0], [0.0, 1.0], [np.nan, np.nan]], [[0.0, 0.0]])
    assert (several.one_each, dict(several.rows)) == (False, {"train": 2, "eval": 1})
    assert next(iter(several.in_words())) == "train: yes 2, no 1"
    soft = counts([[0.3, 0.7], [0.9, 0.1]], [[0.2, 0.8]])
    assert (soft.one_each, next(iter(soft.in_words()))) == (True, "train: no 1, yes 1")
    assert count_classes({"train": Dataset.from_dict({"labels": [-100]})}, 2, None) is None
    many = counts(list(range(20)), [0], 20, None)
    assert next(iter(many.in_words())).endswith("... 20 classes in all")


def test_a_class_that_train_lacks() -> None:
    """It is never learned from labels, and takes its rows off every figure."""
    (line,) = counts([0, 1] * 50, [0, 1, 2, 2], 3, ("a", "b", "c")).remarks()
    assert "'c' (2 rows)" in line
    assert list(counts([0, 1, 2] * 50, [0, 1], 3, ("a", "b", "c")).remarks()) == []
    (line,) = counts([1, -100, 1], [1, 1]).remarks()  # eval is as one-sided, and most rows are transfer rows
    assert "all labels of the train split are 'yes'" in line


@pytest.mark.parametrize(
    ("train", "judged", "told"),
    [
        ([1] * 576 + [0] * 24, [0, 1] * 200, True),  # the head of a sorted file
        ([0, 1] * 300, [0, 1] * 200, False),
        ([1] * 330 + [0] * 270, [0, 1] * 200, False),  # differs by 5 points
        ([0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], False),  # by chance
        ([1] * 900 + [0] * 100, [1] * 700 + [0] * 300, True),
        ([1] * 960 + [0] * 40, [1] * 880 + [0] * 120, True),  # rare where it is learned, and not where it counts
    ],
)
def test_shares_that_differ(train: list[int], judged: list[int], told: bool) -> None:
    """Sorted data cut by rows is trained on one class and judged on both; small samples differ by chance alone."""
    lines = list(counts(train, judged).remarks())
    assert (len(lines) == 1) == told
    assert not told or "in different shares" in lines[0]


def test_many_classes_by_chance() -> None:
    """150 classes in 300 rows never have the same shares twice: no word of that, about one split in a thousand."""
    chance = np.random.default_rng(0)
    told = [
        list(counts(chance.integers(0, 150, 3000).tolist(), chance.integers(0, 150, 900).tolist(), 150, None).remarks())
        for _ in range(20)
    ]
    assert sum(map(bool, told)) == 0


def test_shares_of_several_labels() -> None:
    """Each is a yes or no of its own."""
    several = [[1.0, 0.0], [1.0, 1.0]]
    (line,) = counts(several * 50, [[0.0, 0.0], [0.0, 1.0]] * 50).remarks()
    assert "'no' is 100% of train and 0% of eval" in line
    assert list(counts(several * 50, several * 20).remarks()) == []


def test_one_class_in_train(write_recipe: Any, tmp_path: Path, sentiment_csv: Any) -> None:
    """The head of a sorted file: a student of it says the same of everything, at a loss that falls to 0."""
    rows = list(csv.DictReader(sentiment_csv.train.open(encoding="utf-8")))
    sorted_file = tmp_path / "sorted.csv"
    with sorted_file.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["sentence", "label"])
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["label"]))
    data = {
        "path": {"train": str(sorted_file), "validation": str(sentiment_csv.validation)},
        "columns": {"text": "sentence"},
        "splits": {"train": "train[:20]"},
    }
    with pytest.raises(UserError, match="all labels of the train split are 'negative'") as caught:
        run(write_recipe(data=data))
    assert "data.splits.train" in str(caught.value)
    assert "train: negative 20, positive 0; eval: negative 16, positive 16" in str(caught.value)


# ---- The same rows ---------------------------------------------------------------------------------------------------


def split(**columns: Any) -> Dataset:
    return Dataset.from_dict(columns)


def test_rows_that_are_in_both() -> None:
    """Copies between files are remembered, not predicted; only a slice that overlaps was told."""
    assert shared_rows(split(text=["a", "b"], label=[0, 1]), split(text=["b", "c", "b"], label=[0, 0, 1])) == 2
    assert shared_rows(split(text=["a"], text_pair=["b"]), split(text=["a"], text_pair=["c"])) == 0
    assert shared_rows(split(text=["ab"], text_pair=["c"]), split(text=["a"], text_pair=["bc"])) == 0
    assert shared_rows(split(tokens=[["a", "b"]], tags=[[0, 1]]), split(tokens=[["a", "b"]], tags=[[1, 1]])) == 1
    messages = [[{"role": "user", "content": "hi"}]]
    assert shared_rows(split(messages=messages), split(messages=messages)) == 1
    # Text may be large strings in one file.
    import pyarrow as pa

    large = split(text=["a", "b"]).cast(split(text=["a"]).features)
    assert shared_rows(large, Dataset(pa.table({"text": pa.array(["b"], pa.large_string())}))) == 1


def test_shared_rows_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """The line says how many, of how many."""
    same = {"train": split(text=list("abcd")), "eval": split(text=list("abcd"))}
    warn_of_shared_rows(same, {"train": "train", "eval": "validation"})
    some = {"train": split(text=list("abcd")), "eval": split(text=list("dxyz"))}
    warn_of_shared_rows(some, {"train": "train", "eval": "validation"})
    whole, few = (record.getMessage() for record in caplog.records)
    assert whole.startswith("4 of 4 rows of the eval split ('validation') are also in train ('train')")
    assert few.startswith("1 of 4 rows")
    caplog.clear()
    warn_of_shared_rows({"train": split(text=["a"]), "eval": split(text=["b"])}, {"train": "t", "eval": "e"})
    assert not caplog.records


def test_two_hundred_thousand_rows() -> None:
    """What is looked at before every run must not be felt."""
    import time

    texts = [f"this is sentence number {number}" for number in range(200_000)]
    train, judged = split(text=texts), split(text=[*texts[-1000:], "new"])
    started = time.process_time()
    assert shared_rows(train, judged) == 1000
    assert time.process_time() - started < 5  # 0.3 s on two old cores


# ---- What `--check` says of them -------------------------------------------------------------------------------------


def test_check_counts_classes_and_finds_what_the_run_refuses(write_recipe: Any, tmp_path: Path) -> None:
    """A bad label, or a slice of one class, was only told by the run, after the models were opened."""
    from hf_distill import load_recipe
    from hf_distill.run.dry_run import check

    def recipe(labels: list[str], train: str = "train") -> Path:
        path = tmp_path / "data.jsonl"
        rows = [f'{{"text": "film {number}", "label": "{label}"}}\n' for number, label in enumerate(labels)]
        path.write_text("".join(rows))
        path_of: Path = write_recipe(data={"path": str(path), "splits": {"train": train, "eval": "train[-4:]"}})
        return path_of

    sides = ["negative"] * 8 + ["positive"] * 8
    lines = check(load_recipe(recipe(sides, "train[:12]"))).splitlines()
    assert "classes     train: negative 8, positive 4" in lines
    assert "classes     eval: negative 0, positive 4" in lines
    for labels, train, says in (
        (sides, "train[:8]", "data.splits.train: all labels of the train split are 'negative'"),
        ([*sides[:-1], "neither"], "train", "row 15 (counted from 0) of the train split has the label 'neither'"),
    ):
        path = recipe(labels, train)
        with pytest.raises(UserError) as told:
            check(load_recipe(path))
        with pytest.raises(UserError) as raised:
            run(path)
        assert says in str(told.value)
        assert told.value.mistakes == raised.value.mistakes
