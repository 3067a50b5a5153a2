"""Frozen parts of a student: found by name, left as they are to the last bit, and all else trained as before."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from forked import two_processes
from runs import WriteRecipe, run, weights
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hf_distill import DistillationArguments, DistillationTrainer, load_recipe
from hf_distill.errors import UserError
from hf_distill.objectives import Hidden, KLDivergence, Labels
from hf_distill.run.dry_run import check
from hf_distill.students.freezing import find_frozen, freeze

SMALL: dict[str, Any] = {"vocab_size": 40, "max_position_embeddings": 32}
TWO: dict[str, Any] = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
BOTH_SIDES: dict[str, Any] = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in {"layers": 3, "attention_heads": 2, "ffn_dim": 16}.items()
}
MODELS: dict[str, tuple[str, Any]] = {
    "bert": ("SequenceClassification", transformers.BertConfig(**SMALL, **TWO)),
    "mlm": ("MaskedLM", transformers.BertConfig(**SMALL, **TWO)),
    "distilbert": (
        "SequenceClassification",
        transformers.DistilBertConfig(vocab_size=40, dim=16, n_layers=3, n_heads=2),
    ),
    "llama": ("CausalLM", transformers.LlamaConfig(**SMALL, **TWO)),
    "tied-llama": ("CausalLM", transformers.LlamaConfig(**SMALL, **TWO, tie_word_embeddings=True)),
    "gpt2": ("CausalLM", transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=32)),
    "bart": ("Seq2SeqLM", transformers.BartConfig(**SMALL, **BOTH_SIDES, d_model=16)),
    "t5": ("Seq2SeqLM", transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=3, num_heads=2)),
    "albert": ("SequenceClassification", transformers.AlbertConfig(**SMALL, **TWO, embedding_size=8)),
}


def model_of(kind: str) -> PreTrainedModel:
    head, config = MODELS[kind]
    torch.manual_seed(0)
    made: PreTrainedModel = getattr(transformers, f"AutoModelFor{head}").from_config(copy.deepcopy(config))
    return made


@pytest.mark.parametrize(
    ("kind", "part", "inside", "outside"),
    [
        ("bert", "embeddings", ["bert.embeddings."], ["bert.encoder.", "bert.pooler", "classifier"]),
        ("bert", "layers.0-1", ["bert.encoder.layer.0.", "bert.encoder.layer.1."], ["bert.encoder.layer.2."]),
        ("bert", "encoder.layers.2", ["bert.encoder.layer.2."], ["bert.encoder.layer.0.", "bert.encoder.layer.1."]),
        ("bert", "encoder", ["bert.encoder."], ["bert.embeddings", "bert.pooler", "classifier"]),
        ("bert", "bert.encoder.layer.0-1", ["bert.encoder.layer.0.", "bert.encoder.layer.1."], ["classifier."]),
        ("bert", "layers.1.attention", ["bert.encoder.layer.1.attention."], ["bert.encoder.layer.1.output"]),
        ("bert", "head", ["classifier."], ["bert."]),
        ("bert", "classifier.bias", ["classifier.bias"], ["classifier.weight", "bert."]),
        ("distilbert", "layers", ["distilbert.transformer.layer."], ["distilbert.embeddings", "pre_classifier"]),
        ("distilbert", "head", ["pre_classifier.", "classifier."], ["distilbert."]),
        ("mlm", "embeddings", ["bert.embeddings.", "cls.predictions.decoder.weight"], ["cls.predictions.transform"]),
        ("llama", "embeddings", ["model.embed_tokens."], ["lm_head", "model.layers", "model.norm"]),
        ("llama", "layers.0-2", ["model.layers."], ["lm_head", "model.embed_tokens", "model.norm"]),
        ("tied-llama", "head", ["lm_head.", "model.embed_tokens."], ["model.layers", "model.norm"]),
        ("gpt2", "embeddings", ["transformer.wte", "transformer.wpe", "lm_head."], ["transformer.h."]),
        ("bart", "decoder.layers.0-1", ["model.decoder.layers.0.", "model.decoder.layers.1."],
         ["model.decoder.layers.2.", "model.encoder.", "model.shared"]),
        ("bart", "encoder.layers.0-2", ["model.encoder.layers."], ["model.decoder.", "model.shared"]),
        ("bart", "embeddings", ["model.shared", "model.encoder.embed_positions", "model.decoder.layernorm_embedding"],
         ["model.encoder.layers", "model.decoder.layers"]),
        ("t5", "embeddings", ["shared.", "lm_head."], ["encoder.block", "decoder.block"]),
        ("t5", "decoder.layers.0", ["decoder.block.0."], ["decoder.block.1.", "encoder.", "shared"]),
        ("albert", "embeddings", ["albert.embeddings.", "albert.encoder.embedding_hidden_mapping_in"],
         ["albert.encoder.albert_layer_groups", "classifier"]),
    ],
)  # fmt: skip
def test_what_a_name_stands_for(kind: str, part: str, inside: list[str], outside: list[str]) -> None:
    """A name that stood for another part would leave the wrong half of the student as it was."""
    model = model_of(kind)
    frozen = find_frozen(model, [part])
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    expected = {name for name in names if name.startswith(tuple(inside))}
    assert expected <= set(frozen.names), part
    assert not [name for name in frozen.names if name.startswith(tuple(outside))]
    assert all(any(name.startswith(start) for name in frozen.names) for start in inside)
    freeze(model, [part])
    left = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    assert left == set(names) - set(frozen.names)
    by_hand = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (frozen.trained, frozen.total) == (by_hand, sum(parameter.numel() for parameter in model.parameters()))


@pytest.mark.parametrize(
    ("kind", "parts", "words"),
    [
        ("bert", ["embedings"], "Did you mean 'embeddings'"),
        ("bert", ["zzz"], "embeddings, layers.0-2, head"),
        ("bart", ["zzz"], "encoder.layers.0-2, decoder.layers.0-2"),
        ("bert", ["decoder.layers.0"], "has no part"),
        ("bert", ["layers.2-3"], "layers.0 to layers.2"),
        ("bert", ["layers.2-1"], "layers.0 to layers.2"),
        ("bert", ["layers.x"], "has no part"),
        ("bert", ["embeddings.0-1"], "no list"),
        ("bert", [""], "has no part"),
        ("bert", ["bert.embeddings.dropout"], "no parameters"),
        ("bert", ["bert", "head"], "nothing is left to train"),
        ("tied-llama", ["embeddings", "layers", "model.norm"], "nothing is left to train"),
    ],
)
def test_names_of_nothing_and_of_everything(kind: str, parts: list[str], words: str) -> None:
    """A name that matched nothing trained the whole student, as if nothing had been asked for."""
    with pytest.raises(UserError, match=words) as caught:
        find_frozen(model_of(kind), parts)
    assert (caught.value.key, len(caught.value.mistakes)) == ("freeze", 1)


def test_frozen_parts_stay_in_a_run(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Weight decay pulls at whatever the optimizer holds; and a student that froze something else is another one."""
    from hf_distill.run.fit import Fitter

    teacher = make_model("bert", layers=4, seed=1)
    student = {"name": "copy_layers", "layers": 2, "freeze": ["embeddings", "layers.0"]}
    training = {"weight_decay": 0.5, "num_train_epochs": 1}
    path = write_recipe(student=student, training=training, report={"latency": False, "baseline": True})
    plan = check(load_recipe(path))
    assert "freeze: " in plan
    report = run(path)
    before = AutoModelForSequenceClassification.from_pretrained(teacher).state_dict()
    for place in ("out", "out/_runs/baseline"):
        after = weights(tmp_path / place)
        frozen = {name for name in after if name.startswith(("bert.embeddings", "bert.encoder.layer.0."))}
        assert len(frozen) > 10
        assert all(after[name].equal(before[name]) for name in frozen)
        assert not after["classifier.weight"].equal(before["classifier.weight"])
        assert not any(
            after[name].equal(before[name.replace("layer.1", "layer.3")])
            for name in after
            if name.startswith("bert.encoder.layer.1.") and name.endswith("dense.weight")
        )
    trained = sum(value.numel() for name, value in weights(tmp_path / "out").items() if name not in frozen)
    assert report.settings["trained_parameters"].startswith(f"{trained:,} of ")
    reopened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert all(parameter.requires_grad for parameter in reopened.parameters())
    one, other = (freeze(copy.deepcopy(reopened), parts) for parts in (["embeddings"], ["head"]))
    data = _Data()
    keys = {Fitter(data, None).key(model, None, (Labels(),), {}) for model in (reopened, one, other)}  # type: ignore[arg-type]
    assert len(keys) == 3


class _Data:
    """Data of which only the fingerprint is asked."""

    def __init__(self) -> None:
        import datasets

        self.train = self.eval = datasets.Dataset.from_dict({"labels": [0, 1]})


@pytest.mark.parametrize("part", ["embedings", "layers.0-9", "bert"])
def test_check_and_run_refuse_alike(part: str, write_recipe: WriteRecipe, make_model: Any) -> None:
    """--check said that all is well, and the run ended after the teacher was trained."""
    parts = [part, "head"] if part == "bert" else [part]
    model = str(make_model("bert", layers=2))
    path = write_recipe(student={"name": "pretrained", "model": model, "freeze": parts})
    said = []
    for opened in (check, lambda recipe: run(path)):
        with pytest.raises(UserError) as caught:
            opened(load_recipe(path))
        said.append(caught.value.mistakes)
    assert said[0] == said[1]
    assert len(said[0]) == 1
    assert "student.freeze" in said[0][0]


def test_stages_and_tied_heads(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, capfd: Any) -> None:
    """The second stage opens the first one's result, where nothing is frozen; and a tied head is the embeddings."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": f"the film is very {word} ."}) + "\n" for word in ("dull", "great") * 8)
    )
    model = str(make_model("gpt2-lm", layers=2, seed=1))
    path = write_recipe(
        task="text-generation",
        data={"path": {"train": str(texts), "validation": str(texts)}},
        teacher={"name": "pretrained", "model": model},
        student={"name": "copy_layers", "layers": 1, "freeze": ["embeddings"]},
        objectives=None,
        stages=[
            {"objectives": [{"name": "hidden"}], "training": {"max_steps": 2}},
            {"objectives": [{"name": "kl"}], "training": {"max_steps": 2, "weight_decay": 0.5}},
        ],
    )
    assert "lm_head.weight too" in check(load_recipe(path))
    run(path)
    before, after = weights(Path(model)), weights(tmp_path / "out")
    for name in ("transformer.wte.weight", "transformer.wpe.weight"):
        assert after[name].equal(before[name])
    assert not after["transformer.h.0.attn.c_attn.weight"].equal(before["transformer.h.0.attn.c_attn.weight"])


# ---- In Python -------------------------------------------------------------------------------------------------------


def trainer_of(student: PreTrainedModel, teacher: PreTrainedModel, tmp_path: Path, objectives: Any, **args: Any) -> Any:
    ids = torch.randint(3, 40, (8, 6), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": one, "attention_mask": torch.ones(6, dtype=torch.long)} for one in ids]
    language = not hasattr(student, "classifier")
    rows = [{**row, "labels": row["input_ids"] if language else torch.tensor(n % 2)} for n, row in enumerate(rows)]
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, "weight_decay": 0.3, "learning_rate": 0.01, **args}
    arguments = DistillationArguments(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, **settings
    )
    return DistillationTrainer(student, arguments, teacher=teacher, objectives=objectives, train_dataset=rows)


@pytest.mark.parametrize(("kind", "part"), [("bert", "embeddings"), ("llama", "head"), ("tied-llama", "head")])
def test_gradients_of_the_rest_are_unchanged(kind: str, part: str, tmp_path: Path) -> None:
    """A frozen head taken apart chunk by chunk must still carry the gradient down to what is below it."""
    whole, teacher = model_of(kind).eval(), model_of(kind)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    part_of = freeze(copy.deepcopy(whole), [part])
    gradients = []
    for student in (whole, part_of):
        trainer = trainer_of(student, copy.deepcopy(teacher), tmp_path, [KLDivergence(temperature=2.0), Labels()])
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        trainer.compute_loss(trainer.model, batch).backward()
        gradients.append({name: parameter.grad for name, parameter in student.named_parameters()})
        trainer.create_optimizer()
        held = {id(one) for group in trainer.optimizer.param_groups for one in group["params"]}
        assert held == {id(one) for one in student.parameters() if one.requires_grad}
    frozen = find_frozen(whole, [part]).names
    for name, gradient in gradients[1].items():
        if name in frozen:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_above_frozen_embeddings(reentrant: bool, tmp_path: Path) -> None:
    """Re-entrant checkpointing computes no gradient for layers whose input has none: only the head was trained."""
    ends = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        student, teacher = freeze(model_of("bert"), ["embeddings"]), model_of("bert")
        before = copy.deepcopy(student.state_dict())
        extra = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        trainer = trainer_of(student, teacher, tmp_path, [Labels()], **(extra if checkpointing else {}))
        trainer.train()
        after = student.state_dict()
        changed = {name for name in after if not after[name].equal(before[name])}
        assert not any(name.startswith("bert.embeddings") for name in changed)
        assert "bert.encoder.layer.0.output.dense.weight" in changed
        ends.append(after)
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])


def test_objectives_that_reach_nothing(tmp_path: Path) -> None:
    """torch's own words are that an element 0 of tensors does not require grad."""
    student = freeze(model_of("bert"), ["bert"])
    trainer = trainer_of(student, model_of("bert"), tmp_path, [Hidden(layers=[(0, 0), (3, 3)])])
    with pytest.raises(UserError, match="no objective trains any parameter"):
        trainer.train()


def test_a_student_frozen_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In Python parts are frozen with requires_grad; they must stay, with nothing said that is not so."""
    student, teacher = model_of("llama"), model_of("llama")
    student.get_input_embeddings().requires_grad_(False)
    student.model.layers[0].requires_grad_(False)
    before = copy.deepcopy(student.state_dict())
    with caplog.at_level(logging.WARNING):
        trainer_of(student, teacher, tmp_path, [KLDivergence(), Labels()]).train()
    after = student.state_dict()
    same = {name for name in after if after[name].equal(before[name])}
    assert same == {name for name in after if name.startswith(("model.embed_tokens", "model.layers.0."))}


def test_two_processes(tmp_path: Path) -> None:
    """DDP waits for the gradient of each parameter that it knows, and a frozen one in the middle never has one."""

    def train() -> dict[str, torch.Tensor]:
        student = freeze(model_of("bert"), ["embeddings", "layers.1"])
        trainer = trainer_of(student, model_of("bert"), tmp_path, [Labels()], per_device_train_batch_size=2)
        assert trainer.args.world_size == 2
        trainer.train()
        return student.state_dict()

    first, second = two_processes(train, tmp_path / "results")
    before = model_of("bert").state_dict()
    assert all(first[name].equal(second[name]) for name in first)
    same = {name for name in first if first[name].equal(before[name])}
    assert same == {name for name in first if name.startswith(("bert.embeddings.", "bert.encoder.layer.1."))}
