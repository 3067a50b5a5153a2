"""Text files as lines: compressed or not, in UTF-8 or marked as UTF-16; what is neither is told with its line."""

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
# Marks at the beginning of a file (BOM); that of UTF-32 begins with that of UTF-16.
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
        path: Where its bytes are.
        name: What the user calls it. Its ending says what it holds; a file from the Hub lies under another name.
    """

    path: str
    name: str

    @property
    def endings(self) -> tuple[str, str]:
        """Ending without that of a compression, and that of the compression; both in lower case."""
        name = Path(self.name)
        last = name.suffix.lower()
        return (Path(name.stem).suffix.lower(), last) if last in COMPRESSED else (last, "")


def open_bytes(file: File) -> IO[bytes]:
    """Return the content of a file, unpacked, as a stream."""
    packing = file.endings[1]
    if packing == ".zst":
        try:
            import zstandard  # type: ignore[import-not-found]
        except ImportError as error:
            raise UserError("is packed with zstd. Unpack it (zstd -d), or: pip install zstandard") from error
        stream: IO[bytes] = zstandard.open(file.path, "rb")
        return stream
    return _OPENERS.get(packing, open)(file.path, "rb")  # type: ignore[no-any-return]


@contextmanager
def opened(file: File, *, newline: str | None = None) -> Iterator[IO[str]]:
    r"""Open a file as text; a byte mark at its beginning is not part of it.

    Args:
        file: The file.
        newline: As for `open`: by default every kind of line end becomes `\n`; `""` leaves them.

    Raises:
        UserError: Not text in a known encoding (with the line), or a damaged archive.
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
    """Yield number (from 1) and text of each line, without its line end.

    Raises:
        UserError: As `opened`; also for NUL, which no text has.
    """
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            check_nul(line, number)
            yield number, line.removesuffix("\n")


def check_nul(text: str, line: int) -> None:
    """Refuse a line with NUL: what a crash or a wrong encoding leaves."""
    if "\0" in text:
        raise UserError(
            f"line {line} has NUL bytes, which no text has. The file is damaged, or in an encoding such as UTF-16 "
            "without its mark; then convert it: iconv -f UTF-16LE -t UTF-8 OLD > NEW"
        )


def _encoding(head: bytes) -> str:
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def _not_text(file: File, error: UnicodeDecodeError) -> UserError:
    """Return the error with the line; the decoder only knows the place in its own buffer."""
    if error.encoding.startswith("utf-16") or error.encoding.startswith("utf-32"):
        return UserError(f"it is marked as {error.encoding.upper()} and is not: {error.reason}. Save it as UTF-8.")
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
