"""Tag schemes (IOB1, IOB2, BIOES, BILOU, BMES): find the scheme of data and models, and convert tags between them.

Tags mark spans of words with a type. IOB1 begins a span with `I-`, and with `B-` only directly after a span of the same
type. IOB2 begins every span with `B-`. BIOES also marks the last word (`E-`) and spans of one word (`S-`). BILOU writes
these as `L-` and `U-`. BMES writes the words in between as `M-`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from hf_distill._version import __version__
from hf_distill.data.label_names import label_names, shorten
from hf_distill.files.fingerprint import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

Scheme = Literal["IOB1", "IOB2", "BIOES", "BILOU", "BMES"]
# Letters of the first word, the words in between, the last word, and the only word of a span.
_LETTERS: dict[str, str] = {"IOB2": "BIIB", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES"}
# Number of sentences of a split in which IOB1 is looked for.
_LOOKED_AT = 20_000

Span = tuple[str, int, int]
Tags = Sequence[str | None]


def scheme_of(names: Collection[str]) -> Scheme | None:
    """Return the scheme of some tag names; None if they mark no spans. `IOB2` may also be IOB1.

    >>> scheme_of(["O", "B-PER", "I-PER"]), scheme_of(["O", "S-PER", "E-PER"]), scheme_of(["NOUN"])
    ('IOB2', 'BIOES', None)
    """
    marked = [name for name in names if name != "O"]
    letters = {name[:1] for name in marked}
    if not marked or any(name[1:2] != "-" or len(name) < 3 for name in marked):
        return None
    fitting: tuple[Scheme, ...] = ("IOB2", "BIOES", "BILOU", "BMES")
    return next((scheme for scheme in fitting if letters <= {*_LETTERS[scheme]}), None)


def scheme_of_head(names: Collection[str]) -> Scheme | None:
    """Return the scheme of a model's tag names; IOB1 if a type has an `I-` name but no `B-` name.

    >>> scheme_of_head(["B-LOC", "I-LOC", "I-PER", "O"]), scheme_of_head(["B-LOC", "I-LOC", "B-PER", "O"])
    ('IOB1', 'IOB2')
    """
    found = scheme_of(names)
    begun, inside = ({name[2:] for name in names if name.startswith(mark)} for mark in ("B-", "I-"))
    return "IOB1" if found == "IOB2" and inside - begun else found


def _labelled(tags: Tags) -> Iterable[str]:
    return (tag for tag in tags if tag is not None)


def spans_of(tags: Tags) -> list[Span]:
    """Return type, first and last word of every span, for tags in any scheme.

    >>> spans_of(["I-PER", "I-PER", "B-PER", "O", "S-LOC"])
    [('PER', 0, 1), ('PER', 2, 2), ('LOC', 4, 4)]
    """
    spans: list[Span] = []
    kind, ended = None, True
    for at, tag in enumerate(tags):
        if tag is None:  # not labelled, as later sub-words may be: this does not end a span
            continue
        letter, _, found = tag.partition("-")
        if not found:
            kind, ended = None, True
            continue
        if letter in "BSU" or ended or found != kind:
            spans.append((found, at, at))
        else:
            spans[-1] = (found, spans[-1][1], at)
        kind, ended = found, letter in "ELSU"
    return spans


def write(spans: Iterable[Span], like: Tags, scheme: Scheme) -> list[str | None]:
    """Return the tags of some spans.

    Args:
        spans: The spans, in the order of their words.
        like: Tags of the same words; a word whose tag is None gets None.
        scheme: Scheme of the new tags.

    >>> write([("PER", 0, 1), ("LOC", 2, 2)], ["?"] * 4, "BIOES")
    ['B-PER', 'E-PER', 'S-LOC', 'O']
    >>> write([("PER", 0, 1), ("PER", 2, 2)], ["?"] * 4, "IOB1")
    ['I-PER', 'I-PER', 'B-PER', 'O']
    """
    tags: list[str | None] = [None if tag is None else "O" for tag in like]
    before: Span | None = None
    for span in spans:
        kind, first, last = span
        letters = _LETTERS.get(scheme)
        if letters is None:
            touching = before is not None and before[0] == kind and not any(_labelled(like[before[2] + 1 : first]))
            letters = "BIIB" if touching else "IIII"
        begins, inside, ends, alone = (*letters,)
        for at in range(first, last + 1):
            letter = alone if first == last else begins if at == first else ends if at == last else inside
            if like[at] is not None:
                tags[at] = f"{letter}-{kind}"
        before = span
    return tags


def is_iob1(sentences: Iterable[Tags]) -> bool:
    """Whether spans begin with `I-`, and with `B-` only directly after a span of the same type.

    >>> is_iob1([["I-PER", "I-PER", "O", "I-LOC", "B-LOC"]]), is_iob1([["B-PER", "I-PER"]])
    (True, False)
    """
    begun = False
    for tags in sentences:
        before = "O"
        for here in _labelled(tags):
            same = before[2:] == here[2:] and before != "O"
            if here[:1] == "B" and not same:
                return False
            begun = begun or (here[:1] == "I" and not same)
            before = here
    return begun


def bring_into_scheme(
    splits: Mapping[str, Dataset],
    scheme: Scheme | None,
    teacher: PretrainedConfig | None,
    student: PretrainedConfig | None,
    names: Sequence[str] | None,
    role: str = "tags",
) -> tuple[dict[str, Dataset], bool]:
    """Return the splits with tags in the scheme of the models.

    Args:
        splits: Splits with words and tags.
        scheme: Scheme of the models, from the recipe; None to read it from a trained head (`scheme_of_head`).
        teacher: Configuration of a teacher with a trained head.
        student: Configuration of a student with a trained head.
        names: Names of integer tags, from the recipe.
        role: Role of the tag column.

    Returns:
        The splits, and whether their tags were converted. Converted tags are texts.
    """
    heads = (label_names(head) for head in (teacher, student) if head is not None)
    known = next((called for called in heads if called), None)
    wanted = scheme or (scheme_of_head(known) if known else None)
    tagged = {name: split for name, split in splits.items() if role in split.column_names}
    said = {name: _names(split, role, names) for name, split in tagged.items()}
    if not tagged or any(found is None for found in said.values()):
        return dict(splits), False
    found = scheme_of({tag for called in said.values() for tag in called or ()})
    broken = None
    if found == "IOB2":
        begun = [place for name in tagged if (place := _begun_inside(tagged[name], name, role, said[name]))]
        if begun and all(is_iob1(_sentences(tagged[name], role, said[name])) for _, name in begun):
            found = "IOB1"
        elif begun:
            broken = (
                f"row {begun[0][0]} (counted from 0) of the {begun[0][1]} split begins a span with I-, others with B-"
            )
    if found is None or wanted is None or (found == wanted and (broken is None or scheme is None)):
        if broken is not None:
            logger.warning(
                "%s: trained on as it is, evaluated as the beginning of a span. To convert it to B-: task: {name: "
                "token-classification, tag_scheme: IOB2}",
                broken,
            )
        return dict(splits), False
    if broken is not None:
        logger.warning("%s: read as the beginning of a span, and converted to %s", broken, wanted)
    else:
        logger.warning(
            "the tags of the data are %s, those of the models %s%s: converted. If the models use the data's scheme, "
            "set task: {name: token-classification, tag_scheme: %s}",
            *(found, wanted, f" {shorten(known, 4)}" if known else "", found),
        )
    made = {name: _converted(split, role, said[name], wanted) for name, split in tagged.items()}
    return {**splits, **made}, True


def _begun_inside(split: Dataset, name: str, role: str, names: Sequence[str] | None) -> tuple[int, str] | None:
    """Return row and split of the first span that begins with `I-`; None if there is none."""
    if not any(tag.startswith("I-") for tag in names or ()):
        return None
    for row, tags in enumerate(_sentences(split, role, names)):
        before = "O"
        for here in _labelled(tags):
            if here[:2] == "I-" and (before == "O" or before[2:] != here[2:]):
                return row, name
            before = here
    return None


def _names(split: Dataset, role: str, names: Sequence[str] | None) -> Sequence[str] | None:
    """Return the names of the tags of a split, in order of their numbers if tags are numbers; None if unknown."""
    from hf_distill.data import column

    feature = getattr(split.features[role], "feature", None)
    declared = getattr(feature, "names", None)
    if declared or str(getattr(feature, "dtype", "")).startswith("int"):
        return declared or names
    if str(getattr(feature, "dtype", "")) not in ("string", "large_string"):
        return None
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    return [tag for tag in pc.list_flatten(column(split, role)).unique().to_pylist() if tag is not None]


def _sentences(split: Dataset, role: str, names: Sequence[str] | None) -> Iterable[Tags]:
    return (_called(tags, names) for tags in _first(split, role))


def _first(split: Dataset, role: str) -> Iterable[Sequence[Any]]:
    return (tags or [] for tags in islice(split.select_columns([role])[role], _LOOKED_AT))


def _called(tags: Sequence[Any], names: Sequence[str] | None) -> Tags:
    """Return tags as names."""

    def name(tag: Any) -> str | None:
        if not isinstance(tag, int):
            return None if tag is None else str(tag)
        return names[tag] if names and 0 <= tag < len(names) else None

    return [name(tag) for tag in tags]


def _converted(split: Dataset, role: str, names: Sequence[str] | None, scheme: Scheme) -> Dataset:
    from datasets import Features, List, Value

    def convert(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        called = [None if tags is None else _called(tags, names) for tags in batch[role]]
        return {role: [None if tags is None else write(spans_of(tags), tags, scheme) for tags in called]}

    return split.map(
        convert,
        batched=True,
        features=Features({**split.features, role: List(Value("string"))}),
        desc="Converting tags",
        new_fingerprint=fingerprint(__version__, split._fingerprint, role, list(names or ()), scheme),
    )
