"""The section `evaluation` of a recipe: which metrics are computed, and what else models are evaluated by."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from hf_distill.component import component


@component
class Evaluation:
    """Which metrics are computed, and what else the models of a run are evaluated by.

    Attributes:
        metrics: Names of metrics; the first is the headline of the report. `evaluate/<id or local path>` takes one from
            the `evaluate` library, `module:function` is a function of yours on generated texts. Default: the task's
            own.
        generate_rows: For how many rows of the eval split a text is generated, where metrics need texts; rows of all
            lengths are taken. Default: all.
        max_new_tokens: Largest number of tokens of a text that a causal language model writes in an evaluation.
            Default: `completions.max_new_tokens` where a model writes the completions, else the longest completion of
            the eval split; 64 for plain text.
        temperature: What logits are divided by before a token is drawn, for the texts that metrics of a causal language
            model are computed from; 0 for the likeliest token each time.
        own_samples: On how many prompts of the eval split every model writes completions of its own, on which student
            and baseline are compared with the teacher: reverse KL of a token, acceptance, length, repetition. For
            causal language models; 0 for none. Default: 200 if the student writes in training, else none.
        speculative: Also measure how many tokens a second the teacher writes with the student as its draft model
            (speculative decoding), after a few prompts of the eval split. For models with the same tokens.
        lm_eval: Tasks of the lm-evaluation-harness for teacher, student and baseline, by name or as the path of a YAML
            file. Their data is loaded before anything is trained.
    """

    metrics: list[str] = Field(default_factory=list)
    generate_rows: Annotated[int, Field(ge=1)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    own_samples: Annotated[int, Field(ge=0)] | None = None
    speculative: bool = False
    lm_eval: list[str] = Field(default_factory=list)

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: list[str]) -> list[str]:
        from hf_distill.metrics.score import check_names

        check_names(metrics)
        return metrics
