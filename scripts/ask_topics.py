"""Write short questions about Python, which recipes/prompt_distillation.yaml lets a language model answer.

    python scripts/ask_topics.py [--topics data/smollm2] [--into data/questions]

Each topic that scripts/fetch_smollm2.py wrote is asked about in four ways. Topics that are held out there are held out
here, so that no held-out question is about a topic of the training.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hf_distill.files.atomic import write_atomic

FORMS = (
    "What is {topic} in Python?",
    "How does {topic} work in Python?",
    "When do I need {topic} in Python?",
    "What should I know about {topic} in Python?",
)


def prompts(topics: Path) -> list[str]:
    """Return four questions for each row of a file of topics, as prompts that an answer follows."""
    names = [json.loads(line)["topic"].replace("-", " ") for line in topics.read_text(encoding="utf-8").splitlines()]
    return [f"Question: {form.format(topic=name)}\nAnswer:" for name in names for form in FORMS]


def main(arguments: list[str] | None = None) -> int:
    """Write both splits; return the exit status: 0, or 2 with one line on stderr that says what is missing."""
    parser = argparse.ArgumentParser(description="Write the questions of recipes/prompt_distillation.yaml.")
    parser.add_argument("--topics", type=Path, default=Path("data/smollm2"), help="where topics are (%(default)s)")
    parser.add_argument("--into", type=Path, default=Path("data/questions"), help="directory to write to (%(default)s)")
    chosen = parser.parse_args(arguments)
    chosen.into.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        source = chosen.topics / f"{split}.jsonl"
        if not source.is_file():
            print(f"{source} is not there. Run first: python scripts/fetch_smollm2.py", file=sys.stderr)
            return 2
        asked = prompts(source)
        path = chosen.into / f"{split}.jsonl"
        write_atomic(path, "".join(json.dumps({"prompt": one}) + "\n" for one in asked))
        print(f"{path}: {len(asked)} questions", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
