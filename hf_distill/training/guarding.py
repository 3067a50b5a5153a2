"""A training that stops, or leaves a step out, where something is not finite (`on_nan`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from hf_distill import parallel
from hf_distill.errors import NotFinite
from hf_distill.training.finite import SETTLING, Fault, Watch, advice, bad_weight, in_words
from hf_distill.training.sharded import saves_itself, to_evaluate

logger = logging.getLogger(__name__)

# `on_nan: skip` gives up when more than this share of the steps was left out, asked from so many steps on.
MOST_SKIPPED = 0.1
LEAST_STEPS = 20
# Steps left out that a training tells one by one.
TOLD = 3


class GuardedTrainer(Trainer):
    """`Trainer` that lets nothing pass that is NaN or infinite: no loss, gradient, target, checkpoint or export.

    What a step computes is kept on the device and read where something is read anyway: after the first step, with
    every log, and before every evaluation, every save and the end. Everything since the last look is looked at, so that
    a checkpoint never holds weights that came after a fault. `on_nan: skip` reads one number a step.

    Attributes:
        model: What trains.
        teacher: The model that the targets come from; None where there is none.
        watch: What was computed since the last look.
        whose: What a message calls the model; `the student`, or `the model` where there is no teacher, if empty.
        skipped: Steps that were left out so far.
    """

    model: Any
    watch: Watch
    whose = ""
    skipped = 0
    _skipped_before = 0
    _skipped_last = ""
    # In a row, under a loss scale (fp16).
    _unsettled_steps = 0
    # Steps since the last log of a loss, and those of them that were left out.
    _window = (0, 0)
    # Inputs of the last micro-batch.
    _last: dict[str, Any] | None = None

    @property
    def teacher(self) -> nn.Module | None:
        """The model to learn from; None where there is none."""
        raise NotImplementedError

    @property
    def _skips(self) -> bool:
        return getattr(self.args, "on_nan", "stop") == "skip"

    def _sums(self) -> Sequence[Tensor]:
        """Return what a step adds to, so that a step that is left out can be taken back."""
        return [self._tr_loss]

    def judge(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return sums and extremes of a batch (see `Watch.batch`) without a gradient."""
        raise NotImplementedError

    # ---- Steps ----

    def _begin_step(self) -> None:
        """Note where the sums stand, if the step may be taken back."""
        if self._skips:
            self._before = [one.clone() for one in self._sums()]

    def _note(self, inputs: dict[str, Any], sums: Tensor, extremes: Tensor) -> None:
        """Keep what a micro-batch has computed."""
        self._last = inputs
        self.watch.batch(self.state.global_step + 1, sums, extremes)
        if self.watch.is_full and not self._skips:
            self.check_finite()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm of a step's gradient, the last thing before the step is taken; leave the step out, if so."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        self.watch.gradient(self.state.global_step + 1, norm)
        steps, skipped = self._window
        self._window = steps + 1, skipped
        if self._skips:
            self._skip_or_go_on(model)
        elif self.state.global_step == self._begun:
            self.check_finite()
        return norm

    @property
    def _begun(self) -> int:
        """Return how many steps had been taken when this training began or went on."""
        return int(getattr(self, "_initial_global_step", 0))

    @property
    def _scales(self) -> bool:
        """Whether a loss scale leaves steps out by itself until it has settled (fp16)."""
        return getattr(self.accelerator, "scaler", None) is not None

    def check_finite(self) -> None:
        """Look at all that was kept.

        Raises:
            NotFinite: Something is not; on every process, with the same line.
        """
        if self.watch.is_empty:
            return
        fault = self._first_fault()
        self.watch.clear()
        if fault is not None:
            raise NotFinite(self._line(fault))

    def _first_fault(self) -> Fault | None:
        """Return the first fault of all processes; one number is read unless there is one."""
        flag = self.watch.flag(self.args.device)
        if parallel.processes() > 1:
            flag = parallel.summed(flag.to(self.args.device))
        if not flag.item():
            self._unsettled_steps = 0
            return None
        fault = self.watch.first(norms=not self._scales)
        if self._scales:
            unsettled = self._unsettled()  # on every process, whatever it found itself
            fault = fault or unsettled
        if fault is not None and parallel.processes() > 1:
            fault = replace(fault, process=parallel.rank())
        faults = [one for one in parallel.from_all(fault) if one is not None]
        return min(faults, key=lambda one: one.step, default=None)

    def _unsettled(self) -> Fault | None:
        """Return a fault where float16's loss scale does not settle: then no step is ever taken."""
        for step, norm in self.watch.norms():
            # Counted on from the last look, which was a few steps ago.
            self._unsettled_steps = 0 if math.isfinite(norm) else self._unsettled_steps + 1
            if self._unsettled_steps >= SETTLING:
                return Fault(step, norm=norm)
        return None

    def _line(self, fault: Fault) -> str:
        if fault.terms and not fault.sides:  # of a head that never makes all its logits only the input was seen
            models = {"teacher": self.teacher, "student": self.model}
            bad = [side for side, model in models.items() if model is not None and bad_weight(model) is not None]
            fault = replace(fault, sides=tuple(bad))
        return in_words(fault, self.whose or ("the model" if self.teacher is None else "the student"), self._advice)

    def _advice(self, side: str) -> str:
        judged = side == "student" and self.whose == "the teacher"
        return advice("teacher", self.model, self.args) if judged else advice(side, self.teacher, self.args)

    # ---- Steps that are left out ----

    def _skip_or_go_on(self, model: nn.Module) -> None:
        fault = self._first_fault()
        self.watch.clear()
        if fault is None:
            return
        # Optimizers pass over parameters without a gradient: neither weights nor moments move.
        model.zero_grad(set_to_none=True)
        for one, before in zip(self._sums(), self._before, strict=True):
            one.copy_(before)
        self.skipped += 1
        self._window = self._window[0], self._window[1] + 1
        self._skipped_last = self._line(fault)
        if self.is_world_process_zero() and self.skipped - self._skipped_before <= TOLD:
            more = " Of further ones the log has the number." if self.skipped - self._skipped_before == TOLD else ""
            logger.warning("left out (on_nan: skip): %s%s", self._skipped_last, more)
        self._give_up(self.state.global_step + 1)

    def _give_up(self, steps: int, at_least: int = LEAST_STEPS) -> None:
        if steps >= at_least and self.skipped > MOST_SKIPPED * steps:
            last = self._skipped_last or self._advice("student")
            raise NotFinite(
                f"{self.skipped} of {steps} steps were left out, and on_nan: skip gives up above {MOST_SKIPPED:.0%}. "
                f"The last one: {last}"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Look at everything first; take the mean over the steps that were taken, and say how many were not."""
        if is_of_training(logs):
            self.check_finite()
        if "loss" in logs:
            _over_taken(logs, "loss", *self._window)
            self._window = (0, 0)
        if "train_loss" in logs:
            _over_taken(logs, "train_loss", self.state.global_step - self._begun, self.skipped - self._skipped_before)
        if self.skipped and ("loss" in logs or "train_loss" in logs):
            logs["skipped_steps"] = self.skipped
        super().log(logs, start_time)

    # ---- Before and after ----

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Forget what an earlier training left; ask at the end whether too many steps were left out."""
        self.watch.clear()
        self._window, self._last, self.skipped, self._unsettled_steps = (0, 0), None, 0, 0
        output: TrainOutput = super()._inner_training_loop(*args, **kwargs)
        self._give_up(self.state.global_step, at_least=1)
        return output._replace(training_loss=output.metrics["train_loss"])

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        begun: tuple[int, int] = super()._init_training_state(*args, **kwargs)
        self.skipped = self._skipped_before = _skipped(self.state.log_history)
        return begun

    def try_last(self) -> None:
        """Run both models once more on the last micro-batch: what the last step did to the weights no loss has seen.

        Processes have to ask together.

        Raises:
            NotFinite: The trained model, or the best one that was loaded, does not give finite numbers.
        """
        inputs, self._last = self._last, None
        if inputs is None:
            return
        training = self.model.training
        self.model.train(False)
        try:
            sums, extremes = self.judge(to_evaluate(self), inputs)
        finally:
            self.model.train(training)
        self.watch.batch(self.state.global_step, sums, extremes)
        self.check_finite()

    def _try_if_possible(self) -> None:
        try:
            self.try_last()
        except NotFinite:
            raise
        except Exception as error:  # whatever became of the models since: a teacher given away, other devices
            text = " ".join(str(error).split())
            logger.warning("the model is saved without being tried on a batch once more, which fails: %s", text)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `Trainer` does; in a training, refuse to choose the best model by a figure without a value.

        Raises:
            NotFinite: It has none: the last model would be taken for the best.
        """
        figures: dict[str, float] = super().evaluate(*args, **kwargs)
        name = self.args.metric_for_best_model
        if not self.is_in_train or name is None:
            return figures
        name = name if name.startswith("eval_") else f"eval_{name}"
        value = figures.get(name)
        if value is not None and math.isnan(value):
            reason = getattr(value, "reason", "")
            raise NotFinite(
                f"{name} has no value after step {self.state.global_step}{f': {reason}' if reason else ''}. The best "
                "model cannot be told by it: choose another metric_for_best_model, or evaluate on other rows.",
                key="training.metric_for_best_model",
            )
        return figures

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_finite()
        if self.skipped > _skipped(self.state.log_history):  # for whoever goes on from here
            self.state.log_history.append({"skipped_steps": self.skipped, "step": self.state.global_step})
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer` does what is finite.

        Raises:
            NotFinite: A weight is not, or what the model predicts; nothing is written.
        """
        # Whoever calls this himself may do so on the first of several processes alone.
        alone = parallel.processes() == 1
        parts = not alone and saves_itself(self)
        together = _internal_call or parts or alone
        if together:
            self.check_finite()
        name = bad_weight(self.model)
        if parts:  # each has its own
            name = next((one for one in parallel.from_all(name) if one is not None), None)
        if name is not None:
            raise NotFinite(
                f"step {self.state.global_step}: the weight {name} is NaN or infinite, so the model is not saved. "
                f"{self._advice('student')}"
            )
        if not _internal_call and alone:
            self._try_if_possible()
        super().save_model(output_dir, _internal_call)


def is_of_training(logs: Mapping[str, float]) -> bool:
    """Whether `Trainer` logs this, on all processes; what a callback logs may come from one alone."""
    return "loss" in logs or "train_loss" in logs


def _skipped(history: Sequence[dict[str, Any]]) -> int:
    """Return how many steps a log says were left out so far."""
    return max((entry["skipped_steps"] for entry in history if "skipped_steps" in entry), default=0)


def _over_taken(logs: dict[str, float], name: str, steps: int, skipped: int) -> None:
    """Turn a mean over all steps into one over those that were taken."""
    if skipped:
        logs[name] = logs[name] * steps / (steps - skipped) if steps > skipped else math.nan
