"""The server, through OpenAI's own client."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai import OpenAI

from tests.daemon import Vattd
from tests.operator import operator
from tests.vattention.chat.conftest import SMALL_PAGE_BYTES, MakeEngine, SlowDown
from tests.vattention.chat.serving import serving
from tests.vattention.chat.test_engine import SHORT
from vatt.v1 import vatt_pb2 as pb
from vattention.chat import ChatEngine, Message, Sampling, server
from vattention.chat.server import serve

HELLO: Any = [{"role": "user", "content": "Hello"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


@pytest.fixture
def engine(make_engine: MakeEngine, llama: Path) -> ChatEngine:
    return make_engine(llama)


@pytest.fixture
def address(engine: ChatEngine) -> Iterator[str]:
    with serving(engine) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def model(engine: ChatEngine) -> str:
    return engine.model_name


def test_an_answer_comes_whole_or_in_pieces_and_is_the_engines(client: OpenAI, engine: ChatEngine, model: str) -> None:
    expected = engine.new_conversation().say("Hello", SHORT).wait()
    whole = client.chat.completions.create(model=model, messages=HELLO, **GREEDY)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24
    stream = client.chat.completions.create(
        model=model, messages=HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected
    assert len([piece for piece in pieces if piece]) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_next_turn_of_a_client_goes_on_from_what_is_mapped(client: OpenAI, model: str) -> None:
    first = client.chat.completions.create(model=model, messages=HELLO, **GREEDY)
    assert first.usage is not None
    messages = [*HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And?"}]
    second = client.chat.completions.create(model=model, messages=messages, **GREEDY)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens


def test_a_stop_string_ends_an_answer_as_stopped(client: OpenAI, engine: ChatEngine, model: str) -> None:
    expected = engine.new_conversation().say("Hello", SHORT).wait()
    stop = expected[8:10]
    answered = client.chat.completions.create(model=model, messages=HELLO, stop=stop, **GREEDY)
    assert answered.choices[0].message.content == expected[: expected.index(stop)]
    assert answered.choices[0].finish_reason == "stop"


def test_models_stats_and_health_are_told(client: OpenAI, address: str, engine: ChatEngine, model: str) -> None:
    assert [one.id for one in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model
    stats = httpx.get(f"{address}/stats").json()
    assert stats["baseline"].startswith("static reservation of 16 slots")
    assert stats["baseline_memory_mb"] == engine.stats().baseline_memory_mb
    health = httpx.get(f"{address}/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok", "vattd": "attached"})


def test_what_is_not_supported_is_refused_by_name(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="n is not supported") as refused:
        client.chat.completions.create(model=model, messages=HELLO, n=2)
    assert (refused.value.type, refused.value.param) == ("invalid_request_error", "n")


def test_other_mistakes_are_told_in_openais_form(client: OpenAI, address: str, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has"):
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x" * 600}])
    assert too_long.value.code == "context_length_exceeded"
    url = f"{address}/v1/chat/completions"
    assert httpx.post(url, content="{", headers={"content-type": "application/json"}).status_code == 400
    deep = httpx.post(url, content="[" * 200_000, headers={"content-type": "application/json"})
    assert deep.status_code == 400
    half = json.dumps({"model": model, "messages": [{"role": "user", "content": "\ud800"}]})
    assert httpx.post(url, content=half, headers={"content-type": "application/json"}).status_code == 400
    half_a_name = httpx.post(url, content='{"\\ud800": 1}', headers={"content-type": "application/json"})
    assert half_a_name.status_code == 400
    assert half_a_name.json()["error"]["param"] == "\ud800"
    assert httpx.post(url, content="{}", headers={"content-type": "text/plain"}).status_code == 415
    assert httpx.get(url).json()["error"]["message"].startswith("GET /v1/chat/completions: Method Not Allowed")
    assert httpx.get(f"{address}/v1/nothing").status_code == 404
    assert httpx.get(f"{address}/health", headers={"host": "example.org"}).status_code == 400


def test_a_client_that_leaves_ends_its_answer_and_what_is_mapped_stays_for_the_next(
    client: OpenAI, engine: ChatEngine, model: str, slow_down: SlowDown
) -> None:
    full_speed = slow_down(engine)
    with client.chat.completions.create(
        model=model, messages=HELLO, stream=True, temperature=0, max_tokens=450
    ) as stream:
        next(iter(stream))
    until_idle(engine)
    full_speed.set()
    stats = engine.stats()
    assert stats.generated_tokens_total < 450
    assert stats.slots_held == 1
    again = engine.answer([Message("user", "Hello")], SHORT)
    again.wait()
    assert again.counts.reused == again.counts.prompt - 1


def test_a_client_that_leaves_before_the_first_piece_ends_its_answer_too(
    make_engine: MakeEngine, llama: Path, slow_down: SlowDown
) -> None:
    engine = make_engine(llama, max_conversations=1)
    slow_down(engine)
    with serving(engine) as address:
        running = engine.new_conversation().say("x", Sampling(max_tokens=450))
        body = {"model": engine.model_name, "messages": HELLO}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/chat/completions", json=body, timeout=0.3)
        running.cancel()
        until_idle(engine)
        assert engine.stats().answers_total == 2


def test_short_memory_and_too_many_requests_are_told_with_a_status(
    small_vattd: Vattd, make_engine: MakeEngine, llama: Path
) -> None:
    with operator(small_vattd.sockets) as admin:
        admin.reserve("chat", max_bytes=16 * SMALL_PAGE_BYTES)  # 128 tokens
    engine = make_engine(llama, socket_dir=small_vattd.socket_dir, max_conversations=1, max_waiting=1)
    with serving(engine) as address, OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as short:
            client.chat.completions.create(
                model=engine.model_name, messages=[{"role": "user", "content": "x" * 200}], stream=True
            )
        assert (short.value.status_code, short.value.code) == (503, "memory_short")
        cut = client.chat.completions.create(model=engine.model_name, messages=HELLO, temperature=0)
        assert cut.choices[0].finish_reason == "length"
        assert "no memory for another token" in json.dumps(cut.model_dump())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_serving_in_order(make_engine: MakeEngine, llama: Path, number: signal.Signals) -> None:
    engine = make_engine(llama)
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def end_once_it_serves() -> None:
        httpx.get(f"{address}/health", timeout=30)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=end_once_it_serves)
    thread.start()
    serve(engine, listener)
    thread.join()
    engine.answer([Message("user", "Hello")], SHORT).wait()  # the engine is whose it was


def test_an_answer_under_way_when_serving_ends_is_cut_and_says_so(
    make_engine: MakeEngine, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ANSWERS_END_WITHIN_S", 0.0)
    engine = make_engine(llama)
    listener = socket.create_server(("127.0.0.1", 0))
    read: list[Any] = []

    def read_while_serving_ends() -> None:
        with OpenAI(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", api_key="none") as client:
            chunks = client.chat.completions.create(
                model=engine.model_name,
                messages=HELLO,
                max_tokens=450,
                stream=True,
                stream_options={"include_usage": True},
            )
            read.append(next(iter(chunks)))
            os.kill(os.getpid(), signal.SIGTERM)
            read.extend(chunks)

    thread = threading.Thread(target=read_while_serving_ends)
    thread.start()
    server.serve(engine, listener)
    thread.join()
    *_, last, usage = read
    assert last.choices[0].finish_reason == "length"
    assert usage.usage.completion_tokens < 450


def test_a_drained_vattd_refuses_new_answers_until_it_is_resumed(
    own_vattd: Vattd, make_engine: MakeEngine, llama: Path
) -> None:
    engine = make_engine(llama, socket_dir=own_vattd.socket_dir)
    with (
        serving(engine) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
        operator(own_vattd.sockets) as admin,
    ):
        admin.admin.Drain(pb.DrainRequest(), timeout=10)
        admin.until(lambda _status: refusal(client, engine.model_name) == "503 draining")
        admin.admin.Drain(pb.DrainRequest(resume=True), timeout=10)
        admin.until(lambda _status: refusal(client, engine.model_name) is None)


def test_a_drained_vattd_gets_back_what_idle_conversations_kept_and_they_go_on_after_it(
    own_vattd: Vattd, make_engine: MakeEngine, llama: Path
) -> None:
    engine = make_engine(llama, socket_dir=own_vattd.socket_dir)
    conversation = engine.new_conversation()
    conversation.say("Hello", SHORT).wait()
    with operator(own_vattd.sockets) as admin:
        assert admin.status().sessions[0].leased_bytes > 0
        assert conversation.cached_tokens > 0
        admin.admin.Drain(pb.DrainRequest(), timeout=10)
        admin.until(lambda status: status.sessions[0].leased_bytes == 0)
        assert conversation.cached_tokens == 0
        admin.admin.Drain(pb.DrainRequest(resume=True), timeout=10)
        admin.until(lambda _status: not engine._session.draining if engine._session else False)
    again = conversation.say("And now?", SHORT)
    assert len(again.wait()) > 0
    assert again.counts.reused == 0


def test_an_evicted_session_is_ill_and_says_what_helps(own_vattd: Vattd, make_engine: MakeEngine, llama: Path) -> None:
    engine = make_engine(llama, socket_dir=own_vattd.socket_dir)
    with serving(engine) as address, operator(own_vattd.sockets) as admin:
        assert httpx.get(f"{address}/health").status_code == 200
        session_id = admin.status().sessions[0].session_id
        admin.admin.Evict(pb.EvictRequest(session_id=session_id), timeout=10)
        admin.until(lambda _status: httpx.get(f"{address}/health").status_code == 503)
        told = httpx.get(f"{address}/health").json()
        assert (told["status"], told["vattd"]) == ("lost", "attached")
        assert "vattctl evict" in told["reason"]
        assert "start anew" in told["reason"]


def refusal(client: OpenAI, model: str) -> str | None:
    """Why the server has no answer; None if it has one."""
    try:
        client.chat.completions.create(model=model, messages=HELLO, **GREEDY)
    except openai.InternalServerError as error:
        return f"{error.status_code} {error.code}"
    return None


def until_idle(engine: ChatEngine) -> None:
    """Ask until no answer is being written."""
    while (stats := engine.stats()).running or stats.waiting:
        pass
