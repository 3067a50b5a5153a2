"""Data sets on the Hub, against the hub of `fake_hub.py`: read as files of this machine are."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fake_hub import READ_TOKEN, FakeHub, fake_hub
from runs import REPO

__all__ = ["fake_hub"]

READ = """
import json
from hf_distill.data import load_splits
from hf_distill.errors import UserError
from hf_distill.data.section import Data
for name in %s:
    try:
        splits = load_splits(Data(path=f"ada/{name}"), {"text": True, "label": False})
        found = {split: [list(rows["text"]), list(rows["label"])] for split, rows in splits.items()}
        found["features"] = str(splits["train"].features["label"])
    except UserError as error:
        found = str(error)
    print("FOUND", json.dumps([name, found]))
"""
CARD = """---
dataset_info:
  features:
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': negative, '1': positive}}}
---
"""


def read(names: list[str], hub: FakeHub, place: Path, *, offline: bool = False) -> dict[str, Any]:
    """Return what each data set of a hub is read as, or the line why it is not."""
    switch = str(int(offline))
    done = subprocess.run(
        [sys.executable, "-c", READ % names],
        env={
            **os.environ,
            **hub.environment(place, READ_TOKEN),
            "PYTHONPATH": str(REPO),
            "HF_DATASETS_CACHE": str(place / "d"),
            "HF_DATASETS_OFFLINE": switch,
            "HF_HUB_OFFLINE": switch,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line.removeprefix("FOUND ")) for line in done.stdout.splitlines() if "FOUND" in line)


def test_a_repository_is_read_as_files_are(fake_hub: FakeHub, tmp_path: Path) -> None:
    """The options of a reader held for files that were named: the same CSV on the Hub lost the class "None", and TSV
    its lines between stray quotation marks. Names of classes on the card still count."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, labels = [f"t{row}" for row in range(6)], ["None", "NA", "favor"] * 2
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True))
    stray = 'text\tlabel\n"t0\tNone\nt1"\tNA\nt2\tfavor\n"t3\tNone\nt4\tNA\nt5\tfavor\n'
    table = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(["a", "b"], pa.large_string()), "label": [1, 0]}), table)
    repositories: dict[str, dict[str, bytes]] = {
        "csv": {"train.csv": rows.encode(), "validation.csv": rows.encode()},
        "tsv": {"data/train.tsv": stray.encode(), "data/validation.tsv": stray.encode()},
        "names": {"train.csv": b"text,label\na,1\nb,0\n", "validation.csv": b"text,label\nc,0\n"},
        "parquet": {name: table.getvalue() for name in ("train.parquet", "validation.parquet")},
        "broken": {"train.csv": b'text,label\n"a,1\n', "validation.csv": rows.encode()},
    }
    for name, files in repositories.items():
        card = CARD if name == "names" else "---\nlicense: mit\n---\n"
        fake_hub.add(f"ada/{name}").commit("data", {**files, "README.md": card.encode()})
    found = read(list(repositories), fake_hub, tmp_path)
    assert found["csv"]["train"] == found["csv"]["eval"] == [texts, labels]
    marked = ['"t0', 't1"', "t2", '"t3', "t4", "t5"]
    assert found["tsv"]["train"] == found["tsv"]["eval"] == [marked, labels]
    assert found["names"]["train"] == [["a", "b"], [1, 0]]
    assert "ClassLabel" in found["names"]["features"]
    assert found["parquet"]["train"] == [["a", "b"], [1, 0]]
    assert "opens a text in line 2 is never closed" in found["broken"]
    assert "train.csv" in found["broken"]


def test_what_was_read_is_read_again_without_a_network(fake_hub: FakeHub, tmp_path: Path) -> None:
    """Clusters fetch on a node with a network and train on one without: the second run found no data set there, though
    all of it was in the cache. What was never read still is refused, and types on the card still count."""
    rows = b"text,label\na,1\nb,0\n"
    for name in ("names", "other"):
        files = {"train.csv": rows, "validation.csv": rows, "test.csv": rows, "README.md": CARD.encode()}
        fake_hub.add(f"ada/{name}").commit("data", files)
    before = read(["names"], fake_hub, tmp_path)
    assert before["names"]["train"] == [["a", "b"], [1, 0]]
    again = read(["names", "other"], fake_hub, tmp_path, offline=True)
    assert again["names"] == before["names"]
    assert "ClassLabel" in again["names"]["features"]
    assert "cannot read 'ada/other'" in again["other"]
