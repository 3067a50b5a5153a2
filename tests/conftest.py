"""What every test has: no network by construction, and real tiny models and data on disk.

Nothing heavy is imported at the top: a test of the recipe reader must not wait for torch.
"""

from __future__ import annotations

import csv
import gc
import ipaddress
import json
import logging
import os
import random
import signal
import socket
import string
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Before any import of a Hugging Face library: they read these once, at import. Subprocesses inherit them.
_HOME = tempfile.TemporaryDirectory(prefix="hf_distill-tests-", ignore_cleanup_errors=True)
_THEIRS = ("HF_", "HUGGING", "ACCELERATE_", "WANDB_", "TRANSFORMERS_")
for _name in [name for name in os.environ if name.startswith(_THEIRS)]:
    del os.environ[_name]
os.environ |= {
    "HF_HOME": _HOME.name,
    "HF_DATASETS_CACHE": str(Path(_HOME.name, "datasets")),
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "PIP_NO_INDEX": "1",
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": str(Path(_HOME.name, "matplotlib")),
    "TOKENIZERS_PARALLELISM": "false",
    # The models are so small that a second thread costs more than it brings, even without xdist's workers.
    "OMP_NUM_THREADS": "1",
}
# Tests compare numbers to rounding; whoever wants them on a GPU says so by setting the variable.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
if sys.platform == "darwin":
    os.environ["ACCELERATE_USE_CPU"] = "true"  # else the Trainer takes the Mac's GPU


class NetworkRefused(RuntimeError):
    """A test tried to leave the machine. Not an OSError: libraries take those for "offline" and carry on."""


def _is_loopback(host: object) -> bool:
    if host in ("localhost", "", None):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def pytest_configure(config: pytest.Config) -> None:
    """Refuse connections to anything but this machine, from collection on."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)

    def guard(real: Callable[[socket.socket, Any], Any]) -> Callable[[socket.socket, Any], Any]:
        def guarded(self: socket.socket, address: Any) -> Any:
            if self.family != getattr(socket, "AF_UNIX", None) and not _is_loopback(address[0]):
                raise NetworkRefused(f"a test tried to connect to {address}")
            return real(self, address)

        return guarded

    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, guard(getattr(socket.socket, name)))

    real_lookup = socket.getaddrinfo

    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if not _is_loopback(name):
            raise NetworkRefused(f"a test tried to look up {name}")
        return real_lookup(host, *args, **kwargs)

    patch.setattr(socket, "getaddrinfo", lookup)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported: every run asks for a full round, a fifth of its time."""
    gc.collect()
    gc.freeze()


# --- tiny real models -------------------------------------------------------------------------------------------------

POSITIVE = ("wonderful", "great", "moving", "funny", "clever", "charming", "fresh", "brilliant")
NEGATIVE = ("awful", "dull", "boring", "stale", "clumsy", "bad", "tedious", "painful")
NEUTRAL = ("the", "a", "film", "story", "plot", "cast", "is", "was", "and", "very", "with", "this", "of", "scene", "it")
WORDS = (*POSITIVE, *NEGATIVE, *NEUTRAL, ".", ",", "!")


class MakeModel(Protocol):
    """Builds a tiny model and its tokenizer, saves both to one directory and returns it."""

    def __call__(
        self,
        kind: str = "bert",
        *,
        layers: int = 4,
        labels: Sequence[str] = ("negative", "positive"),
        vocab: Sequence[str] = WORDS,
        seed: int = 0,
        **config: Any,
    ) -> Path:
        """Return the directory; the same arguments give the same directory, so never write to it.

        Args:
            kind: `bert`, `distilbert`, `roberta`, `llama`, `gpt2` (sequence classifiers), `bert-tokens` (token
                classifier), `bert-qa` (finds answers), `llama-lm`, `gpt2-lm`, `bert-mlm` (language models), `t5`,
                `bart` (encoder-decoder language models) or `bert-bare`, `distilbert-bare`, `roberta-bare` (no head, as
                most pretrained encoders come). As in life, `llama` and `gpt2` have no padding token.
            layers: Depth.
            labels: Names of the labels; a single one makes a regression head.
            vocab: Words that are one token; any other lower-case word is spelled out.
            seed: Of the weights.
            **config: Any other setting of the configuration (`problem_type`, `hidden_size`, ...).
        """


@pytest.fixture(autouse=True)
def in_the_foreground() -> Iterator[None]:
    """A shell that starts the tests in the background has Ctrl-C ignored in them, and in all that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def no_handler_left() -> Iterator[None]:
    """A handler that a test leaves behind prints into that test's closed output, in other tests, as a traceback."""
    before = _handlers()
    yield
    assert _handlers() <= before, "this test leaves a handler of log messages behind"


def _handlers() -> set[tuple[str, int]]:
    """Return the handlers of all and of our messages, but for those that pytest sets for each test."""
    ours = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "hf_distill"]
    loggers = [logging.root, *map(logging.getLogger, ours)]
    return {
        (logger.name, id(handler))
        for logger in loggers
        for handler in logger.handlers
        if not type(handler).__module__.startswith("_pytest")
    }


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Factory of tiny models; see `MakeModel`."""
    made: dict[str, Path] = {}

    def make(
        kind: str = "bert",
        *,
        layers: int = 4,
        labels: Sequence[str] = ("negative", "positive"),
        vocab: Sequence[str] = WORDS,
        seed: int = 0,
        **config: Any,
    ) -> Path:
        key = repr((kind, layers, tuple(labels), tuple(vocab), seed, sorted(config.items())))
        if key not in made:
            directory = tmp_path_factory.mktemp(f"{kind}-{layers}")
            tokenizer = _tokenizer(kind, vocab)
            _save_model(kind, _config(kind, tokenizer, layers, labels, config), seed, directory)
            tokenizer.save_pretrained(directory)
            made[key] = directory
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_bert(make_model: MakeModel) -> Path:
    """Directory of a 4-layer BertForSequenceClassification (negative, positive) with its tokenizer."""
    return make_model("bert", layers=4)


def _tokenizer(kind: str, words: Sequence[str]) -> PreTrainedTokenizerBase:
    import tokenizers
    import transformers

    letters = string.ascii_lowercase + string.digits
    if kind.startswith(("bert", "distilbert")):
        special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        pieces = dict.fromkeys((*special, *words, *letters, *(f"##{letter}" for letter in letters)))
        class_: Any = transformers.DistilBertTokenizer if kind.startswith("distilbert") else transformers.BertTokenizer
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        wordpiece: PreTrainedTokenizerBase = class_(vocab=vocabulary, model_max_length=64)
        return wordpiece
    if kind == "t5":
        scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -4.0, **dict.fromkeys(words, -1.0)}
        pieces = {("▁" + piece if piece in words else piece): score for piece, score in scores.items()}
        unigram = [*pieces.items(), *((letter, -5.0) for letter in letters if letter not in pieces)]
        t5: PreTrainedTokenizerBase = transformers.T5Tokenizer(vocab=unigram, extra_ids=0, model_max_length=64)
        return t5
    # The others spell words in BPE: train one in which every word is a single token.
    class_, bpe_special = {
        "roberta": (transformers.RobertaTokenizer, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        "bart": (transformers.BartTokenizer, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        "llama": (transformers.LlamaTokenizer, ["<unk>", "<s>", "</s>"]),
        "gpt2": (transformers.GPT2Tokenizer, ["<|endoftext|>"]),
    }[kind.partition("-")[0]]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    spaces = tokenizers.pre_tokenizers
    bpe.pre_tokenizer = spaces.Metaspace() if kind.startswith("llama") else spaces.ByteLevel(add_prefix_space=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=10_000, special_tokens=bpe_special, initial_alphabet=list(letters), show_progress=False
    )
    bpe.train_from_iterator([" ".join(words)] * 2, trainer)
    with tempfile.TemporaryDirectory() as scratch:
        vocab, merges = bpe.model.save(scratch)
        tokenizer: PreTrainedTokenizerBase = class_(vocab=vocab, merges=merges, model_max_length=64)
    return tokenizer


def _config(
    kind: str, tokenizer: PreTrainedTokenizerBase, layers: int, labels: Sequence[str], settings: dict[str, Any]
) -> PretrainedConfig:
    import transformers

    names: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "initializer_range": 0.2,  # with the usual 0.02 a tiny model answers the same to everything
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")},
    }
    encoder = {
        "num_hidden_layers": layers,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64 + 2 * (kind.startswith("roberta")),  # RoBERTa counts from pad_token_id + 1
    }
    if kind.startswith("bert"):
        return transformers.BertConfig(**{**names, **encoder, **settings})
    if kind.startswith("roberta"):
        return transformers.RobertaConfig(**{**names, **encoder, "type_vocab_size": 1, **settings})
    if kind.startswith("llama"):
        return transformers.LlamaConfig(**{**names, **encoder, "num_key_value_heads": 2, **settings})
    if kind.startswith("gpt2"):
        shape = {"n_layer": layers, "n_embd": 32, "n_head": 4, "n_positions": 64}
        return transformers.GPT2Config(**{**names, **shape, **settings})
    if kind == "t5":
        shape = {"num_layers": layers, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4}
        start = {"decoder_start_token_id": tokenizer.pad_token_id, "initializer_factor": 3.0}
        return transformers.T5Config(**{**names, **shape, **start, **settings})
    if kind == "bart":
        both = {"layers": layers, "attention_heads": 4, "ffn_dim": 64}
        sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in both.items()}
        shape = {"d_model": 32, "max_position_embeddings": 64, "init_std": 0.2}
        return transformers.BartConfig(**{**names, **sides, **shape, **settings})
    shape = {"n_layers": layers, "dim": 32, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64}
    return transformers.DistilBertConfig(**{**names, **shape, **settings})


def _save_model(kind: str, config: PretrainedConfig, seed: int, directory: Path) -> None:
    import torch
    import transformers

    class_ = {
        "bert": transformers.BertForSequenceClassification,
        "bert-tokens": transformers.BertForTokenClassification,
        "bert-mlm": transformers.BertForMaskedLM,
        "bert-qa": transformers.BertForQuestionAnswering,
        "bert-bare": transformers.BertModel,
        "distilbert-bare": transformers.DistilBertModel,
        "roberta-bare": transformers.RobertaModel,
        "distilbert": transformers.DistilBertForSequenceClassification,
        "roberta": transformers.RobertaForSequenceClassification,
        "llama": transformers.LlamaForSequenceClassification,
        "llama-lm": transformers.LlamaForCausalLM,
        "gpt2": transformers.GPT2ForSequenceClassification,
        "gpt2-lm": transformers.GPT2LMHeadModel,
        "t5": transformers.T5ForConditionalGeneration,
        "bart": transformers.BartForConditionalGeneration,
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        class_(config).save_pretrained(directory)


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Splits:
    """Files of a small data set."""

    train: Path
    validation: Path


@pytest.fixture(scope="session")
def sentiment_csv(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """Two CSV files, `sentence` and `label` (negative, positive): 64 rows to train on, 32 to evaluate.

    Sentences have 3 to 14 words, so batches need padding; the label follows from the adjectives, so it can be learned.
    """
    directory = tmp_path_factory.mktemp("sentiment")
    chance = random.Random(0)
    splits = Splits(directory / "train.csv", directory / "validation.csv")
    for path, size in ((splits.train, 64), (splits.validation, 32)):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("sentence", "label"))
            for index in range(size):
                label, adjectives = (("negative", NEGATIVE), ("positive", POSITIVE))[index % 2]
                words = [chance.choice(NEUTRAL) for _ in range(chance.randint(1, 10))]
                for _ in range(chance.randint(1, 3)):
                    words.insert(chance.randint(0, len(words)), chance.choice(adjectives))
                writer.writerow((" ".join((*words, chance.choice(".!"))), label))
    return splits


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int, int], None]:
    """Function that sets how many rows of so many float32 logits a chunk, and a block of it, hold on a CPU."""

    def hold(classes: int, chunk: int, block: int) -> None:
        from hf_distill.training.chunked import rows

        monkeypatch.setitem(rows.CHUNK_BYTES, "cpu", classes * 4 * chunk)
        monkeypatch.setattr(rows, "BLOCK_BYTES", classes * 4 * block)

    return hold


@pytest.fixture
def brief_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are timed for a hundredth of a second instead of three seconds each."""
    from hf_distill.report.latency import measure_all

    for name, value in (("seconds", 0.01), ("min_repeats", 1)):
        monkeypatch.setitem(measure_all.__kwdefaults__, name, value)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def write_recipe(tmp_path: Path, make_model: Any, sentiment_csv: Any) -> Callable[..., Path]:
    """Write a small recipe that runs in seconds; keyword arguments replace whole sections, None removes one."""
    from runs import KL_AND_LABELS

    def write(**sections: Any) -> Path:
        recipe: dict[str, Any] = {
            "task": "text-classification",
            "data": {
                "path": {"train": str(sentiment_csv.train), "validation": str(sentiment_csv.validation)},
                "columns": {"text": "sentence"},
            },
            "teacher": {"name": "pretrained", "model": str(make_model("bert", layers=4, seed=1))},
            "student": {"name": "copy_layers", "layers": 2},
            "objectives": KL_AND_LABELS,
            "training": {},
            "report": {"latency": False},
        }
        recipe |= sections
        recipe["training"] = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 8,
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "disable_tqdm": True,
            **recipe["training"],
        }
        path = tmp_path / "recipe.yaml"
        given = {key: value for key, value in recipe.items() if value is not None}
        path.write_text(json.dumps(given), encoding="utf-8")  # JSON is YAML
        return path

    return write
