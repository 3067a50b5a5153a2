"""The teacher's forward pass in other weights: what it costs, and how far its answers are from those in float32.

What is timed is the body: its logits are made a few rows at a time (see `loss`). The `loss` of a variant is the
Kullback-Leibler divergence of its distribution from the float32 teacher's, the mean over tokens. It says something of
trained weights only:

    python -m benchmarks.worker teacher int8 --settings '{"model": "MODEL", "text": "FILE.jsonl", "tokens": 256}'
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Cost, Outcome, Variant, measuring
from benchmarks.step import Settings as StepSettings
from benchmarks.step import model as random_model


@dataclass(frozen=True)
class Settings:
    """Sizes of the work.

    Attributes:
        model: A language model and its tokenizer; a Llama with random weights if empty.
        text: JSON lines with a column `text`, for the model; random tokens if empty.
        vocabulary: Of the Llama.
        teacher: Its layers, width and width of the feed-forward layers; multiples of 64, as 4 bits want it on a CPU.
        batch: Examples.
        tokens: Of each.
    """

    model: str = ""
    text: str = ""
    vocabulary: int = 32000
    teacher: tuple[int, int, int] = (8, 512, 1408)
    batch: int = 4
    tokens: int = 512

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes that take no time."""
        return cls(vocabulary=500, teacher=(2, 64, 128), batch=2, tokens=24)


def saved(settings: Settings, directory: str) -> Path:
    """Write the model to a directory, in float32, because quantization is a way to load one."""
    from hf_distill.models.loading import Head, load_model

    if settings.model:
        whole, _ = load_model(settings.model, Head("AutoModelForCausalLM"), own_head=True)
    else:
        whole = random_model(StepSettings(vocabulary=settings.vocabulary), settings.teacher, 2)
    whole.save_pretrained(directory)
    return Path(directory)


def tokens(settings: Settings) -> Any:
    """Return `(batch, tokens)` to read."""
    import torch

    torch.manual_seed(7)
    shape = (settings.batch, settings.tokens)
    if not settings.text:
        return torch.randint(3, settings.vocabulary, shape)
    from hf_distill.models.loading import open_tokenizer

    lines = Path(settings.text).read_text(encoding="utf-8").splitlines()
    ids = open_tokenizer(settings.model)(" ".join(json.loads(line)["text"] for line in lines))["input_ids"]
    return torch.tensor(ids[: settings.batch * settings.tokens]).reshape(shape)


def forward(quantization: str | None, dtype: str, autocast: bool = False) -> Callable[[Settings], Outcome]:
    """Return a variant's `run`.

    Args:
        quantization: As `teacher.quantization`.
        dtype: As `teacher.dtype`.
        autocast: Compute under autocast to bfloat16, as a training with `bf16` does.
    """

    def run(settings: Settings) -> Outcome:
        import torch

        from hf_distill.models.loading import Head, load_model

        head, ids = Head("AutoModelForCausalLM"), tokens(settings)

        def context() -> AbstractContextManager[Any]:
            return torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()

        def answers(model: Any) -> Any:
            return model(ids, use_cache=False).logits.float().log_softmax(-1)

        with tempfile.TemporaryDirectory() as directory, torch.no_grad():
            path = str(saved(settings, directory))
            whole, _ = load_model(path, head, own_head=True)
            wanted = answers(whole)
            model, _ = load_model(path, head, own_head=True, dtype=dtype, quantization=quantization)  # type: ignore[arg-type]
            with context():
                found = answers(model)
            divergence = (wanted.exp() * (wanted - found)).sum(-1).mean().item()
            del wanted, found, whole
            with context(), measuring() as cost:
                before = time.process_time()
                model.base_model(ids, use_cache=False)
                seconds = time.process_time() - before
        return Outcome(Cost(seconds, cost.peak_mib), {"loss": divergence}, "forward pass")

    return run


VARIANTS: dict[str, Variant] = {
    "fp32": Variant(forward(None, "float32"), "float32"),
    "autocast": Variant(
        forward(None, "float32", autocast=True), "float32 under bf16 autocast (`training: {bf16: true}`)"
    ),
    "bf16": Variant(forward(None, "bfloat16"), "`dtype: bfloat16`"),
    "fp16": Variant(forward(None, "float16"), "`dtype: float16`"),
    "int8": Variant(forward("int8", "float32"), "`quantization: int8`", needs="torchao"),
    "int8_bf16": Variant(forward("int8", "bfloat16"), "`int8`, rest bfloat16", needs="torchao"),
    "nf4": Variant(forward("nf4", "float32"), "`quantization: nf4`", needs="bitsandbytes"),
    "nf4_bf16": Variant(forward("nf4", "bfloat16"), "`nf4`, rest bfloat16", needs="bitsandbytes"),
}
BASELINE = "fp32"
RATIOS = (
    ("teacher in bfloat16, of float32", "fp32", "bf16"),
    ("teacher in bfloat16, of float32 under autocast", "autocast", "bf16"),
    ("teacher in int8 and bfloat16, of bfloat16", "bf16", "int8_bf16"),
    ("teacher in nf4 and bfloat16, of bfloat16", "bf16", "nf4_bf16"),
)
