"""Models that train while they teach, as a source of targets."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.inspection import base_model
from hf_distill.models.needs import Gives
from hf_distill.models.quantization import is_placed, size
from hf_distill.models.target_model import Learner, RunModel, Targets, TargetSource
from hf_distill.teachers.ema import state_of
from hf_distill.teachers.ensemble.averaging import Ensemble

if TYPE_CHECKING:
    from hf_distill.rows.base import RowLayout

logger = logging.getLogger(__name__)

# What peers give to objectives: rows, but no hidden states or attention, for which each peer would need parameters.
GIVES = Gives("a teacher that trains meanwhile")
# What one model that learns from labels alone gives: hidden states too.
GIVES_ONLINE = Gives("a teacher that trains meanwhile", states=None)
# Folder in which peers are saved.
PEERS = "peers"


class Mutual(Ensemble):
    """Models that train while they teach; the student learns from their mean.

    Args:
        models: The peers, with the student's classes; or one model that trains on labels alone.
        online: Train the models on labels alone, instead of against each other and the student.
        learning_rate: Peak of their learning rate; None for the student's.
        export: Whether they are saved beside the finished student.
        seed: Of their random weights; None if that is not known.
        make: Returns the models with the random weights of another seed; None if they are the same for all seeds.
    """

    def __init__(
        self,
        models: Sequence[Any],
        *,
        online: bool = False,
        learning_rate: float | None = None,
        export: bool = False,
        seed: int | None = None,
        make: Callable[[int], Sequence[Any]] | None = None,
    ) -> None:
        if not models:
            raise UserError("no peers: wanted one model or more.")
        super().__init__(models, names=[f"peer {number}" for number in range(1, len(models) + 1)])
        self.online, self.learning_rate, self.export = online, learning_rate, export
        self._seed, self._make = seed, make
        self._begun = False

    @property
    def model(self) -> Any:
        """The module that stands for it: the only model, or all of them."""
        return self.members[0] if len(self.members) == 1 else self

    @property
    def measured(self) -> Any:
        """The model whose size and speed are measured: the only one, or all of them."""
        return self.model

    def predicting(self, layout: RowLayout) -> nn.Module:
        """Return what is evaluated: the only model, or the mean of all."""
        one: nn.Module = self.model
        return super().predicting(layout) if one is self else one

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """The models by name: `peer 1`, `peer 2`, ...; or `teacher`, which is online."""
        if self._is_one_teacher:
            return {"teacher": self.members[0]}
        return {f"peer {number}": one for number, one in enumerate(self.members, 1)}

    @property
    def learners(self) -> Mapping[str, Learner]:
        """How each model trains: on the mean of all the others, or on labels alone."""
        names = ["student", *self.models]
        return {
            name: Learner(() if self.online else tuple(one for one in names if one != name), self.learning_rate)
            for name in names[1:]
        }

    @property
    def follows_student(self) -> bool:
        """Whether the models learn from the student."""
        return not self.online

    @property
    def exported(self) -> Mapping[str, nn.Module]:
        """The models by the folder in which they are saved beside the student."""
        return {f"{PEERS}/{at}": one for at, one in enumerate(self.members, 1)} if self.export else {}

    def gives(self) -> Gives:
        """Return what it gives to objectives: rows; of one model that learns from labels alone, hidden states too."""
        return GIVES_ONLINE if self._is_one_teacher else GIVES

    @property
    def _is_one_teacher(self) -> bool:
        return self.online and len(self.members) == 1

    def targets(self, batch: Mapping[str, Any], run: RunModel) -> Targets:
        """Return the outputs of every model, and how they are averaged; of one teacher also its hidden states."""
        found = super().targets(batch, run)
        if not self._is_one_teacher:
            return found
        # The student must not train it: its own loss is that of the labels.
        return replace(found, outputs=_detached(found.mixed[0]))

    def fingerprint(self) -> str:
        """Return a fingerprint of the models as they begin, and of the settings."""
        models = [model_fingerprint(one) for one in self.members]
        return fingerprint("mutual", models, self.online, self.learning_rate, self.export)

    def facts(self) -> Mapping[str, Any]:
        """Return the size of each model."""
        sizes = {name: f"{size(one)[0]:,} parameters" for name, one in self.models.items()}
        return {"online" if self.online else "peers": sizes}

    def who(self) -> str:
        """Return the sentence that tells readers of a report who its teacher is, and where the models are saved."""
        number, folders = len(self.members), list(self.exported)
        saved = f" Saved in the student's directory: {', '.join(folders)}." if folders else ""
        if self.online:
            return f"The teacher here trained on labels beside the student.{saved}"
        who = "the peer" if number == 1 else f"the mean of {number} peers"
        return f"The teacher here is {who} that trained beside the student.{saved}"

    def place(self, device: torch.device) -> None:
        """Move the models to a device."""
        for model in self.members:
            if not is_placed(model, device):
                model.to(device)

    def for_seed(self, seed: int) -> TargetSource:
        """Return peers that begin with the random weights of a seed: with equal ones, seeds would differ too little."""
        if self._make is None or seed == self._seed:
            return self
        settings: Any = {"learning_rate": self.learning_rate, "export": self.export, "online": self.online}
        return Mutual(self._make(seed), **settings, seed=seed, make=self._make)

    def for_training(self) -> TargetSource:
        """Return a copy for one training, which begins from the weights of this one."""
        made = copy.deepcopy(self)
        made._begun = False
        return made

    def at_end(self, trained: TargetSource) -> TargetSource:
        """Return the models at the end of a training."""
        return trained if isinstance(trained, Mutual) else self

    def next_stage(self, trained: TargetSource) -> TargetSource:
        """Return the models as the stage before has left them."""
        return self.at_end(trained)

    def begin(self, student: nn.Module) -> None:
        """Warn, before the first training, of models that start with the same weights."""
        if self._begun:
            return
        self._begun = True
        if self.online:
            return
        every = {"the student": student, **self.models}
        prints = {name: model_fingerprint(base_model(one)) for name, one in every.items()}
        same = [name for name, value in prints.items() if list(prints.values()).count(value) > 1]
        if same:
            logger.warning(
                "%s start from the same weights, so that only dropout makes them differ, and they have little to "
                "teach each other. Wanted other random weights or models: peers: [{name: pretrained, model: ...}].",
                " and ".join(same),
            )

    def saved_state(self) -> dict[str, Tensor]:
        """Return the weights of the models, with the number of each before its names."""
        return {f"{at}.{name}": one for at, model in enumerate(self.members) for name, one in state_of(model).items()}

    @torch.no_grad()
    def load_saved_state(self, state: Mapping[str, Tensor]) -> None:
        """Set the weights of the models from a checkpoint."""
        for name, own in self.saved_state().items():
            own.copy_(state[name])


def _detached(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return outputs without their graph."""

    def cut(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(map(cut, value))
        return value.detach() if isinstance(value, Tensor) else value

    return {name: cut(value) for name, value in outputs.items()}
