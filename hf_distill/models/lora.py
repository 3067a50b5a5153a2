"""Train a model through low-rank adapters (LoRA, DoRA), and merge them into its weights at the end, or save them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from hf_distill.component import component, settings
from hf_distill.errors import UserError, first_line
from hf_distill.models.training_hooks import TrainingHooks

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel

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
        use_dora: Also train the length of each row of the adapted weights (DoRA: Liu et al. 2024), which often helps at
            a low rank and makes a step slower.
    """

    r: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] | str | None = None
    use_rslora: bool = False
    use_dora: bool = False

    @field_validator("target_modules")
    @classmethod
    def _names_layers(cls, wanted: list[str] | str | None) -> list[str] | str | None:
        if wanted is not None and not wanted:
            raise ValueError("names no layer. Leave it out for those that are usual for the model")
        try:
            re.compile(wanted if isinstance(wanted, str) else "")
        except re.error as error:
            raise ValueError(f"'{wanted}' is not a regular expression: {error}") from error
        return wanted

    def targets(self, model: nn.Module) -> list[str]:
        """Return the whole names of the layers that get an adapter.

        Args:
            model: The model; it may be without weights, from `outline.outline`.

        Raises:
            UserError: There is no such layer, or the rank is larger than one of them.
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
            named = wanted if isinstance(wanted, str) else " or ".join(sorted(wanted or ()))
            raise UserError(f"no linear layer is called {named}. There are: {some}.", key="target_modules")
        shapes: dict[str, tuple[int, int]] = {name: self._shape(model, name) for name in found}
        narrow = min(found, key=lambda name: min(shapes[name]))
        out, into = shapes[narrow]
        if self.r > min(out, into):
            raise UserError(
                f"{self.r} is larger than a matrix that it adapts: {narrow} has {out} x {into} weights. Wanted at most "
                f"{min(out, into)}, or target_modules without that layer.",
                key="r",
            )
        return found

    @staticmethod
    def _shape(model: nn.Module, name: str) -> tuple[int, int]:
        """Return how many outputs and inputs a linear layer has; the weights of GPT-2's layers are transposed."""
        layer: Any = model.get_submodule(name)
        first, second = layer.weight.shape
        return (first, second) if hasattr(layer, "in_features") else (second, first)

    def trained(self, model: nn.Module) -> int:
        """Return the number of parameters that are trained: those of the adapters and of a new head.

        Args:
            model: The model without adapters; it may be without weights, from `outline.outline`.

        Raises:
            UserError: As `targets`.
        """
        shapes = [self._shape(model, name) for name in self.targets(model)]
        adapters = sum(self.r * (out + into) + self.use_dora * out for out, into in shapes)
        heads = (model.get_submodule(name) for name in head_modules(model))
        return adapters + sum(one.numel() for head in heads for one in head.parameters())

    def wrap(self, model: PreTrainedModel, revision: str | None = None) -> Any:
        """Return the model with adapters, of which only they and a new head are trained (a `peft.PeftModel`).

        Args:
            model: The model.
            revision: Git revision of its checkpoint on the Hub, which is saved with the adapters.
        """
        import peft

        targets, whole = self.targets(model), list(head_modules(model))
        config = peft.LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # scales may be fractions
            lora_dropout=self.dropout,
            target_modules=targets,
            modules_to_save=whole or None,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            revision=revision,
        )
        try:
            with _quietly():
                return peft.get_peft_model(model, config)
        except (ValueError, TypeError) as error:
            raise UserError(f"peft cannot add adapters to this model: {first_line(error)}") from error

    def trained_in_words(self, model: Any) -> str:
        """Return a line that says how much of a wrapped model is trained."""
        trained, every = model.get_nb_trainable_parameters()
        kind = "dora" if self.use_dora else "lora"
        head = ", and the head whole" if model.peft_config["default"].modules_to_save else ""
        return f"{kind}: {trained:,} of {every:,} parameters are trained (rank {self.r}{head})"


@dataclass(frozen=True)
class Adapters(TrainingHooks):
    """Adapters around the training of a model.

    In a training of several stages the same adapters go on from stage to stage.

    Attributes:
        lora: The adapters.
        merge: Whether they are merged into the weights at the end; else the model that is evaluated and saved is a
            `peft.PeftModel`, of which only adapters and a new head are saved.
        revision: Git revision of the model's checkpoint on the Hub.
        last: Whether no other stage follows.
    """

    lora: Lora
    merge: bool = True
    revision: str | None = None
    last: bool = True
    wraps = True

    def wrap(self, model: PreTrainedModel) -> Any:
        """Return the model with adapters; those that it has already, from an earlier stage, are trained on."""
        return model if has_adapters(model) else self.lora.wrap(model, self.revision)

    def unwrap(self, model: nn.Module) -> PreTrainedModel:
        """Return the model with its adapters merged, or as it is."""
        return merged(model) if self.merge else self._finished(model)

    def _finished(self, model: Any) -> Any:
        # In a later stage, the head from before the training belongs to a teacher that is the model without adapters.
        return _with_one_head(model) if self.last else model

    def load(self, model: PreTrainedModel, directory: Path) -> PreTrainedModel:
        """Return the finished model: plain if the adapters were merged, else `model` with the stored adapters."""
        if self.merge:
            return super().load(getattr(model, "get_base_model", lambda: model)(), directory)
        import peft

        if has_adapters(model):  # of the stage before: the same adapters go on
            peft.set_peft_model_state_dict(model, peft.load_peft_weights(str(directory), device="cpu"))
            return model
        with _quietly():
            opened: PreTrainedModel = self._finished(
                peft.PeftModel.from_pretrained(model, str(directory), is_trainable=True)
            )
        return opened

    def goes_on(self) -> Adapters:
        """Return the same without merging."""
        return replace(self, merge=False, last=False)

    def deciding(self) -> dict[str, Any]:
        """Return the settings of the adapters, and whether they are merged."""
        return {"lora": settings(self.lora), **({} if self.merge else {"merge": False})}

    def in_words(self, model: nn.Module) -> Sequence[str]:
        """Return a line that says how much is trained."""
        return (self.lora.trained_in_words(model),)


def _with_one_head(model: Any) -> Any:
    """Return a wrapped model without its head from before the training, which `peft` keeps beside the trained one."""
    from peft.utils.other import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.original_module = module.modules_to_save["default"]
    return model


def has_adapters(model: Any) -> bool:
    """Whether a model is a `peft.PeftModel`."""
    return hasattr(model, "get_base_model")


@contextmanager
def _quietly() -> Iterator[None]:
    """Context manager: silence warnings that are meant for developers of PEFT and Transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def merged(model: Any) -> PreTrainedModel:
    """Return a wrapped model with the adapters merged into its weights, all trainable again.

    Raises:
        UserError: A merged weight is not finite.
    """
    try:
        whole: Any = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"the adapters cannot be merged: {first_line(error)}") from error
    whole.__dict__.pop("peft_config", None)
    whole.requires_grad_(True)
    plain: PreTrainedModel = whole
    return plain


def head_modules(model: Any) -> Iterator[str]:
    """Yield the names of the modules of a new head, which is trained whole; none for a language model's head."""
    from hf_distill.models.outline import head_kind
    from hf_distill.models.sentence_encoder import DENSE

    if DENSE in dict(model.named_children()):  # Dense layers after the pooling of a sentence encoder
        yield DENSE
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
