"""What five teachers cost, live and from a cache, against one: `python -m benchmarks.ensemble`.

Ways take turns, round by round, in one process with one thread; what is printed are medians of processor seconds, and
the highest memory of a step above what is held before it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import measuring

MEMBERS = 5


@dataclass(frozen=True)
class Settings:
    """Sizes of the work.

    Attributes:
        layers: Of each teacher; a student has half of them.
        width: Of all models.
        vocabulary: Of the language models.
        batch: Examples.
        tokens: Of each.
        rounds: How often each way is measured.
    """

    layers: int = 6
    width: int = 384
    vocabulary: int = 32000
    batch: int = 32
    tokens: int = 32
    rounds: int = 15


QUICK = Settings(layers=2, width=32, vocabulary=500, batch=4, tokens=8, rounds=2)


def model(settings: Settings, layers: int, seed: int, *, language: bool) -> Any:
    """Return a classifier or a language model with random weights."""
    import torch
    import transformers

    torch.manual_seed(seed)
    common: dict[str, Any] = {
        "hidden_size": settings.width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * settings.width,
        "pad_token_id": 0,
    }
    if language:
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common, vocab_size=settings.vocabulary)).eval()
    config = transformers.BertConfig(**common, vocab_size=settings.vocabulary, num_labels=2, initializer_range=0.1)
    return transformers.BertForSequenceClassification(config).eval()


def trainer(settings: Settings, teacher: Any, path: Path, *, language: bool) -> Any:
    """Return a trainer of a student, with a teacher or none."""
    import torch
    from datasets import Dataset

    from hf_distill import DistillationArguments, DistillationTrainer
    from hf_distill.objectives import KLDivergence, Labels

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name != "length"}

    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(1, settings.vocabulary, (settings.batch, settings.tokens), generator=chance)
    labels = ids.tolist() if language else [row % 2 for row in range(settings.batch)]
    columns = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist(), "labels": labels}
    args = DistillationArguments(str(path), report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True)
    return DistillationTrainer(
        model(settings, settings.layers // 2, 0, language=language),
        args,
        teacher=teacher,
        objectives=[Labels() if teacher is None else KLDivergence(temperature=2.0)],
        train_dataset=Dataset.from_dict(columns),
        eval_dataset=Dataset.from_dict(columns),
        data_collator=collate,
    )


def forward(made: Any) -> Callable[[], None]:
    """Return what compares both models on one batch, without a gradient."""
    import torch

    batch = made.data_collator(made.train_dataset.to_list())
    made.model.eval()

    def run() -> None:
        with torch.no_grad():
            made._forward(made.model, batch, made._heads)

    return run


def step(made: Any) -> Callable[[], None]:
    """Return what reads a batch, and computes its loss and gradient."""
    rows = made.train_dataset.to_list()
    made.model.train()

    def run() -> None:
        made.compute_loss(made.model, made.data_collator(rows)).backward()
        made.model.zero_grad()

    return run


def medians(ways: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return seconds and MiB of each way."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            with measuring() as cost:
                run()
            if number:  # the first warms up
                found[name].append((cost.seconds, cost.peak_mib or 0.0))
    return {
        name: (statistics.median(seconds), statistics.median(peaks))
        for name, (seconds, peaks) in ((name, zip(*costs, strict=True)) for name, costs in found.items())
    }


def main(settings: Settings) -> None:
    """Measure, and print the ratios."""
    import torch

    from hf_distill.teachers import CachedTeacher
    from hf_distill.teachers.ensemble.averaging import Ensemble

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        at = Path(directory)

        def teachers(language: bool) -> tuple[Any, Any]:
            several = [model(settings, settings.layers, seed, language=language) for seed in range(1, MEMBERS + 1)]
            return several[0], Ensemble(several)

        def made(name: str, teacher: Any, *, language: bool = False) -> Any:
            return trainer(settings, teacher, at / name, language=language)

        one, five = teachers(language=False)
        live = {name: forward(made(name, teacher)) for name, teacher in (("none", None), ("one", one), ("five", five))}
        seconds = {name: value for name, (value, _) in medians(live, settings.rounds).items()}
        ratio = (seconds["five"] - seconds["none"]) / (seconds["one"] - seconds["none"])
        print(f"forward of {MEMBERS} live teachers / one: {ratio:.2f} (wanted at most 5.3)", seconds)
        stored = {
            name: step(made(name, CachedTeacher(teacher=teacher, path=str(at / f"{name}-cache"))))
            for name, teacher in (("one", one), ("five", five))
        }
        seconds = {name: value for name, (value, _) in medians(stored, settings.rounds).items()}
        print(f"cached step, {MEMBERS} / one: {seconds['five'] / seconds['one']:.3f} (wanted at most 1.02)", seconds)
        one, five = teachers(language=True)
        heads = {name: step(made(name, teacher, language=True)) for name, teacher in (("one", one), ("five", five))}
        peaks = {name: value for name, (_, value) in medians(heads, max(2, settings.rounds // 3)).items()}
        print(f"memory of a step over {settings.vocabulary:,} classes, MiB above the weights:", peaks)


if __name__ == "__main__":
    main(QUICK if "--quick" in sys.argv[1:] else Settings())
