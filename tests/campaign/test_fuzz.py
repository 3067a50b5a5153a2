"""Made-up recipes, overrides and files of data: each is read, or refused with lines, and nothing else happens.

Some hundreds run with the other tests; `make campaign` runs 50,000 and more, and prints what became of each.
"""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import os
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fuzzing import Outcomes, text_of, tried
from hypothesis import strategies as st
from mutations import damaged, damaged_bytes, mutate, overridden
from ruamel.yaml import YAML
from runs import REPO

from hf_distill.cli import main
from hf_distill.data.loading import load_splits, peek
from hf_distill.data.section import Data
from hf_distill.errors import UserError
from hf_distill.outside import OnlyRead, only_reading
from hf_distill.recipe.paths import check_paths
from hf_distill.recipe.reader import load_recipe
from hf_distill.tasks import TASKS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks, signals and limits of POSIX")
# In the campaign this many times as much.
TIMES = int(os.environ.get("FUZZ", "100" if "CAMPAIGN" in os.environ else "1"))
SEED = int(os.environ.get("SEED", "0"))
RECIPES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((REPO / "recipes").rglob("*.yaml"))}
RECIPES = {name: text for name, text in RECIPES.items() if "\ntask:" in f"\n{text}"}
PLAIN = {name: YAML(typ="safe", pure=True).load(text) for name, text in RECIPES.items()}
TABLE: dict[str, Outcomes] = {}


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    """Print the counts after the last input."""
    import transformers  # noqa: F401 - here, and not in every process

    yield
    for kind, found in TABLE.items():
        print(f"\n{kind:<12} {sum(found.counts.values()):>7,}  {dict(found.counts)}", end="")
    print(f"\n{'in all':<12} {sum(sum(one.counts.values()) for one in TABLE.values()):>7,}")


def hold(kind: str, found: Outcomes, count: int) -> None:
    """Keep the outcomes of a kind, and fail if one of them is wrong."""
    TABLE[kind] = found
    assert not found.wrong, "\n".join([*dict.fromkeys(found.wrong)][:12]) + f"\n({len(found.wrong)} in all)"
    assert sum(found.counts.values()) >= 0.9 * count, "hypothesis has left most of them out"


# ---- Recipes ---------------------------------------------------------------------------------------------------------

RANDOM = st.randoms(use_true_random=True)


def put_recipe(given: tuple[bytes, Sequence[str]]) -> None:
    Path("recipe.yaml").write_bytes(given[0])


def read_recipe(given: tuple[bytes, Sequence[str]]) -> None:
    with only_reading():
        try:
            recipe = load_recipe("recipe.yaml", given[1])
        except OnlyRead:  # right, as far as it can be read without its code
            return
        with suppress(UserError):  # what these recipes name is not here
            check_paths(recipe)


def changed(recipe: Any, chance: random.Random) -> bytes:
    made = copy.deepcopy(recipe)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        made = mutate(made, chance)
        if not made:
            break
    return text_of(made)


VALUES_CHANGED = st.builds(lambda name, chance: (changed(PLAIN[name], chance), ()), st.sampled_from([*PLAIN]), RANDOM)
TEXT_CHANGED = st.builds(lambda name, chance: (damaged(RECIPES[name], chance), ()), st.sampled_from([*PLAIN]), RANDOM)
OVERRIDDEN = st.builds(
    lambda name, chance: (RECIPES[name].encode(), overridden(PLAIN[name], chance)), st.sampled_from([*PLAIN]), RANDOM
)
SIGNS = "-?:,[]{}#&*!|>'\"%@` \n\t\\~=<.0123456789abcdefxXnNyY_éß\u2028\ufeff\x00\x1b"
ANY_TEXT = st.builds(
    lambda text: (text.encode("utf-8", "surrogatepass"), ()),
    st.one_of(
        st.text(SIGNS, max_size=200),
        st.text(max_size=100),
        st.lists(st.sampled_from(["task: ", "- ", "  ", "&a ", "*a", "<<: ", "{", "}", "[", "]", "!!int ", "!x ", "|\n",
                                  ">-\n", "? ", ": ", "\n", "teacher:", "name: kl", "---\n", "...\n", "%YAML 1.1\n"]),
                 max_size=60).map("".join),
    ),
)  # fmt: skip
ANY_BYTES = st.binary(max_size=300).map(lambda raw: (raw, ()))


@pytest.mark.parametrize(
    ("kind", "inputs", "count"),
    [
        ("values", VALUES_CHANGED, 150),
        ("text", TEXT_CHANGED, 90),
        ("overrides", OVERRIDDEN, 90),
        ("any text", ANY_TEXT, 50),
        ("any bytes", ANY_BYTES, 20),
    ],
)
def test_recipes(kind: str, inputs: Any, count: int, tmp_path: Path) -> None:
    """A traceback for a slip of the pen says nothing to who made it; and a recipe of a stranger does nothing by being
    read."""
    count *= TIMES
    hold(kind, tried(inputs, put_recipe, read_recipe, count, tmp_path / "processes", SEED), count)


def check_recipe(given: tuple[bytes, Sequence[str]]) -> None:
    status = main(["recipe.yaml", *given[1], "--check"])
    if status == 2:
        raise UserError("refused")
    assert status == 0, status


def test_check(write_recipe: Any, tmp_path: Path) -> None:
    """Where models and data can be opened, there is more to go wrong, and more to touch."""
    recipe = YAML(typ="safe", pure=True).load(write_recipe().read_text(encoding="utf-8"))
    inputs = st.builds(lambda chance: (changed(recipe, chance), ()), RANDOM)
    count = 12 * TIMES
    hold("--check", tried(inputs, put_recipe, check_recipe, count, tmp_path / "processes", SEED), count)


# ---- Data ------------------------------------------------------------------------------------------------------------

TABULAR = [(f"a film {index}, {'good' if index % 2 else 'bad'}", ("no", "yes")[index % 2]) for index in range(8)]
CONLL = "".join(f"word{index} NN B-NP {('O', 'B-PER', 'I-PER')[index % 3]}\n{'' if index % 4 else chr(10)}"
                for index in range(16))  # fmt: skip


def parquet(form: str) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.feather as feather  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    table = pa.table({"text": [one for one, _ in TABULAR], "label": [one for _, one in TABULAR]})
    sink = io.BytesIO()
    if form == "parquet":
        pq.write_table(table, sink)
    elif form == "feather":
        feather.write_feather(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    return sink.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return sink.getvalue()


def files() -> dict[str, bytes]:
    import json

    rows = [{"text": text, "label": label} for text, label in TABULAR]
    csv = "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in TABULAR)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    tree = [{"messages": [{"role": "user", "content": text}], "n": {"a": [1, 2.5, None]}, **row} for text, row in
            zip((text for text, _ in TABULAR), rows, strict=True)]  # fmt: skip
    made = {
        "csv": csv.encode(),
        "tsv": csv.replace('"', "").replace(", ", " ").replace(",", "\t").encode(),
        "jsonl": lines.encode(),
        "json": json.dumps(tree).encode(),
        "txt": "".join(f"{text}\n" for text, _ in TABULAR).encode(),
        "conll": CONLL.encode(),
        "parquet": parquet("parquet"),
        "arrow": parquet("arrow"),
        "feather": parquet("feather"),
    }
    return {**made, **{form: pack(made[inner]) for form, (inner, pack) in PACKED.items()}}


# How a name ends -> what is packed, and how.
PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "csv.gz": ("csv", gzip.compress),
    "jsonl.bz2": ("jsonl", bz2.compress),
    "zip": ("csv", lambda content: zipped("train.csv", content)),
}
FILES = files()


def damaged_file(form: str, chance: random.Random) -> bytes:
    """Return a file of data with something changed; of a packed one, what is packed in half of the cases."""
    if form in PACKED and chance.random() < 0.5:
        inner, pack = PACKED[form]
        return pack(damaged_bytes(FILES[inner], [*FILES.values()], chance))
    return damaged_bytes(FILES[form], [*FILES.values()], chance)


@dataclass(frozen=True)
class Given:
    """A file of data.

    Attributes:
        form: How its name ends.
        content: Its bytes.
        task: Which task reads it.
        first: Whether only its first rows are looked at, as by `--check`.
    """

    form: str
    content: bytes
    task: str
    first: bool


def put_data(given: Given) -> None:
    for path in Path().glob("rows.*"):
        path.unlink()
    Path(f"rows.{given.form}").write_bytes(given.content)


def read_data(given: Given) -> None:
    task = TASKS[given.task]()
    path = f"rows.{given.form}"
    data = Data(path={"train": path, "validation": path})
    if given.first:
        sample = peek(data, task.roles, label=task.label_role)
        splits: Any = sample.splits if sample else {}
    else:
        splits = load_splits(data, task.roles, label=task.label_role)
    for split in splits.values():
        split[:]


READERS = ("text-classification", "text-classification", "text-generation", "fill-mask", "sentence-similarity")
WORDS = ("conll", "tsv", "txt")
DAMAGED = st.builds(
    lambda form, task, first, chance: Given(
        form,
        damaged_file(form, chance),
        "token-classification" if form == "conll" or (form in WORDS and chance.random() < 0.3) else task,
        first,
    ),
    st.sampled_from([*FILES]),
    st.sampled_from(READERS),
    st.booleans(),
    RANDOM,
)
ANY_FILE = st.builds(
    Given,
    st.sampled_from([*FILES]),
    st.one_of(st.binary(max_size=400), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))),
    st.sampled_from(READERS[:3]),
    st.booleans(),
)


@pytest.mark.parametrize(("kind", "inputs", "count"), [("data", DAMAGED, 100), ("any file", ANY_FILE, 20)])
def test_data(kind: str, inputs: Any, count: int, tmp_path: Path) -> None:
    """A file that a download has damaged, or that was made to do so, ended a run with a page of a library's own."""
    count *= TIMES
    hold(kind, tried(inputs, put_data, read_data, count, tmp_path / "processes", SEED), count)
