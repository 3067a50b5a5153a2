"""Labels that are numbers, and classes whose names are numbers: by value or by position?"""

from __future__ import annotations

from typing import Any

import pytest
from labels import class_label, equal, head, mistake, read

STARS = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")
DIGITS = ("1", "2", "3", "4", "5")


def told(caplog: pytest.LogCaptureFixture, *args: Any, **kwargs: Any) -> tuple[Any, list[str]]:
    caplog.clear()
    found = read(*args, **kwargs)
    return found, [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("names", [DIGITS, STARS, ("grade 1", "grade 2", "grade 3", "grade 4", "grade 5")])
@pytest.mark.parametrize("spell", [int, str])
def test_numbers_that_the_names_begin_with(names: tuple[str, ...], spell: Any, caplog: Any) -> None:
    """A teacher of 1 to 5 stars and ratings of 1 to 5: by position every row is one star off, and 5 a crash."""
    labels = [spell(value) for value in (1, 2, 3, 4, 5, 3)]
    found, said = told(caplog, labels, teacher=head(*names))
    assert found.encode(labels) == [0, 1, 2, 3, 4, 2]
    assert (found.names, found.teacher_columns, said) == (names, None, [])
    # From 0 on they can only be positions.
    labels = [spell(value) for value in (0, 4, 2)]
    found, said = told(caplog, labels, teacher=head(*names))
    assert (found.encode(labels), said) == ([0, 4, 2], [])
    # Neither reading fits all.
    assert "has the label" in mistake([spell(0), spell(5)], teacher=head(*names))[1]


def test_numbers_that_fit_both_ways_are_told(caplog: Any) -> None:
    """Without a 0 and a 5, ratings may be meant either way: the names decide, and the user hears of it."""
    found, (said,) = told(caplog, [1, 2, 3, 4], teacher=head(*STARS))
    assert found.encode([1, 4]) == [0, 3]
    assert "'1 star' or, counted from 0, '2 stars'" in said
    assert "data: {labels: {'1': 2 stars, ...}}" in said
    # The way out, both ways.
    by_place = {str(place): name for place, name in enumerate(STARS)}
    found, said = told(caplog, [1, 2, 3, 4], teacher=head(*STARS), names=by_place)
    assert (found.encode([1, 4]), said) == ([1, 4], [])
    by_value = dict(zip(DIGITS, STARS, strict=True))
    found, said = told(caplog, [1, 2, 3, 4], teacher=head(*STARS), names=by_value)
    assert (found.encode([1, 4]), said) == ([0, 3], [])


def test_a_list_in_the_recipe_says_both(caplog: Any) -> None:
    """`labels: [1 star, ...]` names 0, 1, ...; yet somebody who writes it for ratings means the ratings."""
    key, line = mistake([1, 2, 3, 4], names=list(STARS), teacher=head(width=5))
    assert (key, "may be '1 star' or, counted from 0, '2 stars'" in line) == ("labels", True)
    assert "data: {labels: {'1': 2 stars" in line
    for teacher in (None, head(width=5), head(*STARS)):
        assert read([1, 2, 5], names=list(STARS), teacher=teacher).encode([1, 5]) == [0, 4]
        assert read([0, 2, 4], names=list(STARS), teacher=teacher).encode([0, 4]) == [0, 4]
        assert read([1, 2, 4], names=list(DIGITS), teacher=teacher).encode([1, 4]) == [0, 3]


def test_our_own_student_teaches_the_data_it_learned() -> None:
    """A student of ratings 1 to 5 is saved with the names 1 to 5; as a teacher it was refused, or one off."""
    labels = [5, 1, 2, 4, 3]
    first = read(labels)
    assert first.names == DIGITS
    again = read(labels, teacher=head(*DIGITS))
    assert again.encode(labels) == first.encode(labels) == [4, 0, 1, 3, 2]
    texts = read([str(label) for label in labels], teacher=head(*DIGITS))
    assert texts.encode(["5"]) == [4]
    # As a student that goes on, whatever the order of its head.
    turned = read(labels, student=head(*reversed(DIGITS)), teacher=head(*DIGITS))
    assert turned.encode([5, 1]) == [0, 4]
    assert turned.teacher_columns == (4, 3, 2, 1, 0)
    # Polarity, and numbers far apart.
    assert read([-1, 0, 1], teacher=head("-1", "0", "1")).encode([-1, 0, 1]) == [0, 1, 2]
    assert read([10, 30], teacher=head("30", "20", "10")).encode([10, 30]) == [2, 0]


def test_a_teacher_without_names_has_the_order_of_the_numbers() -> None:
    """`LABEL_0` to `LABEL_4` were trained on ratings in their order, whatever the order of the student's head."""
    found = read([1, 5, 3], teacher=head(width=5), student=head(*reversed(DIGITS)))
    assert found.encode([1, 5]) == [4, 0]
    assert found.teacher_columns == (4, 3, 2, 1, 0)


def test_integers_of_a_class_label_are_positions(caplog: Any) -> None:
    """Yelp stores its "1 star" as 0: in a slice without extremes a value would be taken for another class."""
    found, said = told(caplog, [1, 2, 3], feature=class_label(*STARS), teacher=head(*reversed(STARS)))
    assert (found.encode([1, 3]), said) == ([3, 1], [])
    # The set says "1 star", the model "1": the same class.
    found = read([1, 2, 3], feature=class_label(*STARS), teacher=head(*reversed(DIGITS)))
    assert found.encode([1, 3]) == [3, 1]


def test_texts_and_names_that_share_a_number() -> None:
    """Data says "4 stars", the model "4 star": the number tells which is meant."""
    assert read(["4 stars", "1 star"], teacher=head(*(f"{n} star" for n in DIGITS))).encode(["4 stars"]) == [3]
    assert "wanted one of" in mistake(["7 stars", "1 star"], teacher=head(*(f"{n} star" for n in DIGITS)))[1]
    # Ranges and decimals are no numbers of classes.
    assert read([0, 1], teacher=head("18-25", "26-35")).encode([0, 1]) == [0, 1]
    assert read([1, 2, 0], teacher=head("1.5", "2.5", "3.5")).encode([1]) == [1]


def test_true_and_false_are_no_positions(caplog: Any) -> None:
    """A head with True first would teach every boolean the wrong way round."""
    for names in (("True", "False"), ("yes", "no"), ("true", "false")):
        assert read([True, False], teacher=head(*names)).encode([True, False, None]) == [0, 1, -100]
    assert read([True, False], teacher=head("NEG", "POS")).encode([True, False]) == [1, 0]
    assert read(["true", "false"], teacher=head("True", "False")).encode(["true"]) == [0]
    found, said = told(caplog, [0, 1], teacher=head("True", "False"))
    assert found.encode([0, 1]) == [1, 0]
    assert len(said) == 1


def test_lists_of_numbers() -> None:
    """Several ratings an example are ratings as well."""
    found = read([[1, 5], [2]], teacher=head(*DIGITS, problem="multi_label_classification"))
    assert equal(found.encode([[1, 5]]), [[1.0, 0.0, 0.0, 0.0, 1.0]])
