"""Read CoNLL files: one word per line with its tags beside it, an empty line after each sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from typing_extensions import override

from hf_distill.data.reader import Reader, chunks
from hf_distill.data.texts import lines
from hf_distill.errors import UserError
from hf_distill.formatting import counted

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

_BOUNDARY = "-DOCSTART-"
_LOOK_AT = 10_000


class Conll(Reader):
    """Reads CoNLL files; the columns are called "0", "1", ... from the left.

    Columns are split at tabs if every line has one, else at white space. Skipped are `-DOCSTART-` lines, comments, and
    CoNLL-U's ranges (`1-2`) and empty nodes (`1.1`). A line that begins with `#` is a comment if it has another number
    of columns than the words, or (`# id 7c5b domain=en` in MultiCoNER) if all such lines stand before a sentence and
    end in a text that no word has as its tag.
    """

    @override
    def scan(self) -> pa.Schema:
        import pyarrow as pa

        self.separator, self.width = self._shape()
        self._remarks = self._find_remarks()
        self.rows = sum(1 for _ in self._sentences())  # counting also checks every line
        return pa.schema([(str(index), pa.list_(pa.string())) for index in range(self.width)])

    @override
    def tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        import pyarrow as pa

        for chunk in chunks(self._sentences()):
            columns = [[[word[int(name)] for word in sentence] for sentence in chunk] for name in schema.names]
            yield pa.table([pa.array(one, pa.list_(pa.string())) for one in columns], schema=schema)

    def _shape(self) -> tuple[str | None, int]:
        """Return the separator of columns (None: white space), and the number of columns."""
        words = [
            line
            for _, line in islice(lines(self.file), _LOOK_AT)
            if line.strip() and not line.startswith((_BOUNDARY, "# ", "#\t"))
        ]
        if not words:
            raise UserError("it has no words")
        separator = "\t" if all("\t" in line for line in words) else None
        return separator, Counter(len(self._cut(line, separator)) for line in words).most_common(1)[0][0]

    def _find_remarks(self) -> set[str]:
        """Return the last columns of those comments that have as many columns as a word.

        `#` can also be a word with a rare tag. So the lines count as comments only if all of them stand before the
        first word of a sentence.
        """
        tags, doubtful, first = set(), [], True
        for number, line in islice(lines(self.file), None if self.limit is None else 10 * _LOOK_AT):
            word = self._cut(line, self.separator) if line.strip() else []
            if line.startswith("#") and len(word) == self.width > 1:
                doubtful.append((number, word[-1], first))
                continue
            if not word or word[0] == _BOUNDARY:
                first = True
            elif not line.startswith("#"):
                tags.add(word[-1])
                first = False
        doubtful = [one for one in doubtful if one[1] not in tags]
        if not doubtful or not all(beginning for _, _, beginning in doubtful):
            return set()
        self.notes.append(
            f"{len(doubtful)} lines that begin with # are skipped as comments, the first is line {doubtful[0][0]}: "
            f"each stands before a sentence, and no word has the tag {doubtful[0][1]!r}."
        )
        return {last for _, last, _ in doubtful}

    def _cut(self, line: str, separator: str | None) -> list[str]:
        return [cell.strip() for cell in line.split(separator)] if separator else line.split()

    def _sentences(self) -> Iterator[list[list[str]]]:
        return self.limited(self._all_sentences())

    def _all_sentences(self) -> Iterator[list[list[str]]]:
        """Yield each sentence as a list of words; a word is the list of its columns.

        Raises:
            UserError: A line has more or fewer columns than the others.
        """
        sentence: list[list[str]] = []
        universal = self.file.endings[0] == ".conllu"
        for number, line in lines(self.file):
            word = self._cut(line, self.separator) if line.strip() else []
            if not word:
                if sentence:
                    yield sentence
                sentence = []
            elif word[0] == _BOUNDARY or (
                line.startswith("#") and (len(word) != self.width or word[-1] in self._remarks)
            ):
                continue
            elif len(word) != self.width:
                columns = counted(len(word), "column")
                raise UserError(
                    f"line {number} has {columns}, the others have {self.width}. Wanted one word per line with its "
                    "tags, and an empty line after each sentence."
                )
            elif not (universal and not word[0].isdigit()):
                sentence.append(word)
        if sentence:
            yield sentence
