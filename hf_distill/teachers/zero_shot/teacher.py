"""A zero-shot teacher: an entailment model that says which hypothesis follows from a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from hf_distill.component import component
from hf_distill.data.label_names import shorten
from hf_distill.errors import UserError
from hf_distill.models.adapters import check_not_quantized
from hf_distill.models.adapters import check_task as check_adapter
from hf_distill.models.loading import Dtype, Head, load_model, open_config
from hf_distill.models.outline import has_class, has_head
from hf_distill.models.quantization import Quantization, check_installed, check_whole
from hf_distill.teachers.own_inputs import Encoded, Examples, OwnInputsTeacher, PadInputs

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.tasks import Task

AUTO_CLASS = "AutoModelForSequenceClassification"
WANTED = "Wanted a model that was trained on natural language inference (MNLI, ANLI, XNLI)."


@component
class ZeroShotTeacher(OwnInputsTeacher):
    """An entailment model, asked for each class whether its hypothesis follows from the text.

    It needs no labels: the words in the hypotheses say what the classes are. With one class for each text, the logits
    are those of entailment, so that their softmax is over the classes; with several, those of entailment less those of
    contradiction, whose sigmoid is the probability of each class. Both are the scores of Transformers'
    `pipeline("zero-shot-classification")`. A text takes one forward pass for each class.

    Attributes:
        model: Hub id, local directory or `package:NAME/PATH` of a model with a trained head, one of whose classes is
            `entailment`.
        hypothesis: The hypothesis, with `{}` in the place of the class.
        labels: Label of the data -> words for it in the hypothesis. Default: the names of the labels, as they are.
        batch_size: Number of pairs of text and hypothesis that go through the model at a time.
        revision: Git revision of the model on the Hub: branch, tag or commit. Default: the main branch.
        dtype: Precision of the weights; `auto` is the checkpoint's own. Half precision halves the teacher's memory.
        quantization: Quantize the weights of the linear layers, as for a pretrained teacher. Default: none.
        trust_remote_code: Run the Python code that comes with the checkpoint.
    """

    name: ClassVar[str] = "zero_shot"
    whose: ClassVar[str] = "a zero-shot teacher"
    names_classes: ClassVar[str] = "labels"

    model: str
    hypothesis: str = "This text is about {}."
    labels: dict[str, str] | None = None
    batch_size: Annotated[int, Field(gt=0)] = 64
    revision: str | None = None
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse a hypothesis without a place for the class, and labels that cannot be told apart."""
        try:
            says = self.hypothesis.format("one") != self.hypothesis.format("another")
        except (IndexError, KeyError, ValueError, AttributeError):
            says = False
        if not says:
            raise ValueError(f"hypothesis: wanted {{}} once, in the place of the class; found {self.hypothesis!r}")
        if self.labels is not None:
            if len(self.labels) < 2:
                raise ValueError(f"labels: wanted two or more; found {', '.join(self.labels) or 'none'}")
            _check_words(self.labels)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The labels of the data, in the order of `labels`; None if that is left out."""
        return None if self.labels is None else tuple(self.labels)

    def check_task(self, task: Task) -> None:
        """Refuse another task than text classification, and a quantization whose package is not installed."""
        super().check_task(task)
        if self.quantization is not None:
            check_installed(self.quantization)

    def config(self) -> PretrainedConfig:
        """Return a configuration with the names of the classes.

        Raises:
            UserError: The model does not exist, or is not a trained entailment model.
        """
        self._of_model()
        return super().config()

    def _of_model(self) -> PretrainedConfig:
        config = open_config(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)
        check_adapter(self.model, AUTO_CLASS)
        if not has_class(config, AUTO_CLASS) or (config.architectures and not has_head(config, AUTO_CLASS)):
            found = (config.architectures or [config.model_type])[0]
            raise UserError(f"this checkpoint is a {found}, without a trained classifier. {WANTED}", key="model")
        places(config)
        if self.quantization is not None:
            check_whole(self.model, config)
            check_not_quantized(self.model)
        return config

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description that `--check` prints."""
        words = "the names of the labels" if self.labels is None else ", ".join(self.labels.values())
        return f"{size(self._of_model())}; hypothesis: {self.hypothesis} ({words})"

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the hypotheses."""
        asked = zip(names, self._hypotheses(names), strict=True)
        return {"hypotheses": "; ".join(f"{name}: {text}" for name, text in asked)}

    def _hypotheses(self, names: Sequence[str]) -> list[str]:
        words = self.labels or {name: name for name in names}
        _check_words(words)
        return [self.hypothesis.format(words[name]) for name in names]

    def encode(self, examples: Examples) -> Encoded:
        """Return the tokens of each text with each hypothesis: lists of one list for each class.

        A long text is cut, a hypothesis never.

        Raises:
            UserError: The examples are pairs of texts, or a hypothesis leaves no room for a text.
        """
        from hf_distill.models.tokenizers import longest_input
        from hf_distill.tasks.tokenising import tokenise

        tokenizer, hypotheses = examples.tokenizer, self._hypotheses(examples.classes)
        assert tokenizer is not None
        if "text_pair" in examples.rows["train"].column_names:
            raise UserError(
                "an entailment model reads one text and a hypothesis, but the examples are pairs of texts. Join the "
                "two in one column, or take a model that was trained for pairs: {name: pretrained, model: ...}.",
                key="name",
            )
        config = self._of_model()
        limit = longest_input((config,), (tokenizer,))
        _check_room(tokenizer, hypotheses, limit)

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            texts = [text for text in batch["text"] for _ in hypotheses]
            pairs = tokenizer(
                texts,
                hypotheses * len(batch["text"]),
                truncation="only_first" if limit is not None else False,
                max_length=limit,
            )
            step = len(hypotheses)
            return {key: [rows[at : at + step] for at in range(0, len(rows), step)] for key, rows in pairs.items()}

        settings = (self.name, hypotheses, limit)
        found = {name: tokenise(rows, name, encode, tokenizer, *settings) for name, rows in examples.rows.items()}
        for name, split in found.items():
            _check_ends(split, config, name, tokenizer)
        shown = f"hypotheses  {len(hypotheses)} for each text, as many forward passes: {' | '.join(hypotheses)}"
        return Encoded(found, shown=(shown,))

    def collate(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable[[list[dict[str, Any]]], Mapping[str, Any]]:
        """Return what pads all pairs of a batch to the longest."""
        assert tokenizer is not None
        return PadInputs(tokenizer)

    def classifier(self, head: Head) -> nn.Module:
        """Return the entailment model as a classifier.

        Raises:
            UserError: The checkpoint has no trained head.
        """
        from hf_distill.teachers.zero_shot.entailment import Entailment

        model, missing = load_model(
            self.model,
            Head(AUTO_CLASS, {"pad_token_id": head.settings["pad_token_id"]}),
            own_head=True,
            dtype=self.dtype,
            quantization=self.quantization,
            **self.opening,
        )
        if missing:
            raise UserError(
                f"'{self.model}' has no trained head (its checkpoint lacks {', '.join(missing[:3])}), so it would "
                f"teach noise. {WANTED}",
                key="model",
            )
        return Entailment(model, head, places(model.config), self.batch_size)


def places(config: PretrainedConfig) -> tuple[int, int]:
    """Return the columns of entailment and of contradiction in the logits of an entailment model.

    Entailment is the class whose name begins with `entail`, as for `pipeline("zero-shot-classification")`.
    Contradiction is the one whose name begins with `contradict`. Without one, it is the first column, or the last where
    entailment is the first: that is what the pipeline takes in all cases.

    Raises:
        UserError: There is no class of entailment, or no other.
    """
    names = [str(name).lower() for _, name in sorted((config.id2label or {}).items())]
    entailment = next((at for at, name in enumerate(names) if name.startswith("entail")), None)
    if entailment is None or len(names) < 2:
        raise UserError(
            f"its classes are {shorten(names)}, and an entailment model has one whose name begins with 'entail' "
            f"(id2label in config.json), and another. {WANTED}",
            key="model",
        )
    usual = len(names) - 1 if entailment == 0 else 0
    contradiction = next((at for at, name in enumerate(names) if name.startswith("contradict")), usual)
    return entailment, contradiction


def _check_words(words: Mapping[str, str]) -> None:
    """Refuse labels without words, and two labels with the same words.

    Raises:
        UserError: Two labels could not be told apart.
    """
    seen: dict[str, str] = {}
    for label, one in words.items():
        tidy = " ".join(one.split()).casefold()
        if not tidy:
            raise UserError(f"there are no words for '{label}'. Wanted what it means, such as: sport.", key="labels")
        if tidy in seen:
            raise UserError(
                f"'{seen[tidy]}' and '{label}' have the same words ({one}), so that no text tells them apart.",
                key="labels",
            )
        seen[tidy] = label


def _check_room(tokenizer: PreTrainedTokenizerBase, hypotheses: Sequence[str], limit: int | None) -> None:
    added = tokenizer.num_special_tokens_to_add(pair=True)
    for text in hypotheses:
        own = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if limit is not None and own + added >= limit:
            raise UserError(
                f"the hypothesis '{text}' has {own} tokens and leaves no room for a text: the model takes {limit}, "
                f"{added} of them special.",
                key="hypothesis",
            )


def _check_ends(split: Dataset, config: PretrainedConfig, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse texts with an end-of-text token inside, for models that classify at that token."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    from hf_distill.data import column
    from hf_distill.models.decoders import check_ends

    if not config.is_encoder_decoder:
        return
    try:
        check_ends(pc.list_element(column(split, "input_ids"), 0), config, name, tokenizer)
    except UserError as error:
        raise UserError(*error.mistakes, key="model") from error
