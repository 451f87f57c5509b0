"""LLM.load over real folders and the native core: limits, identity, refusals, and no torch in the process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from smelt.core.decoder import DecoderConfig
from smelt.core.errors import CheckpointError, InvalidRequestError, UnsupportedError
from smelt.core.messages import Message, ResponseFormat, Tool, ToolChoice
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.generate.completion import PromptText
from smelt.generate.events import AnswerText
from smelt.generate.llm import LLM
from smelt.generate.options import LLMOptions, window
from tests.tiny import make_tiny_folder, tiny_config, tiny_tokenizer_files

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "days"],
}
ASK = ChatRequest(messages=(Message.of("user", "hello"),), params=SamplingParams(max_tokens=40, seed=1))


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> Iterator[LLM]:
    llm = LLM.load(tiny_folder, options=LLMOptions(weights="fp32", threads=1, kv_bytes=1 << 23))
    yield llm
    llm.close()


def test_a_folder_answers_with_calls_json_and_text(llm: LLM) -> None:
    assert llm.chat(ASK).message == llm.chat(ASK).message
    form = ResponseFormat("json_schema", "x", SCHEMA)
    answer = llm.chat(ChatRequest(messages=ASK.messages, response_format=form, params=SamplingParams(max_tokens=300)))
    jsonschema.validate(json.loads(answer.message.text), SCHEMA)
    required = ChatRequest(
        messages=ASK.messages,
        tools=(Tool("f", "", SCHEMA),),
        tool_choice=ToolChoice("required"),
        parallel_tool_calls=False,
        params=SamplingParams(max_tokens=300),
    )
    (call,) = llm.chat(required).message.tool_calls
    jsonschema.validate(json.loads(call.arguments), SCHEMA)


def test_log_probabilities_of_the_native_core(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=5, top_logprobs=3)
    events = list(llm.events(llm.prepare_completion("Good day to you", params, echo=True)))
    prompt = next(event for event in events if isinstance(event, PromptText))
    reports = [r for event in events if isinstance(event, AnswerText) for r in event.reports]
    assert len(prompt.tokens) == len(llm.tokenizer.encode("Good day to you"))
    for report in reports:
        assert report.token == report.top[0]  # greedy
        assert [alternative.logprob for alternative in report.top] == sorted(a.logprob for a in report.top)[::-1]


def test_a_loaded_model_says_what_it_is(llm: LLM, tiny_folder: Path) -> None:
    assert llm.name == "tiny"
    assert llm.context_len == llm.max_output_len == 1024
    assert llm.fingerprint.startswith("fp_")
    assert llm.created == int((tiny_folder / "config.json").stat().st_mtime)
    other = LLM.load(tiny_folder, options=LLMOptions(weights="w8", threads=1, kv_bytes=1 << 23, name="n"))
    assert other.name == "n"
    assert other.fingerprint != llm.fingerprint
    other.close()


def test_options_lower_the_limits(tiny_folder: Path) -> None:
    options = LLMOptions(threads=1, context_len=200, max_output_len=50)
    llm = LLM.load(tiny_folder, options=options)
    assert (llm.context_len, llm.max_output_len) == (200, 50)
    with pytest.raises(InvalidRequestError, match="supports at most 50 completion tokens"):
        llm.prepare(ChatRequest(messages=ASK.messages, params=SamplingParams(max_tokens=51)))
    llm.close()


def test_memory_decides_the_context() -> None:
    config: DecoderConfig = tiny_config(context_len=100_000)
    block_bytes = config.kv_bytes_per_token * 16
    found = window(config, LLMOptions(kv_bytes=10 * block_bytes + 1))
    assert (found.num_blocks, found.context_len) == (10, 160)
    with pytest.raises(UnsupportedError, match="no room for keys and values"):
        window(config, LLMOptions(kv_bytes=block_bytes - 1))
    whole = window(config, LLMOptions())
    assert whole.context_len == 100_000
    assert whole.max_output_len == 16_384


def test_a_folder_without_a_chat_format_completes_only(tmp_path: Path) -> None:
    folder = make_tiny_folder(tmp_path / "base", family="llama")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["content"] = token["content"].replace("<|", "<<")
    text = json.dumps(tokenizer).replace("<|", "<<")
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text("{}")
    llm = LLM.load(folder, options=LLMOptions(threads=1, kv_bytes=1 << 22))
    assert llm.renderer is None
    with pytest.raises(InvalidRequestError, match="not a chat model"):
        llm.prepare(ASK)
    events = list(llm.events(llm.prepare_completion("One", SamplingParams(max_tokens=3))))
    assert events
    llm.close()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    with pytest.raises(UnsupportedError, match="no known chat format.*would serve completions"):
        LLM.load(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_folder(tmp_path / "mixed")
    files, _ = tiny_tokenizer_files(500)
    (folder / "tokenizer.json").write_bytes(files["tokenizer.json"])
    with pytest.raises(CheckpointError, match="belongs to the weights"):
        LLM.load(folder)


def test_no_torch_is_imported_on_the_way_to_an_answer(tiny_folder: Path) -> None:
    program = (
        "import sys\n"
        "import smelt.generate\n"
        "light = {'numpy', 'llguidance', 'tokenizers', 'torch'} & set(sys.modules)\n"
        "assert not light, light\n"
        "from smelt.core.messages import Message, ResponseFormat\n"
        "from smelt.core.sampler import ChatRequest\n"
        "from smelt.core.sampling import SamplingParams\n"
        "from smelt.generate.llm import LLM\n"
        "from smelt.generate.options import LLMOptions\n"
        "llm = LLM.load(sys.argv[1], options=LLMOptions(threads=1, kv_bytes=1 << 22))\n"
        "ask = ChatRequest(messages=(Message.of('user', 'hi'),), response_format=ResponseFormat('json_object'),\n"
        "                  params=SamplingParams(max_tokens=20))\n"
        "print(llm.chat(ask).finish_reason)\n"
        "llm.close()\n"
        "heavy = {'torch', 'transformers', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tiny_folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("stop", "length")
