"""What an objective needs of a teacher and of the data, and what a source of targets gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from hf_distill.models.layers import States

# How much of a row of logits: all classes; the likeliest, and the mass of the others; those, and some of the others
# drawn as often as they are likely.
Classes = Literal["all", "top", "drawn"]


@dataclass(frozen=True)
class Needs:
    """What an objective needs, for two models. `Objective.needs` returns it.

    Attributes:
        name: Of the objective.
        unit: What its sum is divided by.
        teacher: Whether it needs one. Without, the next ones, up to `by_token`, say nothing.
        classes: How much of the teacher's logits is the least that will do; None where it reads none.
        why_all: Why it needs all classes, for messages.
        temperatures: At which it softens the teacher's logits: one, or the first and the last of a schedule.
        own_vocabulary: Whether it needs the teacher's logits of its own tokens, where these are not the student's.
        exact_logits: Whether it needs the logits themselves, so that logarithms of probabilities will not do.
        states: Which of the teacher's hidden states; None where that is not known without configurations.
        attentions: Whether it needs the teacher's maps of attention.
        inside: Whether it needs the teacher itself, to look into it in some other way.
        derivatives: Whether it differentiates, by the teacher's inputs too.
        by_token: Whether it compares the models token by token, so that both must have read the same tokens.
        within_batch: Whether it compares the examples of a micro-batch with each other.
        values: Whether it means something for values that a regression head predicts, and not for classes alone.
        for_classes: Settings that mean something for classes alone, each with what it does.
        vectors: Whether it compares the vectors of texts that a sentence encoder returns.
        vectors_by: The setting that asks for them; empty where the objective itself does.
        tasks: Names of the tasks it belongs to; empty where it does not care.
        likeliest: The setting that says how many of the likeliest classes it compares, and its value.
        written: Whether it compares the probabilities that the models give the tokens of the text.
        by_student: Whether it weighs classes by the student's probability, so that the teacher's likeliest classes show
            a part of it only.
        rows: Whether it is computed row by row, and reaches the head by each of them.
        whole_batch: Whether it is given all logits of a batch at once, row by row or not.
        outputs: Outputs wanted of both models besides the logits: `hidden_states`, `attentions`.
        eager_attention: Whether both models must compute attention as plain matrix products.
        head: Whether its gradient reaches the head of the task.
    """

    name: str
    unit: str = "row"
    teacher: bool = True
    classes: Classes | None = "all"
    why_all: str = "it needs the teacher's logits of all classes"
    temperatures: tuple[float, ...] = ()
    own_vocabulary: bool = False
    exact_logits: bool = False
    states: tuple[States, ...] | None = ()
    attentions: bool = False
    inside: bool = False
    derivatives: bool = False
    by_token: bool = False
    within_batch: bool = False
    values: bool = True
    for_classes: tuple[tuple[str, str], ...] = ()
    vectors: bool = False
    vectors_by: str = ""
    tasks: tuple[str, ...] = ()
    likeliest: tuple[str, int] | None = None
    written: bool = False
    by_student: bool = False
    rows: bool = False
    whole_batch: bool = True
    outputs: frozenset[str] = frozenset()
    eager_attention: bool = False
    head: bool = True

    @property
    def labels(self) -> bool:
        """Whether it counts labels, so that without any it is nothing."""
        return self.unit == "label"

    @property
    def samples(self) -> bool:
        """Whether it counts tokens that the student drew, so that without any it is nothing."""
        return self.unit == "written"

    @property
    def looks_inside(self) -> bool:
        """Whether it reads more of the models than their logits, or the vectors of texts."""
        within = self.inside or self.attentions or self.derivatives or self.eager_attention
        return within or bool(self.outputs) or self.states != ()


@dataclass(frozen=True)
class Gives:
    """What a source of targets gives in a training.

    Attributes:
        whose: The source, for messages: `a cached teacher`.
        classes: How much of each row of logits, of what the task calls a row; None for no logits.
        temperature: The only one at which they are right; None where they can be softened by any.
        why_temperature: Why there is only one, for messages; empty for the usual reason.
        exact_logits: Whether they are logits, not logits up to a constant in each row, as log-probabilities are.
        top: How many of the likeliest classes; None where that is not known, or there are no others.
        states: Hidden states that it gives; None for all that the model has.
        more_states: What to do where others are wanted, for messages.
        attentions: Whether it gives maps of attention.
        model: Whether it is a model to look into.
        derivatives: Whether its targets can be differentiated by its inputs.
        own_tokens: Whether it reads other tokens than the student.
        written: Whether it gives the probability of every token of the text, be it likely or not (of rows:
            `SparseRows.written`). Without `classes` it is the only number of a row.
    """

    whose: str
    classes: Classes | None = "all"
    temperature: float | None = None
    why_temperature: str = ""
    exact_logits: bool = True
    top: int | None = None
    states: tuple[States, ...] | None = ()
    more_states: str = "Leave it out, or take the teacher itself."
    attentions: bool = False
    model: bool = False
    derivatives: bool = False
    own_tokens: bool = False
    written: bool = False

    @classmethod
    def everything(cls, whose: str = "the teacher", *, own_tokens: bool = False) -> Gives:
        """Return what a model gives that runs beside the student."""
        return cls(whose, states=None, attentions=True, model=True, derivatives=True, own_tokens=own_tokens)

    def by_texts(self) -> Gives:
        """Return what it gives of a vocabulary that is not the student's: of each row the texts that both can write."""
        classes: Classes | None = "top" if self.classes == "all" else self.classes
        return replace(self, classes=classes, exact_logits=False, own_tokens=True)

    def lacking(self, wanted: Iterable[States]) -> tuple[States, ...]:
        """Return which hidden states are wanted and neither given nor part of what is.

        >>> str(Gives("a cached teacher", states=(States(2),)).lacking([States(2, "mean"), States(4)])[0])
        '4'
        """
        if self.states is None:
            return ()
        given = set(self.states)
        return tuple(one for one in wanted if not {one, replace(one, of="tokens")} & given)


@dataclass(frozen=True)
class TaskFacts:
    """What is learned from which data, as far as it is known; None for what is not.

    Attributes:
        task: Name of the task.
        classes: Whether rows are distributions over classes; if not, they are values.
        vectors: Whether the models return a vector of each text.
        spans: Whether rows are tokens of a text that a language model goes on with, so that texts have spans.
        labelled: Whether the train split has labels.
        label_role: What a recipe calls the column that holds them.
        texts: How many texts an example has.
        translated: Whether the teacher reads the first of them only, and the others are translations of it.
        not_drawn: Why the tokens of the texts are not draws of the student in the step; empty where they are.
        all_written: Whether models write all texts while the student trains, so that no token has a label.
    """

    task: str | None = None
    classes: bool | None = None
    vectors: bool | None = None
    spans: bool | None = None
    labelled: bool | None = None
    label_role: str = "label"
    texts: int | None = None
    translated: bool = False
    not_drawn: str | None = None
    all_written: bool = False
