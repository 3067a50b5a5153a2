"""Find text labels that are probably not classes: missing values, several labels in one cell, two spellings of one."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from hf_distill.data.label_names import folded, shorten, tidy
from hf_distill.errors import UserError
from hf_distill.tasks.label_column import LabelColumn
from hf_distill.tasks.stated_labels import Stated

logger = logging.getLogger(__name__)

# Never the name of a class. The words below sometimes are.
_SIGNS = ("", "-", "--", "?", ".", "_", "*")
_WORDS = ("na", "n/a", "nan", "null", "none", "nil", "unknown", "missing", "undefined", "unlabeled", "unlabelled")
_SEPARATORS = (",", ";", "|")
_MANY = 50


def refuse_gaps(column: LabelColumn) -> None:
    """Refuse numbers with an "NA" among them: it is a missing value. If it is a class, the recipe can name it."""
    gaps = [text for text in column.values if text.strip().casefold() in (*_SIGNS, *_WORDS)]
    if gaps and any(re.fullmatch(r"\s*[-+]?[0-9.]+\s*", text) for text in column.values):
        wanted = "a number like the others, or an empty cell where there is no label"
        raise column.refuse(lambda text: text in gaps, wanted)


def check_texts(column: LabelColumn, texts: Mapping[Any, str], stated: Stated) -> None:
    """Refuse or warn about texts that are probably not classes.

    Args:
        column: The labels.
        texts: Label -> its name.
        stated: What the recipe says about labels; labels that it names are not checked.

    Raises:
        UserError: A label stands for "no label", or holds several other labels.
    """
    asked = {label: text for label, text in texts.items() if text not in stated.known and label not in stated.known}
    if not column.nested:  # tags of words may be punctuation signs
        _check_signs(column, asked)
        _check_parts(column, asked, {folded(text) for text in texts.values()})
    _warn_of_words(asked)
    _warn_of_spellings(texts, stated)
    warn_of_many(column)


def _check_signs(column: LabelColumn, asked: Mapping[Any, str]) -> None:
    signs = [label for label, text in asked.items() if tidy(text) in _SIGNS]
    if signs and len(asked) > len(signs):
        raise UserError(
            f"{_rows(column, signs)} the label {signs[0]!r}, which would become a class. If it means that there is no "
            f"label, say so: data: {{labels: {{'{signs[0]}': null}}}}; if it is a class, name it: '{signs[0]}': "
            "NAME in place of null.",
            key=column.key,
        )


def _check_parts(column: LabelColumn, asked: Mapping[Any, str], classes: set[str]) -> None:
    """Refuse texts such as "joy,love" where "joy" alone is a class as well."""
    if column.lists:
        return
    for sign in _SEPARATORS:
        joined = [
            label
            for label, text in asked.items()
            if sign in text and any(folded(part) in classes for part in text.split(sign))
        ]
        if joined:
            raise UserError(
                f"{_rows(column, joined)} the label {joined[0]!r}, whose parts are classes of other rows. If a row "
                f"may have several classes, name the separator: data: {{label_separator: '{sign}'}}; if "
                f"this is one class, name it: data: {{labels: {{'{joined[0]}': NAME}}}}.",
                key=column.key,
            )


def _warn_of_words(asked: Mapping[Any, str]) -> None:
    words = [label for label, text in asked.items() if folded(text) in _WORDS]
    if words and len(asked) > len(words):
        logger.warning(
            "the label '%s' is learned as a class of its own. If it means that there is no label, say so: "
            "data: {labels: {'%s': null}}",
            *(words[0], words[0]),
        )


def _warn_of_spellings(texts: Mapping[Any, str], stated: Stated) -> None:
    """Warn about spellings that look alike: which are read as one class, and which as two."""
    alike: dict[str, dict[str, str]] = defaultdict(dict)
    for text in texts.values():
        if text not in stated.meanings.values():
            alike[folded(text)].setdefault(tidy(text), text)
    unseen = [text for text in texts.values() if tidy(text) != text and tidy(text) in texts.values()]
    if unseen:
        logger.warning(
            "%s and %s differ only in spaces or Unicode: read as one class", repr(unseen[0]), repr(tidy(unseen[0]))
        )
    for spellings in alike.values():
        if len(spellings) > 1:
            one, other = sorted(spellings)[:2]
            logger.warning(
                "'%s' and '%s' are learned as two classes. If they are one, say so: data: {labels: {'%s': %s}}",
                *(one, other, one, other),
            )


def warn_of_many(column: LabelColumn) -> None:
    """Warn if most rows have a label that no other row has: the column is probably an id, or the text itself."""
    rows = sum(len(split) for split in column.splits.values())
    if not column.nested and not column.lists and len(column.values) > max(_MANY, rows // 2):
        logger.warning(
            "%s rows have %s different labels, such as %s: is '%s' the right column?",
            *(f"{rows:,}", f"{len(column.values):,}", shorten(column.values, 3), column.key),
        )


def _rows(column: LabelColumn, labels: list[Any]) -> str:
    found = column.count(labels)
    return (
        " and ".join(f"{count:,} of {len(column.splits[name]):,} rows of the {name} split" for name, count in found)
        + " have"
    )
