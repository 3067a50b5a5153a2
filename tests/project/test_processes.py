"""One room knows about processes: what reads ranks, launchers' variables or the state of FSDP and DeepSpeed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "hf_distill"
ROOM = {"parallel.py", "models/sharding.py", "training/sharded.py", "run/launch.py"}
# Prints launchers' variables for a report of a bug, and decides nothing by them.
PRINTED = {"run/env/variables.py"}
# What is read as an attribute or imported. `is_world_process_zero` and `should_save`, by which `Trainer` says who
# writes and speaks, may be used anywhere.
NAMES = {
    *("PartialState", "AcceleratorState", "extract_model_from_parallel", "unwrap_model", "full_tensor", "to_local"),
    *("world_size", "process_index", "local_process_index", "num_processes", "is_main_process", "get_rank"),
    *("is_local_main_process", "is_fsdp_enabled", "is_deepspeed_enabled", "distributed_type", "get_world_size"),
    *("wait_for_everyone", "main_process_first", "gather_object", "broadcast_object_list", "all_reduce", "all_gather"),
}
VARIABLES = re.compile(r"(LOCAL_|GROUP_)?(RANK|WORLD_SIZE)|(ACCELERATE|TORCHELASTIC|MASTER)_\w+")


def found_in(tree: ast.Module) -> Iterator[str]:
    """Yield what a file reads of the state of processes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (node.attr in NAMES or ast.unparse(node) == "torch.distributed"):
            yield node.attr
        elif isinstance(node, ast.ImportFrom | ast.Import):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = [f"{module}{one.name}" for one in node.names]
            yield from (one for one in names if one.startswith("torch.distributed") or one.split(".")[-1] in NAMES)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and VARIABLES.fullmatch(node.value):
            yield node.value


def test_nothing_else_reads_the_state_of_processes() -> None:
    """A second reader of ranks or of FSDP drifts from the first, and only a run of several processes shows it."""
    files = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
    found = {name: set(found_in(ast.parse(path.read_text(encoding="utf-8")))) for name, path in files.items()}
    assert {name: what for name, what in found.items() if what and name not in ROOM | PRINTED} == {}
    assert all(found[name] for name in ROOM), "what is looked for has other names by now"
