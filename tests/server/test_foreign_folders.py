"""Folders that transformers wrote, family by family: our server, the official client, and transformers as the twin."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import torch
import transformers
from starlette.testclient import TestClient

from smelt.generate.llm import LLM
from smelt.generate.options import LLMOptions
from smelt.server.app import create_app
from smelt.server.settings import Settings
from smelt.tokenizer import Tokenizer
from tests.server.foreign import CHAT_FAMILIES, FAMILIES, make_foreign_folder

MODEL = "gpt-4o-mini"
ASK: list[Any] = [
    {"role": "system", "content": "Be terse."},
    {"role": "user", "content": "What's the weather in Berlin? <|im_end|><|eot_id|><end_of_turn>"},
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "unit": {"enum": ["c", "f"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA, "strict": True}}
PROMPTS = (
    "What's the weather in Berlin today?",
    "我想订两张去北京的火车票",
    "  two spaces, 1234567 digits\n\n\n\nfour line ends",
    "text that spells controls: <|eot_id|> <|im_end|> <end_of_turn> </s> [INST]",
    "a",
)
NUM_GREEDY = 20


@dataclass(frozen=True)
class Served:
    """A folder behind a server, and the same folder in transformers."""

    family: str
    client: openai.OpenAI
    tokenizer: Tokenizer
    their_tokenizer: transformers.PreTrainedTokenizerFast
    their_model: transformers.PreTrainedModel

    def chat(self, **fields: Any) -> Any:
        return self.client.chat.completions.create(model=MODEL, messages=ASK, **fields)

    def complete(self, **fields: Any) -> Any:
        return self.client.completions.create(model=MODEL, **fields)


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    family: str = request.param
    folder = make_foreign_folder(tmp_path_factory.mktemp("foreign") / family, family)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    with (
        contextlib.closing(LLM.load(folder, options=LLMOptions(weights="fp32", threads=1, kv_bytes=1 << 23))) as llm,
        TestClient(create_app(llm, Settings()), base_url="http://127.0.0.1:8000") as transport,
        openai.OpenAI(
            base_url="http://127.0.0.1:8000/v1", api_key="none", max_retries=0, http_client=transport
        ) as client,
    ):
        yield Served(
            family,
            client,
            llm.tokenizer,
            transformers.AutoTokenizer.from_pretrained(folder),
            transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        )


@pytest.fixture
def chatting(served: Served) -> Served:
    if served.family not in CHAT_FAMILIES:
        pytest.skip("a base model")
    return served


def _greedy_twin(served: Served, ids: torch.Tensor) -> list[int]:
    """What transformers' generate continues with, where it may draw what a raw completion may: text, or an end."""
    ends = served.their_model.generation_config.eos_token_id
    named = {served.tokenizer.control_ids.get(name) for name in ("<|endoftext|>", "<|end_of_text|>", "<eos>")}
    stops = {*(ends if isinstance(ends, list) else [ends]), *(i for i in named if i is not None)}
    ids_without_text = {i for i in range(served.their_model.config.vocab_size) if not served.tokenizer.token_bytes(i)}
    found = served.their_model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_GREEDY,
        do_sample=False,
        suppress_tokens=sorted(ids_without_text - stops) or None,
        eos_token_id=sorted(stops),
        pad_token_id=0,
    )
    return [i for i in found[0, ids.shape[1] :].tolist() if i not in stops]


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_greedy_completions_are_those_of_transformers(served: Served, prompt: str) -> None:
    """From text, and from transformers' own ids; so the begin token, normalizer and merges agree too.

    Llama 3's begin token was missing here before it was looked for behind another post-processor.
    """
    ids = served.their_tokenizer(prompt, return_tensors="pt", split_special_tokens=True).input_ids
    sought = _greedy_twin(served, ids)
    of_text, of_ids = (
        served.complete(prompt=asked, max_tokens=NUM_GREEDY, temperature=0) for asked in (prompt, ids[0].tolist())
    )
    assert of_text.usage.prompt_tokens == of_ids.usage.prompt_tokens == ids.shape[1]
    data = b"".join(map(served.tokenizer.token_bytes, sought))
    assert of_text.choices[0].text == of_ids.choices[0].text == data.decode("utf-8", "replace")
    assert of_text.usage.completion_tokens == len(sought)
    assert of_text.choices[0].finish_reason == ("length" if len(sought) == NUM_GREEDY else "stop")


@torch.no_grad()
def test_echoed_log_probabilities_are_those_of_transformers(served: Served) -> None:
    ids = served.their_tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    rows = served.their_model(ids).logits[0].log_softmax(-1)
    sought = [float(rows[i - 1, ids[0, i]]) for i in range(1, ids.shape[1])]
    lists = served.complete(prompt=PROMPTS[0], echo=True, logprobs=1, max_tokens=1, temperature=0).choices[0].logprobs
    found = [value for value in lists.token_logprobs[:-1] if value is not None]
    assert found == pytest.approx(sought, abs=1e-3)
    best = [max(top.values()) for top in lists.top_logprobs[:-1] if top is not None]
    assert best == pytest.approx(rows[:-1].max(-1).values.tolist(), abs=1e-3)
    assert "".join(lists.tokens[: ids.shape[1]]).startswith(("What's", " What's"))


def test_chat_prompts_have_the_length_of_their_own_template(chatting: Served) -> None:
    """The house rules differ from a template's where it does not matter here; control tokens in texts stay text."""
    messages = ASK[1:]
    text = chatting.their_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    words = messages[0]["content"]
    before, after = text.split(words)
    if chatting.family == "qwen3":
        after += "<think>\n\n</think>\n\n"
    ids = chatting.their_tokenizer(before, add_special_tokens=False).input_ids
    ids += chatting.their_tokenizer(after, add_special_tokens=False).input_ids
    answer = chatting.client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
    # The texts around the user's words may merge with them, a token at either end.
    words_len = len(chatting.tokenizer.encode(words))
    assert abs(answer.usage.prompt_tokens - len(ids) - words_len) <= 2


def test_chat_streams_what_it_answers(chatting: Served) -> None:
    whole = chatting.chat(max_tokens=24, temperature=0)
    chunks = list(chatting.chat(max_tokens=24, temperature=0, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > 0
    again = chatting.chat(max_tokens=24, temperature=0, logprobs=True, top_logprobs=2).choices[0]
    assert again.message.content == text
    assert all(len(report.top_logprobs) == 2 for report in again.logprobs.content)


def test_required_calls_are_valid_and_their_results_are_taken(chatting: Served) -> None:
    answer = chatting.chat(tools=[TOOL], tool_choice="required", max_tokens=300, seed=3)
    message = answer.choices[0].message
    for call in message.tool_calls:
        assert call.function.name == "get_weather"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    results = [{"role": "tool", "tool_call_id": call.id, "content": "12 C, rain"} for call in message.tool_calls]
    follow: list[Any] = [*ASK, message.model_dump(exclude_none=True), *results]
    after = chatting.client.chat.completions.create(model=MODEL, messages=follow, tools=[TOOL], max_tokens=4)
    assert after.usage.prompt_tokens > answer.usage.prompt_tokens


def test_json_answers_are_valid(chatting: Served) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": SCHEMA}}
    answer = chatting.chat(response_format=form, max_tokens=200, seed=1)
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)


def test_a_base_model_refuses_to_chat_and_says_what_it_can(served: Served) -> None:
    if served.family in CHAT_FAMILIES:
        pytest.skip("a chat model")
    with pytest.raises(openai.BadRequestError, match="not a chat model.*Use /v1/completions"):
        served.chat(max_tokens=1)


def test_the_folders_hold_what_published_ones_hold(tmp_path: Path) -> None:
    """Guards the helper: a fixture that drifted into something simpler would prove less."""
    for family, key, value in (
        ("llama3", "rope_type", "llama3"),
        ("qwen3", "tie_word_embeddings", True),
        ("gemma3", "sliding_window", 16),
    ):
        folder = make_foreign_folder(tmp_path / family, family)
        config = json.loads((folder / "config.json").read_text())
        assert (config | config.get("rope_parameters", {}))[key] == value
        assert (folder / "chat_template.jinja").is_file()
