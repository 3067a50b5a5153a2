"""Own samples: every model writes after the same held-out prompts, and the teacher's distribution is compared there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from hf_distill import parallel
from hf_distill.completions.backends import TransformersBackend
from hf_distill.completions.sampling import Completion, Sampling
from hf_distill.completions.statistics import Written
from hf_distill.data.label_names import IGNORED
from hf_distill.models.inspection import writes
from hf_distill.models.target_model import TargetSource
from hf_distill.objectives.measures import MEASURES, OF_SPARSE
from hf_distill.objectives.soft_targets import KLDivergence, TotalVariation
from hf_distill.report.own_samples import Array, OwnSamples, OwnTexts, ShownTexts, differences
from hf_distill.report.speculation import Speculation
from hf_distill.run.held_out import SPECULATED, own_samples_of, prompts_for, sampler_of
from hf_distill.run.speculation import speculate
from hf_distill.tasks.eval_prompts import SEED, EvalPrompts
from hf_distill.tasks.generation import evenly
from hf_distill.training.samples import samples_of

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.run.fit import Fitted
    from hf_distill.run.run import Run

logger = logging.getLogger(__name__)

# Objective -> figure of the report.
FIGURES = {"kl": "forward_kl", "total_variation": "acceptance"}
# Texts of a batch that a model writes.
BATCH = 64


@dataclass(frozen=True)
class OwnWriter:
    """Lets models write after the same prompts, and scores what they wrote.

    Attributes:
        run: The run.
        teacher: Its teacher.
        prompts: The held-out prompts.
        sampling: How tokens are drawn.
    """

    run: Run
    teacher: TargetSource
    prompts: EvalPrompts
    sampling: Sampling

    @property
    def left_out(self) -> str:
        """Why the teacher does not score what others write; empty if it does."""
        if not self.teacher.models:
            return "its teacher is not a model that reads new texts here"
        if self.run.prepared.for_teacher is not None or self.run.prepared.for_members:
            return "the teacher reads other tokens than the student"
        return ""

    @property
    def sparse(self) -> bool:
        """Whether the teacher gives its likeliest tokens alone."""
        return self.teacher.gives().classes != "all"

    def write(self, model: Any) -> list[Completion]:
        """Return what a model writes after each prompt; processes share the work, and all get all completions."""
        own = parallel.share_of(len(self.prompts.ids))
        writer = TransformersBackend(batch_size=BATCH).open(model, self.run.fitter.tokenizer)
        prompts = [self.prompts.ids[place] for place in own]
        made = writer.write(prompts, self.sampling, SEED + parallel.rank()) if prompts else []
        found = dict(chain.from_iterable(parallel.from_all(list(zip(own, made, strict=True)))))
        return [found[place] for place in range(len(self.prompts.ids))]

    def scored(self, model: Any, name: str, by_teacher: Sequence[Completion]) -> OwnTexts:
        """Return a model's completions with the figures of the teacher's distribution on them.

        Args:
            model: A student.
            name: How messages call it.
            by_teacher: The teacher's completions; none if it wrote none.
        """
        written = self.write(model)
        if self.left_out:
            return OwnTexts([Written.of(one.ids, one.ended) for one in written])
        return OwnTexts(
            [Written.of(one.ids, one.ended) for one in written],
            self._sums(model, written, OF_SPARSE if self.sparse else MEASURES, name),
            self._sums(model, by_teacher, (KLDivergence(), TotalVariation()), name) if by_teacher else {},
        )

    def _sums(self, model: Any, written: Sequence[Completion], measures: Sequence[Any], name: str) -> dict[str, Array]:
        """Return the sums of all figures over the tokens of each completion, with the number of its tokens."""
        found = self.run.fitter.sums(
            model, self._rows(written), measures, self.run.training, self.teacher, f"the {name} on generated texts"
        )
        sums = {FIGURES.get(one, one): values for one, values in found.items()}
        distance = sums["acceptance"]  # 1 - that, for every token
        distance[:, 0] = distance[:, 1] - distance[:, 0]
        return sums

    def _rows(self, written: Sequence[Completion]) -> Dataset:
        """Return prompts and completions as tokenised rows, whose labels are the tokens that were written."""
        from datasets import Dataset

        from hf_distill.tasks.language import token_features

        pairs = list(zip(self.prompts.ids, written, strict=True))
        rows = {
            "input_ids": [[*prompt, *one.ids] for prompt, one in pairs],
            "labels": [[IGNORED] * len(prompt) + list(one.ids) for prompt, one in pairs],
            "length": [len(prompt) + len(one.ids) for prompt, one in pairs],
        }
        return Dataset.from_dict(rows, features=token_features())


def own_samples(
    run: Run, teacher: TargetSource, students: Sequence[Fitted], baselines: Sequence[Fitted]
) -> dict[str, Any]:
    """Return the report's fields about what models write: figures on their own samples, and a few of these.

    Args:
        run: The run.
        teacher: Its teacher.
        students: One student per seed, the saved one first.
        baselines: One baseline per seed in the same order, or none.
    """
    found = prompts_for(run.recipe, run.prepared, run.pair)
    if found is None:
        return {}
    prompts, sampling = found
    sampler = OwnWriter(run, teacher, prompts, sampling)
    fields: dict[str, Any] = {}
    if run.recipe.evaluation.speculative:
        fields["speculation"] = _speculation(sampler, students[0].model)
    return fields | (_own_samples(sampler, students, baselines) if own_samples_of(run.recipe) else {})


def _speculation(sampler: OwnWriter, student: Any) -> Speculation | None:
    """Return how fast the teacher writes with the student as draft; None, with a warning, where it cannot."""
    run, teacher = sampler.run, sampler.teacher.measured
    if sampler.left_out or not writes(teacher) or not writes(student):
        logger.warning("evaluation.speculative: the teacher and the student cannot write the same tokens together")
        return None
    some = sampler.prompts.take(evenly(SPECULATED, len(sampler.prompts.rows)))
    run.narrator.say(f"timing the teacher with the student as draft, {len(some.rows)} prompts")
    return parallel.asked_once(
        lambda: speculate(teacher, student, run.fitter.tokenizer, some.ids, sampler.sampling, SEED)
    )


def _own_samples(sampler: OwnWriter, students: Sequence[Fitted], baselines: Sequence[Fitted]) -> dict[str, Any]:
    run, teacher, prompts, sampling = sampler.run, sampler.teacher, sampler.prompts, sampler.sampling
    run.narrator.say(f"writing after {len(prompts.rows):,} held-out prompts, up to {sampling.max_new_tokens} tokens")
    by_teacher = sampler.write(teacher.measured) if writes(teacher.measured) and not sampler.left_out else []
    scored: dict[str, list[OwnTexts]] = {
        name: [sampler.scored(one.model, name, by_teacher) for one in trained]
        for name, trained in (("student", students), ("baseline", baselines))
        if trained
    }
    if by_teacher:
        scored["teacher"] = [OwnTexts([Written.of(one.ids, one.ended) for one in by_teacher])]
    first = {name: every[0] for name, every in scored.items()}
    result = OwnSamples(
        prompts=len(prompts.rows),
        new_tokens=sampling.max_new_tokens,
        figures={name: one.figures() for name, one in first.items()},
        errors={name: one.errors() for name, one in first.items()},
        differences=differences(first["student"], first["baseline"]) if "baseline" in first else {},
        seeds=tuple(
            {name: scored[name][seed].figures() for name in scored if name != "teacher"}
            for seed in range(1, len(students))
        ),
        left_out=sampler.left_out,
        sparse=not sampler.left_out and sampler.sparse,
    )
    writers = {"teacher": teacher.measured} if by_teacher else {}
    writers |= {"student": students[0].model, **({"baseline": baselines[0].model} if baselines else {})}
    return {"own_samples": result, "samples": samples(run, writers)}


def samples(run: Run, models: Mapping[str, Any]) -> tuple[ShownTexts, ...]:
    """Return a few prompts with what was written after them while the student trained, and by finished models."""
    sampler = sampler_of(run.recipe, run.prepared, run.pair)
    assert sampler is not None
    texts = {name: sampler.write(model) for name, model in models.items()}
    shown = [
        (f"{part.removeprefix('student').strip()} step {step}".strip(), written)
        for part, entries in samples_of(run.histories).items()
        for step, written in entries
    ]
    columns = {"teacher": texts.pop("teacher", None), **dict(shown), **texts}
    return tuple(
        ShownTexts(prompt, {name: written[place] for name, written in columns.items() if written})
        for place, prompt in enumerate(sampler.shown())
    )
