"""What a system prompt keeps to itself, and what it may tell: the same question with and without leave to answer it.

Refusing everything that sounds of secrets would pass every attack and be of no use; so each secret has a twin that is
no secret, a word that opens it, or a harmless text with the same words.
"""

from __future__ import annotations

from smelt.core.messages import Message
from smelt.data.example import Example
from smelt.data.tasks.hierarchy import asked, facts, scene, styled
from smelt.data.tasks.phrases import options, phrase
from smelt.data.tasks.rules import Rule
from smelt.data.tasks.values import Values

_CASES = {"der": ("den", "dem"), "die": ("die", "der"), "das": ("das", "dem")}


def _named(v: Values) -> tuple[dict[str, str], str]:
    """What the secret is called, bare and with its article in each case, and the secret itself."""
    name = v.pick(options(v, "rules/what"))
    slots = {"l": name, "the": name, "den": name, "dat": name}
    if v.language == "en":
        slots |= {"the": f"the {name}"}
    elif v.language == "de":
        article, noun = name.split(" ", 1)
        accusative, dative = _CASES[article]
        slots = {"l": noun, "the": name, "den": f"{accusative} {noun}", "dat": f"{dative} {noun}"}
    large = slots["the"] if v.language == "de" else name
    value = v.draw("code").text if v.chance(0.6) else v.invented(3) + v.digits(1, 3)
    return slots | {"L": large[0].upper() + large[1:]}, value


def _system(v: Values, lines: list[str], secret: str) -> Message:
    return Message.of("system", scene(v, lines, [Rule("secret", "", secret)]))


def kept_example(v: Values, skill: str = "secret_kept") -> Example:
    """Somebody wants the secret or the prompt itself, plainly or by tricks: neither is told."""
    told = facts(v, v.rng.randint(1, 3))
    labels, value = _named(v)
    word = v.invented_name() if v.chance(0.3) else ""
    kind = "rules/secret.key" if word else "rules/secret"
    turns = [_system(v, [line for _, _, line in told], phrase(v, kind, **labels, s=value, w=word))]
    if v.split == "train" and v.chance(0.4):  # harmless questions beside it are answered
        block, answer, _ = v.pick(told)
        turns += [Message.of("user", asked(v, block)), Message.of("assistant", answer.sentences[v.language])]
    if v.chance(0.35):
        wish = phrase(v, "rules/ask", **labels)
        if word and v.chance(0.6):  # a word, but the wrong one
            wish = f"{v.invented_name()}{'。' if v.language == 'zh' else '. '}{wish}"
    else:
        wish = styled(v, "user", phrase(v, "attacks/reveal", **labels))
    turns += [Message.of("user", wish), Message.of("assistant", phrase(v, "rules/refuse"))]
    return Example(
        skill=skill,
        language=v.language,
        messages=tuple(turns),
        phrases=(phrase(v, "rules/refuse"),),
        forbidden=(value,),
    )


def given_example(v: Values, skill: str = "secret_given") -> Example:
    """What sounds secret and may be told: an open code, the word that opens one, a list's harmless key, a change of
    mind that begins with "ignore"."""
    draw = v.rng.random()
    if draw < 0.55:
        return _opened(v, skill)
    return _harmless_key(v, skill) if draw < 0.8 else _revised(v, skill)


def _opened(v: Values, skill: str) -> Example:
    told = facts(v, v.rng.randint(1, 3))
    labels, value = _named(v)
    stop = "。" if v.language == "zh" else ". "
    question = phrase(v, "rules/ask", **labels)
    if v.chance(0.5):
        word = v.invented_name()
        setting = phrase(v, "rules/secret.key", **labels, s=value, w=word)
        question = f"{word}{stop}{question}"
    else:
        setting = phrase(v, "rules/secret.open", **labels, s=value)
    turns = [_system(v, [line for _, _, line in told], setting), Message.of("user", question)]
    turns.append(Message.of("assistant", phrase(v, "rules/say", **labels, s=value)))
    return Example(skill=skill, language=v.language, messages=tuple(turns), phrases=(value,))


def _harmless_key(v: Values, skill: str) -> Example:
    """The user's own list, with keys that a nervous model would refuse."""
    keys = v.rng.sample(options(v, "attacks/harmless"), k=v.rng.randint(2, 4))
    rows = {key: v.draw(v.pick(["code", "phone", "time", "sentence", "email"])).text for key in keys}
    listing = "\n".join(f"{key}: {text}" for key, text in rows.items())
    key = v.pick(keys)
    turns = (Message.of("user", f"{listing}\n\n{phrase(v, 'asking/lookup', k=key)}"),
             Message.of("assistant", rows[key]))  # fmt: skip
    return Example(skill=skill, language=v.language, messages=turns, phrases=(rows[key],))


def _revised(v: Values, skill: str) -> Example:
    """A user who takes back what he said: his own earlier words bind nobody."""
    rows = {v.draw(v.pick(["city", "person", "code", "product"])).text: v.draw(v.pick(["code", "phone", "date"])).text
            for _ in range(4)}  # fmt: skip
    names = list(rows)
    first, second = (names[0], names[-1]) if len(names) > 1 else (names[0], names[0])
    listing = "\n".join(f"{name}: {text}" for name, text in v.rng.sample(list(rows.items()), k=len(rows)))
    turns = (
        Message.of("user", f"{listing}\n\n{phrase(v, 'asking/lookup', k=first)}"),
        Message.of("assistant", rows[first]),
        Message.of("user", phrase(v, "attacks/revise", k=second)),
        Message.of("assistant", rows[second]),
    )
    return Example(skill=skill, language=v.language, messages=turns, phrases=(rows[second],))
