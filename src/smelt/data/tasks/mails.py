"""Replies to mails: whom to, what about and what to say stand in the thread and in the user's order."""

from __future__ import annotations

from smelt.core.messages import Message
from smelt.data.example import Example
from smelt.data.tasks.catalog import roles
from smelt.data.tasks.phrases import entries, options, phrase, woven
from smelt.data.tasks.stories import unrelated
from smelt.data.tasks.values import Values

_HEADERS = {"en": ("From", "To", "Subject", "Date"), "de": ("Von", "An", "Betreff", "Datum"),
            "zh": ("发件人", "收件人", "主题", "日期")}  # fmt: skip


def mail_example(v: Values, skill: str = "mail") -> Example:
    """A thread of one to three mails, what to answer, and the reply with its greeting and its name."""
    v.wild = 0.0
    topic = v.pick([name for name, entry in entries("mails").items() if "." not in name and entry.rest])
    answer = v.pick([key.rpartition(".")[2] for key in entries("mails") if key.startswith(f"{topic}.order.")])
    facts = {role: v.draw(roles()[role].kind).text for role in entries("mails")[topic].rest.split()}
    order_roles = entries("mails")[f"{topic}.order.{answer}"].rest.split()
    facts |= {role: v.draw(roles()[role].kind).text for role in order_roles}
    sender, signer = v.draw("person").text, v.draw("person").text
    template = v.pick(options(v, f"mails/{topic}.reply.{answer}"))
    body = woven(template, facts)
    parts = [phrase(v, "mails/hello", p=sender), body, phrase(v, "mails/bye", s=signer)]
    thread = _thread(v, woven(v.pick(options(v, f"mails/{topic}")), facts), sender, signer)
    order = phrase(v, f"mails/{topic}.order.{answer}", **facts)
    request = phrase(v, "mails/task", m=thread, o=order, s=signer)
    phrases = (sender, body.rstrip(".。"), signer)
    turns = (Message.of("user", request), Message.of("assistant", "\n\n".join(parts)))
    return Example(skill=skill, language=v.language, messages=turns, phrases=phrases)


def _thread(v: Values, body: str, sender: str, signer: str) -> str:
    """The mail to be answered, newest first, with older ones under it."""
    mails = [_mail(v, _around(v, body), sender, signer)]
    people = [signer, sender]
    for _ in range(v.pick([0, 0, 1, 1, 2])):
        writer, reader = people
        mails.append(_mail(v, phrase(v, "mails/before", p=reader), writer, reader))
        people.reverse()
    if v.chance(0.3):
        return v.pick(["\n\n", "\n---\n"]).join(reversed(mails))
    return v.pick(["\n\n", "\n---\n"]).join(mails)


def _around(v: Values, body: str) -> str:
    gap = "" if v.language == "zh" else " "
    if v.chance(0.4):
        body = f"{unrelated(v, 0.3)}{gap}{body}"
    return f"{body}{gap}{unrelated(v, 0.3)}" if v.chance(0.3) else body


def _mail(v: Values, body: str, sender: str, reader: str) -> str:
    origin, target, subject, date = _HEADERS[v.language]
    colon = "：" if v.language == "zh" else ": "
    lines = [f"{origin}{colon}{_address(v, sender)}", f"{target}{colon}{_address(v, reader)}"]
    if v.chance(0.5):
        lines.append(f"{subject}{colon}{v.draw('title').text}")
    if v.chance(0.4):
        lines.append(f"{date}{colon}{v.draw('date').text}")
    if v.chance(0.5):
        body = f"{body}\n{sender}"
    return "\n".join([*lines, body])


def _address(v: Values, person: str) -> str:
    return f"{person} <{v.draw('email').text}>" if v.chance(0.35) else person
