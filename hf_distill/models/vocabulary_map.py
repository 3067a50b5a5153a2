"""Two vocabularies as one: tokens of both that stand for the same text, and all other tokens together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from hf_distill.data.token_bytes import nearest_tokens, their_tokens
from hf_distill.models.target_rows import upcast

# Logarithm of the mass that stands for none: that of no token at all would make divergences infinite.
NOTHING = -87.0
# More columns than this in one group are added up together, which rounds to 0 what is below 1e-38 of the likeliest.
CROWD = 4
# Logit of a token whose probability is exactly 0.
NEVER = -1e30
Temperature = float | Tensor


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a head, put together into groups of the same text; those in no group are one more, the last.

    Attributes:
        group: Group of each column, `(columns,)`; `groups` for a column in none.
        groups: Number of groups; every one of them has a column.
    """

    group: Tensor
    groups: int

    @cached_property
    def rest(self) -> Tensor:
        """The columns in no group."""
        return (self.group == self.groups).nonzero()[:, 0]

    @cached_property
    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """The first column of every group, the second of those that have one, ...: groups and columns, ascending."""
        order = self.group.argsort(stable=True)
        order = order[self.group[order] < self.groups]
        group = self.group[order]
        first = torch.searchsorted(group, torch.arange(self.groups, device=group.device))
        place = torch.arange(len(group), device=group.device) - first[group]
        return [
            (group[place == number], order[place == number])
            for number in range(int(place.max()) + 1 if len(place) else 0)
        ]

    def merged(self, logits: Tensor, temperature: Temperature, *, rest: bool) -> Tensor:
        """Return logits of the groups, whose `softmax(logits / T)` sums that of the columns of each.

        `T log sum_(v in g) exp(z_v / T)`: softened first, then summed.

        Args:
            logits: `(rows, columns)`, float32 or better.
            temperature: `T`.
            rest: Whether the columns in no group are one more, the last.

        Returns:
            `(rows, groups)`, with `rest` `(rows, groups + 1)`.
        """
        if self._crowded:
            return self._added(logits, temperature)[:, : self.groups + rest]
        (_, columns), *more = self._layers
        found = logits.index_select(-1, columns)
        for groups, columns in more:
            both = torch.logaddexp(found.index_select(-1, groups) / temperature, logits[:, columns] / temperature)
            found = found.index_copy(-1, groups, both * temperature)
        if not rest:
            return found
        if len(self.rest):
            others = (logits.index_select(-1, self.rest) / temperature).logsumexp(-1, keepdim=True)
        else:
            others = (found / temperature).logsumexp(-1, keepdim=True) + NOTHING
        return torch.cat((found, others * temperature), -1)

    @cached_property
    def _crowded(self) -> bool:
        """Whether a group has so many columns that they are added up, rather than one after the other."""
        return bool(self.group.bincount(minlength=self.groups + 1)[: self.groups].max() > CROWD)

    def _added(self, logits: Tensor, temperature: Temperature) -> Tensor:
        """Return what `merged` does, with the rest, by one sum; what is below the smallest float32 is that."""
        scaled = logits / temperature
        highest = scaled.amax(-1, keepdim=True)
        sums = logits.new_zeros(len(logits), self.groups + 1).index_add(-1, self.group, (scaled - highest).exp())
        return (sums.clamp(min=torch.finfo(torch.float32).tiny).log() + highest) * temperature

    def of(self, tokens: Tensor) -> Tensor:
        """Return the groups of some columns; `groups` for one in none."""
        return self.group[tokens]

    def to(self, device: torch.device) -> Columns:
        """Return the same on a device."""
        return Columns(self.group.to(device), self.groups)


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    """Which tokens of the student and of a teacher with another vocabulary stand for the same text.

    Both models' distributions are compared over these texts. Several tokens of a model for one text, such as `&` and
    the byte `<0x26>`, count as one, with the sum of their probabilities. All tokens without a counterpart are one more
    class, which is in both distributions: nothing is renormalised. Where every token of the student has one, there is
    no such class, and the teacher's distribution is that over the texts that the student can write.

    Attributes:
        student: The student's columns.
        teacher: The teacher's.
        texts: What the tokens of both stand for, by id, as `of` was given them.
    """

    student: Columns
    teacher: Columns
    texts: tuple[Sequence[bytes | None], Sequence[bytes | None]] = field(default=((), ()), repr=False)
    _moved: dict[torch.device, VocabularyMap] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, student: Sequence[bytes | None], teacher: Sequence[bytes | None], *, prefix: bool = False
    ) -> VocabularyMap | None:
        """Return the map of two vocabularies; None if no token is the same text.

        It depends on the texts alone, not on the order of a dictionary, so that all processes have the same.

        Args:
            student: What each of the student's tokens stands for, by its id; None or empty for nothing.
            teacher: The same of the teacher's.
            prefix: Put a token of the teacher that has no counterpart to the longest token of the student with which
                it begins (Byte-Prefix Mapping). It then has one, and only what begins like no token is left.

        >>> made = VocabularyMap.of([b"a", b"b", None], [b"b", b"c", b"a", b"b"])
        >>> made.student.group, made.teacher.group
        (tensor([0, 1, 2]), tensor([1, 2, 0, 1]))
        """
        to = their_tokens(student, teacher, prefix=prefix)
        there = {student[number] for number in to if number >= 0}
        groups: dict[bytes, int] = {}
        for text in student:
            if text and text in there:
                groups.setdefault(text, len(groups))
        if not groups:
            return None
        none = len(groups)
        ours = torch.tensor([groups.get(text, none) if text else none for text in student])
        by_token = torch.cat((ours, ours.new_tensor([none])))  # the last for -1
        other = by_token[torch.tensor(to)]
        return cls(Columns(ours, none), Columns(other, none), (tuple(student), tuple(teacher)))

    @property
    def groups(self) -> int:
        """Number of texts for which both have a token."""
        return self.student.groups

    @property
    def has_rest(self) -> bool:
        """Whether a student's token has no counterpart, so that all those without one are a class."""
        return len(self.student.rest) > 0

    @property
    def classes(self) -> int:
        """Number of classes that are compared."""
        return self.groups + self.has_rest

    def on(self, device: torch.device) -> VocabularyMap:
        """Return the same on a device."""
        if self.student.group.device == device:
            return self
        if device not in self._moved:
            self._moved[device] = replace(
                self, student=self.student.to(device), teacher=self.teacher.to(device), _moved={}
            )
        return self._moved[device]

    @cached_property
    def _nearest(self) -> Tensor:
        """The student's token nearest to each of the teacher's, as `nearest_tokens`; one past the last for none."""
        found = torch.tensor(nearest_tokens(*self.texts))
        return torch.where(found < 0, len(self.student.group), found)

    def by_nearest(self, logits: Tensor) -> Tensor:
        """Return a teacher's logits over the student's tokens: the largest of all whose nearest token it is.

        Args:
            logits: `(rows, teacher's columns)`.

        Returns:
            `(rows, student's columns)`; `NEVER` for a token that is nearest to none.
        """
        nearest = self._nearest.to(logits.device).expand_as(logits)
        found = logits.new_full((len(logits), len(self.student.group) + 1), NEVER)
        return found.scatter_reduce(-1, nearest, logits, "amax")[:, :-1]

    def of_student(self, logits: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """Return the student's logits of the classes, at a temperature, `(rows, classes)`."""
        return self.on(logits.device).student.merged(upcast(logits), temperature, rest=self.has_rest)

    def of_teacher(self, logits: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """Return the teacher's logits of the classes, at a temperature, `(rows, classes)`."""
        return self.on(logits.device).teacher.merged(upcast(logits), temperature, rest=self.has_rest)

    def shared_mass(self, logits: Tensor) -> Tensor:
        """Return the teacher's probability of all tokens that stand for a text of the student's too, `(rows,)`."""
        rest = self.on(logits.device).teacher.rest
        return 1 - upcast(logits).softmax(-1).index_select(-1, rest).sum(-1)

    def labels(self, labels: Tensor, ignored: int) -> Tensor:
        """Return the classes of labels, `(rows,)`; `ignored` where there is none, or one without a counterpart."""
        found = self.on(labels.device).student.of(labels.clamp(min=0))
        return torch.where((labels < 0) | (found == self.groups), ignored, found)

    def in_words(self) -> str:
        """Return how much of each vocabulary the other has too."""
        shares = []
        for side in (self.student, self.teacher):
            shares.append(100 * (1 - len(side.rest) / len(side.group)))
        return (
            f"{shares[0]:.1f} % of the student's tokens and {shares[1]:.1f} % of the teacher's stand for the same text"
        )
