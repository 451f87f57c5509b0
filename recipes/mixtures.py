"""Shares of the generated tasks, by stage: copying, then every skill, then more of the decisions, then longer texts.

Numbers are weights of examples, not of tokens. `limits` (what the model says of itself) is the recipe's to set:
`dataclasses.replace(SKILLS, pools=..., limits=Limits(name=..., cutoff=...))`.
"""

from __future__ import annotations

from smelt.data.tasks.mixture import Mixture

# What the first token of a turn weighs in the loss. With 1 the choice between calling and saying that no tool fits was
# not learned in 18 M tokens; with 5 it was.
DECISION_WEIGHT = 5.0
# Copying is learned late and fast (reference runs: flat until 1.5 M tokens), noticing that something is not there later
# still: both in their densest form, a few short decisions to a conversation, before anything else.
COPYING = Mixture(
    weights={"repeat": 4, "lookup": 7, "offered": 5, "contrast": 2, "call": 2, "free": 2, "told": 2, "facts": 1}
)
_TOOLS = {
    "call": 12, "session": 5, "offered": 10, "contrast": 6, "no_tool": 2, "many": 3, "parallel": 5, "missing": 6,
    "chain": 5, "filing": 5, "result": 4,
}  # fmt: skip
_FIELDS = {"told": 14, "nested": 6, "null": 4, "receipt": 4, "extract": 3, "free": 2, "basket": 1}
_ANSWERS = {
    "classify": 3, "service": 4, "facts": 2, "policy": 4, "mail": 4, "reading": 5, "limits": 3, "talk": 1.5,
}  # fmt: skip
# Explicit refusals stay rare beside what is answered: reference/safety.md asks for the balance, 2.3.
_HIERARCHY = {
    "aligned": 5, "conflict": 5, "topic": 2, "document": 2, "tool_order": 3, "fidelity": 3, "secret_kept": 1.5,
    "secret_given": 2,
}  # fmt: skip
_COPYING = {"repeat": 3, "lookup": 4, "long": 1}
SKILLS = Mixture(weights={**_TOOLS, **_FIELDS, **_ANSWERS, **_HIERARCHY, **_COPYING})
# The same once values are copied: what decides (which tool, none, or a question back) is a small part of the tokens,
# and after 17 M tokens of SKILLS was mostly wrong still where copying out of a sentence was nine in ten right.
CHOICES = Mixture(
    weights={
        **SKILLS.weights, "call": 20, "session": 8, "offered": 14, "contrast": 14, "no_tool": 6, "many": 5,
        "parallel": 8, "missing": 12, "chain": 6, "extract": 5, "classify": 5, "service": 6, "limits": 6, "aligned": 8,
        "conflict": 9, "topic": 3, "document": 3, "tool_order": 4, "fidelity": 5, "reading": 3, "repeat": 2,
        "lookup": 3,
    }
)  # fmt: skip
LONGER = Mixture(weights={**CHOICES.weights, "long": 1.5, "longer": 0.6})
