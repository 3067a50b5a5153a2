"""What the invariance tests train: tiny models in float64, data that is hard to split, a trainer that takes notes.

Used by the tests, by the worker that runs as two processes, and by the script that prints the table.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from hf_distill import DistillationArguments, DistillationTrainer
from hf_distill.models import sharding
from hf_distill.models.lora import Lora
from hf_distill.models.sentence_encoder import sentence_encoder
from hf_distill.objectives import KLDivergence, Labels, LogitsMSE, MarginMSE, Objective, SentenceEmbedding

# Trainer collects garbage before it trains; without a look at all that was imported that is four times faster.
gc.freeze()

STEP = 8
"""Examples of an optimiser step, however it is split."""

VOCABULARY = 40
NAN = float("nan")

# Sentences and tokens, shifted and not, with ignored labels and with examples that have none.
KINDS = (
    "classification",
    "multi-label",
    "regression",
    "token-classification",
    "masked-lm",
    "causal-lm",
    "causal-lm-gpt2",
    "causal-lm-own-tokens",
    "question-answering",
    "sequence-to-sequence",
    "sequence-to-sequence-t5",
    "sentence-similarity",
)

CLASSES: dict[str, Objective] = {
    "kl": KLDivergence(weight=0.5, temperature=2.0),
    "labels": Labels(weight=0.3),
    "logits_mse": LogitsMSE(weight=0.2),
}
VALUES: dict[str, Objective] = {"labels": Labels(weight=0.3), "logits_mse": LogitsMSE(weight=0.7)}


# Of triples.
SENTENCES: dict[str, Objective] = {
    **VALUES,
    "sentence_embedding": SentenceEmbedding(weight=0.5, projection="always"),
    "margin_mse": MarginMSE(weight=0.1),
}


def objectives(kind: str) -> tuple[Objective, ...]:
    if kind == "sentence-similarity":
        return tuple(SENTENCES.values())
    return tuple((VALUES if kind == "regression" else CLASSES).values())


def make_model(
    kind: str, layers: int, seed: int, dropout: float = 0.0, dtype: torch.dtype = torch.float64, width: int = 16
) -> Any:
    torch.manual_seed(seed)
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "num_labels": 3, "initializer_range": 0.3, "pad_token_id": 0}
    model: PreTrainedModel
    if kind == "causal-lm-gpt2":
        config = transformers.GPT2Config(
            **common, n_layer=layers, n_embd=width, n_head=2, n_positions=32,
            resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=1, eos_token_id=1,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    elif kind in ("causal-lm", "causal-lm-own-tokens"):
        llama = transformers.LlamaConfig(
            **common, num_hidden_layers=layers, hidden_size=width, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=24, max_position_embeddings=32, attention_dropout=dropout,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(llama)
    elif kind == "sequence-to-sequence":
        sides = {f"{side}_{key}": value for side in ("encoder", "decoder")
                 for key, value in {"layers": layers, "attention_heads": 2, "ffn_dim": 24}.items()}  # fmt: skip
        bart = transformers.BartConfig(
            **common, **sides, d_model=width, max_position_embeddings=32, init_std=0.3, dropout=dropout,
            bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
        )  # fmt: skip
        model = transformers.BartForConditionalGeneration(bart)
    elif kind == "sequence-to-sequence-t5":
        t5 = transformers.T5Config(
            **common, num_layers=layers, d_model=width, d_kv=8, d_ff=24, num_heads=2, dropout_rate=dropout,
            initializer_factor=0.7, decoder_start_token_id=0,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(t5)
    else:
        if kind == "regression":
            common |= {"num_labels": 2, "problem_type": "regression"}
        if kind == "question-answering":
            common |= {"num_labels": 2}
        if kind == "multi-label":
            common |= {"problem_type": "multi_label_classification"}
        bert = transformers.BertConfig(
            **common, num_hidden_layers=layers, hidden_size=width, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=32, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )  # fmt: skip
        heads = {
            "token-classification": transformers.BertForTokenClassification,
            "masked-lm": transformers.BertForMaskedLM,
            "question-answering": transformers.BertForQuestionAnswering,
        }
        if kind == "sentence-similarity":
            model = sentence_encoder(transformers.BertModel(bert))
        else:
            model = heads.get(kind, transformers.BertForSequenceClassification)(bert)
    return model.to(dtype)


def make_models(kind: str, *, teacher_width: int = 16, **settings: Any) -> tuple[Any, Any]:
    """Return a one-layer student and a two-layer teacher."""
    return make_model(kind, 1, seed=1, **settings), make_model(kind, 2, seed=2, width=teacher_width, **settings)


def make_rows(kind: str, count: int = 24, masked: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Return examples of 3 to 14 tokens; those in `masked`, and every fifth, have no label at all."""
    chance = random.Random(3)
    rows = []
    for index in range(count):
        ids = [chance.randrange(2, VOCABULARY) for _ in range(chance.randint(3, 14))]
        unlabelled = index in masked or index % 5 == 4
        texts: Any = [ids, ids[1:], ids[::-1]] if kind == "sentence-similarity" else ids
        row = {"input_ids": texts, "length": len(ids)}
        if kind.startswith("sequence-to-sequence"):  # of another length than what it is made of
            ids = [chance.randrange(2, VOCABULARY) for _ in range(chance.randint(2, 9))]
            row["decoder_input_ids"] = [int(kind == "sequence-to-sequence"), *ids[:-1]]
        if kind == "question-answering":  # a question of one token, and no answer at the first one
            row["context_mask"] = [1, 0, *[1] * (len(ids) - 2)]
        row["labels"] = _labels(kind, ids, chance, unlabelled)
        rows.append({**row, **_own_tokens(row, chance)} if kind == "causal-lm-own-tokens" else row)
    return rows


def _own_tokens(row: dict[str, Any], chance: random.Random) -> dict[str, list[int]]:
    """Return a teacher's tokens, which begin with others, and which of the labels it is compared at."""
    before = [chance.randrange(2, VOCABULARY) for _ in range(chance.randint(1, 12))]
    known = [at > 0 and label != -100 and chance.random() < 0.7 for at, label in enumerate(row["labels"])]
    aligned = [len(before) + at - 1 if taught else -1 for at, taught in enumerate(known)]
    return {"teacher_input_ids": before + row["input_ids"], "aligned_at": aligned}


def _labels(kind: str, ids: list[int], chance: random.Random, unlabelled: bool) -> Any:
    if kind == "classification":
        label = chance.randrange(3)
        return -100 if unlabelled else label
    if kind == "sentence-similarity":
        score = chance.randrange(-8, 9) / 8
        return NAN if unlabelled else score
    if kind == "multi-label":
        multi = [float(chance.randrange(2)) for _ in range(3)]
        return [NAN] * 3 if unlabelled else multi
    if kind == "regression":
        values = [chance.randrange(-16, 17) / 8 for _ in range(2)]  # exact in float32
        return [NAN] * 2 if unlabelled else values
    if kind == "question-answering":
        start = chance.choice([0, *range(2, len(ids))])
        return [-100, -100] if unlabelled else [start, chance.randrange(start, len(ids)) if start else 0]
    if kind == "token-classification":
        labels = [chance.choice((-100, 0, 1, 2)) for _ in ids]
    elif kind == "masked-lm":
        labels = [token if chance.random() < 0.4 else -100 for token in ids]
    else:
        prompt = chance.randrange(len(ids))  # as in instruction tuning: nothing is learned from the prompt
        labels = [-100] * prompt + ids[prompt:]
    return [-100] * len(ids) if unlabelled else labels


@dataclass(frozen=True)
class Collator:
    """Pads on the right to the longest example, and then to a multiple of `multiple`."""

    multiple: int = 1

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        if isinstance(rows[0]["input_ids"][0], list):
            texts = self([{"input_ids": text} for row in rows for text in row["input_ids"]])
            batch = {name: value.unflatten(0, (len(rows), -1)) for name, value in texts.items()}
            return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}
        ids = [row["input_ids"] for row in rows]
        batch = {"input_ids": self.pad(ids, 0), "attention_mask": self.pad([[1] * len(one) for one in ids], 0)}
        if "decoder_input_ids" in rows[0]:
            batch["decoder_input_ids"] = self.pad([row["decoder_input_ids"] for row in rows], 0)
        if "teacher_input_ids" in rows[0]:
            theirs = self([{"input_ids": row["teacher_input_ids"]} for row in rows])
            batch |= {f"teacher_{name}": value for name, value in theirs.items()}
        if "aligned_at" in rows[0]:
            batch["aligned_at"] = self.pad([row["aligned_at"] for row in rows], -1)
        if "context_mask" in rows[0]:
            batch["context_mask"] = self.pad([row["context_mask"] for row in rows], 0)
        if "labels" in rows[0]:
            labels = [row["labels"] for row in rows]
            by_token = "context_mask" not in batch and isinstance(labels[0], list) and isinstance(labels[0][0], int)
            batch["labels"] = self.pad(labels, -100) if by_token else torch.tensor(labels)
        return batch

    def pad(self, rows: list[list[int]], value: int) -> Tensor:
        width = -(-max(map(len, rows)) // self.multiple) * self.multiple
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])


@dataclass
class Record:
    """What happened in each optimiser step.

    Attributes:
        losses: As `compute_loss` returned them: in the model's precision, where the logs are float32.
        gradients: By parameter, before any clipping.
        logs: The training logs.
        tokens: That the trainer counted.
        weights: At the end.
    """

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)


class NotingTrainer(DistillationTrainer):
    """Writes a `Record`; computes nothing of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.record = Record()
        self.micro: list[Tensor] = []
        self.add_callback(_Notes(self))
        self.remove_callback(PrinterCallback)
        count = self._meter.count

        def remember(tokens: Tensor) -> None:
            self.record.tokens.append(int(tokens))
            count(tokens)

        self._meter.count = remember  # type: ignore[method-assign]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.micro.append(loss)
        return loss


class _Notes(TrainerCallback):
    def __init__(self, trainer: NotingTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        loss = trainer.accelerator.reduce(torch.stack(trainer.micro).sum(), reduction="mean")
        trainer.micro.clear()
        trainer.record.losses.append(loss.item())
        gradients = {name: one.grad for name, one in trainer.model.named_parameters() if one.grad is not None}
        whole = {name: sharding.whole(gradient) for name, gradient in gradients.items()}
        trainer.record.gradients.append({name: gradient.clone() for name, gradient in whole.items()})

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" in logs:
            self.trainer.record.logs.append(dict(logs))


def arguments(output_dir: str | Path, **settings: Any) -> DistillationArguments:
    quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    optimiser = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    return DistillationArguments(output_dir=str(output_dir), **{**quiet, **optimiser, **settings})


def make_trainer(
    kind: str,
    output_dir: str | Path,
    *,
    rows: list[dict[str, Any]] | None = None,
    collator: Collator | None = None,
    terms: Sequence[Objective] | None = None,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    teacher_width: int = 16,
    **settings: Any,
) -> NotingTrainer:
    student, teacher = make_models(kind, dropout=dropout, dtype=dtype, teacher_width=teacher_width)
    rows = make_rows(kind) if rows is None else rows
    return NotingTrainer(
        student,
        arguments(output_dir, **settings),
        teacher=teacher,
        objectives=objectives(kind) if terms is None else terms,
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(make_rows(kind, 13)),
        data_collator=collator or Collator(),
    )


def make_adapted(output_dir: str | Path, teacher: Any, **settings: Any) -> NotingTrainer:
    """Return a trainer of adapters on a language model; from the start they change it."""
    student = Lora(r=2).wrap(make_model("causal-lm", 2, seed=2))
    torch.manual_seed(6)
    with torch.no_grad():
        for one in filter(lambda one: one.requires_grad, student.parameters()):
            one.add_(0.3 * torch.randn(one.shape))
    return NotingTrainer(
        student,
        arguments(output_dir, num_train_epochs=1, **settings),
        teacher=teacher,
        objectives=objectives("causal-lm"),
        train_dataset=datasets.Dataset.from_list(make_rows("causal-lm")),
        eval_dataset=datasets.Dataset.from_list(make_rows("causal-lm", 13)),
        data_collator=Collator(),
    )


def train(trainer: NotingTrainer, **settings: Any) -> Record:
    trainer.train(**settings)
    trainer.record.weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    return trainer.record


def split(batch_size: int, processes: int = 1) -> dict[str, int]:
    """Return the arguments that make a step of `STEP` examples from micro-batches of `batch_size`."""
    steps = STEP // (batch_size * processes)
    return {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}


def largest_difference(one: Record, other: Record) -> float:
    """Return the largest difference of any gradient entry, relative to the largest entry of that step."""
    worst = 0.0
    for mine, theirs in zip(one.gradients, other.gradients, strict=True):
        assert mine.keys() == theirs.keys()
        scale = max(float(gradient.abs().max()) for gradient in mine.values())
        worst = max(worst, *(float((mine[name] - theirs[name]).abs().max()) / scale for name in mine))
    return worst


class Numbers:
    """Writes ids as they are, in place of a tokenizer."""

    def batch_decode(self, ids: Tensor, skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in ids.tolist()]


def generator() -> Any:
    """Return what generates texts for 7 rows: not the same number for each of two processes, whatever the batch."""
    from hf_distill.tasks.generation import SourceGenerator

    rows = datasets.Dataset.from_list(make_rows("sequence-to-sequence", 7)).select_columns(["input_ids"])
    return SourceGenerator(rows, Numbers(), range(7), 0, {"max_new_tokens": 9, "no_repeat_ngram_size": 1})  # type: ignore[arg-type]
