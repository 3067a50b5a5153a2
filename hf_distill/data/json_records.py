"""Read JSON: one record per line, a list of records, a mapping of columns, or SQuAD's nested form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hf_distill.data.reader import Reader, chunks, describe_type
from hf_distill.data.texts import lines, read_whole
from hf_distill.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

Record = Mapping[str, Any]
_WANTED = "Wanted one JSON object a line, or one list of objects."


class JsonRecords(Reader):
    """Reads JSON and JSON Lines; the content of a file decides which of the two it is.

    Values are not converted: a text that looks like a date stays a text. Columns that do not fit one Arrow type (mixed
    numbers and texts, mappings whose keys differ from row to row) become the `Json` type of `datasets`.
    """

    @override
    def scan(self) -> pa.Schema:
        import pyarrow as pa

        kinds: dict[str, pa.DataType] = {}
        self.rows = 0
        for chunk in chunks(self._records()):
            self.rows += len(chunk)
            for name in dict.fromkeys(name for _, record in chunk for name in record):
                kind = self._kind(name, [record.get(name) for _, record in chunk], [place for place, _ in chunk])
                kinds[name] = self._wider(name, kinds[name], kind) if name in kinds else kind
        if not kinds:
            raise UserError("it has no records")
        return pa.schema(list(kinds.items()))

    @override
    def tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        import pyarrow as pa

        for chunk in chunks(self._records()):
            columns = [_array([record.get(field.name) for _, record in chunk], field.type) for field in schema]
            yield pa.table(columns, schema=schema)

    def common(self, name: str, kinds: Sequence[pa.DataType], error: Exception) -> pa.Field:
        """Return a field of type `Json`, which holds values of any type."""
        import pyarrow as pa

        return pa.field(name, self._anything(name, " and ".join(describe_type(kind) for kind in kinds)))

    # ---- Types -------------------------------------------------------------------------------------------------------

    def _kind(self, name: str, values: list[Any], places: Sequence[str]) -> pa.DataType:
        import pyarrow as pa

        if _ragged(values):
            return self._anything(name, "mappings with different keys")
        try:
            return pa.array(values).type
        except UnicodeEncodeError as error:
            place = next(place for place, value in zip(places, values, strict=True) if _half(value))
            raise UserError(f"{place}: '{name}' has half of a character (a lone surrogate such as \\ud83d)") from error
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            return self._anything(name, "values of different kinds")

    def _wider(self, name: str, one: pa.DataType, other: pa.DataType) -> pa.DataType:
        """Return a type that holds the values of both."""
        import pyarrow as pa

        if one == other:
            return one
        if _keys(one) != _keys(other) and not (pa.types.is_null(one) or pa.types.is_null(other)):
            return self._anything(name, "mappings with different keys")
        fields = [pa.schema([pa.field(name, kind)]) for kind in (one, other)]
        try:
            return pa.unify_schemas(fields, promote_options="permissive").field(name).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return self._anything(name, "values of different kinds")

    def _anything(self, name: str, what: str) -> pa.DataType:
        try:
            from datasets import Json
        except ImportError as error:
            raise UserError(f"'{name}' holds {what}, which needs a newer datasets: pip install -U datasets") from error
        return Json.pa_type

    # ---- Records -----------------------------------------------------------------------------------------------------

    def _records(self) -> Iterator[tuple[str, Record]]:
        """Yield the place ("line 3", "row 2 counted from 0") and the content of each record."""
        return self.limited(self._by_line() if self._has_a_record_a_line() else self._of_document())

    def _has_a_record_a_line(self) -> bool:
        first = next((line for _, line in lines(self.file) if line.strip()), "")
        try:
            value = json.loads(first)
        except (ValueError, RecursionError):
            # An object that goes on below is one document; JSON Lines may begin with a broken line too.
            return self.file.endings[0] != ".json" and first.strip() not in ("{", "[", "[{")
        if isinstance(value, dict) and sum(1 for _, line in islice(lines(self.file), 100) if line.strip()) == 1:
            return self.file.endings[0] != ".json" and not _is_squad(value.get("data"))
        return not isinstance(value, list)

    def _by_line(self) -> Iterator[tuple[str, Record]]:
        for number, line in lines(self.file):
            if line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"line {number} is not JSON: {_reason(error)}. {_WANTED}") from error
                yield f"line {number}", _record(value, f"line {number}")

    def _of_document(self) -> Iterator[tuple[str, Record]]:
        try:
            document = json.loads(read_whole(self.file))
        except (ValueError, RecursionError) as error:
            raise UserError(f"it is not JSON: {_reason(error)}. {_WANTED}") from error
        for row, value in enumerate(_rows(document)):
            place = f"row {row} (counted from 0)"
            yield place, _record(value, place)


def _reason(error: Exception) -> str:
    return f"{error}".replace("line 1 column", "column") if isinstance(error, ValueError) else "it is nested too deeply"


def _record(value: Any, place: str) -> Record:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise UserError(f'{place} holds {_name(value)}, not an object such as {{"text": ...}}. {_WANTED}')
    return value


def _name(value: Any) -> str:
    return {list: "a list", type(None): "null", bool: "true or false"}.get(type(value), "a number")


# ---- Documents -------------------------------------------------------------------------------------------------------


def _rows(document: Any) -> Iterable[Any]:
    """Return the records of a document.

    Raises:
        UserError: The document has no records, or several lists of them.
    """
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise UserError(f"it holds {_name(document)}. {_WANTED}")
    lists = {
        key: value
        for key, value in document.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    }
    if "messages" in document:  # one conversation
        return [document]
    if isinstance(document.get("data"), list):
        lists = {"data": document["data"]}
    if len(lists) > 1:
        names = ", ".join(f"'{key}'" for key in lists)
        raise UserError(f"it holds lists of objects under {names}. Save each of them as a file of its own.")
    if lists:
        (records,) = lists.values()
        return _questions(records) if _is_squad(records) else records
    return _columns(document)


def _columns(document: Mapping[str, Any]) -> Iterable[Any]:
    """Return the rows of `{"text": [...], "label": [...]}`, or of pandas' `{"text": {"0": ...}, ...}`."""
    values = list(document.values())
    if values and all(isinstance(value, dict) for value in values) and len({tuple(value) for value in values}) == 1:
        values = [list(value.values()) for value in values]
    if not values or not all(isinstance(value, list) for value in values):
        return [document]
    if len({len(value) for value in values}) > 1:
        sizes = ", ".join(f"{len(value)} under '{key}'" for key, value in zip(document, values, strict=True))
        raise UserError(f"its columns differ in length: {sizes}")
    return (dict(zip(document, row, strict=True)) for row in zip(*values, strict=True))


def _is_squad(records: Any) -> bool:
    return (
        isinstance(records, list)
        and bool(records)
        and all(isinstance(one, dict) and isinstance(one.get("paragraphs"), list) for one in records)
    )


def _questions(articles: Iterable[Mapping[str, Any]]) -> Iterator[Record]:
    """Yield the questions of SQuAD's JSON in the columns of the Hub dataset; without an answer, `text` is empty."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph.get("qas", ()):
                answers = [] if question.get("is_impossible") else question.get("answers") or []
                yield {
                    "id": str(question.get("id", "")),
                    "title": article.get("title", ""),
                    "context": paragraph.get("context"),
                    "question": question.get("question"),
                    "answers": {key: [one.get(key) for one in answers] for key in ("text", "answer_start")},
                }


# ---- Values ----------------------------------------------------------------------------------------------------------


def _ragged(values: Iterable[Any]) -> bool:
    """Return whether mappings have different keys, at any depth: Arrow would fill the missing ones with None."""
    there = [value for value in values if value is not None]
    if there and all(isinstance(value, dict) for value in there):
        keys = set(there[0])
        return any(set(value) != keys for value in there) or any(
            _ragged([value[key] for value in there]) for key in keys
        )
    if there and all(isinstance(value, list) for value in there):
        return any(isinstance(item, dict | list) for value in there for item in value) and _ragged(
            [item for value in there for item in value]
        )
    return False


def _keys(kind: pa.DataType) -> Any:
    """Return the keys of the mappings of a type, at any depth."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return {field.name: _keys(field.type) for field in kind}
    return _keys(kind.value_type) if pa.types.is_list(kind) else None


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if "json" in str(kind):
        texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
        return pa.ExtensionArray.from_storage(kind, pa.array(texts, kind.storage_type))
    return pa.array(values, kind)


def _half(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
