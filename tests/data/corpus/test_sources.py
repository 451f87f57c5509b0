"""Readers, cleaners and the catalogue, on small invented files of each kind."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from smelt.core.errors import InvalidRequestError
from smelt.data.corpus import clean, readers
from smelt.data.corpus.documents import RawText
from smelt.data.corpus.readers import Meter
from smelt.data.corpus.text_sources import SOURCES, chosen

BY_NAME = {source.name: source for source in SOURCES}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    path.write_bytes(zstandard.compress(content) if path.suffix == ".zst" else content)
    return path


def archive(path: Path, files: dict[str, str]) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress(buffer.getvalue()))
    return path


def texts(name: str, folder: Path) -> list[RawText]:
    return list(BY_NAME[name].texts(folder, Meter()))


def test_wiki_pages_carry_their_url(tmp_path: Path) -> None:
    page = (
        '<doc id="7" url="https://de.wikipedia.org/wiki?curid=7" title="A &quot;b&quot;">\nA\n\nEine Seite.\n\n</doc>\n'
    )
    for file in BY_NAME["dewiki"].files:
        write(tmp_path / file, page)
    meter = Meter()
    found = list(BY_NAME["dewiki"].texts(tmp_path, meter))
    assert [(raw.key, raw.text) for raw in found] == [
        ("https://de.wikipedia.org/wiki?curid=7", "A\n\nEine Seite.\n")
    ] * 2
    assert meter.read_bytes == meter.total_bytes > 0


def test_a_page_cut_off_at_the_end_of_a_file_is_left_out(tmp_path: Path) -> None:
    for file in BY_NAME["zhwiki"].files:
        write(tmp_path / file, '<doc id="7" url="u" title="t">\nhalf a page')
    assert texts("zhwiki", tmp_path) == []


def test_encyclopedia_text_loses_what_the_extractor_left() -> None:
    text = "Batman &amp;amp; Robin （，） is () a [[film|movie]].<ref name=x>\n"
    text += "{{#if: x}}\n!总和||4\nso formula_7 holds\nSee also:\n"
    assert clean.encyclopedia(text) == "Batman & Robin is a movie."
    assert clean.encyclopedia("甲\n\n甲是人。\n生平.\n他很好。\n作品.\n参考.\n") == "甲\n\n甲是人。\n生平.\n他很好。"


@given(st.text(max_size=60))
def test_cleaners_are_idempotent(text: str) -> None:
    for cleaner in (clean.regular, clean.code_safe):
        assert cleaner(cleaner(text)) == cleaner(text)


def test_code_keeps_its_indentation() -> None:
    assert clean.code_safe("def f():\r\n    return 1  \n\n\n\nx\u200b") == "def f():\n    return 1\n\nx"
    assert clean.regular("a  b\t c\n\n\n\n d ") == "a b c\n\n d"


def test_textbooks_lose_bare_values_and_stories_their_page_breaks() -> None:
    assert (
        clean.textbook("Roots\n121\n3.316625\n1,331\nThe square root of 16 is 4.")
        == "Roots\nThe square root of 16 is 4."
    )
    story = "# The owl\n\n##\nAn owl sat\nin a tree.\n\n##\nIt sang.\n\n##\n* License: [CC-BY]\n* Text: A. Author\n"
    assert clean.story(story) == "The owl\n\nAn owl sat in a tree.\n\nIt sang."


def test_stories_under_a_non_commercial_licence_are_not_used(tmp_path: Path) -> None:
    story = "# Owl\n\n##\nAn owl.\n\n##\n* License: [{}]\n"
    files = {
        "asp/en/0001_owl.md": story.format("CC-BY"),
        "asp/en/0002_cat.md": story.format("CC-BY-NC"),
        "asp/en/0003_dog.md": "# Dog\n",
        "asp/fr/0001_hibou.md": story.format("CC-BY"),
        "asp/en/README.md": "list",
    }
    archive(tmp_path / "text/asp_stories.tar.zst", files)
    found = texts("storybook", tmp_path)
    assert [(raw.key[-10:], raw.text is not None, raw.fault) for raw in found] == [
        ("001_owl.md", True, ""),
        ("002_cat.md", False, "licence"),
        ("003_dog.md", False, "licence"),
    ]
    assert (found[0].language, found[0].group) == ("en", "0001")


def test_levels_and_translations_of_one_text_are_a_group(tmp_path: Path) -> None:
    root = "o/Texts-SeparatedByReadingLevel"
    levels = ("Ele-Txt/Bees-ele.txt", "Adv-Txt/Bees-adv.txt", "Int-Txt/Int-Txt/Bees-int.txt", "Int-Txt/Bees-int.txt")
    archive(
        tmp_path / "text/onestop_english.tar.zst",
        {f"{root}/{name}": "\ufeffIntermediate \nBees hum." for name in levels} | {f"{root}/Ele-Txt/.DS_Store": "x"},
    )
    found = texts("onestop", tmp_path)
    assert [raw.group for raw in found] == ["Bees"] * 3  # the outer middle level has lost its quotation marks
    assert {raw.text for raw in found} == {"Bees hum."}
    archive(
        tmp_path / "text/tldr.tar.zst",
        {
            "t/pages/common/tar.md": "# tar",
            "t/pages.de/common/tar.md": "# tar",
            "t/pages.es/common/tar.md": "x",
            "t/S.md": "",
        },
    )
    assert [(raw.language, raw.group) for raw in texts("tldr", tmp_path)] == [("en", "tar.md"), ("de", "tar.md")]
    archive(tmp_path / "text/d2l_zh.tar.zst", {"d/ch/a.md": "一", "d/ch/a_origin.md": "one", "d/SOURCE.md": "x"})
    assert [(raw.language, raw.group) for raw in texts("d2l", tmp_path)] == [("zh", "ch/a"), ("en", "ch/a")]


@pytest.mark.parametrize("packed", ["", ".zst"])
def test_json_lines_name_their_language_and_faults_are_counted(tmp_path: Path, packed: str) -> None:
    lines = [
        json.dumps({"text": "Eins", "url": "https://a.de/1", "lang": "DE"}),
        json.dumps({"content": "Two", "id": 7}),
        "",
        "{broken",
        json.dumps({"title": "no text"}),
        json.dumps([1]),
    ]
    path = write(tmp_path / f"x.jsonl{packed}", "\n".join(lines))
    found = list(readers.by_suffix(path, Meter()))
    assert [(raw.key, raw.text, raw.language, raw.fault) for raw in found[:2]] == [
        ("https://a.de/1", "Eins", "de", ""),
        ("7", "Two", "", ""),
    ]
    assert [raw.fault for raw in found[2:]] == ["unreadable"] * 3


def test_long_plain_files_are_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraph = "A line of text that says little.\n" * 100 + "\n"
    path = write(tmp_path / "book.txt", paragraph * 100)
    found = list(readers.by_suffix(path, Meter()))
    assert len(found) == 4
    assert "\n".join(raw.text or "" for raw in found) + "\n" == paragraph * 100
    assert all((raw.text or "").endswith("\n") for raw in found)  # at a blank line
    assert {raw.group for raw in found} == {"book.txt"}


def test_chosen_follows_words_and_says_what_it_cannot(tmp_path: Path) -> None:
    write(tmp_path / "notes" / "a.md", "x")
    write(tmp_path / "notes" / "b.png", "x")
    write(tmp_path / "text/vue.txt", "x")
    source = chosen([f"notes={tmp_path / 'notes'},language=de,licence=own"], None)[0]
    assert (source.name, source.language, source.licence, len(source.files)) == ("notes", "de", "own", 1)
    archive(tmp_path / "text/tldr.tar.zst", {})
    assert [one.name for one in chosen([], tmp_path)] == ["tldr"]
    for word, complaint in (
        ("nosuch", "there are openstax"),
        ("enwiki", "not under --data"),
        (f"notes={tmp_path}/notes,language=fr", "language 'fr'"),
        (f"notes={tmp_path}/notes,speed=1", "unknown option 'speed'"),
        (f"Notes={tmp_path}/notes", "lower-case"),
        (f"notes={tmp_path}/absent", "no file at"),
    ):
        with pytest.raises(InvalidRequestError, match=complaint):
            chosen([word], tmp_path)
    with pytest.raises(InvalidRequestError, match="no source of text"):
        chosen([], None)
    with pytest.raises(InvalidRequestError, match="two sources"):
        chosen(["tldr", "tldr"], tmp_path)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_source_reads_real_files(shared_data: Path, name: str) -> None:
    source = BY_NAME[name]
    assert source.licence
    assert source.origin
    found = [raw for _, raw in zip(range(40), source.texts(shared_data, Meter()), strict=False)]
    usable = [raw for raw in found if raw.text is not None]
    assert len(usable) >= 25
    assert all("<doc id=" not in (raw.text or "") for raw in usable)
