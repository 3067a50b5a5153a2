"""Label names: who is meant by class 0."""

from __future__ import annotations

import pytest
from prepared import refused

from hf_distill.data.label_names import label_names, positions, real_names, shorten
from hf_distill.errors import UserError


def test_names_of_a_head() -> None:
    """Transformers fills in LABEL_0, LABEL_1, ...: matching those by name would match numbers and call it names."""
    from transformers import BertConfig

    assert label_names(BertConfig(num_labels=3)) is None
    assert label_names(BertConfig(id2label={0: "0", 1: "1"})) is None
    assert label_names(BertConfig(id2label={0: "no", 1: "yes"})) == ("no", "yes")
    assert label_names(BertConfig(id2label={1: "yes", 0: "no"})) == ("no", "yes")
    assert label_names(BertConfig(id2label={0: "LABEL_1", 1: "LABEL_0"})) == ("LABEL_1", "LABEL_0")
    # Above 9, text order is not number order.
    assert label_names(BertConfig(num_labels=12)) is None
    assert real_names([]) is None


def test_positions_are_of_names_not_of_numbers() -> None:
    """Swapped classes train a student to be wrong with confidence; every loss goes down as it should."""
    assert positions(["a", "b", "c"], ["c", "a", "b"], whose="the teacher") == (1, 2, 0)
    assert positions(["Negative", "POSITIVE"], ["positive", "negative"], whose="the teacher") == (1, 0)


def test_case_counts_where_nothing_else_tells_names_apart() -> None:
    """`us` and `US` are two classes of a news set; folding them would lose one."""
    assert positions(["us", "US"], ["US", "us"], whose="the teacher") == (1, 0)
    with pytest.raises(UserError):
        positions(["us", "US"], ["Us", "uS"], whose="the teacher")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["a", "b"], ["a", "c"]),
        (["a", "b"], ["a", "b", "c"]),
        (["a", "b", "c"], ["a", "b"]),
        (["a", "a"], ["a", "b"]),
        (["a", "b"], ["a", "a"]),
    ],
)
def test_sets_that_differ_are_refused(wanted: list[str], found: list[str]) -> None:
    """A class without a counterpart would be taught by whatever column has its number."""
    _, line = refused(lambda: positions(wanted, found, whose="the teacher"))
    assert line.startswith(f"label names differ: wanted {shorten(wanted)}, but the teacher has {shorten(found)}.")


def test_long_lists_are_shortened() -> None:
    """A thousand class names are no longer one line."""
    assert shorten([str(number) for number in range(8)]) == "[0, 1, 2, 3, 4, 5, 6, 7]"
    assert shorten([str(number) for number in range(1000)]) == "[0, 1, 2, 3, 4, 5, 6, 7, ... 1000 in all]"
