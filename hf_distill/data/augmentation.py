"""The base class of augmentations (`data.augment`): ways to make further texts of those that are there.

The new rows have no label: only the teacher says something about them. They are made once and stored, in parts of some
hundred rows, so that a run that is interrupted goes on from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hf_distill._version import __version__
from hf_distill.component import component, entry
from hf_distill.data.example_columns import SOURCE
from hf_distill.data.fingerprints import dataset_fingerprint
from hf_distill.files.atomic import write_atomic
from hf_distill.files.fingerprint import fingerprint

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

# Folder inside the cache of `datasets`, beside that of stored targets.
FOLDER = "hf_distill-augmented"
# Rows that one file is made of: some minutes of a large model's time without a GPU.
PART = 500

Row = Mapping[str, str]
# Returns the new rows of each given row.
Rewrite = Callable[[Sequence[Row]], Sequence[Sequence[Row]]]


@component
class Augmentation(ABC):
    """How further train rows are made of the texts."""

    name: ClassVar[str]

    def check(self) -> str | None:
        """Check what can be checked without loading weights; used by `--check`.

        Returns:
            What was not checked, because it is on the Hub; None if all was.

        Raises:
            UserError: Nothing can be made in this way; `key` names the field.
        """
        return None

    @abstractmethod
    def in_words(self) -> str:
        """Return what will be made, as `--check` says it: `up to 20 rows for each row, by ...`."""

    @abstractmethod
    def open(self) -> tuple[Rewrite, str]:
        """Load what makes the rows.

        Returns:
            A function that returns the new rows of each row; and a hash of all that decides them beside the settings,
            such as the weights of a model. New rows must depend on nothing else than a row itself.

        Raises:
            UserError: It cannot be loaded; `key` names the field.
        """


def augmented(rows: Dataset, how: Augmentation, say: Callable[[str], None], root: Path | None = None) -> Dataset:
    """Return the new rows that an augmentation makes of rows: in the order of these, made now or stored before.

    A further column, `SOURCE`, has the number of the row that each was made of.

    Args:
        rows: Columns of texts alone.
        how: The augmentation.
        say: Called with each line for the user.
        root: Folder of what is stored. Default: beside the stored targets, in the cache of `datasets`.

    Raises:
        OSError: The folder cannot be written to.
    """
    from datasets import Dataset, Features, Value, concatenate_datasets

    rewrite, identity = how.open()
    settings = fingerprint(__version__, entry(how), identity)
    folder = (root or _root()) / settings
    parts = [rows.select(range(first, min(first + PART, len(rows)))) for first in range(0, len(rows), PART)]
    files = [folder / f"{dataset_fingerprint(part)}.parquet" for part in parts]
    missing = sum(not file.exists() for file in files)
    if missing:
        say(f"augment: {how.name} makes rows of {len(rows):,} rows, {missing} of {len(parts)} parts, in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
    made = Dataset(_tables(parts, files, rewrite))
    features = Features({**rows.features, SOURCE: Value("int64")})
    made = made if made.features == features else made.cast(features)  # a cast writes the rows once more
    whole = concatenate_datasets([made.select([]), made])
    # The same in every process and run, since it names the tokenised rows in the cache of `datasets`.
    whole._fingerprint = fingerprint(settings, [file.name for file in files])
    return whole


def _root() -> Path:
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / FOLDER


def _tables(parts: Sequence[Dataset], files: Sequence[Path], rewrite: Rewrite) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    found, first = list[pa.Table](), 0
    for part, file in zip(parts, files, strict=True):
        table = _read(file)
        if table is None:
            table = _made(part, rewrite)
            write_atomic(file, _as_parquet(table))
        place = table.schema.get_field_index(SOURCE)
        found.append(table.set_column(place, SOURCE, pc.add(table.column(SOURCE), first)))
        first += len(part)
    return pa.concat_tables(found)


def _made(part: Dataset, rewrite: Rewrite) -> pa.Table:
    import pyarrow as pa

    new = [(source, row) for source, several in enumerate(rewrite(part.to_list())) for row in several]
    texts = {name: pa.array([row[name] for _, row in new], pa.string()) for name in part.column_names}
    return pa.table({**texts, SOURCE: pa.array([source for source, _ in new], pa.int64())})


def _as_parquet(table: pa.Table) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _read(file: Path) -> pa.Table | None:
    """Return a stored part; None if it is not there, damaged or without `SOURCE`, so that it is made again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_table(file, page_checksum_verification=True)
        return found if SOURCE in found.column_names else None
    except (OSError, pa.ArrowException):
        return None
