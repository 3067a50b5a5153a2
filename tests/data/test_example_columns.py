"""`data.columns.group` and `data.columns.weight`: how they are read, and with which line they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prepared import dataset, refused

from hf_distill.data import load_splits, peek
from hf_distill.data.example_columns import GROUP, MOST_GROUPS, WEIGHT, check_weights
from hf_distill.data.section import Data
from hf_distill.data.transfer import Transfer
from hf_distill.data.transfer_rows import append_transfer

ROLES = {"text": True, "text_pair": False, "label": False}


def section(folder: Path, rows: list[dict[str, Any]], transfer: Any = None, **columns: str) -> Data:
    """Return a `data` section over rows, of which those with `eval` are the eval split."""
    files = {
        "train": [row for row in rows if not row.get("eval")],
        "validation": [row for row in rows if row.get("eval")],
        "transfer": transfer or [],
    }
    for name, some in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return Data(
        path={name: str(folder / f"{name}.jsonl") for name in ("train", "validation")},
        columns=columns,
        transfer=Transfer(path=str(folder / "transfer.jsonl")) if transfer else None,
    )


def rows_of(**columns: list[Any]) -> list[dict[str, Any]]:
    """Return four train rows and two eval rows with some columns."""
    return [
        {
            "text": f"text {row}",
            "label": row % 2,
            "eval": row > 3,
            **{name: values[row] for name, values in columns.items()},
        }
        for row in range(6)
    ]


def test_groups_are_names_and_a_missing_one_is_a_group(tmp_path: Path) -> None:
    """Rows without a group would vanish from the report, or numbers and texts be two groups."""
    rows = rows_of(who=["b", None, " a ", "", "a", "b"], age=[1, 2, 30, None, 1, 2])
    data = section(tmp_path, rows, group="who")
    split = load_splits(data, ROLES)
    assert split["train"][GROUP][:] == ["b", "(none)", "a", "(none)"]
    assert set(split["eval"].column_names) == {"text", "label", GROUP}
    again = load_splits(data, ROLES)
    assert again["train"]._fingerprint == split["train"]._fingerprint  # else nothing tokenised is found again
    split = load_splits(section(tmp_path, rows, group="age"), ROLES)
    assert split["train"][GROUP][:] == ["1", "2", "30", "(none)"]


def test_a_column_is_no_group_unless_the_recipe_says_so(tmp_path: Path) -> None:
    """Data that happens to have a column `weight` would be weighed by it."""
    rows = rows_of(weight=[1.0] * 5 + [-1.0], group=["a"] * 6)
    assert set(load_splits(section(tmp_path, rows), ROLES)["train"].column_names) == {"text", "label"}


def test_transfer_rows_without_the_columns(tmp_path: Path) -> None:
    """A missing weight of theirs would be 0 or NaN; they count once, and belong to no group."""
    rows = rows_of(who=list("aabbab"), w=[2, 3, 0, 1, 1, 1])
    bare = section(tmp_path, rows, [{"text": "more"}], group="who", weight="w")
    train = append_transfer(load_splits(bare, ROLES), "label")["train"]
    assert (train[GROUP][-1], train[WEIGHT][:]) == ("(none)", [2.0, 3.0, 0.0, 1.0, 1.0])
    own = section(tmp_path, rows, [{"text": "more", "who": "c", "w": 5}], group="who", weight="w")
    train = append_transfer(load_splits(own, ROLES), "label")["train"]
    assert (train[GROUP][-1], train[WEIGHT][-1]) == ("c", 5.0)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1, 2, -0.5, -1, 1, 1], "row 2 (counted from 0) of the train split has the weight -0.5 in column '"),
        ([1, float("nan"), 1, 1, 1, 1], "row 1 (counted from 0) of the train split has the weight nan"),
        ([1, 1, 1, 1, 1, float("inf")], "row 1 (counted from 0) of the eval split has the weight inf"),
        ([1, None, 1, 1, 1, 1], "row 1 (counted from 0) of the train split has no weight"),
        (["1", "much", "1", "1", "1", "1"], "row 1 (counted from 0) of the train split has the weight 'much'"),
        ([0, 0, 0, 0, 1, 1], "all weights of the train split are 0"),
        ([[1]] * 6, "row 0 (counted from 0) of the train split has the weight [1.0]"),
    ],
)
def test_wrong_weights_are_one_line(weights: list[Any], words: str, tmp_path: Path) -> None:
    """A NaN would end in the weights of the model; a negative weight would teach the opposite."""
    data = section(tmp_path, rows_of(w=weights), weight="w")
    for read in (load_splits, peek):
        key, line = refused(read, data, ROLES)
        assert key == "columns.weight"
        assert words.replace("[1.0]", "[1]") in line


def test_wrong_groups_are_one_line(tmp_path: Path) -> None:
    """A report of one group, or of as many as rows, would look like an answer."""
    cases = [
        (["a"] * 6, "every row is of one group, 'a'"),
        ([["a"]] * 6, "wanted one text or number a row"),
    ]
    for groups, words in cases:
        key, line = refused(load_splits, section(tmp_path, rows_of(who=groups), group="who"), ROLES)
        assert (key, words in line) == ("columns.group", True)
    many = rows_of(who=["0"] * 6) + [{"text": "x", "label": 0, "who": str(row)} for row in range(MOST_GROUPS + 1)]
    key, line = refused(load_splits, section(tmp_path, many, group="who"), ROLES)
    assert (key, "1,001 groups" in line) == ("columns.group", True)
    key, line = refused(load_splits, section(tmp_path, rows_of(who=list("ababab")), group="whom"), ROLES)
    assert (key, "no column 'whom'" in line, "'who'" in line) == ("columns.group", True, True)


def test_a_trainer_s_weights_are_checked_too() -> None:
    """Without a recipe a NaN would be found in the loss, far from the row."""
    check_weights(dataset(example_weight=[0, 1.5]), "train_dataset")
    key, line = refused(check_weights, dataset(example_weight=[1.0, -1.0]), "train_dataset")
    assert "row 1 (counted from 0) of train_dataset has the weight -1.0" in line
    assert key == WEIGHT
