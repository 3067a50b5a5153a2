"""A student without the tokens that the data never uses."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import POSITIVE
from forked import two_processes
from prepared import dataset, refused
from runs import WriteRecipe, run, same, unfinish, weights
from transformers import AutoTokenizer

from hf_distill import DistillationTrainer, load_recipe
from hf_distill.errors import UserError
from hf_distill.models.calibration import CalibrationRows
from hf_distill.models.cut_tokenizer import Cut
from hf_distill.models.token_counts import TokenCounts
from hf_distill.rows import ExampleRows
from hf_distill.run.dry_run import check
from hf_distill.students import PruneVocabulary
from hf_distill.students.cut_vocabulary import cut_model, special_ids

# So many that the ids of words are higher than the student has tokens.
EXTRA = tuple(f"unused{number}" for number in range(200))
AUTO = {
    "bert": "AutoModelForSequenceClassification",
    "bert-tokens": "AutoModelForTokenClassification",
    "bert-mlm": "AutoModelForMaskedLM",
    "roberta": "AutoModelForSequenceClassification",
    "llama-lm": "AutoModelForCausalLM",
    "gpt2-lm": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
    "bart": "AutoModelForSeq2SeqLM",
}


def opened(directory: Path, kind: str) -> Any:
    return getattr(transformers, AUTO[kind]).from_pretrained(directory).eval()


def outputs(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Return a model's hidden states, then its logits."""
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "output_hidden_states": True}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        found = model(**inputs)
    states = found["encoder_hidden_states"] if model.config.is_encoder_decoder else found["hidden_states"]
    return [*states, found["logits"]]


# ---- The model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AUTO)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_stays_computes_the_same_bit_for_bit(kind: str, tied: bool, make_model: Any, tmp_path: Path) -> None:
    """A head, a bias or an id in the configuration that is not cut with the embeddings: other tokens, other logits."""
    whole = opened(make_model(kind, vocab_size=170, tie_word_embeddings=tied), kind)  # rows beyond the tokenizer too
    with torch.no_grad():
        for name, tensor in (*whole.named_parameters(), *whole.named_buffers()):
            if name.endswith("bias"):
                tensor.copy_(torch.linspace(-1, 1, tensor.numel()).view_as(tensor))
    drawn = np.random.default_rng(0)
    kept = sorted({*drawn.choice(170, 60, replace=False).tolist(), *special_ids(whole.config), 0, 1, 2})
    smaller = cut_model(whole, kept)
    smaller.save_pretrained(tmp_path)
    new = torch.from_numpy(drawn.integers(0, len(kept), (3, 7)))
    before = outputs(whole, torch.tensor(kept)[new])
    if before[-1].shape[-1] == 170:
        before[-1] = before[-1][..., kept]
    for loaded in (smaller, opened(tmp_path, kind)):
        assert all(one.equal(other) for one, other in zip(outputs(loaded, new), before, strict=True))
        assert loaded.config.get_text_config().vocab_size == len(kept)
    assert smaller.num_parameters() < whole.num_parameters()
    embeddings, head = smaller.get_input_embeddings().weight, smaller.get_output_embeddings()
    assert head is None or (head.weight is embeddings) == (
        whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    )


def test_ids_in_the_configuration_follow_their_tokens(make_model: Any) -> None:
    """With the old number of the end a decoder would never stop, and with the old start begin with another word."""
    whole = opened(make_model("bart", decoder_start_token_id=20, forced_eos_token_id=2), "bart")
    whole.config.eos_token_id = whole.generation_config.eos_token_id = [2, 30]
    whole.generation_config.suppress_tokens, whole.generation_config.bad_words_ids = [5, 30], [[5], [20, 30]]
    whole.generation_config.forced_decoder_ids = [[1, 30]]
    kept = [0, 1, 2, 3, 4, 20, 30]
    smaller = cut_model(whole, kept)
    for settings in (smaller.config, smaller.generation_config):
        assert (settings.pad_token_id, settings.decoder_start_token_id, settings.eos_token_id) == (1, 5, [2, 6])
    assert smaller.generation_config.suppress_tokens == [6]
    assert smaller.generation_config.bad_words_ids == [[5, 6]]
    assert smaller.generation_config.forced_decoder_ids == [[1, 6]]
    assert whole.config.decoder_start_token_id == 20


def test_a_model_whose_positions_begin_at_the_padding_is_refused_where_that_moves(make_model: Any) -> None:
    """RoBERTa counts positions from the id of padding: with a smaller id all texts would move along its table."""
    whole = opened(make_model("roberta"), "roberta")
    _, message = refused(cut_model, whole, [1, 2, 3, *range(10, 40)])
    assert "something else" in message


# ---- Which tokens ----------------------------------------------------------------------------------------------------


def kept_of(entry: PruneVocabulary, directory: Path, counts: dict[str, int]) -> list[str] | None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    config = transformers.AutoConfig.from_pretrained(directory)
    train = np.zeros(len(tokenizer), dtype=np.int64)
    for token, number in counts.items():
        train[tokenizer.convert_tokens_to_ids(token)] = number
    cut = entry.cut(tokenizer, config, lambda: TokenCounts(train, train))
    return None if cut is None else tokenizer.convert_ids_to_tokens(list(cut.kept))


def test_frequent_tokens_stay_and_so_do_those_that_are_named(make_model: Any) -> None:
    """One off in a limit, or a size that counts other tokens than the student has, is seen by nobody."""
    path = make_model("bert", vocab=(*POSITIVE, *EXTRA))
    counts = {"great": 5, "moving": 2, "funny": 2, "clever": 1}
    words = set(POSITIVE) | set(EXTRA)

    def words_of(**settings: Any) -> set[str]:
        return words.intersection(kept_of(PruneVocabulary(**settings), path, counts) or ())

    assert words_of() == set(counts)
    assert words_of(at_least=2) == {"great", "moving", "funny"}
    assert words_of(at_least=3, keep=["unused3"]) == {"great", "unused3"}
    needed = len(kept_of(PruneVocabulary(at_least=6), path, counts) or ())
    assert words_of(tokens=needed + 2) == {"great", "moving"}  # of equals the one with the lower id
    assert kept_of(PruneVocabulary(at_least=0), path, counts) is None
    assert kept_of(PruneVocabulary(), path, dict.fromkeys(words, 1)) is None
    key, message = refused(kept_of, PruneVocabulary(tokens=needed - 1), path, counts)
    assert (key, f"{needed}" in message) == ("tokens", True)
    key, message = refused(kept_of, PruneVocabulary(keep=["unused3", "gret"]), path, counts)
    assert (key, "'gret'" in message) == ("keep[1]", True)


def test_a_model_with_all_tokens_is_measured_on_its_own_ids(make_model: Any) -> None:
    """A batch has ids of the student, and of a teacher with another tokenizer: of these none is to be renumbered."""
    train = dataset(input_ids=[[1, 0], [0, 2]], teacher_input_ids=[[90, 91, 92], [93]])
    teacher = {"teacher_input_ids": torch.tensor([[90, 91, 92], [93, 0, 0]])}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows]), **teacher}

    cut = Cut((5, 7, 9), None, 100, 0.0)  # type: ignore[arg-type]
    rows = CalibrationRows(train, collate, 2, labelled=False, layout=ExampleRows(width=2), cut=cut).uncut()
    (batch,) = rows.batches(opened(make_model("bert"), "bert"), 2)
    assert batch["input_ids"].tolist() == [[7, 5], [5, 9]]


# ---- The run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(write_recipe: WriteRecipe, make_model: Any) -> Any:
    """Write a recipe whose teacher has words that the data does not use."""

    def write(**sections: Any) -> Path:
        from conftest import WORDS

        teacher = make_model("bert", layers=4, seed=1, vocab=(*EXTRA, *WORDS))
        student = {"name": "prune_vocabulary", "student": {"name": "copy_layers", "layers": 2}}
        return write_recipe(
            **{"teacher": {"name": "pretrained", "model": str(teacher)}, "student": student, **sections}
        )

    return write


def accuracy(model: Path, data: Path) -> float:
    """Return a saved model's accuracy: each text by itself, no trainer."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier: Any = opened(model, "bert")
    with data.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with torch.no_grad():
        found = [classifier(**tokenizer(row["sentence"], return_tensors="pt")).logits.argmax().item() for row in rows]
    names = classifier.config.id2label
    return float(
        np.mean([names[one] == row["label"] or str(one) == row["label"] for one, row in zip(found, rows, strict=True)])
    )


def test_a_run_saves_a_student_with_its_tokenizer_and_evaluates_the_teacher_with_its_own(
    recipe: Any, tmp_path: Path, sentiment_csv: Any
) -> None:
    """Read with the student's ids the teacher sees other words, and teaches noise that looks like a hard task."""
    layers = {"name": "hidden", "layers": [[1, 2], [2, 4]]}
    path = recipe(objectives=[{"name": "kl", "temperature": 2.0}, layers], report={"baseline": True, "latency": True})
    found = run(path)
    teacher, out = Path(load_recipe(path).teacher.model), tmp_path / "out"
    assert found.teacher.metrics["accuracy"] == pytest.approx(accuracy(teacher, sentiment_csv.validation))
    assert found.student.metrics["accuracy"] == pytest.approx(accuracy(out, sentiment_csv.validation))
    facts = json.loads((out / "report.json").read_text(encoding="utf-8"))["settings"]["student"]["vocabulary"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "in training the teacher read the student's tokens under its own ids" in card
    assert "each model read the texts with its own" not in card
    assert facts["tokens"] == {"before": len(AutoTokenizer.from_pretrained(teacher)), "after": len(tokenizer)}
    assert len(weights(out)["bert.embeddings.word_embeddings.weight"]) == len(tokenizer)
    assert not set(EXTRA) & tokenizer.get_vocab().keys()
    before = weights(out)
    unfinish(out)
    run(path)
    assert same(weights(out), before)


def test_a_whole_vocabulary_trains_the_same_student(recipe: Any, tmp_path: Path) -> None:
    """Another order of random numbers or of rows would make any comparison with the whole vocabulary unfair."""
    inner = {"name": "copy_layers", "layers": 2}
    found = []
    for number, student in enumerate((inner, {"name": "prune_vocabulary", "student": inner, "at_least": 0})):
        run(recipe(student=student, training={"output_dir": str(tmp_path / str(number))}))
        found.append(weights(tmp_path / str(number)))
    assert same(*found)


def test_a_teacher_teaches_as_if_the_student_had_all_tokens(recipe: Any, tmp_path: Path) -> None:
    """The data is split as before, so the loss of every step is that of the whole vocabulary, cached or not; and what
    is measured of the teacher first is measured with its own ids.
    """
    inner = {"name": "prune_depth", "layers": 2, "rows": 8}
    losses = []
    own = load_recipe(recipe()).teacher.model
    cached = {"name": "cached", "teacher": {"name": "pretrained", "model": own}}
    students = ((inner, "pretrained"), ({"name": "prune_vocabulary", "student": inner}, "pretrained"))
    for number, (student, teacher) in enumerate((*students, (students[1][0], "cached"))):
        sections = {"teacher": cached} if teacher == "cached" else {}
        training = {"output_dir": str(tmp_path / str(number)), "logging_steps": 1}
        found = run(recipe(student=student, training=training, **sections))
        losses.append([entry["loss"] for entry in found.history["student"] if "loss" in entry])
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)


def test_check_says_what_stays_and_refuses_what_cannot_be_cut(recipe: Any, make_model: Any) -> None:
    """The size of a student without a part of its vocabulary is known only once the data is read."""
    said = check(load_recipe(recipe()))
    (line,) = [line for line in said.splitlines() if line.startswith("vocabulary ")]
    assert "tokens stay" in line
    assert "->" in line
    with pytest.raises(UserError, match="too few"):
        check(load_recipe(recipe(student={"name": "prune_vocabulary", "tokens": 3})))
    with pytest.raises(UserError, match=r"student\.student: .*lost inside another entry|cut already"):
        load_recipe(recipe(student={"name": "prune_vocabulary", "student": {"name": "prune_vocabulary"}}))
    with pytest.raises(UserError, match=r"Turn the two around: {name: optimal_brain_damage, student: {name: prune_v"):
        load_recipe(
            recipe(student={"name": "prune_vocabulary", "student": {"name": "optimal_brain_damage", "ratio": 0.5}})
        )


def test_sizes_that_check_says_are_those_of_the_cut_student(recipe: Any) -> None:
    """The size of the whole student comes first in the plan, and looks like that of the one that the run saves."""

    def sizes(**sections: Any) -> tuple[list[str], str]:
        lines = check(load_recipe(recipe(**sections))).splitlines()
        cut = [line for line in lines if line.startswith("vocabulary ")]
        student = [line for line in lines if line.startswith(("student ", "parameters  student"))]
        return student, cut[0].partition("parameters")[0].rpartition("-> ")[2] if cut else ""

    smaller, parameters = sizes()
    assert len(smaller) == 2
    assert f" {parameters}parameters" in smaller[0]
    whole, _ = sizes(data={"path": "nobody/reviews", "columns": {"text": "sentence"}})  # not here: nothing is counted
    assert len(whole) == 2
    for before, after in zip(whole, smaller, strict=True):
        assert before.endswith("; before its vocabulary is cut")
        assert not before.startswith(after)


def test_stages_seeds_and_baseline_go_on_after_a_kill(recipe: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """The vocabulary is chosen anew by a resumed run: with other tokens its weights would be of other words."""
    stages = [{"objectives": ["kl"]}, {"objectives": ["labels"]}]
    steps = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}

    def written(place: str) -> Path:
        report = {"baseline": True, "seeds": 2, "latency": False}
        return recipe(
            objectives=None, stages=stages, report=report, training={**steps, "output_dir": str(tmp_path / place)}
        )

    whole = run(written("whole"))
    path, save = written("cut"), DistillationTrainer._save_checkpoint
    for stop_at in (1, 3, 5):  # in the first stage, in the second, in a later training

        def killed(self: Any, *given: Any, count: list[int] = [stop_at]) -> None:  # noqa: B006
            save(self, *given)
            count[0] -= 1
            if not count[0]:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(DistillationTrainer, "_save_checkpoint", killed)
            with pytest.raises(KeyboardInterrupt):
                run(path)
    again = run(path)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert [one.student for one in again.seeds] == [one.student for one in whole.seeds]
    assert [one.baseline for one in again.seeds] == [one.baseline for one in whole.seeds]


def test_two_processes_cut_alike(recipe: Any, tmp_path: Path) -> None:
    """Processes that count their own rows alone would have students of different sizes, or wait for each other."""
    training = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    inner = {"name": "from_config", "overrides": {"num_hidden_layers": 2, **still}}
    student = {"name": "prune_vocabulary", "student": inner}
    run(recipe(student=student, training={**training, "output_dir": str(tmp_path / "one")}))
    more = {"output_dir": str(tmp_path / "two"), "per_device_train_batch_size": 4}
    two = recipe(student=student, training={**training, **more})
    two_processes(lambda: run(two, "training.use_cpu=true") and None, tmp_path / "results")
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(ours[name].sub(theirs[name]).abs().max() < 1e-4 for name in ours)
    vocabularies = [AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("one", "two")]
    assert vocabularies[0] == vocabularies[1]


# A student around a cut one, or inside it.
CUT = {"name": "prune_vocabulary", "student": {"name": "copy_layers", "layers": 2}}
NESTED = {
    "lora": {"name": "lora", "student": CUT, "r": 2},
    "optimal_brain_damage": {"name": "optimal_brain_damage", "student": CUT, "ratio": 0.3},
    "prune_width": {"name": "prune_vocabulary", "student": {"name": "prune_width", "intermediate": 0.5}},
    "prune_depth": {"name": "prune_vocabulary", "student": {"name": "prune_depth", "layers": 2}},
    "from_config": {"name": "prune_vocabulary", "student": {"name": "from_config"}},
}


@pytest.mark.parametrize("student", NESTED.values(), ids=NESTED)
def test_other_entries_around_and_inside(student: Any, recipe: Any, tmp_path: Path, sentiment_csv: Any) -> None:
    """What measures, wraps or copies a model could bring the whole embeddings back, or read the cut ids with them."""
    found = run(recipe(student=student, training={"max_steps": 2}))
    out = tmp_path / "out"
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(weights(out)["bert.embeddings.word_embeddings.weight"]) == len(tokenizer)
    assert not set(EXTRA) & tokenizer.get_vocab().keys()
    assert found.student.metrics["accuracy"] == pytest.approx(accuracy(out, sentiment_csv.validation))


def test_the_next_student_of_a_chain_has_the_cut_tokenizer(recipe: Any, tmp_path: Path, sentiment_csv: Any) -> None:
    """It copies rows of the cut embeddings, which the first teacher's tokenizer numbers otherwise."""
    found = run(recipe(student=None, chain=[CUT, {"name": "copy_layers", "layers": 1}], training={"max_steps": 2}))
    out = tmp_path / "out"
    vocabularies = [AutoTokenizer.from_pretrained(one).get_vocab() for one in (out, out / "_chain" / "link-1")]
    assert vocabularies[0] == vocabularies[1]
    assert len(weights(out)["bert.embeddings.word_embeddings.weight"]) == len(vocabularies[0])
    assert found.student.metrics["accuracy"] == pytest.approx(accuracy(out, sentiment_csv.validation))


def test_tokens_of_private_rows_alone_are_left_out(
    recipe: Any, make_model: Any, sentiment_csv: Any, tmp_path: Path
) -> None:
    """A token in the student's vocabulary would say that a private row has the word, whatever epsilon is told."""
    with sentiment_csv.train.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    path = tmp_path / "half.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sentence", "label"))
        private = [(f"{row['sentence']} unused3", row["label"]) for row in rows[:24]]
        writer.writerows([*private, *((f"{row['sentence']} unused5", "") for row in rows[24:])])
    bare = str(make_model("bert-bare", layers=1, vocab=(*POSITIVE, *EXTRA)))
    inner = {"name": "finetuned", "model": bare, "training": {"max_steps": 1}}
    run(
        recipe(
            data={
                "path": {"train": str(path), "validation": str(sentiment_csv.validation)},
                "columns": {"text": "sentence"},
            },
            teacher={"name": "noisy", "teacher": inner, "count": 3, "noise": 1.0, "budget": 30.0, "delta": 1e-3},
            student={"name": "prune_vocabulary", "student": {"name": "pretrained", "model": bare}},
            objectives=[{"name": "kl"}],
            training={"max_steps": 1},
        )
    )
    assert {"unused3", "unused5"} & AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab().keys() == {"unused5"}


def test_peers_that_have_learned_other_ids_are_refused(recipe: Any, make_model: Any) -> None:
    """They would read the student's ids as their own, and teach what they think of other words."""
    peer = {"name": "pretrained", "model": str(make_model("bert", layers=2, vocab=(*EXTRA, "film")))}
    path = recipe(teacher={"name": "mutual", "peers": [peer]}, student={"name": "prune_vocabulary", "student": peer})
    key, message = refused(check, load_recipe(path))
    assert "cut to" in message
    assert "peers[0].model" in f"{key} {message}"


# ---- Texts that are split otherwise --------------------------------------------------------------------------------

KNOWN = ("anna", "bob", "carla", "paris", "rome", "oslo")
UNKNOWN = ("bernadotte", "timbuktu", "margareta", "quitosan")


def tagged(rows: int, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """Return sentences of names, which have the tags B-A and B-B in turn, and of other words."""
    chance = random.Random(seed)
    found = []
    for _ in range(rows):
        words = [chance.choice((*names, "lives", "in")) for _ in range(chance.randint(2, 9))]
        tags = ["O" if word in ("lives", "in") else ("B-A", "B-B")[names.index(word) % 2] for word in words]
        found.append({"tokens": words, "tags": tags, "kind": chance.choice("ab")})
    return found


def asked(rows: int, names: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    """Return questions whose context is several windows."""
    chance = random.Random(seed)
    found = []
    for _ in range(rows):
        words = [chance.choice(names) for _ in range(chance.randint(6, 22))]
        at = chance.randrange(len(words))
        answer = {"text": [words[at]], "answer_start": [len(" ".join([*words[:at], ""]))]}
        found.append(
            {"question": "where ?", "context": " ".join(words), "answers": answer, "kind": chance.choice("ab")}
        )
    return found


@pytest.mark.usefixtures("brief_latency")
@pytest.mark.parametrize(
    ("task", "limit"), [("token-classification", 24), ("token-classification", 64), ("question-answering", 24)]
)
def test_the_teacher_is_compared_word_by_word_whatever_the_tokens(
    task: str, limit: int, recipe: Any, make_model: Any, tmp_path: Path
) -> None:
    """Its tokens are at other places than the student's, in fewer windows: compared place by place, of other words."""
    vocabulary = (*KNOWN, *UNKNOWN, "lives", "in", "where", "?", *EXTRA)
    make, kind, named = (
        (tagged, "bert-tokens", {"labels": ("O", "B-A", "B-B")})
        if task == "token-classification"
        else (asked, "bert-qa", {})
    )
    paths = {}
    for split, rows in (("train", make(16, KNOWN, 0)), ("validation", make(40, (*KNOWN, *UNKNOWN), 1))):
        paths[split] = str(tmp_path / f"{split}.jsonl")
        Path(paths[split]).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = {"path": paths, "max_length": limit, "columns": {"group": "kind"}}
    teacher = {"name": "pretrained", "model": str(make_model(kind, vocab=vocabulary, layers=3, **named))}
    options = {"stride": 8} if task == "question-answering" else {}
    found = []
    for student in (CUT, CUT["student"]):
        training = {"max_steps": 1, "per_device_eval_batch_size": 500, "output_dir": str(tmp_path / str(len(found)))}
        sections = {"task": {"name": task, **options}, "data": data, "report": {"seeds": 2}}
        found.append(run(recipe(teacher=teacher, student=student, training=training, **sections)))
    cut, whole = found
    assert cut.teacher.metrics == pytest.approx(whole.teacher.metrics)
    assert [one.kind for one in cut.for_whom] == ["group", "class"][: 1 + (task == "token-classification")]
    for ours, theirs in zip(cut.for_whom, whole.for_whom, strict=True):
        other = {group.name: group for group in theirs.groups}
        for group in ours.groups:
            # Within the limit the student reads fewer words of a class, and these alone are compared.
            if ours.kind == "class" and limit == 24:
                assert group.rows <= other[group.name].rows
            else:
                assert (group.rows, group.metrics["teacher"]) == (
                    other[group.name].rows,
                    pytest.approx(other[group.name].metrics["teacher"]),
                )


def test_a_teacher_of_another_language_reads_its_own_texts(recipe: Any, make_model: Any, tmp_path: Path) -> None:
    """It reads a text, and the student its translation too: under the teacher's ids, they would be other texts."""
    texts = [row["tokens"] for row in tagged(32, KNOWN, 0)]
    rows = [
        {"text": " ".join(text), "other": " ".join(reversed([*text, "rome"])), "kind": "ab"[number % 2]}
        for number, text in enumerate(texts)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = {
        "path": {"train": str(path), "validation": str(path)},
        "columns": {"text": "text", "translation": "other", "group": "kind"},
    }
    teacher = {"name": "pretrained", "model": str(make_model("bert-bare", layers=3, vocab=(*EXTRA, *KNOWN, "in")))}
    losses = []
    for at, student in enumerate((CUT, CUT["student"])):
        training = {"max_steps": 3, "logging_steps": 1, "output_dir": str(tmp_path / str(at))}
        sections = {"task": "sentence-similarity", "data": data, "objectives": [{"name": "sentence_embedding"}]}
        found = run(recipe(teacher=teacher, student=student, training=training, **sections))
        losses.append([entry["loss"] for entry in found.history["student"] if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_language_models_are_refused(recipe: Any, make_model: Any) -> None:
    """A teacher's distribution over all tokens, compared with the student's over some, would be off by their mass."""
    model = str(make_model("llama-lm", layers=2))
    path = recipe(
        task="text-generation",
        teacher={"name": "pretrained", "model": model},
        student={"name": "prune_vocabulary"},
        objectives=[{"name": "kl"}],
    )
    _, message = refused(check, load_recipe(path))
    assert "token by token" in message
