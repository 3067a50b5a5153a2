"""A teacher that is a language model with a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from hf_distill.component import component
from hf_distill.data.loading import ALL
from hf_distill.errors import UserError
from hf_distill.models.loading import Dtype
from hf_distill.models.quantization import Quantization, check_installed, check_whole
from hf_distill.teachers.own_inputs import Encoded, Examples, OwnInputsTeacher
from hf_distill.teachers.prompted.prompts import Prompt

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.models.loading import Head
    from hf_distill.models.pair import Pair
    from hf_distill.tasks import Task
    from hf_distill.teachers.own_inputs import Batch
    from hf_distill.teachers.prompted.classifier import PromptedClassifier

Calibration = Literal["none", "contextual", "prior"]


@component
class PromptedTeacher(OwnInputsTeacher):
    """A language model that classifies: the label whose words are the most likely after a prompt.

    The targets are the softmax over the labels of the log-probability of their verbalizers. With several labels per
    row, the model is asked for each label: yes or no.

    Attributes:
        model: A causal or encoder-decoder language model: Hub id, local directory or `package:NAME/PATH`. It may also
            be a `.gguf` file or the directory of a PEFT adapter.
        prompt: Jinja template over the columns of the data (by their own names, or `text` and `text_pair`). A list of
            `{role, content}` goes through the tokenizer's chat template. `{{ label }}` is the label that is asked for,
            with several labels per row.
        verbalizers: Label -> the text, or several, that the model would write for it. `{yes: [...], no: [...]}` with
            several labels per row.
        examples: How many solved examples come before the question, as many of each class as of any other. They are
            drawn from the labelled train rows.
        seed: Decides which examples are drawn.
        calibration: Correction of what the model prefers whatever it reads: `contextual` divides by its probabilities
            for texts without content, `prior` makes its mean prediction over train rows equal `prior`.
        prior: The class prior for `calibration: prior`: all classes alike, or as in the labels of the train split.
        length_normalisation: Average the log-probabilities of a verbalizer's tokens, in place of their sum.
        max_length: Most tokens of a prompt with its verbalizer; the text of a row is shortened at its end to fit.
            Default: what the model takes.
        dtype: Precision of the weights; `auto` is the checkpoint's own.
        quantization: Quantize the weights of the linear layers, as for a pretrained teacher. Default: none.
        revision: Git revision of the model on the Hub: branch, tag or commit. Default: the main branch.
        trust_remote_code: Run the Python code that comes with the checkpoint.
    """

    name: ClassVar[str] = "prompted"
    whose: ClassVar[str] = "a prompted teacher"
    names_classes: ClassVar[str] = "verbalizers"

    model: str
    prompt: str | list[dict[str, str]]
    verbalizers: dict[str, str | list[str]]
    examples: Annotated[int, Field(ge=0)] = 0
    seed: int = 0
    calibration: Calibration = "none"
    prior: Literal["uniform", "labels"] = "uniform"
    length_normalisation: bool = False
    max_length: Annotated[int, Field(gt=0)] | None = None
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse verbalizers of fewer than two labels, labels without one, and a prior that nothing uses."""
        if len(self.verbalizers) < 2:
            found = ", ".join(map(repr, self.verbalizers)) or "none"
            raise ValueError(f"verbalizers: wanted those of each label of the data, two labels or more; found {found}")
        if empty := [label for label, some in self.texts.items() if not some or not all(some)]:
            raise ValueError(f"verbalizers.{empty[0]}: wanted a text, or several; found an empty one")
        if not self.prompt:
            raise ValueError("prompt: it is empty")
        if self.prior != "uniform" and self.calibration != "prior":
            raise ValueError("prior: it is used with calibration: prior only. Leave it out")

    @property
    def texts(self) -> dict[str, list[str]]:
        """Label -> its verbalizers."""
        return {label: [some] if isinstance(some, str) else some for label, some in self.verbalizers.items()}

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The labels of the verbalizers; None for `yes` and `no`, which are asked for each class of the data."""
        return None if set(self.verbalizers) == {"yes", "no"} else tuple(self.verbalizers)

    @property
    def reads(self) -> tuple[str, ...]:
        """All columns of the data: a message about a missing one names those that there are."""
        return (*Prompt(self.prompt).columns, ALL)

    def config(self) -> PretrainedConfig:
        """Return a configuration with the names of the classes.

        Raises:
            UserError: The model cannot be opened, or is not a language model that continues a text.
        """
        self._own_config()
        return super().config()

    def _own_config(self) -> PretrainedConfig:
        from hf_distill.models.loading import open_config
        from hf_distill.models.outline import has_class

        config = open_config(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)
        if self.quantization is not None:
            check_whole(self.model, config)
        if not has_class(config, _auto_class(config)) or (
            # Encoders have a causal class too, but without `is_decoder` they read later tokens.
            not config.is_encoder_decoder
            and has_class(config, "AutoModelForMaskedLM")
            and not getattr(config, "is_decoder", False)
        ):
            raise UserError(
                f"a {config.model_type} model does not continue a text. Wanted a causal (Llama, GPT-2, ...) or "
                "encoder-decoder (T5, BART, ...) language model.",
                key="model",
            )
        return config

    def check_task(self, task: Task) -> None:
        """Refuse another task than text classification, a prompt that is not Jinja, and a missing package."""
        super().check_task(task)
        Prompt(self.prompt).check()
        if self.quantization is not None:
            check_installed(self.quantization)

    def look(self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], pair: Pair) -> None:
        """Check that the columns of the prompt are there, and that the tokenizer has a chat template for messages."""
        prompt = Prompt(self.prompt)
        prompt.check(pair.teacher_tokenizer)
        for name, split in splits.items():
            prompt.check_columns({*split.column_names, *beside[name].column_names} - {task.label_role}, name)

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description that `--check` prints."""
        calibrated = "" if self.calibration == "none" else f", {self.calibration} calibration"
        return f"{super().in_words(config, size)}{calibrated}"

    def encode(self, examples: Examples) -> Encoded:
        """Return the tokens of each row's prompt after what all prompts share, and the rest as settings."""
        from datasets import Dataset

        from hf_distill.models.tokenizers import longest_input
        from hf_distill.teachers.prompted.inputs import make_inputs

        config = self._own_config()
        assert examples.tokenizer is not None
        limits = (self.max_length, longest_input((config,), (examples.tokenizer,)))
        limit = min((one for one in limits if one is not None), default=None)
        made = make_inputs(self, examples, limit, encodes=config.is_encoder_decoder)
        splits = {name: Dataset.from_dict({"input_ids": rows}) for name, rows in made.rows.items()}
        return Encoded(splits, {"prompted": made.settings()}, made.shown)

    def collate(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable[[list[dict[str, Any]]], Batch]:
        """Return what pads prompts on the right."""
        return collate

    def classifier(self, head: Head) -> PromptedClassifier:
        """Return the language model with its prompt.

        Raises:
            UserError: The checkpoint has no trained head over the vocabulary.
        """
        from hf_distill.models.loading import Head, load_model
        from hf_distill.teachers.prompted.classifier import PromptedClassifier

        model, missing = load_model(
            self.model,
            Head(_auto_class(self._own_config())),
            own_head=True,
            dtype=self.dtype,
            quantization=self.quantization,
            **self.opening,
        )
        if missing:
            raise UserError(
                f"'{self.model}' is not a trained language model: its checkpoint lacks {', '.join(missing[:3])}.",
                key="model",
            )
        return PromptedClassifier(model, head, mean=self.length_normalisation)

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """Return prompt, verbalizers and calibration."""
        given = self.prompt
        messages = [given] if isinstance(given, str) else [f"{one['role']}: {one['content']}" for one in given]
        return {
            "prompt": " | ".join(one.removesuffix("\n") for one in messages).replace("\n", "\\n"),
            "verbalizers": {label: [repr(text) for text in some] for label, some in self.texts.items()},
            "solved examples in the prompt": self.examples,
            "calibration": self.calibration if self.calibration != "prior" else f"prior ({self.prior})",
            "log-probabilities of a verbalizer": "averaged" if self.length_normalisation else "summed",
        }


def _auto_class(config: PretrainedConfig) -> str:
    return "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"


def collate(examples: list[dict[str, Any]]) -> Batch:
    """Return a batch of prompts, padded on the right."""
    from hf_distill.teachers.prompted.classifier import padded

    ids, mask = padded([one["input_ids"] for one in examples])
    return {"input_ids": ids, "attention_mask": mask}
