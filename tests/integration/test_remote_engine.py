"""`ENGINE=openai` against a server that answers as vLLM does."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import operator
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from tokenizers import Tokenizer

from jobs import settings
from jobs.pipeline import Role, Sampling
from jobs.use_cases.workers import Runtime
from tests import vllm as fake
from tests.polling import poll
from tests.promptness import promptly
from tests.servers import PATIENCE, free_port
from tests.vllm import ADAPTERS, BASE, KEY, MAX_MODEL_LEN, NAMES, VLLM, Handler
from worker import remote_engine
from worker.engine.interface import (
    Completion,
    ContextExceededError,
    Engine,
    EngineError,
    FinishReason,
    InterruptedGenerationError,
    Request,
)
from worker.remote import engine as remote
from worker.remote import servers
from worker.remote.errors import RemoteError
from worker.remote.server import Server

#: Seconds of deadlines, the next one in case that a busy machine has not begun by the one before.
BEFORE_DEADLINE = (0.3, 3, 30)
PROMPT = "SYSTEM: Be brief. \nUSER: What is 1 + 1?\u2028</s> \nASSISTANT: "


@pytest.fixture
def vllm() -> Iterator[VLLM]:
    server = VLLM()
    yield server
    server.stop()


@contextmanager
def engine_of(variables: dict[str, str]) -> Iterator[tuple[Engine, Runtime]]:
    engine, runtime = remote_engine.make_engine(settings.load(variables), lambda _: None)
    try:
        yield engine, runtime
    finally:
        engine.close()


@pytest.fixture
def engine(vllm: VLLM) -> Iterator[Engine]:
    with engine_of(vllm.settings()) as (engine, _):
        yield engine


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(servers, "CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(servers, "MIN_CHECK_INTERVAL", 0.02)


def ask(engine: Engine, role: Role = Role.ACTOR, **options: Any) -> Completion:
    prompt = options.pop("prompt", PROMPT)
    return engine.submit(Request(role, prompt, Sampling(seed=7, **options))).result(PATIENCE)


def test_a_stage_is_a_streamed_completion_of_the_roles_model(vllm: VLLM, engine: Engine) -> None:
    vllm.text = [" A", "\u2028b", "\u0085", "", " ☕", "</s>"]
    generation = engine.submit(Request(Role.CRITIC, PROMPT, Sampling(seed=7, top_k=0)))
    assert list(generation) == [" A", "\u2028b", "\u0085", " ☕", "</s>"]
    completion = generation.result(PATIENCE)
    assert completion.text == " A\u2028b\u0085 ☕</s>"
    assert completion.finish_reason is FinishReason.STOP
    assert (completion.prompt_tokens, completion.output_tokens) == (len(PROMPT.split()), 6)
    assert completion.first_token_at is not None
    assert vllm.bodies == [
        {
            "model": NAMES[Role.CRITIC],
            "prompt": PROMPT,
            "temperature": 0.75,
            "top_p": 1.0,
            "top_k": -1,
            "seed": 7,
            "max_tokens": 1024,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    assert vllm.authorizations == {f"Bearer {KEY}"}
    ask(engine, stop=("\n\n", "Q:"))
    assert vllm.bodies[-1]["stop"] == ["\n\n", "Q:"]
    cut = ask(engine, max_output_tokens=2, temperature=0)
    assert (cut.text, cut.finish_reason) == (" A\u2028b", FinishReason.LENGTH)


@pytest.mark.parametrize("stops", ["before", "after", "never"])
def test_a_text_ends_before_its_stop_string_whatever_the_server_does(
    vllm: VLLM, engine: Engine, stops: Literal["before", "after", "never"]
) -> None:
    vllm.stops = stops
    vllm.text = [" The", " sum", " is 2. Question", ": 3", " Question", ": What?", " Q", "ue", "."]
    asked = Sampling(seed=7, stop=("Question: What", "?"))
    generation = engine.submit(Request(Role.REGENERATOR, PROMPT, asked))
    streamed = list(generation)
    cut = generation.result(PATIENCE)
    assert cut.text == " The sum is 2. Question: 3 " == "".join(streamed)
    assert streamed == cut.deltas
    assert cut.finish_reason is FinishReason.STOP_STRING
    assert cut.tokens_known == (stops != "never"), "it does not wait for what it does not need"
    whole = ask(engine, stop=("Question: Why", "Que.?"))
    assert (whole.text, whole.finish_reason) == ("".join(vllm.text), FinishReason.STOP)
    held = ask(engine, stop=("Question: Why",), max_output_tokens=3)
    assert (held.text, held.finish_reason) == (" The sum is 2. Question", FinishReason.LENGTH)


def test_stop_strings_need_no_server_that_takes_them(vllm: VLLM) -> None:
    vllm.refused, vllm.stops = {"stop"}, "never"
    with engine_of(vllm.settings()) as (engine, runtime):
        assert ask(engine, stop=(" is",)).text == " The sum"
        assert "stop" not in vllm.bodies[0]
        assert runtime.description["omitted_parameters"] == [], "texts are the same"


def test_the_record_says_what_the_server_says(vllm: VLLM) -> None:
    with engine_of(vllm.settings()) as (engine, runtime):
        assert (engine.max_model_len, engine.max_num_seqs) == (MAX_MODEL_LEN, 64)
    described = runtime.description
    assert described["engine"] == "openai"
    assert "unknown" in described["digests"]
    assert "digest" not in str(described["adapters"])
    assert described["adapters"] == {role.value: {"name": NAMES[role]} for role in Role}
    assert described["served"]["actor"] == {
        "name": "helix-actor",
        "root": "/adapters/actor",
        "parent": BASE,
        "owned_by": "vllm",
    }
    assert described["servers"] == {
        vllm.url: {"software": "uvicorn", "version": "0.11.0", "max_model_len": MAX_MODEL_LEN}
    }
    assert described["omitted_parameters"] == []
    assert described["base"] == {"name": BASE}
    assert described["engine_config"] == {"slots": 64, "max_context": MAX_MODEL_LEN}
    assert KEY not in str(described)
    assert [body["model"] for body in vllm.warm_ups] == list(NAMES.values())

    def model(**more: str) -> str:
        with engine_of(vllm.settings(**more)) as (_, other):
            return other.model

    assert model(HELIXQ_MAX_CONTEXT="512", HELIXQ_SLOTS="3") == runtime.model
    vllm.refused = {"stream_options"}
    assert model() == runtime.model
    vllm.refused = {"top_k"}
    assert model() != runtime.model, "texts are others without top-k"
    vllm.refused, vllm.root = set(), "/new"
    assert model() != runtime.model, "other adapters"


def test_adapters_that_are_named_by_their_base_have_its_context(vllm: VLLM) -> None:
    """As at SGLang, which does not list them."""
    names = ",".join(f"{role}={BASE}:{name}" for role, name in NAMES.items())
    with engine_of(vllm.settings(HELIXQ_ADAPTERS=names)) as (engine, runtime):
        assert engine.max_model_len == MAX_MODEL_LEN
        assert ask(engine).text == "".join(vllm.text)
        assert vllm.bodies[0]["model"] == f"{BASE}:{NAMES[Role.ACTOR]}"
        assert runtime.description["served"]["actor"]["root"] == BASE


def llama_cpp(n_ctx: int = 512, *, loaded: bool = True) -> list[dict[str, Any]]:
    """Return what llama.cpp's server lists: one model, with the names of its ``--alias``."""
    meta = {"n_vocab": 32_000, "n_ctx": n_ctx, "n_ctx_train": 32_768, "n_params": 7_241_732_096}
    first, *aliases = NAMES.values()
    return [
        {
            "id": first,
            "aliases": aliases,
            "object": "model",
            "owned_by": "llamacpp",
            "meta": meta if loaded else None,
        }
    ]


def test_llama_cpp_says_its_context_and_aliases(vllm: VLLM) -> None:
    vllm.listed = llama_cpp()
    vllm.pages["/props"] = {"build_info": "b8681", "model_path": "/models/helix.gguf"}
    with engine_of(vllm.settings()) as (engine, runtime):
        assert engine.max_model_len == 512
        served = runtime.description["served"]
        assert served["critic"] == {**served["actor"], "name": NAMES[Role.CRITIC]}
        assert served["actor"]["meta"]["n_vocab"] == 32_000
        assert served["base"] == {"model_path": "/models/helix.gguf"}
    vllm.listed = llama_cpp(1024)
    with engine_of(vllm.settings()) as (engine, other):
        assert engine.max_model_len == 1024
        assert other.model == runtime.model, "the context only limits the length of a text"


def test_a_model_that_llama_cpp_loads_again_is_no_other_one(
    vllm: VLLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = threading.Event()
    monkeypatch.setattr(remote_engine, "_stop_worker", lambda _: told.set())
    vllm.listed = llama_cpp()
    with engine_of(vllm.settings()) as (engine, _):
        vllm.listed = llama_cpp(loaded=False)
        poll(lambda: "is loading its model" in caplog.text)
        vllm.listed = llama_cpp()
        assert ask(engine).text == "".join(vllm.text)
    assert not told.is_set()


def test_a_router_says_the_context_of_a_model_once_it_is_loaded(
    vllm: VLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As llama.cpp's, which loads a model at its first request, and unloads what was not used for long."""
    told = threading.Event()
    monkeypatch.setattr(remote_engine, "_stop_worker", lambda _: told.set())

    def models(**more: Any) -> list[dict[str, Any]]:
        return [{"id": name, "owned_by": "llamacpp", **more} for name in NAMES.values()]

    def load() -> None:
        vllm.listed = models(status={"value": "loaded"}, meta={"n_ctx": 512})

    unloaded = vllm.listed = models(status={"value": "unloaded"})
    vllm.on_warm_up = load
    with engine_of(vllm.settings()) as (engine, _):
        assert engine.max_model_len == 512
        vllm.listed = unloaded
        checked = vllm.times_listed
        poll(lambda: vllm.times_listed >= checked + 2)
        assert ask(engine).text == "".join(vllm.text)
    assert not told.is_set()


@pytest.mark.parametrize("path", ["/model_info", "/get_model_info"])
def test_sglang_says_its_weights(vllm: VLLM, path: str) -> None:
    """Newer versions have the first path, and warn of the second."""
    vllm.listed = [
        {"id": name, "owned_by": "sglang", "max_model_len": 512} for name in NAMES.values()
    ]
    weights = {"model_path": BASE, "weight_version": "default"}
    vllm.pages[path] = {**weights, "is_generation": True}
    with engine_of(vllm.settings()) as (_, runtime):
        assert runtime.description["served"]["base"] == weights


def test_what_the_server_refuses_is_left_out_and_said(
    vllm: VLLM, caplog: pytest.LogCaptureFixture
) -> None:
    vllm.refused = {"top_k", "seed", "stream_options"}
    with engine_of(vllm.settings()) as (engine, runtime):
        completion = ask(engine)
        assert completion.text == "".join(vllm.text)
        assert not completion.tokens_known
        assert not vllm.refused & set(vllm.bodies[0])
        assert runtime.description["omitted_parameters"] == ["seed", "top_k"]
        (warning,) = [r.getMessage() for r in caplog.records if "go without" in r.getMessage()]
        assert "top_k and seed" in warning or "seed and stream_options and top_k" in warning
        assert "Extra inputs are not permitted" in warning
        assert "Hello" not in warning, "the message has no prompt"


def test_failures_that_pass_are_tried_again(
    vllm: VLLM, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    vllm.replies = [fake.fault, fake.busy, fake.fault]
    start = time.monotonic()
    assert ask(engine).text == "".join(vllm.text)
    assert time.monotonic() - start >= 1, "Retry-After"
    assert len(vllm.bodies) == 4
    assert "429: Too many requests" in caplog.text
    vllm.replies = [fake.fault] * remote.MAX_FAULTS
    with pytest.raises(EngineError, match=r"several tries.*500: EngineCore encountered an issue"):
        ask(engine)
    assert ask(engine).text == "".join(vllm.text)


def test_a_text_that_breaks_off_is_interrupted(vllm: VLLM, engine: Engine) -> None:
    vllm.replies = [fake.cut]
    generation = engine.submit(Request(Role.ACTOR, PROMPT, Sampling()))
    with pytest.raises(InterruptedGenerationError):
        generation.result(PATIENCE)
    assert generation.deltas_from(0) == [" The"]


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_server_that_gives_up_a_text_is_asked_again(
    vllm: VLLM, engine: Engine, reason: str
) -> None:
    def give_up(handler: Handler, word: str = "") -> None:
        handler.begin()
        handler.chunk({"model": NAMES[Role.ACTOR]}, word, reason)
        handler.write("data: [DONE]\n\n")
        handler.write_end()

    vllm.replies = [give_up]
    assert ask(engine).text == "".join(vllm.text)
    vllm.replies = [partial(give_up, word=" The")]
    with pytest.raises(InterruptedGenerationError):
        ask(engine)


@pytest.mark.parametrize("fault", [fake.cut, fake.hang, fake.break_down])
def test_a_text_that_has_ended_is_kept_whatever_its_server_does_then(
    vllm: VLLM, engine: Engine, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    """As if it broke off, or hung until the deadline, before it has said how many tokens it was."""
    monkeypatch.setattr(remote, "MAX_WAIT_FOR_USAGE", 0.1)
    vllm.replies = [fault]
    assert ask(engine, stop=("he",)).text == " T"
    for reason in FinishReason.STOP, FinishReason.LENGTH:
        vllm.replies = [partial(fault, reason=reason.value)]
        completion = ask(engine, stop=("end",))
        assert (completion.text, completion.finish_reason) == (" The", reason)
        assert not completion.tokens_known


def test_texts_share_a_connection(vllm: VLLM, engine: Engine) -> None:
    for _ in range(50):
        assert ask(engine).text == "".join(vllm.text)
    # Each is free again a moment after its text, so that now and then another one is needed.
    assert len(set(vllm.ports)) < 25


def test_a_server_that_hangs_when_its_text_is_done_delays_nothing(
    vllm: VLLM, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "worker.remote.server.MAX_WAIT_FOR_END",
        "worker.remote.engine.MAX_WAIT_FOR_USAGE",
    ):
        monkeypatch.setattr(name, 10 * PATIENCE)
    vllm.replies = [fake.hang_when_done]
    completion = ask(engine)
    assert (completion.text, completion.output_tokens) == (" The", 1)
    assert not vllm.go_on.is_set(), "it still hangs"


def test_a_deadline_between_the_end_of_a_text_and_that_of_its_stream(
    vllm: VLLM, engine: Engine
) -> None:
    for seconds in BEFORE_DEADLINE:
        vllm.replies = [partial(fake.hang, reason="stop")]
        deadline = time.monotonic() + seconds
        ended = engine.submit(Request(Role.ACTOR, PROMPT, Sampling(), deadline=deadline))
        completion = ended.result(PATIENCE)
        if completion.text:  # Otherwise the deadline came first.
            break
    assert (completion.text, completion.finish_reason) == (" The", FinishReason.STOP)


def test_errors_have_the_servers_words_and_no_secret(vllm: VLLM, engine: Engine) -> None:
    vllm.replies = [fake.echo_key]
    with pytest.raises(EngineError, match=r"400: bad header Bearer …$") as caught:
        ask(engine)
    assert KEY not in str(caught.value)


def test_the_context_is_the_servers(vllm: VLLM, engine: Engine, tmp_path: Path) -> None:
    """A limit is shortened to the room that is left; a prompt without room fails with the server's reason."""
    vllm.text = ["x"] * 20
    completion = ask(engine, prompt="word " * (MAX_MODEL_LEN - 5))
    assert (completion.max_output_tokens, completion.output_tokens) == (5, 5)
    assert completion.finish_reason is FinishReason.LENGTH
    with pytest.raises(ContextExceededError, match=f"leaves no room in .* of {MAX_MODEL_LEN}"):
        ask(engine, prompt="word " * MAX_MODEL_LEN)
    # With a tokenizer here, no request has to be refused. What its file says of cutting and filling is not done.
    tokenizer = Tokenizer.from_file(str(Path(settings.load({}).base_model) / "tokenizer.json"))
    text = tokenizer.to_str()
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=200)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with engine_of(vllm.settings(HELIXQ_BASE_MODEL=str(tmp_path), HELIXQ_MAX_CONTEXT="64")) as (
        counting,
        runtime,
    ):
        assert runtime.tokenizer == text
        assert runtime.context == 64
        vllm.bodies.clear()
        with pytest.raises(ContextExceededError):
            counting.submit(Request(Role.ACTOR, "word " * 100, Sampling()))
        assert not vllm.bodies
        assert ask(counting, prompt="1 + 1").max_output_tokens < 64


def test_a_cancel_and_a_deadline_close_the_stream(vllm: VLLM, engine: Engine) -> None:
    deadlines = itertools.accumulate(itertools.repeat(2.0), operator.mul, initial=0.5)

    def late_by(reason: FinishReason) -> float:
        cancels = reason is FinishReason.CANCELLED
        vllm.go_on.clear()
        vllm.closed.clear()
        ends_at = time.monotonic() + (PATIENCE if cancels else next(deadlines))
        generation = engine.submit(Request(Role.ACTOR, PROMPT, Sampling(), deadline=ends_at))
        began = (
            next(iter(generation), None) == " The"
        )  # on a busy machine, the deadline may be first
        if cancels:
            ends_at = time.monotonic()
            generation.cancel()
        completion = generation.result(PATIENCE)
        seconds = time.monotonic() - ends_at if began else math.inf
        assert (completion.text, completion.finish_reason) == (" The" if began else "", reason)
        assert vllm.closed.wait(PATIENCE), "the server must notice"
        return seconds

    promptly(partial(late_by, FinishReason.CANCELLED), 1.0)
    promptly(partial(late_by, FinishReason.DEADLINE), 1.0)
    before = engine.submit(Request(Role.ACTOR, PROMPT, Sampling()))
    before.cancel()
    assert before.result(PATIENCE).finish_reason is FinishReason.CANCELLED
    vllm.go_on.clear()
    waiting = engine.submit(Request(Role.ACTOR, PROMPT, Sampling()))
    assert next(iter(waiting)) == " The"
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        waiting.result(PATIENCE)
    engine.close = lambda: None  # type: ignore[method-assign]  # the fixture's


def test_closing_does_not_wait_for_connections_that_do_not_close(
    vllm: VLLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "CLOSE_TIMEOUT", 1.0)
    closing: list[Server] = []
    close = Server.close

    async def watch(_: object) -> None:  # A fake fault: its cancellation has no effect.
        while not closing:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    async def hang(server: Server) -> None:  # A fake fault.
        closing.append(server)
        try:
            await asyncio.sleep(10 * PATIENCE)
        finally:
            await close(server)

    monkeypatch.setattr(servers.Servers, "watch", watch)
    monkeypatch.setattr(Server, "close", hang)
    with engine_of(vllm.settings()) as (engine, _):
        assert ask(engine).text
    assert caplog.messages == [
        "1 tasks of the engine do not end; they are left",
        "connections to servers do not close; they are left",
    ]


def test_a_server_that_restarts_is_waited_for(
    vllm: VLLM, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed = threading.Event()
    failed = servers.Servers.failed

    def notice(self: servers.Servers, member: servers.Member) -> None:
        failed(self, member)
        noticed.set()

    monkeypatch.setattr(servers.Servers, "failed", notice)
    vllm.stop()
    generation = engine.submit(Request(Role.ACTOR, PROMPT, Sampling()))
    assert noticed.wait(PATIENCE)
    assert not generation.finished
    again = VLLM(vllm.port)
    try:
        assert generation.result(PATIENCE).text == "".join(again.text)
        assert len(again.warm_ups) == len(Role), "it is checked before it is used again"
    finally:
        again.stop()


def test_an_error_that_nobody_expects_does_not_end_the_checks(
    vllm: VLLM, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checked = threading.Event()
    list_models = Server.list_models
    faults = 3

    async def fail(self: Server) -> Any:
        nonlocal faults
        if faults:
            faults -= 1
            raise ZeroDivisionError  # A fault: it stands for an error in this code.
        checked.set()
        return await list_models(self)

    monkeypatch.setattr(Server, "list_models", fail)
    assert checked.wait(PATIENCE)
    assert ask(engine).text
    assert f"{vllm.url} could not be checked" in caplog.text


def test_a_server_that_does_not_come_back_fails_the_request(
    vllm: VLLM, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_OUTAGE", 0.3)
    vllm.stop()
    with pytest.raises(EngineError, match=r"no server responds for 0\.3 seconds|several tries"):
        ask(engine)


def test_a_worker_stops_when_its_server_serves_another_model(
    vllm: VLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()
    monkeypatch.setattr(remote_engine, "_stop_worker", lambda _: told.set())
    with engine_of(vllm.settings()) as (engine, _):
        assert ask(engine).text
        vllm.root = "/other"
        assert told.wait(PATIENCE)


def test_several_servers_share_the_requests(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, second = VLLM(), VLLM()
    away = f"http://127.0.0.1:{free_port()}/v1"
    variables = first.settings(HELIXQ_ENGINE_URL=f"{first.url},{second.url}/, {away}")
    try:
        with engine_of(variables) as (engine, runtime):
            assert engine.max_num_seqs == 3 * 64
            assert set(runtime.description["servers"]) == {first.url, second.url}
            for server in (first, second):
                server.go_on.clear()
            running = [engine.submit(Request(Role.ACTOR, PROMPT, Sampling())) for _ in range(8)]
            for generation in running:
                assert next(iter(generation)) == " The"
            assert (first.most_in_flight, second.most_in_flight) == (4, 4)
            for server in (first, second):
                server.go_on.set()
            assert all(g.result(PATIENCE).text == "".join(first.text) for g in running)
            first.stop()
            for _ in range(4):
                assert ask(engine).text == "".join(second.text)
        third = VLLM(first.port)
        third.root = "/other"
        with (
            pytest.raises(RemoteError, match="serve different models"),
            engine_of(first.settings(HELIXQ_ENGINE_URL=f"{third.url},{second.url}")),
        ):
            pass
        third.stop()
    finally:
        first.stop()
        second.stop()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"HELIXQ_ENGINE_API_KEY": "sk-wrong"}, "refuses the API key .*HELIXQ_ENGINE_API_KEY"),
        (
            {"HELIXQ_ADAPTERS": ADAPTERS.replace("helix-critic", "nobody")},
            "404: The model `nobody` does not exist.*HELIXQ_ADAPTERS",
        ),
        ({"HELIXQ_MAX_CONTEXT": "5000"}, "HELIXQ_MAX_CONTEXT=5000, but .* 4096"),
        ({"HELIXQ_BASE_MODEL": "./nowhere"}, "HELIXQ_BASE_MODEL=./nowhere: its tokenizer.json"),
    ],
)
def test_what_cannot_be_used_is_refused_at_the_start(
    vllm: VLLM, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(RemoteError, match=message) as caught, engine_of(vllm.settings(**changes)):
        pass
    assert "sk-" not in str(caught.value)
