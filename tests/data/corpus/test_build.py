"""A corpus from invented documents: what is in it, and that neither a kill nor workers change a byte of it."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smelt.core.errors import InvalidRequestError
from smelt.data.corpus.build import Progress, build_corpus
from smelt.data.corpus.documents import Document
from smelt.data.corpus.plan import Settings
from smelt.data.corpus.report import drop_rows, language_rows, source_rows
from smelt.data.corpus.shards import SPLITS, manifest_of, read_documents, sample_documents
from tests.data.corpus.planted import BAD

QUESTION = "A keeper lights nine lamps every evening and seven of them go out before the last ship is home again"
SMALL = "the of and to in that is was for with as it by on are from".split()
SYLLABLES = "ba ke lo mi nu ra se ti vo da fe go hi ju pa re so tu".split()


def prose(rng: random.Random, num_sentences: int = 12) -> str:
    """Sentences of invented words and real small ones, so that no rule of quality has anything against them."""

    def sentence() -> str:
        words = ["".join(rng.choices(SYLLABLES, k=rng.randrange(2, 4))) for _ in range(8)] + rng.choices(SMALL, k=6)
        rng.shuffle(words)
        return f"{' '.join(words).capitalize()}."

    return " ".join(sentence() for _ in range(num_sentences))


def make_data(folder: Path) -> tuple[str, ...]:
    """Files of two sources with one case of everything, and an evaluation set. Returns the words for `chosen`."""
    rng = random.Random(5)
    kept = [prose(rng) for _ in range(60)]
    rows: list[dict[str, Any]] = [{"text": text, "url": f"https://news.example/{i}"} for i, text in enumerate(kept)]
    rows.append({"text": kept[0].upper()})
    rows.append({"text": kept[1].replace(".", ", he said.", 1)})
    rows.append({"text": kept[2] + f" He asked: {QUESTION}."})
    rows.append({"text": prose(rng) + " Write to anna.vogt@hafenpost.de or call +49 40 1234567."})
    rows.append({"text": "short"})
    rows += [{"text": text, "language": language} for _, language, text in BAD if language == "en"]
    rng.shuffle(rows)
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    (folder / "book.txt").write_text(prose(rng, 4000) + "\n\n" + kept[3])
    (folder / "data" / "eval" / "sums").mkdir(parents=True)
    (folder / "data" / "eval" / "sums" / "test.jsonl").write_text(json.dumps({"question": QUESTION}))
    return f"notes={folder / 'notes'},language=en,licence=own", f"book={folder / 'book.txt'},language=en"


def settings(folder: Path, words: tuple[str, ...], **changes: Any) -> Settings:
    values: dict[str, Any] = {"data": folder / "data", "wanted": words, "piece_chars": 4000, "valid_share": 0.15}
    return Settings(**values | changes)


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """(folder, words); the corpus is in folder/out."""
    folder = tmp_path_factory.mktemp("corpus")
    words = make_data(folder)
    build_corpus(folder / "out", settings(folder, words))
    return folder, words


def test_everything_is_dropped_for_its_reason(made: tuple[Path, tuple[str, ...]]) -> None:
    drops = json.loads((made[0] / "out" / "drops.json").read_text())
    counts = {source: {rule: drop["count"] for rule, drop in rules.items()} for source, rules in drops.items()}
    assert counts["notes"] == {
        "unreadable": 1,
        "length": 1,
        "eval/sums": 1,
        "exact duplicate": 1,
        "near duplicate": 1,
        "hate": 2,
        "adult": 2,
        "spam": 2,
        "personal data": 1,
    }
    assert all(
        len(example) == 16 for rules in drops.values() for drop in rules.values() for example in drop["examples"]
    )
    texts = [document.text for split in SPLITS for document in read_documents(made[0] / "out", split)]
    assert not any(QUESTION in text for text in texts)
    masked = [text for text in texts if "[E-MAIL]" in text]
    assert len(masked) == 1
    assert "[PHONE]" in masked[0]
    assert not any("hafenpost" in text for text in texts)


def test_the_manifest_tells_all(made: tuple[Path, tuple[str, ...]]) -> None:
    out = made[0] / "out"
    manifest = manifest_of(out)
    assert not (out / "work").exists()
    for shard in manifest["shards"]:
        assert hashlib.sha256((out / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
    notes = manifest["sources"][0]
    assert (notes["name"], notes["licence"], notes["masked"]) == ("notes", "own", {"email": 1, "phone": 1})
    assert manifest["decontamination"]["sets"] == ["eval/sums"]
    assert str(made[0]) not in (out / "manifest.json").read_text()  # paths of a machine tell nobody anything
    documents = [d for split in SPLITS for d in read_documents(out, split)]
    english = manifest["languages"]["en"]
    assert sum(english[split]["documents"] for split in english) == len(documents)
    assert sum(english[split]["bytes"] for split in english) == sum(d.num_bytes for d in documents)
    assert sum(source["kept"] for source in manifest["sources"]) == len(documents)
    assert len(source_rows(manifest)) == 2
    assert len(language_rows(manifest)) == 2
    assert ("notes", "spam", "2") in [row[:3] for row in drop_rows(json.loads((out / "drops.json").read_text()))]


def test_the_held_out_part_is_disjoint_and_groups_stay_together(made: tuple[Path, tuple[str, ...]]) -> None:
    train, valid = (list(read_documents(made[0] / "out", split)) for split in ("train", "valid"))
    assert valid
    assert len(valid) < len(train) / 3
    assert not {d.text for d in train} & {d.text for d in valid}
    book = {split for split, part in (("train", train), ("valid", valid)) for d in part if d.source == "book"}
    assert len(book) == 1  # the pieces of one file are a group


def test_samples_are_even_and_repeatable(made: tuple[Path, tuple[str, ...]]) -> None:
    out = made[0] / "out"
    first = list(sample_documents(out, 5, 1, source="notes"))
    assert first == list(sample_documents(out, 5, 1, source="notes"))
    assert first != list(sample_documents(out, 5, 2, source="notes"))
    assert len({d.text for d in first}) == 5
    everything = list(sample_documents(out, 10**6, 0))
    assert everything == list(read_documents(out))
    seen: set[str] = set()
    for seed in range(60):
        seen |= {d.text for d in sample_documents(out, 5, seed, source="notes")}
    assert seen == {d.text for d in everything if d.source == "notes"}
    with pytest.raises(InvalidRequestError, match="no source 'x'"):
        list(sample_documents(out, 1, 0, source="x"))


def test_workers_change_no_byte(made: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    folder, words = made
    build_corpus(tmp_path / "out", settings(folder, words, processes=2))
    assert contents(tmp_path / "out") == contents(folder / "out")


class StoppedError(Exception):
    pass


def stop_at(number: int) -> Callable[[Progress], None]:
    seen = [0]

    def on_progress(_: Progress) -> None:
        seen[0] += 1
        if seen[0] == number:
            raise StoppedError

    return on_progress


def test_stopped_anywhere_and_called_again_ends_the_same(made: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    folder, words = made
    stops = 0
    for number in range(2, 200):
        try:
            build_corpus(tmp_path / "out", settings(folder, words), stop_at(number))
            break
        except StoppedError:
            stops += 1
            with pytest.raises(InvalidRequestError, match="no finished corpus"):
                manifest_of(tmp_path / "out")
    assert stops > 10
    assert contents(tmp_path / "out") == contents(folder / "out")


KILLED = """
import sys, time
from pathlib import Path
from smelt.data.corpus.build import build_corpus
from smelt.data.corpus.plan import Settings
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
settings = Settings(data=folder / "data", wanted=tuple(sys.argv[3:]), piece_chars=4000, valid_share=0.15)
build_corpus(out, settings, lambda at: (print(at.stage, flush=True), time.sleep(0.05)))
"""


def test_kill_9_and_again_ends_the_same(made: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    folder, words = made
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "out"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(6)]
        time.sleep(0.03)
        process.send_signal(signal.SIGKILL)
    assert lines[-1].strip() == "filter"
    assert list((tmp_path / "out" / "work" / "pieces").glob("*.report.json"))
    build_corpus(tmp_path / "out", settings(folder, words))
    assert contents(tmp_path / "out") == contents(folder / "out")


def test_a_finished_corpus_is_not_made_again_and_other_settings_are_refused(
    made: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    folder, words = made
    stages: list[str] = []
    found = build_corpus(folder / "out", settings(folder, words), lambda at: stages.append(at.stage))
    assert found == manifest_of(folder / "out")
    assert stages == ["look at sources"]
    with pytest.raises(InvalidRequestError, match="another limit_chars"):
        build_corpus(folder / "out", settings(folder, words, limit_chars=100))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InvalidRequestError, match="neither empty nor a corpus"):
        build_corpus(tmp_path, settings(folder, words))


def test_a_limit_reads_so_much_of_each_source(made: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    folder, words = made
    manifest = build_corpus(tmp_path / "out", settings(folder, words, limit_chars=8000))
    for source in manifest["sources"]:
        assert source["read"]["chars"] >= 8000
    assert manifest["sources"][0]["read"]["chars"] < 10_000


def test_sites_that_mostly_aggregate_people_go_whole(tmp_path: Path) -> None:
    rng = random.Random(6)
    people = next(text for name, language, text in BAD if (name, language) == ("personal data", "en"))
    rows = [{"text": prose(rng), "url": f"https://people.example/{i}"} for i in range(12)]
    rows += [{"text": people + f"\n{prose(rng, 2)}", "url": f"https://people.example/p{i}"} for i in range(13)]
    rows += [{"text": prose(rng), "url": f"https://news.example/{i}"} for i in range(25)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = build_corpus(tmp_path / "out", Settings(wanted=(f"a={tmp_path / 'a.jsonl'},language=en",)))
    drops = json.loads((tmp_path / "out" / "drops.json").read_text())["a"]
    assert (drops["personal data"]["count"], drops["personal data site"]["count"]) == (13, 12)
    assert manifest["sources"][0]["kept"] == 25
    assert all("news.example" in d.key for split in SPLITS for d in read_documents(tmp_path / "out", split))


def test_a_document_knows_its_host() -> None:
    document = Document(text="x", source="s", language="en", key="https://people.example:80/a")
    assert document.host == "people.example"
    assert Document(text="x", source="s", language="en", key="a.txt#0").host == ""
