"""The text-level model: a folder on disk becomes something that answers chat requests."""

from __future__ import annotations

import dataclasses
import hashlib
import queue
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smelt.chat import Renderer, renderer_of_folder
from smelt.core.errors import CheckpointError, InvalidRequestError
from smelt.core.messages import Privilege
from smelt.core.sampler import ChatAnswer, ChatRequest, ScoreRequest, TextScore
from smelt.core.sampling import SamplingParams
from smelt.engine.requests import EngineEvent
from smelt.generate import score
from smelt.generate.collect import collect
from smelt.generate.completion import Event, TextReader, raw_prompt
from smelt.generate.constrain import check_schemas, constrain, is_named, offered_tools
from smelt.generate.grammar import GrammarCompiler
from smelt.generate.inbox import Inbox, joined
from smelt.generate.options import LLMOptions, window
from smelt.generate.prepare import Limits, Prepared, TokenCount, check_params, count_tokens, fit, render
from smelt.generate.run import Run
from smelt.generate.runners import load_runner

if TYPE_CHECKING:
    from smelt.core.decoder import DecoderConfig
    from smelt.core.step import Runner
    from smelt.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a loaded model is called and when it was made; `fingerprint` is the API's system_fingerprint."""

    name: str
    fingerprint: str
    created: int


class LLM:
    """A loaded model (core.sampler.Sampler). Make one with `LLM.load`, end it with `close`; any thread may call it.

    Attributes: tokenizer; renderer (None for a base model, which only completes); config; context_len and
    max_output_len, limits in tokens, enforced; name; fingerprint; created (seconds since 1970); runner.
    """

    def __init__(
        self,
        *,
        config: DecoderConfig,
        tokenizer: Tokenizer,
        renderer: Renderer | None,
        runner: Runner,
        identity: Identity,
        options: LLMOptions,
    ) -> None:
        """Over parts made elsewhere (tests, other runners); the limits follow from the runner's pool."""
        from smelt.engine.engine import Engine
        from smelt.engine.loop import EngineLoop

        limits = window(config, options, num_blocks=runner.num_blocks)
        self.config = config
        self.tokenizer = tokenizer
        self.renderer = renderer
        self.context_len = limits.context_len
        self.max_output_len = limits.max_output_len
        self.options = options
        self._identity = identity
        self.runner = runner
        self._limits = Limits(limits.context_len, limits.max_output_len, config.vocab_size)
        self._control_ids = frozenset(tokenizer.control_ids.values())
        self._first_ids = frozenset(config.eos_ids) | ({config.bos_id} if config.bos_id is not None else set())
        self._stop_ids = (renderer.stop_ids if renderer else frozenset()) | frozenset(config.eos_ids)
        self._compiler = GrammarCompiler(
            tokenizer, vocab_size=runner.vocab_size, stop_ids=self._stop_ids, cache_size=options.grammar_cache
        )
        engine = Engine(
            runner,
            context_len=self.context_len,
            max_batch_tokens=options.max_batch_tokens,
            max_running=options.max_running,
            max_waiting=options.max_waiting,
        )
        self._loop = EngineLoop(engine)

    @classmethod
    def open(cls, name_or_path: str, *, options: LLMOptions = LLMOptions()) -> LLM:  # noqa: B008 - frozen value
        """Load a folder, a shipped model's name or a Hugging Face id, fetched first. Raises CheckpointError."""
        from smelt.checkpoint import hub_name, resolve_model

        options = dataclasses.replace(options, name=options.name or hub_name(name_or_path))
        return cls.load(resolve_model(name_or_path), options=options)

    @classmethod
    def load(cls, folder: Path | str, *, options: LLMOptions = LLMOptions()) -> LLM:  # noqa: B008 - frozen value
        """Load a folder (config.json, safetensors, tokenizer.json). Raises CheckpointError, and EngineError
        where the native core is not built or the weights are not finite. Imports no torch, but for linear attention.
        """
        from smelt.checkpoint import open_checkpoint
        from smelt.tokenizer import Tokenizer

        folder = Path(folder)
        checkpoint = open_checkpoint(folder)
        tokenizer = Tokenizer.load(folder)
        if tokenizer.vocab_size > checkpoint.config.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only {checkpoint.config.vocab_size}; "
                "sought a tokenizer.json that belongs to the weights"
            )
        renderer = renderer_of_folder(tokenizer)
        limits = window(checkpoint.config, options)
        runner = load_runner(checkpoint, options, limits.num_blocks)
        name = options.name or str((checkpoint.card or {}).get("name") or folder.resolve().name)
        settings = f"{checkpoint.fingerprint} {options.weights} {limits.context_len}"
        identity = Identity(
            name=name,
            fingerprint="fp_" + hashlib.sha256(settings.encode()).hexdigest()[:10],
            created=int((folder / "config.json").stat().st_mtime),
        )
        return cls(
            config=checkpoint.config,
            tokenizer=tokenizer,
            renderer=renderer,
            runner=runner,
            identity=identity,
            options=options,
        )

    @property
    def name(self) -> str:
        """The options' name, else the card's, else the folder's."""
        return self._identity.name

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: changes with the weights and with settings that change answers."""
        return self._identity.fingerprint

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat format; without one it only completes."""
        return self.renderer is not None

    @property
    def created(self) -> int:
        """When the folder was written, in seconds since 1970."""
        return self._identity.created

    def prepare(self, request: ChatRequest) -> Prepared:
        """Render, count, check and compile a chat request. CPU-bound, milliseconds: call it from a thread.

        Raises InvalidRequestError (a value, a schema that cannot be honoured, a base model) and ContextLengthError.
        """
        renderer = self._chat_renderer()
        check_schemas(request)
        prompt = render(renderer, request)
        max_new_tokens = fit(
            self._limits, len(prompt), request.params.max_tokens, parts=lambda: count_tokens(renderer, request, prompt)
        )
        params = check_params(request.params, self._limits, max_new_tokens)
        tools = offered_tools(request)
        return Prepared(
            prompt_ids=prompt.ids,
            privileges=prompt.privileges,
            params=params,
            max_new_tokens=max_new_tokens,
            stop_ids=self._stop_ids,
            constraint=constrain(request, self._compiler, renderer.call_syntax),
            reader=lambda: renderer.reader(tools),
            hidden_ids=self._control_ids,
            calls_end_with_stop=is_named(request.tool_choice),
        )

    def prepare_completion(
        self, prompt: str | Sequence[int], params: SamplingParams, *, echo: bool = False
    ) -> Prepared:
        """Check a raw completion. `prompt` is text or token ids; control ids are refused in ids, but for a begin or
        end id in front.

        With `echo` the first event is a PromptText, with log-probabilities where params.top_logprobs is set, and
        max_tokens may be 0. Where log-probabilities are asked for, a drawn end token is reported too. Raises
        InvalidRequestError and ContextLengthError.
        """
        raw = raw_prompt(self.tokenizer, prompt, first_ids=self._first_ids)
        max_new_tokens = fit(self._limits, len(raw.ids), params.max_tokens)
        return Prepared(
            prompt_ids=raw.ids,
            privileges=bytes([Privilege.USER]) * len(raw.ids),
            params=check_params(params, self._limits, max_new_tokens),
            max_new_tokens=max_new_tokens,
            stop_ids=self._stop_ids,
            constraint=self._compiler.free_text(),
            reader=lambda: TextReader(self.tokenizer),
            echo=raw.text if echo else None,
            num_hidden=raw.num_hidden,
            report_stop=params.top_logprobs is not None,
        )

    async def stream(self, prepared: Prepared, *, n: int = 1, tenant: str = "") -> AsyncGenerator[Event, None]:
        """The answer as it is made. Events of the n choices interleave; AnswerUsage is the last.

        What is drawn while nobody takes it comes as one event: a lone reader gets every token at once, and under load
        events hold several.

        Nothing is submitted before the first `__anext__`, which raises OverloadedError when the queue is full:
        await one event before sending response headers. Closing the generator (`aclose`, cancellation) aborts the
        work in the engine at once. Raises EngineError when the engine fails.
        """
        inbox: Inbox[EngineEvent] = Inbox()
        run = Run(prepared, self._loop, self.tokenizer, n=n, tenant=tenant)
        try:
            run.start(inbox.put)
            for shown in run.opening():
                yield shown
            while not run.done:
                events, failure = run.feed_all(await inbox.take())
                for shown in joined(events):
                    yield shown
                if failure is not None:
                    raise failure
        finally:
            run.abort()

    def events(self, prepared: Prepared, *, n: int = 1, tenant: str = "") -> Generator[Event, None, None]:
        """`stream` for synchronous callers."""
        inbox: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        run = Run(prepared, self._loop, self.tokenizer, n=n, tenant=tenant)
        try:
            run.start(inbox.put)
            yield from run.opening()
            while not run.done:
                yield from run.feed(inbox.get())
        finally:
            run.abort()

    def chat(self, request: ChatRequest) -> ChatAnswer:
        """One complete answer, synchronously (core.sampler.Sampler)."""
        return collect(self.events(self.prepare(request)))

    def score(self, request: ScoreRequest) -> TextScore:
        """Log-probabilities of a given text (core.sampler.Sampler; generate/score.py says how)."""

        def echo(ids: Sequence[int]) -> Generator[Event, None, None]:
            return self.events(self.prepare_completion(ids, score.PARAMS, echo=True))

        return score.score_text(request, tokenizer=self.tokenizer, config=self.config, echo=echo)

    def count(self, request: ChatRequest) -> TokenCount:
        """Prompt tokens the request would take; the context limit is not checked. Raises InvalidRequestError."""
        check_schemas(request)
        renderer = self._chat_renderer()
        return count_tokens(renderer, request, render(renderer, request))

    def stats(self) -> Mapping[str, float]:
        """Gauges and counters for /metrics: the engine's (engine.EngineStats), and grammars kept."""
        return {**dataclasses.asdict(self._loop.stats()), "num_cached_grammars": self._compiler.num_cached}

    def close(self) -> None:
        """End the engine's thread; requests under way end in EngineError. Idempotent."""
        self._loop.close()

    def _chat_renderer(self) -> Renderer:
        if self.renderer is None:
            raise InvalidRequestError(
                f"The model `{self.name}` is not a chat model: its folder has no chat format. "
                "Use /v1/completions with it, or serve an instruct model.",
                param="model",
            )
        return self.renderer
