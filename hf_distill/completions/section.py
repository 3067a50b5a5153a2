"""The section `completions` of a recipe: who writes the texts that are learned, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SkipValidation

from hf_distill.completions.backends import Backend, TransformersBackend
from hf_distill.completions.sampling import Sampling
from hf_distill.component import component, settings


@component
class Completions:
    """Who writes the completions that a language model learns from.

    Attributes:
        by: `data`: they are in the data. `student`: the student writes them anew for every optimiser step, and the
            teacher scores them (on-policy). `teacher`: the teacher writes them once, before the training
            (sequence-level distillation). `mixture`: both models together write them, token by token.
        share: Share of the rows of a step whose completions are written; the others keep those of the data. With
            `student` and `mixture` only.
        max_new_tokens: Largest number of tokens of a completion. One that reaches it is cut: it has no end to learn.
        temperature: What logits are divided by before a token is drawn; 0 for the likeliest token each time. It has
            nothing to do with the temperature of an objective.
        top_p: Draw among the likeliest tokens whose probabilities sum to this.
        per_prompt: How many completions are written for a prompt. A step keeps its number of rows, so it has fewer
            prompts.
        reuse: For how many optimiser steps completions are used before new ones are written. The loss is always that
            under the present student. With `student` and `mixture` only.
        prompt_tokens: Of plain texts, how many of the first tokens are the prompt. Default: texts have no prompt.
        teacher_share: With `mixture`, the teacher's share of the distribution that each token is drawn from: 0 is the
            student alone, 1 the teacher alone.
        num_beams: With more than 1, the likeliest completion that a search with so many beams finds, in place of one
            that is drawn. With `teacher` only.
        min_tokens: Completions with fewer tokens, the end of text not counted, are dropped. With `teacher` only.
        drop_cut: Drop completions that were cut at `max_new_tokens`, in place of learning them without an end. With
            `teacher` only.
        special_tokens: Whether special tokens that the student writes are compared with the teacher; if not, they do
            not count, the end of text among them, so that the student does not learn where to end. For a teacher that
            uses other special tokens. With `student` and `mixture` only.
        backend: What runs the model that writes.
    """

    by: Literal["data", "student", "teacher", "mixture"] = "data"
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    per_prompt: Annotated[int, Field(ge=1)] = 1
    reuse: Annotated[int, Field(ge=1, le=4)] = 1
    prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    num_beams: Annotated[int, Field(ge=1)] = 1
    min_tokens: Annotated[int, Field(ge=0)] = 1
    drop_cut: bool = False
    special_tokens: bool = True
    backend: SkipValidation[Backend] = TransformersBackend()

    @property
    def in_training(self) -> bool:
        """Whether completions are written while the student trains."""
        return self.by in ("student", "mixture")

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide what is written: of the backend, its name, not where it runs."""
        return {**settings(self), "backend": self.backend.name}

    @property
    def not_drawn(self) -> str:
        """Why tokens are not draws of the student as it is in the step; empty where they are."""
        if not self.in_training:
            return "the student does not write the texts. Set completions: {by: student}"
        if self.by != "student":
            return f"with by: {self.by} another model takes part. Set completions.by to student"
        if (self.temperature, self.top_p) != (1.0, 1.0):
            drawn = f"at temperature {self.temperature:g} and top_p {self.top_p:g}"
            return f"tokens are drawn {drawn}, from another distribution. Set both to 1"
        if self.reuse > 1:
            return f"a text is used for {self.reuse} steps, and the student changes. Set completions.reuse to 1"
        return ""

    def facts(self) -> dict[str, Any]:
        """Return what objectives may ask about the texts: fields of `models.needs.TaskFacts`."""
        return {"not_drawn": self.not_drawn, "all_written": self.in_training and self.share == 1.0}

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.num_beams)
