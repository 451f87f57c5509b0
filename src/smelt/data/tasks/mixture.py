"""The generated mixture: example number i of a seed is always the same, whatever was drawn before it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from smelt.data.example import Example
from smelt.data.tasks.about import Limits
from smelt.data.tasks.absence import contrast_example, lookup_example, offered_example
from smelt.data.tasks.extraction import basket_example, extract_example, free_example
from smelt.data.tasks.hierarchy import aligned_example, conflict_example, topic_example
from smelt.data.tasks.injections import document_example, fidelity_example
from smelt.data.tasks.injections import result_example as order_in_result_example
from smelt.data.tasks.limits import limits_example
from smelt.data.tasks.lookup import long_example, repeat_example
from smelt.data.tasks.mails import mail_example
from smelt.data.tasks.multicalls import chain_example, many_example, missing_example, parallel_example
from smelt.data.tasks.policies import policy_example
from smelt.data.tasks.reading import reading_example
from smelt.data.tasks.receipts import receipt_example
from smelt.data.tasks.records import filing_example, nested_example, null_example, told_example
from smelt.data.tasks.secrets import given_example, kept_example
from smelt.data.tasks.service import classify_example, service_example
from smelt.data.tasks.talk import facts_example, talk_example
from smelt.data.tasks.toolcalls import call_example, no_tool_example, result_example, session_example
from smelt.data.tasks.values import Values

Generator = Callable[[Values], Example]

GENERATORS: Mapping[str, Generator] = {
    # tools
    "call": call_example,
    "session": session_example,
    "no_tool": no_tool_example,
    "offered": offered_example,
    "contrast": contrast_example,
    "many": many_example,
    "parallel": parallel_example,
    "missing": missing_example,
    "chain": chain_example,
    "filing": filing_example,
    "result": result_example,
    # fields out of texts
    "extract": extract_example,
    "free": free_example,
    "basket": basket_example,
    "told": told_example,
    "nested": nested_example,
    "null": null_example,
    "receipt": receipt_example,
    # answers
    "classify": classify_example,
    "service": service_example,
    "facts": facts_example,
    "policy": policy_example,
    "mail": mail_example,
    "reading": reading_example,
    "talk": talk_example,
    "limits": limits_example,
    # who may give orders
    "aligned": aligned_example,
    "conflict": conflict_example,
    "topic": topic_example,
    "document": document_example,
    "tool_order": order_in_result_example,
    "fidelity": fidelity_example,
    "secret_kept": kept_example,
    "secret_given": given_example,
    # copying and finding
    "repeat": repeat_example,
    "lookup": lookup_example,
    "long": lambda v: long_example(v, v.rng.randint(300, 1500)),
    "longer": lambda v: long_example(v, v.rng.randint(2000, 9000)),
}


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Weights over the generators and the languages; `pools` of sentences make words and surroundings open.

    `limits` is what the model is taught to say of itself.
    """

    weights: Mapping[str, float]
    pools: Mapping[str, Sequence[str]] = field(default_factory=dict)
    languages: Mapping[str, float] = field(default_factory=lambda: {"en": 0.44, "de": 0.28, "zh": 0.28})
    limits: Limits = Limits()

    def example(self, seed: int, index: int) -> Example:
        """Example `index` of the stream `seed`."""
        rng = random.Random(f"{seed}/{index}")
        name = rng.choices(list(self.weights), list(self.weights.values()))[0]
        language = rng.choices(list(self.languages), list(self.languages.values()))[0]
        return GENERATORS[name](Values(rng, language, "train", self.pools, self.limits))
