"""Runs the tasks of the harness on the models of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_distill import parallel
from hf_distill.models.inspection import writes

if TYPE_CHECKING:
    from hf_distill.models.target_model import TargetSource
    from hf_distill.run.fit import Fitted
    from hf_distill.run.harness import Harness
    from hf_distill.run.run import Run


def benchmarks(
    run: Run, harness: Harness, teacher: TargetSource, student: Fitted, baselines: Sequence[Fitted]
) -> dict[str, dict[str, float]]:
    """Return model -> `task metric` -> value of the teacher, the saved student and its baseline.

    Args:
        run: The run.
        harness: Has the tasks.
        teacher: The teacher; left out if it is not a model that writes.
        student: The saved student.
        baselines: One baseline per seed, or none.
    """
    models = {"teacher": teacher.measured} if writes(teacher.measured) else {}
    models |= {"student": student.model, **({"baseline": baselines[0].model} if baselines else {})}
    tokenizers = {"teacher": run.fitter.teacher_tokenizer or run.fitter.tokenizer}
    run.narrator.say(f"benchmarks: {', '.join(harness.names)}")

    def evaluate() -> dict[str, dict[str, float]]:
        size = run.args.per_device_eval_batch_size
        return {
            name: harness.evaluate(model, tokenizers.get(name, run.fitter.tokenizer), size)
            for name, model in models.items()
        }

    return parallel.asked_once(evaluate)
