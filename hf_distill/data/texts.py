"""Read text files line by line: compressed or not, in UTF-8, or in UTF-16/32 with a byte order mark."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hf_distill.errors import UserError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# Byte order marks; UTF-32 comes first, since its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class File:
    """A file of examples.

    Attributes:
        path: Path on disk, or address on the Hub.
        name: The name that the user knows. Its ending gives the format; the cached copy of a Hub file has another name.
    """

    path: str
    name: str

    @property
    def endings(self) -> tuple[str, str]:
        """Ending for the format and ending for the compression, in lower case: `(".csv", ".gz")`; "" if none."""
        name = Path(self.name)
        last = name.suffix.lower()
        return (Path(name.stem).suffix.lower(), last) if last in COMPRESSED else (last, "")


def open_bytes(file: File) -> IO[bytes]:
    """Return the decompressed content of a file as a stream."""
    packing = file.endings[1]
    if packing == ".zst":
        try:
            import zstandard  # type: ignore[import-not-found]
        except ImportError as error:
            raise UserError("it is compressed with zstd. Unpack it (zstd -d), or: pip install zstandard") from error
        stream: IO[bytes] = zstandard.open(file.path, "rb")
        return stream
    return _OPENERS.get(packing, open)(file.path, "rb")  # type: ignore[no-any-return]


@contextmanager
def opened(file: File, *, newline: str | None = None) -> Iterator[IO[str]]:
    r"""Open a file as text, without the byte order mark.

    Args:
        file: The file.
        newline: As for `open`: by default every kind of line end becomes `\n`; `""` leaves them.

    Raises:
        UserError: The file is not text in a known encoding (the message has the line), or the compression is damaged.
    """
    try:
        with open_bytes(file) as stream:
            head = stream.read(4096)
        with open_bytes(file) as stream:
            encoding = _encoding(head)
            yield io.TextIOWrapper(stream, encoding=encoding, newline=newline)
    except UnicodeDecodeError as error:
        raise _not_text(file, error) from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"it is cut off or damaged ({error}). Copy or pack it again.") from error


def read_whole(file: File) -> str:
    """Return all of a text file."""
    with opened(file) as stream:
        return stream.read()


def lines(file: File) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the text of each line, without the line end.

    Raises:
        UserError: As `opened`; also for NUL bytes.
    """
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            check_nul(line, number)
            yield number, line.removesuffix("\n")


def check_nul(text: str, line: int) -> None:
    """Refuse a line with NUL bytes, the sign of a crash or a wrong encoding."""
    if "\0" in text:
        raise UserError(
            f"line {line} has NUL bytes, which are not text. The file is damaged, or in an encoding such as UTF-16 "
            "without a byte order mark; then convert it: iconv -f UTF-16LE -t UTF-8 OLD > NEW"
        )


def _encoding(head: bytes) -> str:
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def _not_text(file: File, error: UnicodeDecodeError) -> UserError:
    """Return the error with the line; the decoder only knows the position in its own buffer."""
    if error.encoding.startswith("utf-16") or error.encoding.startswith("utf-32"):
        mark = f"the byte order mark of {error.encoding.upper()}"
        return UserError(f"it has {mark} but is not in that encoding: {error.reason}. Save it as UTF-8.")
    with open_bytes(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as bad:
                return UserError(
                    f"line {number} is not UTF-8 (byte 0x{line[bad.start]:02x}). Convert it, for example: "
                    "iconv -f LATIN1 -t UTF-8 OLD > NEW"
                )
    return UserError("it is not UTF-8. Convert it, for example: iconv -f LATIN1 -t UTF-8 OLD > NEW")
