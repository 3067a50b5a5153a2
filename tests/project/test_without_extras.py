"""A run where nothing but the plain package is installed."""

from __future__ import annotations

import subprocess
import sys

# What only the extras install; `None` in `sys.modules` is what Python makes of a module that is not there.
EXTRAS = (
    *("bitsandbytes", "deepspeed", "dp_accounting", "fairlearn", "gguf", "lm_eval", "onnx", "onnxruntime"),
    *("onnxscript", "optuna", "rouge_score", "sacrebleu", "sentence_transformers", "torchao", "trl"),
)
PROGRAM = """
import sys
sys.modules.update(dict.fromkeys({names!r}))
import hf_distill.run.distill, hf_distill.run.dry_run, hf_distill.run.sweep.main, hf_distill.run.compare_command
from hf_distill import load_recipe
from hf_distill.errors import UserError
print(load_recipe("recipes/quickstart.yaml").task.name)
"""


def test_the_plain_package_can_run() -> None:
    """An import of an extra's package anywhere on the way ends every command of who installed none, with a traceback;
    every developer has them all, so that no other test can fail by it.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(names=EXTRAS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "text-classification"
