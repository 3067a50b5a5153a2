"""Train a model through low-rank adapters (LoRA), and merge them into its weights at the end."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from hf_distill.component import component
from hf_distill.errors import UserError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn
    from transformers import PreTrainedModel

KEY = "lora.target_modules"
SHARDED = (
    "adapters are merged at the end, which FSDP and DeepSpeed do not allow: they shard the weights. Train without them "
    "(accelerate launch with another configuration), or leave lora out."
)
# A pooler counts as part of the head: language models are saved without one.
_POOLER = "pooler"


@component
class Lora:
    """Low-rank adapters `W + s B A` beside linear layers: they are trained in place of `W` (Hu et al. 2021).

    Attributes:
        r: Rank of the adapters.
        alpha: Their scale `s` is `alpha / r`.
        dropout: Share of their inputs that is dropped in training.
        target_modules: Names of the layers that get an adapter, or a regular expression over their whole names.
            Default: those that `peft` knows for the model (mostly queries and values), else all linear layers.
        use_rslora: Scale by `alpha / sqrt(r)`, so that a high rank does not make the adapters weaker.
    """

    r: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] | str | None = None
    use_rslora: bool = False

    def targets(self, model: nn.Module) -> list[str]:
        """Return the whole names of the layers that get an adapter.

        Args:
            model: The model; it may be without weights, from `outline.outline`.

        Raises:
            UserError: There is no such layer.
        """
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        config: Any = model.config
        wanted = self.target_modules or KNOWN.get(config.get_text_config().model_type)
        whole = tuple(f"{name}." for name in head_modules(model))
        output = getattr(model, "get_output_embeddings", lambda: None)()
        linear = [
            name
            for name, one in model.named_modules()
            if isinstance(one, nn.Linear | Conv1D) and one is not output and not f"{name}.".startswith(whole)
        ]
        found = [name for name in linear if wanted is None or _matches(name, wanted)]
        if not found:
            some = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
            raise UserError(f"no linear layer is called {wanted}. There are: {some}.", key=KEY)
        return found

    def wrap(self, model: PreTrainedModel) -> Any:
        """Return the model with adapters, of which only they and the head are trained (a `peft.PeftModel`)."""
        import peft

        targets, whole = self.targets(model), list(head_modules(model))
        settings: Any = {"lora_alpha": self.alpha, "lora_dropout": self.dropout, "use_rslora": self.use_rslora}
        config = peft.LoraConfig(r=self.r, target_modules=targets, modules_to_save=whole or None, **settings)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # meant for developers of PEFT and Transformers
                return peft.get_peft_model(model, config)
        except (ValueError, TypeError) as error:
            raise UserError(f"peft cannot add adapters to this model: {first_line(error)}", key="lora") from error

    def in_words(self, model: Any) -> str:
        """Return a line that says how much of a wrapped model is trained."""
        trained, every = model.get_nb_trainable_parameters()
        return f"lora: {trained:,} of {every:,} parameters are trained (rank {self.r}, and the head whole)"


def merged(model: Any) -> PreTrainedModel:
    """Return a wrapped model with the adapters merged into its weights, all trainable again.

    Raises:
        UserError: A merged weight is not finite.
    """
    try:
        whole: Any = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"the adapters cannot be merged: {first_line(error)}", key="lora") from error
    whole.__dict__.pop("peft_config", None)
    whole.requires_grad_(True)
    plain: PreTrainedModel = whole
    return plain


def head_modules(model: Any) -> Iterator[str]:
    """Yield the names of the modules of a new head, which is trained whole; none for a language model's head."""
    from hf_distill.models.outline import head_kind

    if model.base_model is model or head_kind(type(model).__name__) not in ("labels", "spans"):
        return
    inside = model.base_model_prefix
    for name, child in model.named_children():
        if name != inside and any(True for _ in child.parameters()):
            yield name
    for name, child in model.base_model.named_children():
        if _POOLER in name and child is not None and any(True for _ in child.parameters()):
            yield f"{inside}.{name}"


def _matches(name: str, wanted: Sequence[str]) -> bool:
    """Whether a layer is one of those that are wanted, as `peft` matches names and regular expressions."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in wanted)
