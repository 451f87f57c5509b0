"""Pages, and then whole sites, that are there to collect people's addresses and numbers.

A page goes when records stand close together: a contact (phone, e-mail, street address, date of birth or relatives)
next to what looks like a name, at least three to 200 words, four in all and of three people. A host whose pages mostly
go, goes whole.
One imprint, one office address or a biography is no such page; its contacts are masked (`personal`).
"""

from __future__ import annotations

import re
from collections import Counter

from smelt.data.corpus.filters import Filter
from smelt.data.corpus.page import Page

MIN_RECORDS = 4
MIN_PEOPLE = 3
MIN_DENSITY = 3.0  # records per 200 words
HOST_MIN_PAGES = 20
HOST_SHARE = 0.5

_ADDRESSES = {
    "en": re.compile(
        r"\b\d{1,5} (?:[NSEW]\.? )?(?:[A-Z][\w'.-]* ){1,4}(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard"
        r"|Blvd|Court|Ct|Way|Place|Pl|Terrace|Circle|Close|Apt)\b"
    ),
    "de": re.compile(
        r"\b[A-ZÄÖÜ][\wäöüß.-]*(?:straße|strasse|str\.|weg|platz|allee|gasse|ring|damm|ufer)\s\d{1,4}\s?[a-z]?\b"
        r"|\b[A-ZÄÖÜ][\wäöüß-]+er (?:Straße|Str\.|Weg|Platz|Allee)\s\d{1,4}\b"
    ),
    "zh": re.compile(
        r"(?:[\u4e00-\u9fff]{1,8}(?:路|街|大道|巷|弄|胡同|小区|村))\d{1,5}号?|\d{1,3}[号栋幢]楼?\d{0,2}(?:单元)?\d{3,4}室"
    ),
}
_DETAILS = re.compile(
    r"\b(?:age|aged|born|dob|date of birth|relatives|related to|also known as|lives in|geboren|geb\.|geburtsdatum"
    r"|verwandte|wohnhaft in)\b[: ]|(?:年龄|出生日期|身份证号?|住址|家庭住址|亲属)[:：]",
    re.IGNORECASE,
)
# Chinese names are known by their family name: the usual ones, which nearly all people there have.
_SURNAMES = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康毛"
    "邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文庞樊兰殷施陶洪翟安颜倪严牛温芦季俞章鲁葛伍韦申尤毕聂焦柳邢岳齐梅莫庄辛管祝左涂谷祁舒耿牟卜詹苗凌费纪靳盛童欧甄项"
    "曲成游裴席卫查屈鲍位覃霍翁隋甘景薄单包司柏宁柯阮桂闵解强柴华车冉房边辜吉饶刁瞿戚丘古米池滕晋邬臧畅苟褚娄盖符奚木穆党燕郎冀谈姬屠连郁商蒙喻窦迟敖冷卓花仇艾都岑卞封"
    "竺虞皮克付伏傅仲巩柒匡宗应巫"
)
_NAMES = {
    "en": re.compile(
        r"\b[A-Z][a-z]+ (?:[A-Z]\.? )?[A-Z][a-z]+\b|\b[A-Z]{2,}, [A-Z][a-z]+\b|\b[A-Z][a-z]+[,;] ?[A-Z][a-z]+(?=[,;|])"
    ),
    "de": re.compile(
        r"\b[A-ZÄÖÜ][a-zäöüß]+ [A-ZÄÖÜ][a-zäöüß]+\b|\b[A-ZÄÖÜ]{2,}, [A-ZÄÖÜ][a-zäöüß]+\b"
        r"|\b[A-ZÄÖÜ][a-zäöüß]+[,;] ?[A-ZÄÖÜ][a-zäöüß]+(?=[,;|]| und )"
    ),
    "zh": re.compile(
        r"(?:姓名|联系人|机主|先生|女士|本名|真名|其子|其女|丈夫|妻子|儿子|女儿|外孙|侄子)"
        rf"|(?<![\u4e00-\u9fff])[{_SURNAMES}][\u4e00-\u9fff]{{1,2}}(?=[ ,，:：;；、|/\t(（])"
    ),
}
# Firms, houses and offices have names of the same form: a noun no person is called, or an adjective or article first.
_NO_PERSON = {
    "en": frozenset(
        "hotel inn arms lodge cottage restaurant cafe bar pub museum school centre center hospital clinic"
        " pharmacy surgery library office department ministry university college institute society club"
        " association company shop store bookshop market station airport helpline support council service"
        " services view theatre agency union".split()
    ),
    "de": frozenset(
        "hotel gasthaus gasthof pension haus restaurant café bar museum schule zentrum klinik apotheke praxis"
        " bücherei amt büro ministerium universität hochschule institut verein gesellschaft firma laden"
        " buchhandlung markt bahnhof straße platz ring zentrale stelle notruf hilfe beratung".split()
    ),
    "zh": frozenset(),
}
_NO_FIRST_NAME = {
    "en": frozenset(
        "the our your my this that golden silver blue green red white black old new great little grand royal"
        " public free please call from open closed north south east west in on at by for".split()
    ),
    "de": frozenset(
        "der die das den dem des ein eine einen einem einer im am vom zum zur bei beim in an auf für mit von"
        " unter über und ihr ihre ihren unser unsere unseren goldene goldener goldenes blaue blauer blaues"
        " grüne grüner grünes rote roter rotes weiße weißer weißes schwarze schwarzer schwarzes alte alter"
        " altes neue neuer neues große großer großes kleine kleiner kleines nach seit wo wer welche welcher"
        " telefon telefax fax mobil post bitte".split()
    ),
    "zh": frozenset(),
}
_LETTERS = re.compile(r"[^\W\d_]+")
_NEXT_WORD = re.compile(r"[ -][^\W\d_]+")
_PRIVATE = ("email", "phone", "national id")
_NEAR_CHARS = {"en": 90, "de": 90, "zh": 40}


def records(page: Page) -> tuple[int, int]:
    """(contacts that stand next to a name, names they stand next to); a name counts for one contact of each kind."""
    language = page.document.language
    contacts = Counter[str]()
    used: set[tuple[str, int]] = set()
    found = [(span.start, span.kind) for span in page.personal_spans if span.kind in _PRIVATE]
    found += [(match.start(), "address") for match in _ADDRESSES[language].finditer(page.text)]
    if not found:
        return 0, 0
    found += [(match.start(), "detail") for match in _DETAILS.finditer(page.text)]
    names = _people(page)
    for at, kind in sorted(found):
        near = [name for name in names if 0 < at - name <= _NEAR_CHARS[language]]
        if near and (kind, near[-1]) not in used:
            used.add((kind, near[-1]))
            contacts[kind] += 1
    if not any(contacts[kind] for kind in _PRIVATE):
        return 0, 0
    return contacts.total(), len({name for _, name in used})


def _people(page: Page) -> list[int]:
    """Where names of people begin: not inside an address, and not what a firm or an office is called."""
    language, text = page.document.language, page.text
    inside = [match.span() for match in _ADDRESSES[language].finditer(text)]
    found = []
    for match in _NAMES[language].finditer(text):
        after = _NEXT_WORD.match(text, match.end())
        words = _LETTERS.findall((match[0] + (after[0] if after else "")).lower())
        if words[0] in _NO_FIRST_NAME[language] or not _NO_PERSON[language].isdisjoint(words):
            continue
        if not any(start < match.end() and match.start() < end for start, end in inside):
            found.append(match.start())
    return found


def _aggregates(page: Page) -> str | None:
    if not any(mark in page.text for mark in "0123456789@"):
        return None
    count, people = records(page)
    density = 200 * count / max(page.num_units, 50)
    few = count < MIN_RECORDS or people < MIN_PEOPLE or density < MIN_DENSITY
    return None if few else f"{density:.1f} records per 200 words"


def hosts_to_drop(num_pages: Counter[str], num_dropped: Counter[str]) -> set[str]:
    """Hosts with at least 20 pages of which half or more aggregate personal data."""
    return {
        host
        for host, count in num_pages.items()
        if host and count >= HOST_MIN_PAGES and num_dropped[host] >= HOST_SHARE * count
    }


AGGREGATOR = Filter("personal data", _aggregates)
