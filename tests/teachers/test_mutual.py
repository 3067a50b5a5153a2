"""Models that train beside the student: two optimizers by hand, splits, processes, resuming, a run, and bad input."""

from __future__ import annotations

import copy
import json
import logging
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torch.nn.functional as F
from forked import two_processes
from invariants.cases import KINDS, Collator, NotingTrainer, arguments, make_model, make_rows, objectives, split
from invariants.worker import Stop
from marked import Marked, marked_rows
from runs import WriteRecipe, run, same, unfinish, weights
from safetensors.torch import load_file
from torch import Tensor

from hf_distill import load_recipe, parallel
from hf_distill.errors import UserError
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.objectives import Hidden, KLDivergence, Labels
from hf_distill.rows.tokens import TokenRows
from hf_distill.run.dry_run import check
from hf_distill.teachers import CachedTeacher, MutualTeacher, PretrainedTeacher
from hf_distill.teachers.mutual import Mutual
from hf_distill.training.learners import FILE
from hf_distill.training.saving import TARGETS

TERMS = (KLDivergence(weight=0.6, temperature=2.0), Labels(weight=0.4))
STEPS, RATE, DECAY, CLIP = 3, 0.05, 0.1, 0.7


def peers(kind: str, count: int, dropout: float = 0.0) -> list[Any]:
    return [make_model(kind, at, seed=at + 1, dropout=dropout) for at in range(1, count + 1)]


def trainer(path: Path, source: Mutual, kind: str = "classification", **settings: Any) -> NotingTrainer:
    terms, dropout = settings.pop("terms", TERMS), settings.pop("dropout", 0.0)
    rows = settings.pop("rows", None) or make_rows(kind)
    settings = {"learning_rate": RATE, "max_grad_norm": CLIP, "weight_decay": DECAY, **settings}
    settings = {"lr_scheduler_type": "linear", "max_steps": STEPS, "train_sampling_strategy": "sequential", **settings}
    return NotingTrainer(
        make_model(kind, 1, seed=1, dropout=dropout),
        arguments(path, **settings),
        teacher=source,
        objectives=terms,
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(make_rows(kind, 13)),
        data_collator=Collator(),
    )


# ---- The numbers -----------------------------------------------------------------------------------------------------


def loss_by_hand(kind: str, own: Tensor, others: list[Tensor], labels: Tensor) -> Tensor:
    """Return the loss of one model over all rows of a step; without others, that of labels alone."""
    if kind == "causal-lm":
        counted = torch.zeros_like(labels, dtype=torch.bool)
        counted[:, 1:] = labels[:, 1:] != -100
        places = counted[:, 1:]
        own, labels = own[:, :-1][places], labels[:, 1:][places]
        others = [one[:, :-1][places] for one in others]
    entropy = F.cross_entropy(own, labels, ignore_index=-100, reduction="sum") / max(1, int((labels != -100).sum()))
    if not others:
        return entropy
    target = torch.stack([(one.detach() / 2).softmax(-1) for one in others]).mean(0)
    divergence = (target * (target.log() - (own / 2).log_softmax(-1))).sum() / len(own)
    return 0.6 * 4 * divergence + 0.4 * entropy


class ByHand:
    """SGD or AdamW with decoupled weight decay, as its papers write it, for one model."""

    def __init__(self, model: Any, adam: bool, factor: float = 1.0) -> None:
        self.model, self.adam, self.factor, self.steps = model, adam, factor, 0
        self.moments = {name: (torch.zeros_like(one), torch.zeros_like(one)) for name, one in model.named_parameters()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        every = {name: one for name, one in self.model.named_parameters() if one.grad is not None}
        norm = torch.stack([one.grad.square().sum() for one in every.values()]).sum().sqrt()
        share = min(1.0, CLIP / (float(norm) + 1e-6))
        self.steps, rate = self.steps + 1, rate * self.factor
        for name, one in every.items():
            gradient = one.grad * share
            decay = 0.0 if "bias" in name or "norm" in name.lower() else DECAY
            if not self.adam:
                one -= rate * (gradient + decay * one)
            else:
                first, second = self.moments[name]
                first.mul_(0.9).add_(gradient, alpha=0.1)
                second.mul_(0.999).add_(gradient.square(), alpha=0.001)
                one *= 1 - rate * decay
                hats = first / (1 - 0.9**self.steps), second / (1 - 0.999**self.steps)
                one -= rate * hats[0] / (hats[1].sqrt() + 1e-8)
            one.grad = None


def train_by_hand(kind: str, models: list[Any], adam: bool, online: bool, factor: float) -> None:
    """Train student and peers together: three steps of eight rows, the learning rate falling to zero."""
    optimizers = [ByHand(one, adam, factor if at else 1.0) for at, one in enumerate(models)]
    rows = make_rows(kind)
    for step in range(STEPS):
        batch = Collator()(rows[8 * step : 8 * step + 8])
        labels = batch.pop("labels")
        logits = [one.train()(**batch).logits for one in models]
        losses = []
        for at, own in enumerate(logits):
            others = [one for place, one in enumerate(logits) if place != at]
            losses.append(loss_by_hand(kind, own, [] if online and at else others, labels))
        torch.stack(losses).sum().backward()
        for one in optimizers:
            one.step(RATE * (1 - step / STEPS))


def assert_equal(found: list[Any], wanted: list[Any]) -> None:
    for one, other in zip(found, wanted, strict=True):
        theirs = dict(other.named_parameters())
        for name, value in one.named_parameters():
            torch.testing.assert_close(value, theirs[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("optim", "count", "kind", "online", "rate"),
    [
        ("sgd", 1, "classification", False, None),
        ("adamw_torch", 2, "classification", False, 0.02),
        ("adamw_torch", 1, "causal-lm", False, None),
        ("adamw_torch", 1, "classification", True, 0.02),
    ],
)
def test_optimizers_by_hand(
    optim: str, count: int, kind: str, online: bool, rate: float | None, tmp_path: Path
) -> None:
    """A peer whose loss is divided, clipped or stepped in another way than the student's trains, and looks right."""
    wanted = [make_model(kind, 1, seed=1), *peers(kind, count)]
    train_by_hand(kind, wanted, optim != "sgd", online, 1.0 if rate is None else rate / RATE)
    for size in (8, 2):
        source = Mutual(peers(kind, count), online=online, learning_rate=rate)
        made = trainer(tmp_path / str(size), source, kind, optim=optim, **split(size))
        for one in source.parameters():  # as after a training that ended within a step
            one.grad = torch.ones_like(one)
        made.train()
        assert_equal([made.model, *source.members], wanted)
        assert not any(one.grad is not None for one in source.parameters())


def test_hidden_states_of_an_online_teacher_by_hand(tmp_path: Path) -> None:
    """If the student's loss reached the teacher, it would learn to be easy to imitate; it learns from labels alone."""
    student, teacher = make_model("classification", 1, seed=1), peers("classification", 1)[0]
    terms = (Labels(), Hidden(weight=3.0, layers=((1, 1),)))
    made = trainer(tmp_path, Mutual(peers("classification", 1), online=True), terms=terms, optim="sgd")
    made.train()
    optimizers = ByHand(student, adam=False), ByHand(teacher, adam=False)
    rows = make_rows("classification")
    for step in range(STEPS):
        batch = Collator()(rows[8 * step : 8 * step + 8])
        labels, counted = batch.pop("labels"), batch["attention_mask"].bool()
        ours, theirs = (one.train()(**batch, output_hidden_states=True) for one in (student, teacher))
        squares = (ours.hidden_states[1] - theirs.hidden_states[1].detach())[counted].square().mean()
        loss = loss_by_hand("classification", ours.logits, [], labels) + 3 * squares
        (loss + loss_by_hand("classification", theirs.logits, [], labels)).backward()
        for one in optimizers:
            one.step(RATE * (1 - step / STEPS))
    assert_equal([made.model, made.source.models["teacher"]], [student, teacher])


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("sentence-similarity", "causal-lm-own-tokens")]
)
def test_splits_change_nothing(kind: str, tmp_path: Path) -> None:
    """Of each task: a peer's loss that is a mean over micro-batches weighs examples by how the step is split."""
    found = []
    for size in (8, 2):
        source = Mutual(peers(kind, 2))
        made = trainer(tmp_path / str(size), source, kind, terms=objectives(kind), **split(size))
        made.train()
        found.append([made.model, *source.members])
    assert_equal(*found)


def test_whole_logits_are_told(tmp_path: Path) -> None:
    """A language model whose logits are no longer computed in chunks runs out of memory, and nothing says why."""
    made = trainer(tmp_path, Mutual(peers("causal-lm", 1)), "causal-lm", **split(8))
    assert made._heads is None
    made.layout = TokenRows(shift=True, classes=1024)
    assert made.learners is not None
    assert "24 KB of memory a token" in made.learners.decisions[0]


def _trained(directory: Path, batch: int, processes: int) -> dict[str, Tensor]:
    source = Mutual(peers("classification", 2))
    if processes > 1 and os.environ["RANK"] != "0":  # only the first process's weights count
        source = Mutual([make_model("classification", at, seed=9) for at in (1, 2)])
    made = trainer(directory, source, optim="adamw_torch", use_cpu=True, **split(batch, processes))
    made.train()
    return {**dict(made.model.named_parameters()), **source.saved_state()}


def test_two_processes(tmp_path: Path) -> None:
    """Without a mean over processes, each trains peers of its own, and only the first's are saved."""
    found = two_processes(lambda: _trained(tmp_path / "two", 4, 2), tmp_path / "results")
    wanted = _trained(tmp_path / "one", 8, 1)
    for one in found:
        for name, value in wanted.items():
            torch.testing.assert_close(one[name], value, rtol=1e-9, atol=1e-9)


# ---- Steps that are left out, checkpoints ----------------------------------------------------------------------------


def test_a_skipped_step_is_skipped_by_all(tmp_path: Path) -> None:
    """A peer that takes a step which the student skips has its moments one step ahead from then on."""
    rows = marked_rows(9, count=24)  # in the second step
    source = Mutual(peers("classification", 1))
    made = trainer(tmp_path, source, rows=rows, terms=[*TERMS, Marked()], on_nan="skip", max_steps=2, **split(8))
    noted: list[Any] = []

    class Notes(Stop):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            noted.append([model_fingerprint(one) for one in (made.model, *source.members)])

    made.add_callback(Notes(-1))
    with pytest.raises(UserError, match="skipped"):
        made.train()
    assert noted[0] == noted[1]
    assert made.skipped == 1


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    """A peer that goes on without its moments, or with other dropout, is another teacher, and nothing tells."""
    settings: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch"}
    settings |= {"dropout": 0.1, **split(4)}
    made = [trainer(tmp_path / name, Mutual(peers("classification", 2, 0.1)), **settings) for name in ("one", "two")]
    made[0].train()
    checkpoint = tmp_path / "one" / "checkpoint-3"
    made[1].train(resume_from_checkpoint=str(checkpoint))
    for part in (lambda one: one.model, lambda one: one.source):
        assert same(dict(part(made[1]).named_parameters()), dict(part(made[0]).named_parameters()))
    (checkpoint / FILE).unlink()
    with pytest.raises(UserError, match=FILE):
        trainer(tmp_path / "two", Mutual(peers("classification", 2, 0.1)), **settings).train(
            resume_from_checkpoint=str(checkpoint)
        )


def test_an_evaluation_changes_nothing(tmp_path: Path) -> None:
    """An evaluation that leaves peers without dropout, or uses random numbers, changes every step after it."""
    found = []
    for name, strategy in (("with", "steps"), ("without", "no")):
        source = Mutual(peers("classification", 1, 0.1))
        made = trainer(tmp_path / name, source, dropout=0.1, eval_strategy=strategy, eval_steps=1, **split(8))
        made.train()
        made.evaluate()
        assert not source.training
        found.append(model_fingerprint(source.members[0]))
    assert found[0] == found[1]


# ---- A run -----------------------------------------------------------------------------------------------------------


def test_a_run(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Peers that a finished run does not find again would be reported as they began; and those that are exported are
    the trained ones."""
    from transformers import AutoModelForSequenceClassification

    student = {"name": "pretrained", "model": str(make_model("bert-bare", layers=2, seed=3))}
    path = write_recipe(
        teacher={"name": "mutual", "count": 2, "export": True},
        student=student,
        report={"latency": True, "baseline": True},
        training={"save_strategy": "steps", "save_steps": 1},
    )
    assert "peers like the student, which train with it: 2" in check(load_recipe(path))
    report = run(path)
    out = tmp_path / "out"
    assert "same weights" not in caplog.text
    held, trained = load_file(out / TARGETS), weights(out)
    for at in range(2):
        peer = AutoModelForSequenceClassification.from_pretrained(out / "peers" / str(at + 1))
        assert all(held[f"{at}.{name}"].equal(one) for name, one in peer.named_parameters())
        assert any(not trained[name].equal(one) for name, one in peer.named_parameters())
        assert peer.config.label2id == json.loads((out / "config.json").read_text())["label2id"]
    assert (out / "peers" / "1" / "tokenizer.json").exists()
    assert "peer 2" in (out / "README.md").read_text()
    assert report.teacher.parameters == 2 * report.student.parameters
    assert set(report.settings["teacher"]["peers"]) == {"peer 1", "peer 2"}
    assert report.teacher.latency is not None
    assert "mean of 2 peers" in report.settings["teacher_column"]
    assert "peers/1, peers/2" in report.settings["teacher_column"]
    assert "size and speed" in report.settings["not_compared"]
    assert report.baseline is not None
    again = run(path)
    assert again.teacher.metrics == report.teacher.metrics
    assert again.agreement == report.agreement
    unfinish(out)
    (out / TARGETS).unlink()
    run(path)  # trained again, from the beginning
    assert same(load_file(out / TARGETS), held)
    assert same(weights(out), trained)


def test_peers_go_on_in_the_next_stage(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Peers that begin anew in a stage teach a trained student from random heads; and with the same peers for every
    seed, the results of several seeds would differ too little."""
    student = {"name": "pretrained", "model": str(make_model("bert-bare", layers=2, seed=3))}
    terms = [{"name": "kl"}, {"name": "labels"}]
    path = write_recipe(
        teacher={"name": "mutual"},
        student=student,
        objectives=None,
        stages=[{"objectives": terms}, {"objectives": terms, "training": {"learning_rate": 1e-9}}],
        report={"latency": False, "baseline": False, "seeds": 2},
    )
    run(path)
    runs = tmp_path / "out" / "_runs"
    first, other = (load_file(runs / f"student{seed}-stage-1" / TARGETS) for seed in ("", "-seed-43"))
    seconds = load_file(tmp_path / "out" / TARGETS), load_file(runs / "student-seed-43" / TARGETS)
    for one, second in zip((first, other), seconds, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)
    # Training moved them by less than a hundredth.
    assert (first["0.classifier.weight"] - other["0.classifier.weight"]).abs().max() > 0.1


def test_an_online_teacher(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """A teacher that does not train on from its checkpoint is the same run as `pretrained`."""
    model = make_model("bert", layers=4, seed=1)
    teacher = {"name": "pretrained", "model": str(model)}
    path = write_recipe(teacher={"name": "mutual", "online": True, "teacher": teacher})
    assert "it trains on labels meanwhile" in check(load_recipe(path))
    report = run(path)
    began, ended = weights(Path(model)), load_file(tmp_path / "out" / TARGETS)
    assert any(not ended[f"0.{name}"].equal(one) for name, one in began.items())
    assert report.settings["teacher"]["online"].keys() == {"teacher"}


def test_data_without_labels(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """A teacher that is to learn from labels, and has none, teaches what it began with."""
    texts = tmp_path / "texts.csv"
    texts.write_text("sentence\n" + "the film is good\nthe plot is bad\n" * 8, encoding="utf-8")
    teacher = {"name": "pretrained", "model": str(make_model("bert", layers=4, seed=1))}
    path = write_recipe(
        data={"path": {"train": str(texts), "validation": str(texts)}, "columns": {"text": "sentence"}},
        teacher={"name": "mutual", "online": True, "teacher": teacher},
        objectives=[{"name": "kl"}],
    )
    with pytest.raises(UserError, match="learn from labels"):
        check(load_recipe(path))


# ---- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"count": 0}, "greater than or equal to 1|at least 1"),
        ({"peers": []}, "one or more"),
        ({"online": True}, "belong together"),
        ({"teacher": PretrainedTeacher(model="m", dtype="bfloat16"), "online": True}, "float32"),
        ({"teacher": MutualTeacher(), "online": True}, "wanted a model"),
    ],
)
def test_settings(settings: dict[str, Any], words: str) -> None:
    """Without peers, or with a frozen teacher, the student learns from labels only, and nobody is told."""
    with pytest.raises(ValueError, match=words):
        MutualTeacher(**settings)


def test_what_does_not_go_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each of these would train something, but not what was asked for."""
    with pytest.raises(UserError, match="train while the student does"):
        CachedTeacher(teacher=MutualTeacher())
    for settings, words in (
        ({"terms": [Hidden(layers=((1, 1),)), Labels()]}, "hidden states"),
        ({"optim": "schedule_free_sgd"}, "does not work with a teacher that trains"),
        ({"learning_rate": 0.0}, "which is 0"),
    ):
        with pytest.raises(UserError, match=words):
            trainer(tmp_path, Mutual(peers("classification", 1), learning_rate=0.1), **settings)
    with pytest.raises(UserError, match="no peers"):
        Mutual([])
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, Mutual([copy.deepcopy(make_model("classification", 1, seed=1))]), terms=[KLDivergence()])
    assert "on anything" in caplog.text
    assert "the student and peer 1 start from the same weights" in caplog.text


def test_peers_of_other_labels_are_refused(write_recipe: WriteRecipe, make_model: Any) -> None:
    """The head of a peer with labels in another order is read in the wrong one: it teaches the opposite."""
    student = {"name": "pretrained", "model": str(make_model("bert-bare", layers=2, seed=3))}
    for labels, words in ((["positive", "negative"], "another order"), (["no", "yes"], "other labels")):
        peer = {"name": "pretrained", "model": str(make_model("bert", layers=2, seed=4, labels=labels))}
        recipe = load_recipe(write_recipe(teacher={"name": "mutual", "peers": [peer]}, student=student))
        with pytest.raises(UserError, match=words) as caught:
            check(recipe)
        assert "peers[0].model" in str(caught.value)
    peer = {"name": "pretrained", "model": str(make_model("bert-bare", layers=2, seed=4, vocab=["other"]))}
    recipe = load_recipe(write_recipe(teacher={"name": "mutual", "peers": [peer]}, student=student))
    with pytest.raises(UserError, match="vocabulary is not the student's"):
        check(recipe)
    recipe = load_recipe(write_recipe(teacher={"name": "mutual"}, student=student, objectives=[{"name": "kl"}]))
    with pytest.raises(UserError, match="on anything"):
        check(recipe)


@pytest.mark.parametrize("online", [False, True])
def test_weights_reach_all_models(online: bool, tmp_path: Path) -> None:
    """Peers that learn each row as much as any other would teach the student what it was told to leave out."""
    rows, weights = make_rows("classification", 6), [2, 0, 1, 3, 1, 0]
    weighed = [{**row, "example_weight": 0.5 * weight} for row, weight in zip(rows, weights, strict=True)]
    written = [row for row, weight in zip(rows, weights, strict=True) for _ in range(weight)]
    found = []
    for name, some in (("weighed", weighed), ("written", written)):
        models = peers("classification", 2)
        settings = {"rows": some, "max_steps": 2, "per_device_train_batch_size": len(some)}
        settings |= {"train_sampling_strategy": "sequential"}
        one = trainer(tmp_path / name, Mutual(models, online=online), **settings)
        one.train()
        found.append([one.model, *models])
    assert_equal(found[0], found[1])


def test_a_gradient_that_only_one_process_has(tmp_path: Path) -> None:
    """An expert without a token in one process: the two exchanged gradients of different sizes, and stopped for good or
    added those of other weights."""

    def work() -> list[list[float] | None]:
        from accelerate import PartialState

        rank = PartialState(cpu=True).process_index
        trained = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
        trained[0].grad = torch.full((2,), float(rank))
        if rank:
            trained[1].grad = torch.tensor([4.0, 6.0])
        parallel.average_gradients(trained)
        return [None if one.grad is None else one.grad.tolist() for one in trained]

    assert two_processes(work, tmp_path / "results") == [[[0.5, 0.5], [2.0, 3.0], None]] * 2
