"""A law of two paths that a student cannot tell apart: where each divergence leads it, to closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from torch import Tensor, nn

from hf_distill import DistillationArguments, DistillationTrainer
from hf_distill.completions.backends import transformers as backend
from hf_distill.completions.section import Completions
from hf_distill.objectives import JensenShannon, KLDivergence, Objective, ReverseKL
from hf_distill.tasks.language import PadTokens

START, A, B, M, SMALL_A, SMALL_B, END = range(7)
EPSILON = 0.01


class Law(transformers.PreTrainedModel):
    """Writes A or B, then M, then the small letter of the first; it looks at the last two tokens."""

    config_class = transformers.LlamaConfig
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.nothing = nn.Parameter(torch.zeros(1))
        table = torch.full((7, 7, 7), 1e-9)
        table[:, START, A], table[:, START, B] = 0.6, 0.4
        table[:, A, M] = table[:, B, M] = 1.0
        table[A, M, SMALL_A], table[A, M, SMALL_B] = 1 - EPSILON, EPSILON
        table[B, M, SMALL_A], table[B, M, SMALL_B] = EPSILON, 1 - EPSILON
        self.register_buffer("table", (table / table.sum(-1, keepdim=True)).log())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        """Return the logarithm of the law."""
        before = torch.cat((input_ids[:, :1], input_ids[:, :-1]), 1)
        table: Any = self.table
        return {"logits": table[before, input_ids]}


def bigram() -> Any:
    """Return a decoder whose attention adds nothing: it sees the last token alone."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=7,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
    )
    model = transformers.LlamaForCausalLM(config)
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        layer.self_attn.o_proj.weight.requires_grad_(False)
    return model


def tokenizer() -> Any:
    import tokenizers

    words = {word: number for number, word in enumerate(["<s>", "A", "B", "M", "a", "b", "</s>"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="</s>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>")


def trained(objective: Objective, directory: Path, *, own: bool) -> tuple[float, float]:
    """Return `P(A)` and `P(a | M)` of the student that a training makes."""
    if own:
        rows = [{"input_ids": [START], "labels": [-100]}] * 100
    else:
        texts = {(A, M, SMALL_A): 59, (A, M, SMALL_B): 1, (B, M, SMALL_B): 40}
        rows = [
            {"input_ids": [START, *text], "labels": [-100, *text]}
            for text, times in texts.items()
            for _ in range(times)
        ]
    student = bigram()
    trainer = DistillationTrainer(
        student,
        DistillationArguments(
            output_dir=str(directory),
            use_cpu=True,
            report_to=[],
            seed=1,
            max_steps=120,
            per_device_train_batch_size=len(rows),
            learning_rate=0.03,
            lr_scheduler_type="linear",
            logging_steps=50,
            disable_tqdm=True,
        ),
        teacher=Law(student.config),
        objectives=[objective],
        completions=Completions(by="student", max_new_tokens=3) if own else None,
        data_collator=PadTokens(END),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    trainer.train()
    with torch.no_grad():
        first, last = (student.eval()(torch.tensor([[one]])).logits[0, 0].softmax(-1) for one in (START, M))
    return first[A].item(), last[SMALL_A].item()


ON_TEACHERS_TEXTS = 0.6 * (1 - EPSILON) + 0.4 * EPSILON
ON_OWN_TEXTS = 1 / (1 + (EPSILON / (1 - EPSILON)) ** 0.2)


@pytest.fixture
def evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the numbers that decide first tokens lie evenly, so that A is drawn as often as it is likely."""

    def numbers(seed: int, rows: Sequence[int], tokens: int) -> Tensor:
        drawn = torch.rand(len(rows), tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        drawn[:, 0] = (torch.arange(len(rows)) + 0.5) / len(rows)
        return drawn

    monkeypatch.setattr(backend, "uniforms", numbers)


@pytest.mark.usefixtures("evenly")
@pytest.mark.parametrize(
    ("objective", "own", "share", "tolerance"),
    [
        (KLDivergence(), False, ON_TEACHERS_TEXTS, 0.005),
        (ReverseKL(), True, ON_OWN_TEXTS, 0.005),
        (JensenShannon(), True, 0.655, 0.005),
    ],
    ids=["kl on the teacher's texts", "reverse_kl on its own", "js on its own"],
)
def test_where_a_student_goes_that_cannot_tell_the_paths_apart(
    objective: Objective, own: bool, share: float, tolerance: float, tmp_path: Path
) -> None:
    """Another direction, texts of another writer, or a gradient through the drawing would end elsewhere, in silence."""
    assert pytest.approx((0.598, 0.71484), abs=1e-5) == (ON_TEACHERS_TEXTS, ON_OWN_TEXTS)
    first, last = trained(objective, tmp_path, own=own)
    assert first == pytest.approx(0.6, abs=0.01)
    assert last == pytest.approx(share, abs=tolerance)
