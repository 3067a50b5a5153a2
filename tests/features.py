"""Pairs of tiny models whose layers can be compared, and what is computed from them."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from hf_distill.data.label_names import IGNORED
from hf_distill.objectives import Comparison, Objective
from hf_distill.objectives.base import Term
from hf_distill.rows.base import RowLayout
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.tokens import TargetRows, TokenRows

VOCABULARY = 30
LENGTHS = (7, 4, 1, 6)
EXAMPLES = len(LENGTHS)

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """A student and a teacher of other depth, width and number of heads, and a batch with padding."""

    student: Any
    teacher: Any
    layout: RowLayout
    inputs: Inputs

    def prepare(self, objective: Objective) -> Term:
        """Return the term as the trainer has it before the first step."""
        torch.manual_seed(0)
        term = objective.prepare(self.student, self.teacher).to(self.student.dtype)
        if term.needs_data:
            term.observe(self.compare(term, self.inputs))
            term.settle()
        return term

    def compare(self, term: Term, inputs: Inputs) -> Comparison:
        """Run both models as the trainer does."""
        wanted = {f"output_{name}": True for name in term.objective.outputs}
        given = {key: value for key, value in inputs.items() if key != "labels"}
        with term.watching():
            with torch.set_grad_enabled(term.objective.differentiates):
                theirs = self.teacher(**given, **wanted)
            mine = self.student(**given, **wanted)
        rows = self.layout.select(mine.logits, theirs.logits, inputs)
        attached = self.layout.teacher_rows(theirs.logits, inputs) if term.objective.differentiates else None
        return Comparison(rows, mine, theirs, inputs, self.layout.tokens(inputs), attached)

    def losses(self, term: Term, inputs: Inputs | None = None) -> Tensor:
        """Return the sum of every example, `(batch,)`."""
        found: Tensor = term(self.compare(term, self.inputs if inputs is None else inputs))
        return found

    def with_itself(self) -> Pair:
        """Return the teacher as its own student."""
        return dataclasses.replace(self, student=self.teacher)

    def to(self, dtype: torch.dtype) -> Pair:
        """Return the same with copies of the models in another precision."""
        student, teacher = (copy.deepcopy(model).to(dtype) for model in (self.student, self.teacher))
        return dataclasses.replace(self, student=student, teacher=teacher)


def part(inputs: Inputs, where: slice) -> Inputs:
    return {key: value[where] for key, value in inputs.items()}


def padded(inputs: Inputs, more: int) -> Inputs:
    """Return the batch as it would be beside a longer example."""
    fill = {"labels": IGNORED}
    return {
        key: value if value.ndim == 1 else torch.nn.functional.pad(value, (0, more), value=fill.get(key, 0))
        for key, value in inputs.items()
    }


def make_pair(kind: str, **student: Any) -> Pair:
    """Return a pair of `bert`, `distilbert` (of a BERT), `llama` or `t5` models in float64.

    Args:
        kind: Of the models.
        **student: Settings of the student's configuration that differ: by default it has two layers, two heads and a
            width of 8, the teacher four of each and a width of 16.
    """
    small = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, **student}
    large = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 4}
    kinds = ("distilbert", "bert") if kind == "distilbert" else (kind, kind)
    models = [_model(*one, seed) for seed, one in enumerate(zip(kinds, (small, large), strict=True))]
    models[1].requires_grad_(False)
    chance = torch.Generator().manual_seed(0)
    longest = max(LENGTHS)
    ids = torch.randint(2, VOCABULARY, (EXAMPLES, longest), generator=chance)
    mask = torch.tensor([[1] * length + [0] * (longest - length) for length in LENGTHS])
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    if kind == "t5":
        labels = ids.flip(1).masked_fill(mask.flip(0) == 0, IGNORED)
        before = torch.cat((torch.zeros_like(labels[:, :1]), labels[:, :-1]), 1).clamp(min=0)
        return Pair(*models, TargetRows(), inputs | {"labels": labels, "decoder_input_ids": before})
    if kind == "llama":
        return Pair(*models, TokenRows(shift=True), inputs | {"labels": ids.masked_fill(mask == 0, IGNORED)})
    return Pair(*models, ExampleRows(width=2), inputs | {"labels": torch.tensor([0, 1, 1, 0])})


def _model(kind: str, shape: dict[str, Any], seed: int) -> Any:
    torch.manual_seed(seed)
    # With the usual 0.02 all attention is alike, and so are all layers.
    common = {"vocab_size": VOCABULARY, "initializer_range": 0.5, "pad_token_id": 0, "attn_implementation": "eager"}
    config: Any
    if kind == "bert":
        config = transformers.BertConfig(**common, **shape, intermediate_size=16, max_position_embeddings=32)
        model: Any = transformers.BertForSequenceClassification(config)
    elif kind == "distilbert":
        names = {"num_hidden_layers": "n_layers", "hidden_size": "dim", "num_attention_heads": "n_heads"}
        shape = {names.get(key, key): value for key, value in shape.items()}
        config = transformers.DistilBertConfig(**common, **shape, hidden_dim=16, max_position_embeddings=32)
        model = transformers.DistilBertForSequenceClassification(config)
    elif kind == "llama":
        config = transformers.LlamaConfig(**common, **shape, intermediate_size=16, num_key_value_heads=2)
        model = transformers.LlamaForCausalLM(config)
    else:
        names = {"num_hidden_layers": "num_layers", "hidden_size": "d_model", "num_attention_heads": "num_heads"}
        shape = {names.get(key, key): value for key, value in shape.items()}
        common |= {"num_decoder_layers": shape["num_layers"] + 1, "d_kv": 4, "d_ff": 16, "initializer_factor": 3.0}
        del common["initializer_range"]
        config = transformers.T5Config(**common, **shape, decoder_start_token_id=0, relative_attention_num_buckets=8)
        model = transformers.T5ForConditionalGeneration(config)
    return model.double().eval()
