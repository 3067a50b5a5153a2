"""A trainer that stops, or skips a step, if a value is NaN or infinite (`on_nan`)."""

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
from hf_distill.training.finite import SETTLING, NonFinite, Watch, advice, bad_weight, describe_fault
from hf_distill.training.running import Running
from hf_distill.training.sharded import saves_itself, to_evaluate

logger = logging.getLogger(__name__)

# `on_nan: skip` gives up if more than this share of the steps was skipped, once there were so many steps.
MOST_SKIPPED = 0.1
LEAST_STEPS = 20
# A loss so many times that of the start is told.
GROWN = 20
# Number of skipped steps that are logged one by one.
TOLD = 3


class GuardedTrainer(Trainer):
    """`Trainer` that refuses every NaN and infinite value: in losses, gradients, targets, checkpoints and exports.

    The values of each step stay on the device and are checked when something is read from it anyway: after the first
    step, with every log, and before every evaluation, every save and the end. All values since the last check are
    checked, so that a checkpoint never holds weights from after a fault. `on_nan: skip` reads one number per step.

    Attributes:
        model: The model that is trained.
        teacher: The model that the targets come from; None if there is none.
        watch: The values since the last check.
        running: What the training has added up since its last log.
        whose: How messages call the model; if empty, `the student`, or `the model` without a teacher.
        skipped: Number of steps skipped so far.
        fault: What the last check that failed has found; None if none did.
    """

    model: Any
    watch: Watch
    running: Running
    whose = ""
    skipped = 0
    fault: NonFinite | None = None
    _skipped_before = 0
    # The first loss that was logged; infinite once it was told that the loss has grown.
    _first_loss: float | None = None
    _skipped_last = ""
    # Steps in a row whose gradient is not finite, with a loss scale (fp16).
    _unsettled_steps = 0
    # Number of steps since the last log of a loss, and how many of them were skipped.
    _window = (0, 0)
    # Inputs of the last micro-batch.
    _last: dict[str, Any] | None = None

    @property
    def teacher(self) -> nn.Module | None:
        """The model to learn from; None if there is none."""
        raise NotImplementedError

    @property
    def _skips(self) -> bool:
        return getattr(self.args, "on_nan", "stop") == "skip"

    def _sums(self) -> Sequence[Tensor]:
        """Return the running sums that a step adds to, so that a skipped step can be subtracted again."""
        return [self._tr_loss]

    def evaluate_batch(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the sums of all terms, `(batch, terms)`, and the largest logits, `(batch, 2)`, without a gradient."""
        raise NotImplementedError

    # ---- Steps ----

    def _norms_beside(self) -> Sequence[Tensor]:
        """Return the norms of the gradients of models that train beside this one, complete for the step."""
        return ()

    def _begin_step(self) -> None:
        """Store the running sums, if the step may be skipped."""
        if self._skips:
            self._before = [one.clone() for one in self._sums()]

    def _note(self, inputs: dict[str, Any], sums: Tensor, extremes: Tensor) -> None:
        """Store the values of a micro-batch for the next check."""
        self._last = inputs
        self.watch.batch(self.state.global_step + 1, sums, extremes)
        if self.watch.is_full and not self._skips:
            self.check_finite()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm of a step's gradient; skip the step if a value is not finite and `on_nan` is `skip`.

        `Trainer` calls this last before the optimiser's step.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        for one in (norm, *self._norms_beside()):
            self.watch.gradient(self.state.global_step + 1, one)
        steps, skipped = self._window
        self._window = steps + 1, skipped
        self._check_step(model)
        return norm

    def _check_step(self, model: nn.Module) -> None:
        """Check the values of a step before the optimiser takes it, if they must be known by then."""
        if self._skips:
            self._skip_or_go_on(model)
        elif self.state.global_step == self._begun:
            self.check_finite()

    @property
    def _begun(self) -> int:
        """Number of steps that had been taken when this training started or was resumed."""
        return int(getattr(self, "_initial_global_step", 0))

    @property
    def _scales(self) -> bool:
        """Whether there is a loss scale (fp16), which skips steps by itself until it has settled."""
        return getattr(self.accelerator, "scaler", None) is not None

    def check_finite(self) -> None:
        """Check all values since the last check.

        Raises:
            NotFinite: One is not finite. Every process raises the same message.
        """
        if self.watch.is_empty:
            return
        fault = self._first_fault()
        self.watch.clear()
        if fault is not None:
            self.fault = fault
            raise NotFinite(self._line(fault))

    def _first_fault(self) -> NonFinite | None:
        """Return the first fault of all processes, or None. If there is none, one number is read from the device."""
        flag = self.watch.flag(self.args.device)
        if parallel.processes() > 1:
            flag = parallel.summed(flag.to(self.args.device))
        if not flag.item():
            self._unsettled_steps = 0
            return None
        fault = self.watch.first(norms=not self._scales)
        if self._scales:
            unsettled = self._unsettled()  # on every process, also if it has a fault of its own
            fault = fault or unsettled
        if fault is not None and parallel.processes() > 1:
            fault = replace(fault, process=parallel.rank())
        faults = [one for one in parallel.from_all(fault) if one is not None]
        return min(faults, key=lambda one: one.step, default=None)

    def _unsettled(self) -> NonFinite | None:
        """Return a fault if float16's loss scale does not settle, so that no step is ever taken; else None."""
        for step, norm in self.watch.norms():
            # The count continues from the last check.
            self._unsettled_steps = 0 if math.isfinite(norm) else self._unsettled_steps + 1
            if self._unsettled_steps >= SETTLING:
                return NonFinite(step, norm=norm)
        return None

    def _line(self, fault: NonFinite) -> str:
        if fault.terms and not fault.sides:  # with logits in chunks, only the inputs of the heads were checked
            models = {"teacher": self.teacher, "student": self.model}
            bad = [side for side, model in models.items() if model is not None and bad_weight(model) is not None]
            fault = replace(fault, sides=tuple(bad))
        own = self.whose or ("the model" if self.teacher is None else "the student")
        return describe_fault(fault, own, self._advice)

    def _advice(self, side: str) -> str:
        is_teacher = side == "student" and self.whose == "the teacher"
        return advice("teacher", self.model, self.args) if is_teacher else advice(side, self.teacher, self.args)

    # ---- Skipped steps ----

    def _skip_or_go_on(self, model: nn.Module) -> None:
        fault = self._first_fault()
        self.watch.clear()
        if fault is None:
            return
        self._leave_out(model)
        self._skipped_last = self._line(fault)
        if self.is_world_process_zero() and self.skipped - self._skipped_before <= TOLD:
            last = self.skipped - self._skipped_before == TOLD
            more = " From now on, only the number of skipped steps is logged (skipped_steps)." if last else ""
            logger.warning("step skipped (on_nan: skip): %s%s", self._skipped_last, more)
        self._give_up(self.state.global_step + 1)

    def _leave_out(self, model: nn.Module) -> None:
        """Take a step without changing anything, and count it."""
        # Optimizers ignore parameters without a gradient: neither weights nor moments change.
        model.zero_grad(set_to_none=True)
        for one, before in zip(self._sums(), self._before, strict=True):
            one.copy_(before)
        self.skipped += 1
        self._window = self._window[0], self._window[1] + 1

    def _give_up(self, steps: int, at_least: int = LEAST_STEPS) -> None:
        if steps >= at_least and self.skipped > MOST_SKIPPED * steps:
            last = self._skipped_last or self._advice("student")
            how = getattr(self.args, "on_nan", "stop")
            raise NotFinite(
                f"{self.skipped} of {steps} steps were skipped, and on_nan: {how} gives up above {MOST_SKIPPED:.0%}. "
                f"The last one: {last}"
            )

    def _warn_if_grown(self, loss: float) -> None:
        """Warn once if the loss is far above that at the start: it is finite, so nothing else stops the training."""
        if self._first_loss is None:
            self._first_loss = loss
        elif 0 < self._first_loss * GROWN < loss < math.inf:
            if self.is_world_process_zero():
                logger.warning(
                    "step %s: the loss was %.4g at the start and is %.4g now, %.0f times as much. %s",
                    self.state.global_step,
                    self._first_loss,
                    loss,
                    loss / self._first_loss,
                    self._advice("student"),
                )
            self._first_loss = math.inf

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Check all values first; average the loss over the steps that were taken, and add `skipped_steps`."""
        if is_of_training(logs):
            self.check_finite()
        if "loss" in logs:
            self._warn_if_grown(logs["loss"])
            _over_taken(logs, "loss", *self._window)
            self._window = (0, 0)
        if "train_loss" in logs:
            begun, before = (0, 0) if self.running.is_whole else (self._begun, self._skipped_before)
            steps = self.state.global_step - begun
            logs["train_loss"] = self._total_loss_scalar / max(steps, 1)
            _over_taken(logs, "train_loss", steps, self.skipped - before)
        if self.skipped and ("loss" in logs or "train_loss" in logs):
            logs["skipped_steps"] = self.skipped
        super().log(logs, start_time)

    # ---- Before and after ----

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does, from a clean state; raise an error at the end if too many steps were skipped."""
        self.watch.clear()
        self._window, self._last, self.skipped, self._unsettled_steps = (0, 0), None, 0, 0
        self._first_loss = None
        output: TrainOutput = super()._inner_training_loop(*args, **kwargs)
        self._give_up(self.state.global_step, at_least=1)
        return output._replace(training_loss=output.metrics["train_loss"])

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        begun: tuple[int, int] = super()._init_training_state(*args, **kwargs)
        self.skipped = self._skipped_before = _skipped(self.state.log_history)
        return begun

    def try_last(self) -> None:
        """Run both models once more on the last micro-batch, since no loss was computed after the last step.

        All processes must call this together.

        Raises:
            NotFinite: The trained model, or the best one that was loaded, does not give finite numbers.
        """
        inputs, self._last = self._last, None
        if inputs is None:
            return
        training = self.model.training
        self.model.train(False)
        try:
            sums, extremes = self.evaluate_batch(to_evaluate(self), inputs)
        finally:
            self.model.train(training)
        self.watch.batch(self.state.global_step, sums, extremes)
        self.check_finite()

    def _try_if_possible(self) -> None:
        try:
            self.try_last()
        except NotFinite:
            raise
        except Exception as error:  # user code may have moved or deleted a model since
            text = " ".join(str(error).split())
            logger.warning("the model is saved unchecked: running it on one more batch failed: %s", text)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `Trainer` does; during training, refuse a NaN for `metric_for_best_model`.

        Raises:
            NotFinite: The metric is NaN: `Trainer` would take the last model for the best.
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
                f"{name} has no value after step {self.state.global_step}{f': {reason}' if reason else ''}. It cannot "
                "choose the best model: set another metric_for_best_model, or evaluate on other rows.",
                key="training.metric_for_best_model",
            )
        return figures

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_finite()
        if self.skipped > _skipped(self.state.log_history):  # so that a resumed training continues the count
            self.state.log_history.append({"skipped_steps": self.skipped, "step": self.state.global_step})
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer` does, if all is finite.

        Raises:
            NotFinite: A weight, or what the model predicts, is not finite; nothing is written.
        """
        # A user may call this on the first of several processes alone.
        alone = parallel.processes() == 1
        parts = not alone and saves_itself(self)
        together = _internal_call or parts or alone
        if together:
            self.check_finite()
        name = bad_weight(self.model)
        if parts:  # each process has checked its own part
            name = next((one for one in parallel.from_all(name) if one is not None), None)
        if name is not None:
            self.fault = NonFinite(self.state.global_step)
            raise NotFinite(
                f"step {self.state.global_step}: the weight {name} is NaN or infinite, so the model is not saved. "
                f"{self._advice('student')}"
            )
        if not _internal_call and alone:
            self._try_if_possible()
        super().save_model(output_dir, _internal_call)


def is_of_training(logs: Mapping[str, float]) -> bool:
    """Return whether `Trainer` itself logs this, on all processes; a callback may log on one process alone."""
    return "loss" in logs or "train_loss" in logs


def _skipped(history: Sequence[dict[str, Any]]) -> int:
    """Return the number of skipped steps that a log history records."""
    return max((entry["skipped_steps"] for entry in history if "skipped_steps" in entry), default=0)


def _over_taken(logs: dict[str, float], name: str, steps: int, skipped: int) -> None:
    """Replace a mean over all steps in `logs` by the mean over the steps that were taken."""
    if skipped:
        logs[name] = logs[name] * steps / (steps - skipped) if steps > skipped else math.nan
