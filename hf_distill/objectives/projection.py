"""A learned matrix between two models' widths, which trains with the student and is not exported."""

from __future__ import annotations

from torch import nn


def learned_projection(student: int, teacher: int, *, always: bool = False) -> nn.Linear | None:
    """Return a matrix without bias from the student's width to the teacher's; None where the widths are equal.

    At the start it is uniform within `sqrt(6 / (student + teacher))` (Glorot and Bengio 2010), drawn from torch's seed.

    Args:
        student: Width of the student.
        teacher: Width of the teacher.
        always: Whether there is one between equal widths too.
    """
    if student == teacher and not always:
        return None
    projection = nn.Linear(student, teacher, bias=False)
    nn.init.xavier_uniform_(projection.weight)
    return projection
