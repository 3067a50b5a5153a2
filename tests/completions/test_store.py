"""Completions that are written once: in shards that are whole or absent, and the same whoever writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from forked import two_processes

from hf_distill.completions.backends import TransformersBackend, Writer
from hf_distill.completions.filtering import CompletionFilter
from hf_distill.completions.sampling import Completion, Sampling
from hf_distill.completions.section import Completions
from hf_distill.completions.store import SHARD, Store
from hf_distill.models.loading import open_tokenizer

PROMPTS = [[5 + row % 7] * (1 + row % 5) + [6 + row % 11] for row in range(2 * SHARD + 9)]


class Spelling(Writer):
    """Writes the seed and the prompt, and counts how often; `after` is called before each shard."""

    def __init__(self, after: Any = lambda: None) -> None:
        self.asked: list[int] = []
        self.after = after

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Completion]:
        self.after()
        self.asked.append(len(prompts))
        return [Completion((seed % 1000, *prompt), ended=len(prompt) % 2 == 0) for prompt in prompts]


def store(root: Path, writer: Writer, **more: Any) -> Store:
    return Store(lambda: writer, "model", Sampling(4), **{"root": root, **more})


def files(root: Path) -> dict[str, bytes]:
    return {str(one.relative_to(root)): one.read_bytes() for one in root.rglob("*.jsonl")}


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """A resumed run that draws other completions trains another student than the run that was not killed."""
    whole = store(tmp_path / "whole", Spelling())
    expected = whole.of(PROMPTS)
    assert [one[0].ids[1:] for one in expected] == [tuple(prompt) for prompt in PROMPTS]

    def kill() -> None:
        if len(broken.asked) == 1:
            raise KeyboardInterrupt

    broken = Spelling(kill)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "killed", broken).of(PROMPTS)
    again = Spelling()
    assert store(tmp_path / "killed", again).of(PROMPTS) == expected
    assert len(again.asked) == len(files(tmp_path / "whole")) - 1
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    untouched = Spelling()
    assert store(tmp_path / "killed", untouched).of(PROMPTS) == expected
    assert untouched.asked == []


def test_two_runs_at_once_share_the_work(tmp_path: Path) -> None:
    """Two runs that write into one folder must not tear each other's files, and need not write a prompt twice."""
    other = Spelling()
    first = Spelling(after=lambda: other.asked or store(tmp_path / "both", other).of(PROMPTS))
    found = store(tmp_path / "both", first).of(PROMPTS)
    assert found == store(tmp_path / "one", Spelling()).of(PROMPTS)
    assert files(tmp_path / "both") == files(tmp_path / "one")
    assert (len(other.asked), len(first.asked)) == (3, 1)


def test_two_processes_write_a_part_each(tmp_path: Path) -> None:
    """Each process would write everything, or learn other completions than its neighbour."""

    def work() -> Any:
        from accelerate import PartialState

        PartialState(cpu=True)
        writer = Spelling()
        return [(one.ids, one.ended) for (one,) in store(tmp_path / "both", writer).of(PROMPTS)], writer.asked

    (one, first), (two, second) = two_processes(work, tmp_path / "results")
    expected = store(tmp_path / "one", Spelling()).of(PROMPTS)
    assert [tuple(row[0]) for row in one] == [found.ids for (found,) in expected]
    assert one == two
    assert (len(first), len(second)) == (2, 1)
    assert files(tmp_path / "both") == files(tmp_path / "one")


def test_damage_is_written_again_and_other_settings_are_other_files(tmp_path: Path) -> None:
    """Half of a shard, or one of another model or temperature, would be learned as if it were the teacher's."""
    expected = store(tmp_path, Spelling()).of(PROMPTS)
    one = next(tmp_path.rglob("*.jsonl"))
    held = one.read_bytes()
    for damaged in (held[: len(held) // 2], held.replace(b"5", b"6", 1), b""):
        one.write_bytes(damaged)
        assert store(tmp_path, Spelling()).of(PROMPTS) == expected
        assert one.read_bytes() == held
    before = len(files(tmp_path))
    for other in ({"seed": 1}, {"per_prompt": 2}, {"sampling": Sampling(4, 0.5)}, {"writes": "another"}):
        made = Store(**{"open": Spelling, "writes": "model", "sampling": Sampling(4), "root": tmp_path, **other})
        assert {len(found) for found in made.of(PROMPTS[:3])} == {made.per_prompt}
        before += 1
        assert len(files(tmp_path)) == before


def test_what_a_real_model_writes_does_not_depend_on_the_order(make_model: Any, tmp_path: Path) -> None:
    """Prompts in another order, as after a shuffle of the data, would cost the teacher's work a second time."""
    from transformers import AutoModelForCausalLM

    path = make_model("llama-lm")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), open_tokenizer(str(path))
    opened = partial(TransformersBackend(batch_size=4).open, model, tokenizer)
    prompts = [[5, 6, 7], [8], [9, 10], [5, 6, 7]]
    found = Store(opened, "model", Sampling(5), 2, root=tmp_path).of(prompts)
    again = Store(lambda: pytest.fail("written twice"), "model", Sampling(5), 2, root=tmp_path).of(prompts[::-1])
    assert sorted(map(str, found)) == sorted(map(str, again))
    assert found[1:3] == again[1:3][::-1]
    lines = [json.loads(line) for line in next(tmp_path.rglob("*.jsonl")).read_text().splitlines()]
    assert len(lines) == 2 * len(prompts) + 1


def test_beams_find_the_likeliest(make_model: Any, tmp_path: Path) -> None:
    """A search that is not one: the key would do nothing. All completions of two tokens, scored by hand."""
    import torch
    from transformers import AutoModelForCausalLM

    path = make_model("gpt2-lm", vocab=["film", "plot"], seed=3)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), open_tokenizer(str(path))
    size = len(tokenizer)
    writer = TransformersBackend().open(model, tokenizer)
    (found,) = writer.write([[5, 6]], Sampling(2, num_beams=size), 0)
    firsts = torch.tensor([[5, 6, one] for one in range(size)])
    with torch.no_grad():
        logs = model(firsts).logits[..., :size].double().log_softmax(-1)
    scores = (logs[0, 1].unsqueeze(1) + logs[:, 2]) / 2  # generate divides by the length
    scores[tokenizer.eos_token_id] = -torch.inf
    best = divmod(int(scores.argmax()), size)
    ended = float(logs[0, 1, tokenizer.eos_token_id])
    assert found.ids == (best if float(scores.max()) > ended else (tokenizer.eos_token_id,))


def test_what_is_dropped_is_counted_with_its_reason() -> None:
    """A silent filter changes what is compared: reasons are in the report. A cut completion stays, and has no end."""
    end, cut = (lambda *ids: Completion((*ids, 2), True)), (lambda *ids: Completion(ids, False))
    written = [[end(5, 6), end(5, 6), end()], [cut(7, 8, 9), end(7)], [end(5, 6)]]
    kept = CompletionFilter(Completions(by="teacher"))
    prompts = [[3], [4], [3]]
    assert kept.of_rows(prompts, written) == [[end(5, 6)], [cut(7, 8, 9), end(7)], []]
    assert (kept.dropped, kept.cut, kept.tokens) == ({"empty": 1, "duplicate": 2}, 1, 8)
    assert "1 were cut" in kept.in_words()
    strict = CompletionFilter(Completions(by="teacher", min_tokens=2, drop_cut=True))
    assert strict.of_rows(prompts[:2], written[:2]) == [[end(5, 6)], []]
    assert strict.dropped == {"empty": 1, "duplicate": 1, "cut": 1, "too short": 1}
    everything = CompletionFilter(Completions(by="teacher", min_tokens=0))
    assert everything.of_rows([[3]], [[end()]]) == [[end()]]
