"""Values that a schema wants written in its own way: dates as YYYY-MM-DD, money in cents, durations in minutes.

A schema says so in the property's format or description; a value without such a word is copied as the text has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from smelt.data.example import compact_json
from smelt.data.tasks.catalog import words
from smelt.data.tasks.values import Values

# Currencies as people say them, by code.
_CURRENCIES: Mapping[str, Mapping[str, str]] = {
    "EUR": {"en": "euros", "de": "Euro", "zh": "欧元"},
    "USD": {"en": "US dollars", "de": "US-Dollar", "zh": "美元"},
    "GBP": {"en": "British pounds", "de": "Pfund", "zh": "英镑"},
    "CHF": {"en": "Swiss francs", "de": "Schweizer Franken", "zh": "瑞士法郎"},
    "JPY": {"en": "yen", "de": "Yen", "zh": "日元"},
    "CNY": {"en": "yuan", "de": "Yuan", "zh": "人民币"},
    "SEK": {"en": "Swedish kronor", "de": "Schwedische Kronen", "zh": "瑞典克朗"},
    "PLN": {"en": "zloty", "de": "Zloty", "zh": "兹罗提"},
}
_COUNTRIES: Mapping[str, Mapping[str, str]] = {
    "DE": {"en": "Germany", "de": "Deutschland", "zh": "德国"},
    "FR": {"en": "France", "de": "Frankreich", "zh": "法国"},
    "IT": {"en": "Italy", "de": "Italien", "zh": "意大利"},
    "ES": {"en": "Spain", "de": "Spanien", "zh": "西班牙"},
    "AT": {"en": "Austria", "de": "Österreich", "zh": "奥地利"},
    "CH": {"en": "Switzerland", "de": "Schweiz", "zh": "瑞士"},
    "JP": {"en": "Japan", "de": "Japan", "zh": "日本"},
    "CN": {"en": "China", "de": "China", "zh": "中国"},
    "PL": {"en": "Poland", "de": "Polen", "zh": "波兰"},
    "US": {"en": "the United States", "de": "USA", "zh": "美国"},
    "GB": {"en": "Great Britain", "de": "Großbritannien", "zh": "英国"},
    "BR": {"en": "Brazil", "de": "Brasilien", "zh": "巴西"},
}
_DURATIONS: Mapping[int, Mapping[str, str]] = {
    15: {"en": "a quarter of an hour", "de": "eine Viertelstunde", "zh": "一刻钟"},
    30: {"en": "half an hour", "de": "eine halbe Stunde", "zh": "半小时"},
    45: {"en": "three quarters of an hour", "de": "eine Dreiviertelstunde", "zh": "三刻钟"},
    60: {"en": "one hour", "de": "eine Stunde", "zh": "一小时"},
    90: {"en": "an hour and a half", "de": "anderthalb Stunden", "zh": "一个半小时"},
    120: {"en": "two hours", "de": "zwei Stunden", "zh": "两小时"},
    180: {"en": "three hours", "de": "drei Stunden", "zh": "三小时"},
}
_MONTHS_SHORT = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


@dataclass(frozen=True, slots=True)
class Typed:
    """`text` as said, `schema` the property that asks for a form, `json` the value in that form."""

    text: str
    schema: dict[str, Any]
    json: str


def _described(v: Values, schema: dict[str, Any], said: Mapping[str, str], described: str) -> dict[str, Any]:
    return {**schema, "description": said[described]}


def _date(v: Values, described: str) -> Typed:
    day, month, year = v.rng.randint(1, 28), v.rng.randint(1, 12), v.rng.randint(2019, 2031)
    iso = f"{year}-{month:02d}-{day:02d}"
    draw = v.rng.random()
    if draw < 0.45:
        schema, written = {"type": "string", "format": "date"}, iso
    elif draw < 0.8:
        said = {"en": "Date as YYYY-MM-DD", "de": "Datum als JJJJ-MM-TT", "zh": "日期，格式YYYY-MM-DD"}
        schema, written = _described(v, {"type": "string"}, said, described), iso
    else:
        said = {"en": "Date as DD.MM.YYYY", "de": "Datum als TT.MM.JJJJ", "zh": "日期，格式DD.MM.YYYY"}
        schema, written = _described(v, {"type": "string"}, said, described), f"{day:02d}.{month:02d}.{year}"
    return Typed(full_date(v, day, month, year), schema, compact_json(written))


def full_date(v: Values, day: int, month: int, year: int) -> str:
    """A date with its year, in one of the language's ways that leave no doubt."""
    if v.language == "zh":
        return v.pick([f"{year}年{month}月{day}日", f"{year}年{month:02d}月{day:02d}日", f"{year}/{month}/{day}"])
    name = words(f"month.{v.language}")[month - 1]
    if v.language == "de":
        return v.pick([f"{day}. {name} {year}", f"{day:02d}.{month:02d}.{year}", f"{day}.{month}.{year}"])
    short = _MONTHS_SHORT[month - 1]
    return v.pick([f"{name} {day}, {year}", f"{day} {name} {year}", f"{short} {day}, {year}", f"{day} {short} {year}"])


def _time(v: Values, described: str) -> Typed:
    hour, minute = v.rng.randint(1, 23), v.pick([0, 0, 0, 30, 15, 45, 10])
    if hour == 12 and v.language != "de":  # noon is 12 pm to some and 12 am to others
        hour = 11
    said = {"en": "24-hour time HH:MM", "de": "Uhrzeit im Format HH:MM", "zh": "24小时制时间HH:MM"}
    schema = _described(v, {"type": "string"}, said, described)
    return Typed(_clock(v, hour, minute), schema, f'"{hour:02d}:{minute:02d}"')


def _clock(v: Values, hour: int, minute: int) -> str:
    if v.language == "de":
        return f"{hour} Uhr" if minute == 0 else v.pick([f"{hour}:{minute:02d} Uhr", f"{hour}.{minute:02d} Uhr"])
    half = hour - 12 if hour > 12 else hour
    if v.language == "zh":
        part = "早上" if hour < 9 else "上午" if hour < 12 else "下午" if hour < 18 else "晚上"
        tail = "" if minute == 0 else "半" if minute == 30 else f"{minute}分"
        return f"{part}{half}点{tail}"
    suffix = "pm" if hour > 12 else "am"
    clock = str(half) if minute == 0 else f"{half}:{minute:02d}"
    return v.pick([f"{clock} {suffix}", f"{clock}{suffix}", f"{clock} {suffix[0]}.m."])


def _money(v: Values, described: str) -> Typed:
    units, cents = int(v.digits(1, 4)), v.pick([0, 0, 50, 90, 95, 99, v.rng.randint(1, 99)])
    whole = units * 100 + cents
    if v.chance(0.4):
        said = {"en": "Amount in cents", "de": "Betrag in Cent", "zh": "金额，单位：分"}
        return Typed(price_text(v, whole), _described(v, {"type": "integer"}, said, described), str(whole))
    said = {"en": "Amount as a plain number", "de": "Betrag als reine Zahl", "zh": "金额，纯数字"}
    written = str(units) if cents == 0 else f"{units}.{cents:02d}".rstrip("0")
    return Typed(price_text(v, whole), _described(v, {"type": "number"}, said, described), written)


def price_text(v: Values, cents: int) -> str:
    """An amount with its currency sign, thousands set apart as the language does."""
    units, rest = divmod(cents, 100)
    grouped = f"{units:,}" if v.chance(0.5) else str(units)
    if v.language == "de":
        number = grouped.replace(",", ".") + (f",{rest:02d}" if rest else "")
        return v.pick([f"{number} €", f"{number} Euro", f"{number} EUR"])
    number = grouped + (f".{rest:02d}" if rest else "")
    if v.language == "zh":
        return v.pick([f"{number}元", f"￥{number}", f"人民币{number}元"])
    return v.pick([f"${number}", f"{number} dollars", f"€{number}", f"{number} EUR"])


def _minutes(v: Values, described: str) -> Typed:
    said = {"en": "Duration in minutes", "de": "Dauer in Minuten", "zh": "时长，单位：分钟"}
    schema = _described(v, {"type": "integer"}, said, described)
    if v.chance(0.6):
        minutes = v.pick(list(_DURATIONS))
        return Typed(_DURATIONS[minutes][v.language], schema, str(minutes))
    minutes = v.rng.randint(2, 24) * 5
    return Typed({"en": f"{minutes} minutes", "de": f"{minutes} Minuten", "zh": f"{minutes}分钟"}[v.language], schema,
                 str(minutes))  # fmt: skip


def _phone(v: Values, described: str) -> Typed:
    text = v.draw("phone").text
    said = {"en": "Digits only", "de": "Nur Ziffern", "zh": "只含数字"}
    digits = "".join(char for char in text if char.isdigit())
    return Typed(text, _described(v, {"type": "string"}, said, described), f'"{digits}"')


def _salary(v: Values, described: str) -> Typed:
    amount = v.rng.randint(11, 99) * 100
    schema: dict[str, Any] = {"type": "integer"}
    return Typed(f"{amount:,}".replace(",", {"en": ",", "de": ".", "zh": ","}[v.language]), schema, str(amount))


def _named(table: Mapping[str, Mapping[str, str]], said: Mapping[str, str]) -> Callable[[Values, str], Typed]:
    def draw(v: Values, described: str) -> Typed:
        code = v.pick(list(table))
        return Typed(table[code][v.language], _described(v, {"type": "string"}, said, described), f'"{code}"')

    return draw


_BY_KIND: Mapping[str, Callable[[Values, str], Typed]] = {
    "date": _date,
    "time": _time,
    "money": _money,
    "phone": _phone,
    "bigint": _salary,
    "currency": _named(
        _CURRENCIES,
        {
            "en": "ISO currency code, three letters",
            "de": "Währungscode nach ISO, drei Buchstaben",
            "zh": "三位货币代码",
        },
    ),
    "country": _named(
        _COUNTRIES, {"en": "Two-letter country code", "de": "Ländercode mit zwei Buchstaben", "zh": "两位国家代码"}
    ),
}
_BY_ROLE: Mapping[str, Callable[[Values, str], Typed]] = {"minutes": _minutes}


def normalised(v: Values, role: str, kind: str, described: str) -> Typed | None:
    """A value of the role that its schema wants in a form of its own, described in language `described`; None where
    the role has no such form."""
    make = _BY_ROLE.get(role) or _BY_KIND.get(kind)
    return make(v, described) if make else None
