"""What an adversarial review of the cheap step and of the cached teacher found, one test a fault."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest
import torch
import transformers
from invariants.cached import cache_of, capture, parts, trainer
from invariants.cases import (
    Collator,
    NotingTrainer,
    arguments,
    largest_difference,
    make_models,
    make_rows,
    split,
    train,
)
from torch import Tensor, nn

from hf_distill.cache import cache as cache_module
from hf_distill.cache import shards as cache_format
from hf_distill.cache.example_hashes import example_hashes
from hf_distill.cache.format import Kept
from hf_distill.cache.recorder import Recorder, sparse_rows
from hf_distill.cache.replay import Replay
from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.heads import Head, open_head
from hf_distill.objectives import Attention, Comparison, JensenShannon, KLDivergence, Labels, Objective, RowObjective
from hf_distill.objectives.base import Term
from hf_distill.objectives.closed_form import jensen_shannon, kl
from hf_distill.rows.base import Rows, SparseRows
from hf_distill.rows.tokens import TokenRows
from hf_distill.training.chunked import rows as head_rows
from hf_distill.training.chunked.heads import Heads
from hf_distill.training.chunked.rows import HeadRows, Side

BOTH: tuple[Objective, ...] = (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.3))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of five rows in blocks of two, shards of four examples."""
    monkeypatch.setitem(head_rows.CHUNK_BYTES, "cpu", 40 * 4 * 5)
    monkeypatch.setattr(head_rows, "BLOCK_BYTES", 40 * 4 * 2)
    monkeypatch.setattr(cache_module, "SHARD_EXAMPLES", 4)


def language(path: Path, terms: Any = BOTH, **settings: Any) -> NotingTrainer:
    """Return a trainer of a language model, all of its parts to be replaced."""
    student, teacher = make_models("causal-lm")
    given: dict[str, Any] = {
        "model": student,
        "teacher": teacher,
        "objectives": terms,
        "train_dataset": datasets.Dataset.from_list(make_rows("causal-lm")),
        "data_collator": Collator(),
        "args": arguments(path, max_steps=2, **split(4)),
        **settings,
    }
    return NotingTrainer(**given)


def difference(make: Callable[[], NotingTrainer]) -> float:
    """Return by how much the gradients differ from those of all logits."""
    walked, plain = make(), make()
    plain._heads = None
    return largest_difference(train(walked), train(plain))


def batch(count: int = 4) -> dict[str, Tensor]:
    return Collator()([{key: row[key] for key in ("input_ids", "labels")} for row in make_rows("causal-lm")[:count]])


# ---- Parts of one's own that were passed over ------------------------------------------------------------------------


@component
class ByLength(KLDivergence):
    """`kl`, of long examples only."""

    name: ClassVar[str] = "by_length"

    def per_example(self, comparison: Comparison) -> Tensor:
        long = comparison.inputs["attention_mask"].sum(-1) > 6
        return super().per_example(comparison) * long


class Twice(Term):
    """Twice the objective."""

    def forward(self, comparison: Comparison) -> Tensor:
        return 2 * self.objective.per_example(comparison)


@component
class Prepared(KLDivergence):
    """`kl` with a term of its own."""

    name: ClassVar[str] = "prepared"

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> Term:
        return Twice(self)


@pytest.mark.parametrize("objective", [ByLength(), Prepared()], ids=lambda one: str(one.name))
def test_an_objective_with_its_own_sums(objective: Objective, tmp_path: Path) -> None:
    """Walking over rows knows of `rows` alone: an overridden `per_example`, or a term of one's own, was passed over
    without a word, and another loss trained."""
    assert difference(lambda: language(tmp_path, (objective,))) < 1e-9


@dataclass(frozen=True)
class Halved(TokenRows):
    """Logits halved."""

    def select(self, student: Tensor, teacher: Tensor | None, inputs: Any) -> Rows:
        rows = super().select(student, teacher, inputs)
        return replace(rows, student=0.5 * rows.student)


def test_a_layout_with_its_own_rows(tmp_path: Path) -> None:
    """Likewise an overridden `select`."""
    assert difference(lambda: language(tmp_path, layout=Halved(shift=True))) < 1e-9


@component
class Rare(RowObjective):
    """Of rare tokens only."""

    name: ClassVar[str] = "rare"

    def rows(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        rare = labels > 30
        if not rare.any():
            return student.new_zeros(len(student))
        return torch.where(rare, (student - self.dense(teacher)).abs().mean(-1), 0.0)


def test_a_block_in_which_nothing_counts(tmp_path: Path) -> None:
    """A constant for rows that do not count is right for a batch, and a block of a few rows may hold no other: the
    training died of "does not require grad"."""
    assert difference(lambda: language(tmp_path, (Rare(),))) < 1e-9


# ---- Models that change after the trainer was made -------------------------------------------------------------------


def test_model_init(tmp_path: Path) -> None:
    """`Trainer.train` makes the student anew: the head taken apart was that of the one before, and an assertion
    failed in the first step."""
    made = language(tmp_path, model=None, model_init=lambda: make_models("causal-lm")[0])
    given = language(tmp_path, model=make_models("causal-lm")[0])
    assert largest_difference(train(made), train(given)) < 1e-9
    assert made._heads is not None


def test_model_init_with_an_objective_that_looks_into_the_models(tmp_path: Path) -> None:
    """Attention was switched to 'eager' in the student that is trained no more."""
    made = language(tmp_path, (Attention(),), model=None, model_init=lambda: make_models("causal-lm")[0])
    given = language(tmp_path, (Attention(),), model=make_models("causal-lm")[0])
    assert largest_difference(train(made), train(given)) < 1e-9


def test_another_teacher_later(tmp_path: Path) -> None:
    """`trainer.teacher = ...` between two trainings met the same assertion."""
    one = language(tmp_path)
    one.train()
    one.teacher = make_models("causal-lm")[1].eval().requires_grad_(False)
    one.train()
    assert len(one.record.losses) == 4


# ---- Heads that are more than they seem ------------------------------------------------------------------------------


def test_a_dispatched_head_stays_as_it_is() -> None:
    """`device_map` replaces `forward` of every module to move its input to the right device. Looking at the head took
    that away for good: a teacher over several devices was broken from then on."""
    from accelerate import dispatch_model

    teacher = make_models("causal-lm")[1].eval()
    dispatch_model(teacher, {"model": "cpu", "lm_head": "cpu"}, main_device="cpu", force_hooks=True)
    own = teacher.lm_head.__dict__["forward"]
    open_head(teacher)
    assert teacher.lm_head.__dict__.get("forward") is own


def test_a_replaced_forward_of_a_head_stays() -> None:
    """Of whoever replaces it himself."""
    model = make_models("causal-lm")[0].eval()
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 2 * plain(hidden)
    wanted = model(torch.arange(5)[None]).logits
    assert open_head(model) is None
    assert torch.equal(model(torch.arange(5)[None]).logits, wanted)


def test_a_hook_on_the_head(tmp_path: Path) -> None:
    """A hook that changes logits has no part in a walk: the trial went through it on both sides and saw nothing."""

    def make() -> NotingTrainer:
        student, _ = make_models("causal-lm")
        student.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)
        return language(tmp_path, model=student)

    assert difference(make) < 1e-9


def test_an_unknown_cap_on_small_logits() -> None:
    """The logits of a new model are so small that a cap of 30 changes none of them by 0.001: the trial said yes to a
    class whose cap has another name, and the student was trained without."""
    torch.manual_seed(0)
    config = transformers.RecurrentGemmaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=8,
        intermediate_size=96, lru_width=32, attention_window_size=32, pad_token_id=0,
    )  # fmt: skip
    model = transformers.RecurrentGemmaForCausalLM(config).eval()
    assert config.logits_soft_cap == 30
    head = open_head(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
        logits = model(torch.arange(4)[None], use_cache=False).logits
    assert logits.abs().max() > 5
    assert head is None or head.soft_cap == 30


class Unlike(transformers.LlamaForCausalLM):
    """Names its logits otherwise."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return {"scores": super().forward(*args, **kwargs)["logits"]}


def test_a_trial_that_fails_in_any_way() -> None:
    """A trial is to say no, not to end the run with a KeyError."""
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    assert open_head(Unlike(config)) is None


def test_a_trial_leaves_modes_alone() -> None:
    """`model.train(True)` afterwards switches on the dropout of a part that its user had switched off."""
    model = make_models("causal-lm")[0].train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert open_head(model) is not None
    assert [module.training for module in model.modules()] == before


def test_a_head_that_both_models_share(tmp_path: Path) -> None:
    """A student that is given the teacher's frozen head has its input taken for the teacher's."""

    def make() -> NotingTrainer:
        student, teacher = make_models("causal-lm")
        student.lm_head = teacher.lm_head.requires_grad_(False)
        return language(tmp_path, model=student, teacher=teacher)

    assert difference(make) < 1e-9


# ---- Gradients taken ahead -------------------------------------------------------------------------------------------


def test_a_second_backward_pass(tmp_path: Path) -> None:
    """The gradient was scaled in place: with retain_graph the second pass gave the product of both scales, silently.
    It is there once, and whoever wants it again is told."""
    one = language(tmp_path)
    loss = one.compute_loss(one.model, batch())
    torch.autograd.grad(2 * loss, one.model.lm_head.weight, retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(5 * loss, one.model.lm_head.weight)


def test_the_gradient_of_a_head_is_not_copied(tmp_path: Path) -> None:
    """What the graph still holds is copied into `.grad`: one more tensor as large as the head, at the peak."""
    one = language(tmp_path)
    loss = one.compute_loss(one.model, batch())
    (made_by,) = {node for node in _nodes(loss.grad_fn) if type(node).__name__ == "WalkBackward"}
    made = made_by.gradients[1].data_ptr()
    loss.backward()
    assert one.model.lm_head.weight.grad.data_ptr() == made


def _nodes(node: Any) -> set[Any]:
    return {node} | {one for after, _ in node.next_functions if after is not None for one in _nodes(after)}


def test_no_gradient_is_taken_where_none_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under no_grad a subclass that asks for the loss paid for its gradient, two of three matrix products."""
    carried: list[int] = []
    monkeypatch.setattr(head_rows._Walker, "_carry_back", lambda *_: carried.append(1))
    one = language(tmp_path)
    with torch.no_grad():
        one.compute_loss(one.model, batch())
    assert not carried


def test_fp16_of_the_launcher(tmp_path: Path) -> None:
    """`accelerate launch --mixed_precision fp16` scales the loss as `fp16: true` does, and a float16 gradient taken
    ahead misses that scale: most of it is 0."""
    one = language(tmp_path)
    assert one._open_heads() is not None
    one.args.mixed_precision = "fp16"  # what TrainingArguments make of the launcher's variable
    assert one.args.fp16 is False
    assert one._open_heads() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks added up in bfloat16 lose what is small beside the sum: of 1024 chunks 6 % of the gradient were wrong,
    where all logits at once lose 0.4 %."""
    torch.manual_seed(0)
    rows, classes, width = 1024, 200, 16
    monkeypatch.setitem(head_rows.CHUNK_BYTES, "cpu", classes * 4 * 2)
    inputs = [torch.randn(rows, width), torch.randn(rows, width)]
    weights = [torch.randn(classes, width), torch.randn(classes, width)]
    labels, example = torch.randint(classes, (rows,)), torch.zeros(rows, dtype=torch.long)
    coefficients = torch.tensor([0.5, 0.5], dtype=torch.float64) / rows

    def gradient(dtype: torch.dtype, walks: bool) -> Tensor:
        sides = []
        for hidden, weight in zip(inputs, weights, strict=True):
            linear = nn.Linear(width, classes, bias=False, dtype=dtype)
            linear.weight.data.copy_(weight)
            sides.append(Side(Head(linear), hidden.to(dtype), dtype))
        student, teacher = sides
        made = HeadRows(student, teacher, labels, example, 1)
        terms = (KLDivergence(), Labels())
        if walks:
            sums = made.walk(terms, coefficients)
        else:
            plain = Rows(student.logits(), teacher.logits().detach(), labels, example, 1)
            sums = torch.stack([term.sums(plain) for term in terms], -1)
        (sums.sum(0) * coefficients).sum().backward()
        found = student.head.linear.weight.grad
        assert found is not None
        assert found.dtype == dtype
        return found.double()

    exact = gradient(torch.float64, False)
    walked, plain = (float((gradient(dtype, walks) - exact).norm() / exact.norm()) for walks in (True, False))
    assert walked < 1.5 * plain


# ---- Losses with their gradients written down ------------------------------------------------------------------------


def test_js_under_autocast() -> None:
    """`vecdot` is one of the products that autocast computes in half precision: value and gradient to 3 digits."""
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 50), torch.randn(4, 50)
    wanted = jensen_shannon(student, teacher, 1.0, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = jensen_shannon(student, teacher, 1.0, 0.5)
    torch.testing.assert_close(found, wanted)
    assert JensenShannon().rows(student, teacher, torch.zeros(4)).dtype == torch.float32


def test_kl_of_logits_far_from_zero() -> None:
    """GPT-2's logits lie around -100: rounded there, the normalisers cost the small value of near models its digits."""
    torch.manual_seed(0)
    teacher = (3 * torch.randn(64, 1000) - 1000).float()
    student = teacher + 0.01 * torch.randn(64, 1000)
    log_p, log_q = teacher.double().log_softmax(-1), student.double().log_softmax(-1)
    exact = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert float((kl(student, teacher, 1.0) - exact).abs().max()) < 1e-6


@pytest.mark.parametrize(("top", "tail"), [(11, 2), (10, 8), (4, 90)])
def test_a_tail_that_covers_all_classes(top: int, tail: int) -> None:
    """Where every class was kept or drawn (few classes: characters, bytes) the mass of the others is 0, and its
    softmax was 0 / 0: a NaN for the weights."""
    torch.manual_seed(0)
    kept = Kept(top=top, tail=tail, temperature=1.0, classes=12, precision="float64")
    teacher, student = (torch.randn(6, 12, dtype=torch.float64) for _ in range(2))
    found = sparse_rows(teacher, kept, torch.Generator().manual_seed(0))
    teaching = replayed(found, kept)
    assert any(len(set(row)) == 12 for row in teaching.indices.tolist())
    student.requires_grad_()
    values = KLDivergence().rows(student, teaching, torch.zeros(6, dtype=torch.long))
    log_p = teaching.log_probabilities.log_softmax(-1)
    wanted = (log_p.exp() * (log_p - student.log_softmax(-1).gather(-1, teaching.indices))).sum(-1)
    torch.testing.assert_close(values, wanted)
    (found_gradient,) = torch.autograd.grad(values.sum(), student)
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), student)
    torch.testing.assert_close(found_gradient, wanted_gradient)


def replayed(found: SparseRows, kept: Kept) -> SparseRows:
    columns = {"indices": found.indices, "log_probabilities": found.log_probabilities, "remaining": found.remaining}
    rows = Replay(None, kept, "key").targets({f"cached_{name}": value for name, value in columns.items()}).rows
    assert rows is not None
    return rows


# ---- The cached teacher ----------------------------------------------------------------------------------------------


def test_agreement_with_a_drawn_tail() -> None:
    """A class that was drawn stands for its share of all others, often more than the likeliest class has: it was taken
    for the teacher's answer, and the logged agreement was that of chance."""
    torch.manual_seed(0)
    teacher = 3 * torch.randn(100, 2000)
    kept = Kept(top=12, tail=6, temperature=1.0, classes=2000, precision="float32")
    rows = replayed(sparse_rows(teacher, kept, torch.Generator().manual_seed(0)), kept)
    assert torch.equal(rows.top_class(), teacher.argmax(-1))
    assert torch.equal(rows[3:7].top_class(), teacher[3:7].argmax(-1))


def adapted(alpha: int) -> Any:
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=alpha, init_lora_weights=False, target_modules=["query"])
    return peft.get_peft_model(parts("classification")[1], config).eval()


def test_the_strength_of_an_adapter_is_part_of_a_teacher() -> None:
    """It is in no tensor: another `lora_alpha`, or the adapter switched off, found the answers of the one before."""
    one, other = adapted(4), adapted(16)
    ids = torch.arange(2, 8)[None]
    assert not torch.allclose(one(ids).logits, other(ids).logits)
    assert model_fingerprint(one) == model_fingerprint(adapted(4))
    assert model_fingerprint(one) != model_fingerprint(other)
    before = model_fingerprint(one)
    one.base_model.disable_adapter_layers()
    assert model_fingerprint(one) != before


def test_exchanged_rows_of_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of all bits are the same, and of more rows than samples most have no sample: two exchanged tokens of a
    vocabulary of 262,144 were overlooked in 39 of 60 cases."""
    monkeypatch.setattr("hf_distill.models.fingerprint.WHOLE_BYTES", 1000)
    monkeypatch.setattr("hf_distill.models.fingerprint.SAMPLES", 100)
    torch.manual_seed(0)
    model = nn.Embedding(400, 8)
    before = model_fingerprint(model)
    for one, other in ((1, 7), (3, 101), (50, 399), (200, 202)):
        with torch.no_grad():
            model.weight[[one, other]] = model.weight[[other, one]]
        assert model_fingerprint(model) != before
        with torch.no_grad():
            model.weight[[one, other]] = model.weight[[other, one]]
    assert model_fingerprint(model) == before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"score": [1, 2]}, {"score": [1, 2, None]}),
        ({"ids": [[1, 2], []]}, {"ids": [[1, 2], [], None]}),
        ({"weights": [[1.0], [2.0]]}, {"weights": [[1.0], [2.0], [None]]}),
    ],
)
def test_a_hash_does_not_depend_on_neighbours(one: dict[str, Any], other: dict[str, Any]) -> None:
    """One value that is missing, thousands of rows further on, changed the hash of every example around it: a shuffled
    split did not find its own cache."""
    names = list(one)
    whole = example_hashes(datasets.Dataset.from_dict(other), names)
    assert (example_hashes(datasets.Dataset.from_dict(one), names) == whole[:-1]).all()
    assert (whole[-1] != whole[:-1]).any(-1).all()


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    """One line with its key, as for every other directory that cannot be written."""
    (tmp_path / "file").write_text("")
    _, teacher, data = parts("classification")
    for path in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(UserError) as caught:
            capture(teacher, data, path)
        assert caught.value.key == "path"


def test_two_runs_begin_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path all runs share one directory. The one that looked first, and claimed second, was refused: the
    other's plan was no cache."""
    real, began = cache_format.check_writable, []

    def check(path: Any, need_bytes: int | None = None) -> None:
        real(path, need_bytes)
        if not began:
            began.append(1)
            cache_format.claim(tmp_path, {"examples": "those", "format": 1}, 0)
            (tmp_path / "_plan.json.12.ab.tmp").write_text("")  # of a third one, under way or killed

    monkeypatch.setattr(cache_format, "check_writable", check)
    cache_format.claim(tmp_path, {"examples": "those", "format": 1}, 0)
    assert cache_format.read_plan(tmp_path) == {"examples": "those", "format": 1}


def test_two_runs_fill_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run B looks which shards are missing, run A writes them all and trains. B went on to write its own over them,
    whose last bits differ with its batch size; once B was stopped, the cache was damaged for everyone. A lock keeps
    them apart now, but not on every file system."""
    monkeypatch.setattr("hf_distill.files.lock.LOCKS", False)
    _, teacher, data = parts("classification", dtype=torch.float32)
    first = cache_of(teacher, data, tmp_path / "cache")
    second = cache_of(teacher, data, tmp_path / "cache")
    real, calls = Recorder.__call__, []

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            with monkeypatch.context() as patch:
                patch.setattr("os.getpid", os.getppid)  # another process, that lives
                first.fill(arguments(tmp_path / "args", per_device_eval_batch_size=4))
        if len(calls) > 12:  # of the second: far into its own shards
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Recorder, "__call__", record)
    try:
        second.fill(arguments(tmp_path / "args", per_device_eval_batch_size=1))
    except KeyboardInterrupt:
        calls.append(-1)
    monkeypatch.setattr(Recorder, "__call__", real)
    held = cache_format.read_cache(first.path)
    assert held is not None
    cache_format.verify(first.path, held, range(len(held["shards"])))


def test_answers_computed_in_half_precision(tmp_path: Path) -> None:
    """A cache that a run with bf16 made was taken in silence by one without, whose live teacher says something else."""
    _, teacher, data = parts("classification", dtype=torch.float32)
    said: list[str] = []
    for bf16 in (True, True, False):
        cache = cache_of(teacher, data, tmp_path / "cache")
        cache.say = said.append
        cache.fill(arguments(tmp_path / "args", bf16=bf16))
        assert any("computed in bfloat16" in line for line in said) is (not bf16)


# ---- Beside the way --------------------------------------------------------------------------------------------------


def test_prompt_tuning(tmp_path: Path) -> None:
    """Its virtual tokens come before the others, and so do their logits: every row was compared with the teacher's of
    another position, in silence."""
    import peft

    student, teacher = make_models("causal-lm")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    tuned = peft.get_peft_model(student, config).double()
    one = language(tmp_path, model=tuned, teacher=teacher)
    with pytest.raises(ValueError, match="positions"):
        one.compute_loss(one.model, batch())


def test_numbers_of_this_file(tmp_path: Path) -> None:
    """The comparison that the tests above rest on notices a difference, and none where there is none."""
    assert difference(lambda: language(tmp_path)) < 1e-12
    walked, plain = language(tmp_path), language(tmp_path, (KLDivergence(weight=0.6, temperature=2.0), BOTH[1]))
    assert largest_difference(train(walked), train(plain)) > 1e-3
    assert math.isfinite(trainer(*parts("causal-lm"), tmp_path, BOTH).evaluate()["eval_loss"])
    student, teacher = make_models("causal-lm")
    assert Heads.open(student, {"teacher": teacher}) is not None
