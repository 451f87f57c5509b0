"""The verbs as a person or a script calls them: in a process of their own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

CHAT_REQUEST: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Weather in Bonn?"}],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            },
        }
    ],
}


def smelt(
    *arguments: str | Path, text: str = "", timeout_s: float = 60, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run one command with SMELT_* `settings`; those of the surroundings must not reach it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SMELT_")} | settings
    command = [sys.executable, "-c", "from smelt.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout_s, env=environment)


def test_help_names_every_verb_and_loads_nothing_heavy() -> None:
    """`smelt --help` answers at once: none of the libraries that take their time is imported."""
    code = (
        "import sys; sys.argv = ['smelt', '--help']\n"
        "from smelt.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'numpy', 'fastapi', 'pydantic', 'tokenizers', 'llguidance', 'huggingface_hub', 'httpx'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    for verb in ("serve", "chat", "run", "tokens", "bench", "doctor"):
        assert verb in found.stdout


def test_help_is_quick() -> None:
    """The goal is 150 ms; the best of five leaves room for a busy machine."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        assert smelt("--help").returncode == 0
        best = min(best, time.perf_counter() - start)
    assert best < 1.0


def test_version() -> None:
    from smelt import __version__

    assert smelt("--version").stdout.split() == ["smelt", __version__]


def test_run_prints_the_answer_and_what_it_took(tiny_folder: Path) -> None:
    found = smelt("run", "hello", "-m", tiny_folder, "--max-tokens", "5")
    assert found.returncode == 0, found.stderr
    assert "5 answer tokens" in found.stderr


def test_run_json_under_a_schema(tiny_folder: Path, tmp_path: Path) -> None:
    """Even a random model answers with JSON valid under the schema, since the grammar leaves it no choice."""
    schema = tmp_path / "answer.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}))
    found = smelt("run", "-", "-m", tiny_folder, "--schema", schema, "--json", text="is it so?")
    result = json.loads(found.stdout)
    assert result["finish_reason"] == "stop"
    assert isinstance(json.loads(result["text"])["ok"], bool)
    assert result["prompt_tokens"] > 0 < result["completion_tokens"]


def test_run_against_a_url(live_url: str) -> None:
    found = smelt("run", "hello", "--url", live_url + "/v1", "-m", "gpt-4o-mini", "--max-tokens", "3", "--json")
    assert json.loads(found.stdout)["completion_tokens"] <= 3, found.stderr


def test_run_shows_the_servers_refusal(live_url: str) -> None:
    found = smelt("run", "hello", "--url", live_url + "/v1", "-m", "no-such-model")
    assert found.returncode == 1
    assert "no-such-model" in found.stderr
    assert "Traceback" not in found.stderr


def test_run_says_when_nobody_answers() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        found = smelt("run", "hello", "--url", url)
    assert found.returncode == 1
    assert "no answer from" in found.stderr


def test_chat_keeps_the_conversation(live_url: str) -> None:
    """The second turn's prompt holds the first: more prompt tokens than the first one's."""
    found = smelt("chat", "--url", live_url + "/v1", "-m", "gpt-4o-mini", text="hello\nand now?\n")
    assert found.returncode == 0, found.stderr
    sizes = [int(line.split("[")[1].split(" +")[0]) for line in found.stderr.splitlines() if "[" in line]
    assert sizes[0] < sizes[-1] or "refused" in found.stderr


def test_tokens_of_a_text(tiny_folder: Path) -> None:
    from smelt.tokenizer import Tokenizer

    found = json.loads(smelt("tokens", "hello, world", "-m", tiny_folder, "--json").stdout)
    assert found["tokens"] == len(Tokenizer.load(tiny_folder).encode("hello, world"))


def test_tokens_of_a_request_equal_what_the_server_counts(served_folder: Path, live_url: str, tmp_path: Path) -> None:
    import httpx

    path = tmp_path / "request.json"
    path.write_text(json.dumps(CHAT_REQUEST))
    counted = json.loads(smelt("tokens", f"@{path}", "--request", "-m", served_folder, "--json").stdout)
    body = CHAT_REQUEST | {"max_tokens": 1}
    reply = httpx.post(live_url + "/v1/chat/completions", json=body, timeout=60).json()
    assert counted["tokens"] == reply["usage"]["prompt_tokens"] == counted["messages"] + counted["tools"]


def test_tokens_of_a_request_the_server_refuses(served_folder: Path, tmp_path: Path) -> None:
    """It was counted, schema and all."""
    path = tmp_path / "request.json"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "strnig"}}}
    path.write_text(json.dumps(CHAT_REQUEST | {"tools": [tool]}))
    found = smelt("tokens", f"@{path}", "--request", "-m", served_folder)
    assert found.returncode == 1
    assert "Invalid schema for function 'f'" in found.stderr


def test_tokens_by_o200k(shared_data: Path) -> None:
    ranks = shared_data / "vocab" / "o200k_base.tiktoken"
    found = json.loads(smelt("tokens", "tiktoken is great!", "--ranks", ranks, "--json").stdout)
    assert found["tokens"] == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tokens", "x", "--encoding", "o200k_base"), "--ranks"),
        (("tokens", "@/nowhere/file", "-m", "spark"), "not a readable"),
        (("run", "x", "-m", "no-such-model"), "no model"),
        (("run", "x", "--schema", "/nowhere/schema.json"), "--schema"),
        (("serve", "--host", "0.0.0.0"), "--api-key"),
        (("serve", "--weights", "int3"), "w8"),
        (("serve", "--port", "70000"), "--port: "),
        (("serve", "--api-key", "short"), "--api-key: "),
        (("bench", "--weights", "int3"), "--weights"),
    ],
)
def test_mistakes_get_a_sentence(arguments: tuple[str, ...], words: str) -> None:
    """No traceback, exit status 1, and the words that help."""
    found = smelt(*arguments)
    assert found.returncode == 1
    assert words in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", "--rounds", "0"), "--rounds"),
        (("doctor", "--port", "70000"), "--port"),
        (("run", "x", "--temperature", "9"), "--temperature"),
        (("run", "x", "--max-tokens", "-3"), "--max-tokens"),
        (("tokens", "x", "--ranks", "/nowhere.tiktoken"), "does not exist"),
    ],
)
def test_options_out_of_range_are_wrong_usage(arguments: tuple[str, ...], words: str) -> None:
    """Two of these ended in a traceback, one was taken and meant nothing, and one blamed the wrong thing."""
    found = smelt(*arguments)
    assert found.returncode == 2
    assert words in found.stderr
    assert "Traceback" not in found.stderr


def test_serve_listens_where_the_environment_says(tiny_folder: Path) -> None:
    """The defaults of --host, --port, --weights and --threads were passed on as if somebody had typed them.

    So SMELT_PORT and the others, which docs/server.md promises, did nothing. What is typed still wins.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [listener.getsockname()[1] for listener in (taken, other)]
        told = {"SMELT_PORT": str(ports[0])}
        assert f"127.0.0.1 port {ports[0]}" in smelt("serve", "-m", tiny_folder, **told).stderr
        assert f"127.0.0.1 port {ports[1]}" in smelt("serve", "-m", tiny_folder, "--port", str(ports[1]), **told).stderr
    assert "--api-key" in smelt("serve", SMELT_HOST="0.0.0.0").stderr
    assert "w8" in smelt("serve", SMELT_WEIGHTS="int3").stderr


def test_doctor(tiny_folder: Path) -> None:
    findings = json.loads(smelt("doctor", "-m", tiny_folder, "--port", "1", "--json").stdout)
    by_name = {finding["name"]: finding for finding in findings}
    assert {"cores", "memory", "native core", "port", "model"} <= set(by_name)
    assert all(finding["ok"] for finding in findings)
    assert "chat format house" in by_name["model"]["text"]


def test_doctor_says_what_is_wrong(tiny_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = smelt("doctor", "-m", tiny_folder, "--port", str(port))
    assert found.returncode == 1
    assert f"{port} is taken" in found.stdout


def test_doctor_looks_at_the_tokenizer_too(tiny_folder: Path, tmp_path: Path) -> None:
    """A folder without a tokenizer.json was called fine, and then `smelt serve` refused it."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "bare"))
    (folder / "tokenizer.json").unlink()
    found = smelt("doctor", "-m", folder, "--port", "1")
    assert found.returncode == 1
    assert "tokenizer.json" in found.stdout


def test_bench_prints_rates(tiny_folder: Path) -> None:
    found = json.loads(smelt("bench", "-m", tiny_folder, "--rounds", "1", "--json").stdout)
    assert found["prefill_tok_s"] > 0 < found["decode_tok_s"]
    assert found["batch_tok_s"] > 0 < found["read_gb_s"]


def test_an_install_that_only_serves_says_what_training_needs() -> None:
    """It ends in a sentence, not in a traceback."""
    missing = "import sys; sys.modules['torch'] = None; sys.argv = ['smelt', 'train', 'r.py', '--out', 'o']; "
    code = missing + "from smelt.cli import main; main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert found.stderr.strip() == "smelt: no module torch: this needs the extra `train` (make setup-train)"
