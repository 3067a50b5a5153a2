"""Tags in one scheme for models that know another: the spans stay."""

from __future__ import annotations

import random
from typing import Any

import pytest
from labels import class_label, head
from seqeval.metrics.sequence_labeling import get_entities

from hf_distill.tasks.tag_schemes import bring_into_scheme, is_iob1, scheme_of, spans_of, write

IOB2 = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
BIOES = (*IOB2, "E-PER", "S-PER", "E-LOC", "S-LOC")


def splits(*tags: list[Any], feature: Any = None) -> dict[str, Any]:
    from datasets import Dataset, Features, List, Value

    features = Features({"tokens": List(Value("string")), "tags": List(feature)}) if feature else None
    data = {"tokens": [["w"] * len(one) for one in tags], "tags": list(tags)}
    return {"train": Dataset.from_dict(data, features=features)}


def tags_of(found: tuple[dict[str, Any], bool]) -> list[Any]:
    return list(found[0]["train"]["tags"][:])


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES", "BILOU", "BMES"])
def test_every_scheme_says_the_same_spans(scheme: Any) -> None:
    """Random spans, some next to each other: written and read again, and read by seqeval where it knows the scheme."""
    chance = random.Random(0)
    for _ in range(200):
        spans, at = [], 0
        while at < 12:
            length = chance.randint(1, 3)
            if chance.random() < 0.6:
                spans.append((chance.choice(["PER", "LOC"]), at, at + length - 1))
            at += length
        like = ["?"] * 16
        tags = write(spans, like, scheme)
        assert spans_of(tags) == spans
        if scheme in ("IOB1", "IOB2", "BIOES"):
            assert get_entities([tag or "O" for tag in tags]) == spans
        assert scheme_of({tag or "O" for tag in tags}) in (scheme, "IOB2", None, "BIOES", "BMES")
    assert scheme_of(BIOES) == "BIOES"
    assert scheme_of(("O", "B-X", "L-X", "U-X", "I-X")) == "BILOU"
    assert scheme_of(("A-X", "B-X")) is None


def test_iob1_is_told_by_its_beginnings() -> None:
    """Its names are those of IOB2; only a span that begins with I-, and B- nowhere but after its like, tells."""
    assert is_iob1([["O", "I-PER", "I-PER", "B-PER", "O", "I-LOC"]])
    assert not is_iob1([["O", "B-PER", "I-PER"], ["B-LOC"]])
    assert not is_iob1([["I-PER"], ["B-PER", "I-PER"]]), "both: an error in IOB2, which nobody can mend"
    assert not is_iob1([["O"]])


def test_iob1_for_a_model_that_knows_iob2(caplog: Any) -> None:
    """CoNLL-2003 as it was published: three quarters of a model's B- would be taught as I-, in silence."""
    given = ["I-PER", "I-PER", "O", "I-LOC", "B-LOC", None]
    wanted = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", None]
    found = bring_into_scheme(splits(given, [], ["O"]), None, head(*IOB2), None, None)
    assert tags_of(found) == [wanted, [], ["O"]]
    (record,) = caplog.records
    assert "the tags of the data are IOB1, those of the models IOB2" in record.getMessage()
    assert "tag_scheme: IOB1" in record.getMessage()
    # By number too.
    number = {name: at for at, name in enumerate(IOB2)}
    numbers = [-100 if tag is None else number[tag] for tag in given]
    declared = splits(numbers, feature=class_label(*IOB2))
    assert tags_of(bring_into_scheme(declared, None, head(*IOB2), None, None)) == [wanted]
    assert tags_of(bring_into_scheme(splits(numbers), None, head(*IOB2), None, list(IOB2))) == [wanted]
    # The way out, and nobody to ask.
    caplog.clear()
    assert tags_of(bring_into_scheme(splits(given), "IOB1", head(*IOB2), None, None)) == [given]
    assert tags_of(bring_into_scheme(splits(given), None, None, None, None)) == [given]
    assert tags_of(bring_into_scheme(splits(numbers), None, head(*IOB2), None, None)) == [numbers]
    assert not caplog.records
    # And back.
    assert tags_of(bring_into_scheme(splits(wanted), "IOB1", head(*IOB2), None, None)) == [given]


def test_what_is_not_labelled_ends_no_span(caplog: Any) -> None:
    """Data that is in pieces of words has no tag for the further ones: one name became two, each with a B-."""
    iob1, iob2 = ["I-PER", None, "I-PER", None, "B-PER", "O"], ["B-PER", None, "I-PER", None, "B-PER", "O"]
    assert tags_of(bring_into_scheme(splits(iob1), None, head(*IOB2), None, None)) == [iob2]
    assert tags_of(bring_into_scheme(splits(iob2), "IOB1", head(*IOB2), None, None)) == [iob1]
    caplog.clear()
    assert tags_of(bring_into_scheme(splits(iob2), None, head(*IOB2), None, None)) == [iob2]
    assert not caplog.records


def test_a_type_without_b_is_a_word_of_iob1() -> None:
    """Heads trained on CoNLL-2003 as it was published have no `B-PER`, some no `B-` at all: their own data became tags
    that they do not have, and was refused."""
    for names in (("B-LOC", "I-LOC", "I-PER", "O"), ("O", "I-LOC", "I-PER")):
        own = splits(["I-PER", "I-PER", "O", "I-LOC"])
        assert bring_into_scheme(own, None, head(*names), None, None) == (own, False)
        found = bring_into_scheme(splits(["B-PER", "I-PER", "O", "B-LOC"]), None, head(*names), None, None)
        assert tags_of(found) == [["I-PER", "I-PER", "O", "I-LOC"]]


def test_bioes_and_iob2(caplog: Any) -> None:
    """A BIOES head with IOB2 tags never learns E- and S-: every name fits, and half of its classes stay empty."""
    iob2 = ["B-PER", "I-PER", "O", "B-LOC"]
    bioes = ["B-PER", "E-PER", "O", "S-LOC"]
    assert tags_of(bring_into_scheme(splits(iob2), None, head(*BIOES), None, None)) == [bioes]
    assert tags_of(bring_into_scheme(splits(bioes), None, head(*IOB2), None, None)) == [iob2]
    assert tags_of(bring_into_scheme(splits(iob2), None, None, head(*BIOES), None)) == [bioes]
    assert tags_of(bring_into_scheme(splits(["U-PER", "O"]), None, head(*IOB2), None, None)) == [["B-PER", "O"]]
    # An error in IOB2 is the data's own; told, and mended on request.
    broken = ["B-PER", "I-PER", "O", "I-LOC"]
    for teacher in (head(*IOB2), None):
        assert tags_of(bring_into_scheme(splits(iob2, broken), None, teacher, None, None)) == [iob2, broken]
        line = caplog.records[-1].getMessage()
        assert "row 1 (counted from 0) of the train split begins a span with I-" in line
        assert "evaluated as the beginning of a span" in line
    assert tags_of(bring_into_scheme(splits(iob2, broken), "IOB2", head(*IOB2), None, None)) == [iob2, iob2]
    assert tags_of(bring_into_scheme(splits(broken), None, head(*BIOES), None, None)) == [bioes]
    # Not spans.
    assert tags_of(bring_into_scheme(splits(["NOUN"]), None, head("NOUN", "VERB"), None, None)) == [["NOUN"]]
    same = splits(iob2)
    assert bring_into_scheme(same, None, head(*IOB2), None, None) == (same, False)


def test_a_task_reads_the_tags_of_the_model(make_model: Any) -> None:
    """From a file in IOB1 to labels of the head."""
    from hf_distill.models.loading import open_config, open_tokenizer
    from hf_distill.tasks import Setup, TokenClassification

    directory = make_model("bert-tokens", labels=IOB2, vocab=("anna", "smith", "paris"))
    setup = Setup(tokenizer=open_tokenizer(str(directory)), teacher=open_config(str(directory)), max_length=32)
    given = splits(["I-PER", "I-PER", "I-LOC"])["train"].map(lambda row: {"tokens": ["anna", "smith", "paris"]})
    task = TokenClassification()
    prepared = task.prepare({"train": given, "eval": given}, setup)
    assert prepared.train["labels"][0] == [-100, 1, 2, 3, -100]
    counts = task.look({"train": given, "eval": given}, setup)
    assert counts is not None
    assert counts.counts["train"].tolist() == [0, 1, 1, 1, 0]
