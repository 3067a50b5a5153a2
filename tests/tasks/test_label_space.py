"""The label space of a run: every form a label column can have, and how data and models agree on the classes."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from labels import class_label, equal, head, mistake, read, splits

from hf_distill.errors import UserError
from hf_distill.tasks.label_space import read_labels

NAN = math.nan
NAMES = ("negative", "neutral", "positive")


# ---- One class -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "encoded", "names"),
    [
        ([0, 2, 1, None, -100], [0, 2, 1, -100, -100], None),
        (["b", "a", None, "b"], [1, 0, -100, 1], ("a", "b")),
        ([True, False, None], [1, 0, -100], None),
        ([1, 3, 5], [0, 1, 2], ("1", "3", "5")),
        (["2", "10", "1"], [1, 2, 0], ("1", "2", "10")),
        (["LABEL_1", "LABEL_0"], [1, 0], None),
        ([10**12, 7], [1, 0], ("7", "1000000000000")),
    ],
)
def test_one_class_an_example(labels: list[Any], encoded: list[int], names: Any) -> None:
    """The head's columns are the distinct labels; a label that is a number must not make a head as wide as itself."""
    found = read(labels)
    assert found.encode(labels) == encoded
    assert (found.kind, found.names) == ("classes", names)
    assert found.width == len({value for value in encoded if value >= 0})
    assert found.labelled == ("train",)


def test_class_label_columns_carry_names_and_a_sign_for_none() -> None:
    """The test splits of GLUE have -1 everywhere: as a class it would be the last one."""
    found = read([0, 1, -1, None], [-1, -1], feature=class_label("negative", "positive"))
    assert found.encode([0, 1, -1, None]) == [0, 1, -100, -100]
    assert found.names == ("negative", "positive")
    assert found.labelled == ("train",)


def test_classes_are_those_of_all_splits() -> None:
    """A rare class that only the eval split has would otherwise be a crash in the middle of the first evaluation."""
    found = read(["a", "b"], ["c", "a"])
    assert found.names == ("a", "b", "c")
    assert found.encode(["c"]) == [2]
    # A gap makes one file's integers floats.
    mixed = splits([0, 1])
    mixed |= {"eval": splits([1.0, None])["train"]}
    mixed_labels = read_labels(mixed, problem=None, names=None, teacher=head("no", "yes"), student=None)
    assert mixed_labels.encode([1.0, None]) == [1, -100]


@pytest.mark.parametrize("labels", [["a", "a"], [0, 0], [True, None]])
def test_one_class_alone_is_refused(labels: list[Any]) -> None:
    """A softmax over one class is constant: the run would finish with accuracy 1 and nothing learned."""
    assert mistake(labels) == ("columns.label", "all labels are the same class; wanted at least two.")
    # With a head that has more, a small slice may well hold one class.
    if labels[0] == 0:
        assert read(labels, teacher=head(*NAMES)).width == 3


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([1, 0, -1], "row 2 (counted from 0) of the train split has the label -1; wanted 0 or more; leave it empty"),
        ([0, -5], "has the label -5; wanted 0 or more"),
    ],
)
def test_negative_numbers_are_no_classes(labels: list[int], says: str) -> None:
    """-1 without a `ClassLabel` may be a class of an old SVM file or a missing label; guessing would be silent."""
    key, line = mistake(labels)
    assert key == "columns.label"
    assert says in line


def test_numbers_outside_the_head() -> None:
    """Labels 1 to 5 for a head of five: 5 crashes the loss, and the other four are all shifted by one."""
    key, line = mistake([1, 2, 5], teacher=head(width=5))
    assert key == "columns.label"
    assert line == (
        "row 2 (counted from 0) of the train split has the label 5; wanted 0 to 4, since there are 5 classes. "
        "If the labels count from 1, say so: data: {labels: ['1', '2', ... '5']}."
    )
    assert "wanted 0 to 2" in mistake([0, 1], [3], names=list(NAMES))[1]
    assert "data: {labels: {'1': negative, '2': neutral, ...}}" in mistake([1, 2, 3], teacher=head(*NAMES))[1]
    assert read([1, 3], teacher=head(*NAMES), names=dict(zip("123", NAMES, strict=True))).encode([1, 3]) == [0, 2]
    assert read([-1, 1], names={"-1": "no", "1": "yes"}).encode([-1, 1]) == [0, 1]
    assert mistake([0, 1], [3], names=list(NAMES))[1].startswith("row 0 (counted from 0) of the eval split")


def test_whole_numbers_as_floats() -> None:
    """A CSV column of classes with a gap arrives as 0.0, 1.0: read as a scale, a classifier becomes a regression."""
    key, line = mistake([0.0, 1.0, None])
    assert key == "columns.label"
    assert "problem: single_label" in line
    assert "problem: regression" in line
    assert read([0.0, 1.0, None], problem="single_label").encode([0.0, 1.0, None]) == [0, 1, -100]
    assert equal(read([0.0, 1.0, None], problem="regression").encode([0.0, None]), [0.0, NAN])
    # A trained head decides.
    assert read([0.0, 1.0, None], teacher=head("no", "yes")).kind == "classes"
    assert read([0.0, 4.0, None], teacher=head(width=1)).kind == "values"


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0.5, 1.0], "the label 0.5; wanted the name or the number of a class"),
        ([0.0, NAN], "the label nan; wanted the name or the number of a class"),
        ([[0], [1]], "the label [0]; wanted one class (the problem is single_label)"),
    ],
)
def test_what_is_no_class(labels: list[Any], says: str) -> None:
    """NaN from a half-joined table must not become a class, or vanish."""
    assert says in mistake(labels, problem="single_label")[1]


@pytest.mark.parametrize("gap", ["NA", "nan", "null", "None", " ", "-"])
def test_numbers_with_a_word_for_nothing(gap: str) -> None:
    """One "NA" turns a column of numbers into text, and would be a class of its own."""
    key, line = mistake(["0", "1", gap])
    assert key == "columns.label"
    assert f"row 2 (counted from 0) of the train split has the label {gap!r}" in line
    assert f"{gap!r}" in mistake(["0.5", "1.7", gap])[1]
    # Whoever does mean a class names it.
    assert read(["0", "1", gap], names=["0", "1", gap]).encode([gap]) == [2]


def test_text_and_numbers_mixed(tmp_path: Path) -> None:
    """JSON allows it; sorted as text, 10 comes before 9."""
    from datasets import load_dataset

    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps({"label": label}) + "\n" for label in [1, "x", 2]))
    mixed = load_dataset("json", data_files=str(path), split="train")
    with pytest.raises(UserError, match="text and numbers mixed") as caught:
        read_labels({"train": mixed}, problem=None, names=None, teacher=None, student=None)
    assert caught.value.key == "columns.label"
    by_split = splits([1, 0]) | {"eval": splits(["x"])["train"]}
    with pytest.raises(UserError, match="the label 'x'; wanted a number"):
        read_labels(by_split, problem=None, names=None, teacher=None, student=None)


def test_what_is_no_label(tmp_path: Path) -> None:
    """Dates and mappings fail here, not inside a hash table."""
    import datetime

    for labels in ([{"a": 1}], [datetime.date(2020, 1, 1)], [[[1]]], [b"x"]):
        key, line = mistake(labels)
        assert key == "columns.label"
        assert "wanted text, numbers, or lists of either" in line


# ---- Several classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "encoded", "names"),
    [
        # Names and numbers of the classes that hold.
        ([["b", "a"], [], None, ["c"]], [[1, 1, 0], [0, 0, 0], [NAN] * 3, [0, 0, 1]], ("a", "b", "c")),
        ([[0, 2], [1], []], [[1, 0, 1], [0, 1, 0], [0, 0, 0]], None),
        ([[0], [1]], [[1, 0], [0, 1]], None),
        # One 0 or 1 for each class.
        ([[0, 1, 1], [0, 0, 0], None], [[0, 1, 1], [0, 0, 0], [NAN] * 3], None),
        ([[0.0, 1.0], [1.0, 0.0]], [[0, 1], [1, 0]], None),
        ([[True, False], [True, True]], [[1, 0], [1, 1]], None),
        ([[0, 1], [], [1, 1]], [[0, 1], [0, 0], [1, 1]], None),
        ([[1.0], [0.0]], [[1], [0]], None),
    ],
)
def test_several_classes_an_example(labels: list[Any], encoded: list[Any], names: Any) -> None:
    """[0, 1] is class 1 of two, or the classes 0 and 1: read the wrong way, every row says something else."""
    found = read(labels)
    assert equal(found.encode(labels), [[float(item) for item in row] for row in encoded])
    assert (found.kind, found.names, found.width) == ("binary", names, len(encoded[0]))


def test_lists_of_class_labels_are_numbers_of_classes() -> None:
    """`List(ClassLabel)` says what its integers are, however much they look like zeros and ones."""
    from datasets import List

    found = read([[0, 1], [1, 0]], feature=List(class_label("a", "b")))
    assert found.encode([[0, 1], [1]]) == [[1, 1], [0, 1]]
    assert found.names == ("a", "b")


@pytest.mark.parametrize("length", [3, -1])
def test_the_kind_of_list_does_not_matter(length: int) -> None:
    """Parquet files have lists of fixed and of any length; both are lists."""
    from datasets import List, Value

    labels = [[0, 1, 1], [1, 0, 0], None]
    found = read(labels, feature=List(Value("int8"), length=length))
    assert equal(found.encode(labels), [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [NAN] * 3])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            [[0, 1, 1], [0, 1]],
            "row 0 (counted from 0) of the train split has the label [0, 1, 1]; wanted each class once",
        ),
        ([[0, 1, 1], [0, 1, 2]], "has the label [0, 1, 1]; wanted each class once"),
        (
            [[0.0, 1.0], [0.3, 0.5]],
            "row 1 (counted from 0) of the train split has the label [0.3, 0.5]; wanted one 0 or 1",
        ),
        ([[0.0, 1.0], [1.0]], "has the label [1.0]; wanted one 0 or 1 for each of 2 classes"),
        ([[2.0, 3.0]], "has the label [2.0, 3.0]; wanted one 0 or 1"),
        ([[0, 1], [0, None]], "has the label [0, None]; wanted the name or the number of a class"),
        ([[0, 3], [-1]], "has the label [-1]; wanted 0 or more"),
    ],
)
def test_lists_that_are_neither(labels: list[Any], says: str) -> None:
    """One short row among 0/1 lists would turn the whole column into class numbers: every example has class 0 or 1."""
    key, line = mistake(labels)
    assert key == "columns.label"
    assert says in line


def test_lists_and_the_names_of_classes() -> None:
    """Names for 0/1 entries come from the recipe or the head; a wrong count shifts them all."""
    found = read([[0, 1, 1], [0, 0, 0]], names=list(NAMES))
    assert found.names == NAMES
    assert mistake([[0, 1, 1], [0, 0, 0]], names=["a", "b"]) == ("labels", "2 names [a, b] for 3 classes.")
    turned = read([[0, 1, 1], [0, 0, 0]], names=list(NAMES), teacher=head("positive", "negative", "neutral"))
    assert turned.encode([[1, 0, 0]]) == [[0, 1, 0]]
    assert turned.teacher_columns is None
    _, line = mistake([["joy", "rage"], ["joy"]], teacher=head("joy", "fear", problem="multi_label_classification"))
    assert "has the label ['joy', 'rage']; wanted one of [joy, fear]" in line


def test_lists_and_their_absence_do_not_mix() -> None:
    """`problem` says what is meant; a column of the other shape is told, not bent."""
    assert "wanted a list (the problem is multi_label)" in mistake(["a", "b"], problem="multi_label")[1]
    by_split = splits([["a"], ["b"]]) | {"eval": splits(["a"])["train"]}
    with pytest.raises(UserError, match="a list in one split"):
        read_labels(by_split, problem=None, names=None, teacher=None, student=None)


# ---- Numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "options", "encoded"),
    [
        ([0.5, None, -2.0], {}, [0.5, NAN, -2.0]),
        ([1, 5, None], {"problem": "regression"}, [1.0, 5.0, NAN]),
        ([1, 5, -100], {"teacher": head(width=1)}, [1.0, 5.0, NAN]),
        ([-100.0, 0.5], {}, [-100.0, 0.5]),
        ([[0.5], None], {"problem": "regression"}, [0.5, NAN]),
        ([[0.5, 1.0], None], {"problem": "regression"}, [[0.5, 1.0], [NAN, NAN]]),
        ([[0.5, 1.0]], {"teacher": head(width=2, problem="regression")}, [[0.5, 1.0]]),
    ],
)
def test_regression(labels: list[Any], options: dict[str, Any], encoded: list[Any]) -> None:
    """A float of -100 is a value; a missing one is NaN, never 0, which would be learned."""
    found = read(labels, **options)
    assert equal(found.encode(labels), encoded)
    assert (found.kind, found.names) == ("values", None)
    assert found.width == (len(encoded[0]) if isinstance(encoded[0], list) else 1)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0.5, NAN], "row 1 (counted from 0) of the train split has the label nan; wanted finite numbers"),
        ([0.5, math.inf], "has the label inf; wanted finite numbers"),
        ([0.5, 1e300], "row 1 (counted from 0) of the train split has the label 1e+300; wanted finite numbers up to"),
        ([[0.5, 1.0], [2.0, -3.5e38]], "row 1 (counted from 0) of the train split has the label [2.0, -3.5e+38]"),
        ([1, 10**15, 1e39], "row 2 (counted from 0) of the train split has the label 1e+39"),
        (["0.5", "1.5"], "row 0 (counted from 0) of the train split has the label '0.5'; wanted finite numbers"),
        (["0.5", "n/a"], "row 1 (counted from 0) of the train split has the label 'n/a'; wanted finite numbers"),
        ([0.5, None, NAN, math.inf], "row 2 (counted from 0) of the train split has the label nan"),
        ([True, False], "has the label True; wanted finite numbers"),
        ([[0.5, 1.0], [0.5]], "has the label [0.5]; wanted 2 values, as in other rows"),
        ([[], []], "has the label []; wanted 1 values"),
    ],
)
def test_what_is_no_number(labels: list[Any], says: str) -> None:
    """One NaN makes every weight NaN one step later."""
    for options in ({"problem": "regression"}, {"teacher": head(width=1)}):
        if not isinstance(labels[0], list | bool) or "problem" in options:
            key, line = mistake(labels, **options)
            assert key == "columns.label"
            assert says in line


def test_numbers_and_heads() -> None:
    """A classifier cannot teach a number, and names mean nothing for one."""
    key, line = mistake([0.5, 1.5], teacher=head(*NAMES))
    assert key == "columns.label"
    assert line == (
        "the labels are 1 number(s) for each text, but the teacher's head has 3 outputs [negative, neutral, positive]."
    )
    assert mistake([0.5, 1.5], names=["a", "b"])[0] == "labels"


# ---- No labels at all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [None, [None, None], [-100, -100]])
@pytest.mark.parametrize(
    ("teacher", "kind", "width"),
    [
        (head(*NAMES), "classes", 3),
        (head(width=4), "classes", 4),
        (head(width=4, problem="multi_label_classification"), "binary", 4),
        (head(width=1), "values", 1),
        (head(width=2, problem="regression"), "values", 2),
    ],
)
def test_an_unlabelled_transfer_set(train: Any, teacher: Any, kind: str, width: int) -> None:
    """The teacher's head alone must say what is predicted: half the point of distillation is text without labels."""
    found = read(train, teacher=teacher)
    assert (found.kind, found.width, found.labelled) == (kind, width, ())
    if train:
        missing = {"classes": -100, "binary": [NAN] * width, "values": NAN if width == 1 else [NAN] * width}[kind]
        assert equal(found.encode(train), [missing, missing])


def test_only_eval_has_labels() -> None:
    """Unlabelled training and labelled evaluation is the usual transfer set; either may lack the column."""
    found = read(None, [1, 0], teacher=head("no", "yes"))
    assert found.labelled == ("eval",)
    assert read([None, None], [1, 0], teacher=head("no", "yes")).labelled == ("eval",)


def test_neither_labels_nor_a_head() -> None:
    """A teacher still to be fine-tuned has nothing to be fine-tuned on."""
    for train in (None, [None, None], [-100]):
        key, line = mistake(train)
        assert key == "columns.label"
        assert "no example has a label, and no model's head says what the classes are" in line


# ---- Names and orders ------------------------------------------------------------------------------------------------


def test_a_teacher_with_another_order_is_permuted_by_name() -> None:
    """MNLI models come in three orders; taken by number, entailment is taught as contradiction."""
    teacher = head("POSITIVE", "Negative", "neutral")
    student = head(*NAMES)
    # Names from the column, from the text, from the recipe.
    for options in (
        {"train": [0, 1, 2], "feature": class_label("neutral", "positive", "negative")},
        {"train": ["neutral", "positive", "Negative"]},
        {"train": [0, 1, 2], "names": ["neutral", "positive", "negative"]},
    ):
        train = options["train"]
        found = read(**options, teacher=teacher, student=student)
        assert found.names == NAMES
        assert found.encode(train) == [1, 2, 0]
        assert found.teacher_columns == (1, 2, 0)
        alone = read(**options, teacher=teacher)
        assert alone.names == ("POSITIVE", "Negative", "neutral")
        assert alone.encode(train) == [2, 0, 1]
        assert alone.teacher_columns is None


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_every_order_of_three_ends_at_the_same_class(order: tuple[int, ...]) -> None:
    """A permutation applied the wrong way round passes with two classes, and with any that is its own inverse."""
    theirs = tuple(NAMES[index] for index in order)
    found = read(["negative", "positive"], ["neutral"], teacher=head(*theirs), student=head(*NAMES))
    columns = found.teacher_columns or (0, 1, 2)
    assert tuple(theirs[column] for column in columns) == NAMES
    assert [NAMES[index] for index in found.encode(["negative", "neutral"])] == ["negative", "neutral"]


def test_texts_need_not_show_every_class() -> None:
    """A slice without the rare class is data for the same head, not a head of its own."""
    found = read(["positive", "negative"], teacher=head(*NAMES))
    assert (found.width, found.names) == (3, NAMES)
    assert found.encode(["positive"]) == [2]


def test_texts_that_the_head_does_not_know() -> None:
    """A text class that is none of the head's has no column, whatever its place in the alphabet."""
    key, line = mistake(["positive", "mixed"], teacher=head(*NAMES))
    assert key == "columns.label"
    assert "has the label 'mixed'; wanted one of [negative, neutral, positive]" in line
    assert "has the label 'mixed'; wanted one of [a, b]" in mistake(["a", "mixed"], names=["a", "b"])[1]


def test_a_teacher_without_names() -> None:
    """Alphabetical order is a guess: `LABEL_0` of a model may be "positive". The recipe has to say."""
    key, line = mistake(["positive", "negative"], teacher=head(width=2))
    assert key == "labels"
    assert "the teacher only numbers its classes. Give the name of each number: data: {labels:" in line
    found = read(["positive", "negative"], teacher=head(width=2), names=["positive", "negative"])
    assert found.encode(["positive", "negative"]) == [0, 1]
    # Nor does a student's order tell the teacher's.
    assert mistake(["positive", "negative"], teacher=head(width=2), student=head("positive", "negative"))[0] == "labels"
    # A student that is only going to be trained need not know.
    assert read(["positive", "negative"], student=head(width=2)).names == ("negative", "positive")


def test_texts_that_are_only_numbers() -> None:
    """JSON files write classes as "0", "1" or LABEL_0: numbers, unless the head has those very names."""
    assert read(["1", "0"], teacher=head("no", "yes")).encode(["1", "0"]) == [1, 0]
    assert read(["LABEL_1"], teacher=head("no", "yes")).encode(["LABEL_1"]) == [1]
    assert read(["LABEL_1", "LABEL_0"], teacher=head(width=2)).encode(["LABEL_1"]) == [1]
    stars = read(["1", "5"], teacher=head("1", "2", "3", "4", "5"))
    assert stars.encode(["1", "5"]) == [0, 4]
    assert "wanted 0 to 1" in mistake(["2", "1"], teacher=head("no", "yes"))[1]


def test_names_that_only_number_are_no_names() -> None:
    """`ClassLabel(num_classes=2)` calls its classes 0 and 1; to demand them of the teacher would refuse every model."""
    found = read([0, 1], feature=class_label("0", "1"), teacher=head("no", "yes"))
    assert found.names == ("no", "yes")
    assert found.encode([0, 1]) == [0, 1]


def test_bare_numbers_mean_the_head_s_order() -> None:
    """Most Hub datasets only have integers, and the models trained on them the same order."""
    found = read([0, 2], teacher=head("POSITIVE", "NEUTRAL", "NEGATIVE"))
    assert found.names == ("POSITIVE", "NEUTRAL", "NEGATIVE")
    assert found.encode([0, 2]) == [0, 2]


@pytest.mark.parametrize("teacher", [head("positive", "negative"), head(width=2)])
@pytest.mark.parametrize("train", [[0, 1], None])
def test_bare_numbers_and_two_orders(teacher: Any, train: Any) -> None:
    """Where student and teacher differ, a number means one of them, and nobody said which."""
    student = head("negative", "positive")
    key, line = mistake(train, teacher=teacher, student=student)
    assert key == "labels"
    assert "data: {labels: [name of 0, name of 1, ...]}" in line
    found = read(train, teacher=teacher, student=student, names=["positive", "negative"])
    assert found.teacher_columns == (1, 0)
    if train:
        assert found.encode([0, 1]) == [1, 0]
    assert read(train, teacher=head("negative", "positive"), student=student).teacher_columns is None


def test_a_teacher_without_names_has_the_data_s_order() -> None:
    """It was trained on the data's integers; the student's own order must still be reached from there."""
    feature = class_label("negative", "positive")
    found = read([0, 1], feature=feature, teacher=head(width=2), student=head("positive", "negative"))
    assert found.names == ("positive", "negative")
    assert found.encode([0, 1]) == [1, 0]
    assert found.teacher_columns == (1, 0)


def test_names_that_differ_are_refused_with_the_way_out() -> None:
    """IMDB says neg and pos, its models NEGATIVE and POSITIVE: nobody but the user can say that it is the same."""
    key, line = mistake([0, 1], feature=class_label("neg", "pos"), teacher=head("NEGATIVE", "POSITIVE"))
    assert key == "columns.label"
    assert "wanted [neg, pos], but the model has [NEGATIVE, POSITIVE]" in line
    assert "data: {labels: [name of 0, name of 1, ...]}" in line
    named = ["negative", "positive"]
    found = read([0, 1], feature=class_label("neg", "pos"), teacher=head("NEGATIVE", "POSITIVE"), names=named)
    assert found.encode([0, 1]) == [0, 1]
    assert mistake([0, 1], names=["neg", "pos"], teacher=head("NEGATIVE", "POSITIVE"))[0] == "labels"
    assert mistake([0, 1], names=["a", "a"])[0] == "labels"


def test_splits_that_number_classes_differently() -> None:
    """Two saved datasets, each with its own `ClassLabel` order: judged as if it were one."""
    by_split = splits([0, 1], feature=class_label("a", "b")) | {
        "eval": splits([0], feature=class_label("b", "a"))["train"]
    }
    with pytest.raises(UserError, match=r"the splits order their classes differently: \[a, b\] and \[b, a\]"):
        read_labels(by_split, problem=None, names=None, teacher=None, student=None)


@pytest.mark.parametrize(
    ("labels", "teacher", "says"),
    [
        ([0, 1, 2], head(width=2), "wanted 0 to 1"),
        ([[0, 1, 1], [0, 0, 0]], head(width=4), "the labels are 3 classes, but the teacher's head has 4 outputs."),
    ],
)
def test_counts_that_differ(labels: Any, teacher: Any, says: str) -> None:
    """A student with fewer columns than the teacher cannot be compared with it."""
    key, line = mistake(labels, teacher=teacher)
    assert key == "columns.label"
    assert says in line
    names = ["a", "b", "c"]
    key, line = mistake([0, 1], names=names, teacher=head("a", "b"))
    assert line == "the labels are 3 classes, but the teacher's head has 2 outputs [a, b]."


@pytest.mark.parametrize(
    ("labels", "problem", "says"),
    [
        (
            [0, 1],
            "multi_label_classification",
            "one class for each text, but the model's head was trained to predict several",
        ),
        ([[0], [1]], "single_label_classification", "several classes for each text"),
        ([0.5, 1.5], "single_label_classification", "numbers for each text"),
        (["a", "b"], "regression", "one class for each text, but the model's head was trained to predict numbers"),
    ],
)
def test_a_head_trained_for_another_problem(labels: Any, problem: str, says: str) -> None:
    """A sigmoid head's logits under a softmax are a distribution that nobody trained."""
    key, line = mistake(labels, teacher=head("a", "b", problem=problem))
    assert key == "columns.label"
    assert says in line
    assert "task: {name: text-classification, problem: " in line
    if problem.startswith("multi"):
        assert read(labels, teacher=head("a", "b", problem=problem), problem="single_label").kind == "classes"


# ---- Size ------------------------------------------------------------------------------------------------------------


def test_a_million_labels_take_no_python_objects() -> None:
    """Iterating over a column of `datasets` takes 15 s a million rows; distinct values are all it takes."""
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

    rows = 1_000_000
    numbers = Dataset(pa.table({"label": np.arange(rows) % 7}))
    offsets = np.arange(rows // 4 + 1, dtype="int32") * 4
    lists = Dataset(pa.table({"label": pa.ListArray.from_arrays(offsets, np.arange(rows) % 9)}))
    started = time.perf_counter()
    for dataset, width in ((numbers, 7), (lists, 9)):
        found = read_labels({"train": dataset}, problem=None, names=None, teacher=None, student=None)
        assert found.width == width
    assert time.perf_counter() - started < 5  # 0.2 s on two old cores


def test_a_head_of_more_classes_than_the_labels_use_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Numbers fit any larger head: a teacher of another task would train a student without a word."""

    def told(*args: Any, **kwargs: Any) -> list[str]:
        caplog.clear()
        read(*args, **kwargs)
        return [record.getMessage() for record in caplog.records]

    five = head(width=5)
    said = (
        "the train labels use 2 of the 5 classes of the teacher's head, which only numbers them. If it was trained "
        "on these labels, name all classes: data: {labels: [name of 0, name of 1, ...]}"
    )
    assert told([0, 1, 0], [1], teacher=five) == [said]
    assert told(["no", "yes"], [], teacher=five, names=["no", "yes", "a", "b", "c"]) == [], "somebody named them"
    assert told([0, 1], [0, 4], teacher=five) == [said], "judged by what is learned from"
    assert told([0, 1, 2, 3, 4], [0], teacher=five) == [], "a class may be rare in the eval split"
    assert told([0, 1], teacher=head("a", "b", "c")) == [], "names were matched, or refused, before"
    assert told([0, 1], [1], student=five) == [said.replace("teacher", "student")]
    assert told([[0, 1, 0, 0, 1]] * 3, teacher=five, problem="multi_label") == [], "one entry a class"
    assert told([[0], [1, 0]], teacher=five, problem="multi_label") == [said]
    assert told(None, [0, 1], teacher=five) == [], "nothing is learned from labels"
