r"""Write a teacher's probabilities into a CSV file, one column a class: soft labels that need no teacher any more.

    python examples/teacher_labels_to_csv.py TEACHER texts.csv soft.csv --text sentence

On the data of `make quickstart`, with the teacher it fine-tuned (a minute):

    python examples/teacher_labels_to_csv.py outputs/quickstart/_teacher/* data/quickstart/transfer.csv \
        outputs/soft.csv --text sentence

Send the file to whoever trains the student; its recipe says `teacher: {name: given, columns: {probabilities: [negative,
positive]}}`. Other systems read it too.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_distill.locations import resolve

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ("teacher", "texts", "into"):
    parser.add_argument(name)
parser.add_argument("--text", default="text", help="column of the texts")
given = parser.parse_args()

place = resolve(given.teacher)
tokenizer = AutoTokenizer.from_pretrained(place)
teacher = AutoModelForSequenceClassification.from_pretrained(place).eval()
names = [teacher.config.id2label[index] for index in range(teacher.config.num_labels)]


@torch.no_grad()
def probabilities(batch: dict) -> dict:
    """The probability of each class for some rows."""
    inputs = tokenizer(batch[given.text], truncation=True, padding=True, return_tensors="pt")
    columns = teacher(**inputs).logits.double().softmax(-1).T.tolist()
    return dict(zip(names, columns, strict=True))


rows = load_dataset("csv", data_files=given.texts, split="train").map(probabilities, batched=True, batch_size=64)
Path(given.into).parent.mkdir(parents=True, exist_ok=True)
rows.to_csv(given.into, index=False)
for name in names:
    mean, sure = sum(rows[name]) / len(rows), sum(value > 0.9 for value in rows[name])
    print(f"{name}: mean probability {mean:.3f}, above 0.9 in {sure:,} of {len(rows):,} rows")
print(f"written to {given.into}")
