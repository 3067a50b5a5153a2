"""A teacher that is already trained for the task."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models.adapters import check_not_quantized
from hf_distill.models.loading import Dtype, Head, load_model, open_config
from hf_distill.models.placement import DeviceMap, Offload, Placement
from hf_distill.models.quantization import Quantization, check_installed, check_whole
from hf_distill.teachers.base import FineTune
from hf_distill.teachers.context import InContext

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.tasks import Task

logger = logging.getLogger(__name__)


@component
class PretrainedTeacher(InContext):
    """A checkpoint with a head that was trained for the task.

    Attributes:
        model: Hub id, local directory or `package:NAME/PATH`. It may also be a `.gguf` file or the directory of a PEFT
            adapter.
        revision: Git revision of the model on the Hub: branch, tag or commit. Default: the main branch.
        dtype: Precision of the weights; `auto` is the checkpoint's own. Half precision halves the teacher's memory.
        quantization: Quantize the weights of the linear layers, heads excepted: `int8` (by torchao) or `nf4`, 4 bits
            (by bitsandbytes). Everything else stays in `dtype`. Default: none.
        device_map: Spread the layers over the accelerators of a process, as in Transformers: `auto`, `balanced`,
            `balanced_low_0` or `sequential`. What does not fit stays in memory. Default: one device.
        offload: Keep the layers in memory (`cpu`) or in the checkpoint's files (`disk`); each is on the device only
            while it computes. Slow, for a teacher that does not fit. Default: everything is on the device.
        trust_remote_code: Run the Python code that comes with the checkpoint.
    """

    name: ClassVar[str] = "pretrained"

    model: str
    revision: str | None = None
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    device_map: DeviceMap | None = None
    offload: Offload | None = None
    trust_remote_code: bool = False

    @property
    def has_head(self) -> bool:
        """Always true: the checkpoint has a trained head."""
        return True

    def config(self) -> PretrainedConfig:
        """Return the configuration of the checkpoint."""
        config = open_config(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)
        if self.quantization is not None:
            check_whole(self.model, config)
            check_not_quantized(self.model)
        return config

    def check_task(self, task: Task) -> None:
        """Refuse a quantization whose package is not installed, and places of weights that exclude each other."""
        super().check_task(task)
        self._placement.check(quantized=self.quantization is not None)
        if self.quantization is not None:
            check_installed(self.quantization)

    @property
    def _placement(self) -> Placement:
        return Placement(self.device_map, self.offload)

    def load(self, head: Head, fine_tune: FineTune) -> PreTrainedModel:
        """Return the model with its own labels; warn if its head seems untrained.

        Raises:
            UserError: The checkpoint has no head for the task.
        """
        model, missing = load_model(
            self.model,
            head,
            own_head=True,
            dtype=self.dtype,
            quantization=self.quantization,
            placement=self._placement,
            **self.opening,
        )
        if missing:
            raise UserError(
                f"'{self.model}' has no trained head for this task (its checkpoint lacks {', '.join(missing[:3])}), so "
                "it would teach noise. Name a fine-tuned model, or let this run fine-tune it: "
                "teacher: {name: finetuned, model: ...}.",
                key="model",
            )
        if new := _untouched(model, head):
            logger.warning(
                "%s: every bias of its head is exactly 0 (%s), as when a head is made, before it is trained. If the "
                "checkpoint was saved before it was fine-tuned, it teaches noise: {name: finetuned, model: ...} trains "
                "it first.",
                self.model,
                ", ".join(new[:3]),
            )
        return model


def _untouched(model: PreTrainedModel, head: Head) -> list[str]:
    """Return the biases of a head if all of them are exactly 0, as before training; else an empty list.

    A checkpoint without a head is found by its missing weights, unless the model was saved with its new head.
    """
    # The head of a language model is its embeddings, and its biases may be untrained.
    if head.kind not in ("labels", "spans") or model.base_model is model:
        return []
    inside = f"{model.base_model_prefix}."
    biases = {
        name: weight
        for name, weight in model.named_parameters()
        if name.endswith("bias") and not name.startswith(inside)
    }
    return [] if any(bool(bias.any()) for bias in biases.values()) else [*biases]
