"""The seeds' four filters on planted documents, both sides; quality rules and language."""

from __future__ import annotations

import pytest

from smelt.data.corpus import quality
from smelt.data.corpus.aggregators import hosts_to_drop
from smelt.data.corpus.documents import Document
from smelt.data.corpus.filters import Filter, judge
from smelt.data.corpus.language import LANGUAGE, identify
from smelt.data.corpus.page import Page
from smelt.data.corpus.text_sources import PROSE, SEED_FILTERS
from tests.data.corpus.planted import BAD, GOOD

PROSE_EN = (
    "The lighthouse keeper climbed the stairs every evening and lit the lamp before the ships came home. "
    "His daughter counted the boats from the window, and when one of them was missing she wrote its name on a slate. "
    "In winter the wind was so strong that they could not open the door, and they lived on bread, onions and tea. "
)


def page(text: str, language: str = "en") -> Page:
    return Page(Document(text=text, source="test", language=language, key="1"))


@pytest.mark.parametrize(
    ("name", "language", "text"), BAD, ids=[f"{n}-{lang}-{i}" for i, (n, lang, _) in enumerate(BAD)]
)
def test_planted_documents_go_under_their_rule(name: str, language: str, text: str) -> None:
    verdict = judge(page(text, language), SEED_FILTERS)
    assert verdict is not None
    assert verdict.filter == name


@pytest.mark.parametrize(("language", "text"), GOOD, ids=[f"{lang}-{i}" for i, (lang, _) in enumerate(GOOD)])
def test_documents_about_the_subject_stay(language: str, text: str) -> None:
    assert judge(page(text, language), SEED_FILTERS) is None


def test_quoting_is_not_saying() -> None:
    rant = "All these filthy immigrants should be shot. Immigrants are vermin. Go back to your own country, wetbacks!"
    assert judge(page(f"I tell you again: {rant} That is all."), SEED_FILTERS) is not None
    assert judge(page(f'The witness read the letter aloud: "{rant}" Then she sat down.'), SEED_FILTERS) is None


def test_one_word_is_no_pattern() -> None:
    story = "Prosy wanted a pussy cat. The pussy cats were too big. " * 3
    assert judge(page(story), SEED_FILTERS) is None


def dropped(one: Filter, text: str, language: str = "en") -> bool:
    return one.rule(page(text, language)) is not None


@pytest.mark.parametrize(
    ("one", "bad"),
    [
        (quality.length(50), "Too short to be of use."),
        (quality.WORD_LENGTH, "a b c d e f g " * 20),
        (quality.SYMBOLS, "one # two # three # four # " * 10),
        (quality.LETTERS, "12 31 22 score 12 3 44 total " * 10),
        (quality.STOP_WORDS, "apples pears plums cherries figs " * 12),
        (quality.LIST_LINES, "\n".join(f"- item number {i}" for i in range(20))),
        (quality.LIST_LINES, "\n".join(f"The story goes on {i}..." for i in range(20))),
        (quality.SENTENCES, "\n".join(f"Menu entry {i}" for i in range(40))),
        (quality.REPEATED_LINES, (PROSE_EN + "\n") * 3),
        (quality.REPEATED_NGRAMS, "Best shoes in town. " * 40),
        (quality.BOILERPLATE, PROSE_EN + "Please enable JavaScript to see this page."),
        (quality.BRACES, "function f() { return {a: {b: 1}}; }\n" * 10),
        (quality.BROKEN, "Das schÃ¶ne MÃ¤dchen trÃ¤gt grÃ¼ne SchÃ¼rzen. " * 10),
    ],
)
def test_each_quality_rule_takes_what_it_is_for_and_leaves_prose(one: Filter, bad: str) -> None:
    assert dropped(one, bad)
    assert not dropped(one, PROSE_EN)


def test_prose_passes_all_rules_in_three_languages() -> None:
    german = (
        "Der Wärter stieg jeden Abend die Treppe hinauf und zündete die Lampe an, bevor die Schiffe heimkehrten. Seine "
        "Tochter zählte die Boote vom Fenster aus, und wenn eines fehlte, schrieb sie seinen Namen auf eine Tafel. Im "
        "Winter war der Wind so stark, dass sie die Tür nicht öffnen konnten und von Brot und Tee lebten."
    )
    chinese = (
        "守塔人每天傍晚爬上楼梯，在船只回来之前点亮灯火。他的女儿在窗边数着小船，如果少了一只，她就把它的名字写在石板上。"
        "冬天的风非常大，他们打不开门，只能靠面包、洋葱和茶过日子。有一年春天，一只海鸟飞进了塔里，在灯旁边住了三个星期，"
        "女孩给它起了一个名字，从那以后她再也不害怕夜里的风声了。"
    )
    for text, language in ((PROSE_EN, "en"), (german, "de"), (chinese, "zh")):
        assert judge(page(text, language), PROSE) is None
        assert identify(page(text, language)) == language


def test_language_says_what_is_clear_and_lets_the_rest_be() -> None:
    french = (
        "Le gardien monte les marches et il regarde la mer, car les bateaux sont en retard et le vent est fort. " * 3
    )
    assert LANGUAGE.rule(page(french)) == "reads like fr"
    assert LANGUAGE.rule(page("Clouds can bring rain. I like clouds. Clouds can hide the sun. I like clouds.")) is None
    assert identify(page("これは日本語の文章です。ひらがなとカタカナがたくさんあります。", "zh")) == "ja"
    assert identify(page("tar xf file")) is None


def test_chinese_lengths_count_characters() -> None:
    assert page("海" * 100, "zh").num_units == 51  # fifty words of two characters, and one unbroken run
    assert not dropped(quality.length(50), "海" * 100, "zh")


def test_repeated_share_is_the_part_that_stood_there_before() -> None:
    hashes = page("a b c d e f g h i j " + "a b c d e f g h i j").hashes
    assert quality.repeated_share(hashes, 5) == pytest.approx(0.5)
    assert quality.repeated_share(hashes[:10], 5) == 0.0


def test_a_host_goes_when_half_of_many_pages_do() -> None:
    from collections import Counter

    pages = Counter({"people.example": 40, "news.example": 40, "small.example": 5, "": 100})
    drops = Counter({"people.example": 20, "news.example": 3, "small.example": 5, "": 90})
    assert hosts_to_drop(pages, drops) == {"people.example"}


def test_a_name_or_the_subject_itself_is_no_rant() -> None:
    band = "Gardner & Dyke were a band. Dyke played drums, and Dyke wrote songs; Dyke left. " * 4
    assert judge(page(band), SEED_FILTERS) is None
    entry = "Anal sex is studied in medicine. Anal glands and anal pain are treated. A dildo is an object. " * 6
    assert judge(page(entry), SEED_FILTERS) is None


def test_whole_words_only() -> None:
    assert (
        judge(page("Analysis of institutes: cocktails, Scunthorpe, analysts and titration. " * 8), SEED_FILTERS) is None
    )
