"""A chat engine behind OpenAI's HTTP protocol."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import socket
import time
import uuid
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from vatt.errors import InvalidRequest, TooBusy, VattError
from vattention.chat.answer import Answer, Ending, FinishReason
from vattention.chat.engine import ChatEngine, ContextFull
from vattention.chat.openai_wire import ChatRequest, CompletionWriter, WireError

MOST_BODY_BYTES = 8 << 20
ANSWERS_END_WITHIN_S = 3
# For connections whose readers do not take what there is.
SHUTDOWN_TIMEOUT_S = 8
# A page of some website may be made to look as if it were at this machine's address; its Host header says whose it is.
LOOPBACK_HOSTS = ["127.0.0.1", "localhost", "[::1]"]


class ChatServer:
    """Routes of one engine. Requests are stateless; what is mapped of a prompt already is not computed again."""

    def __init__(self, engine: ChatEngine, *, any_host: bool = False) -> None:
        """`any_host`: answer whatever name the server is called by, not only this machine's own."""
        self._engine = engine
        self._began_s = int(time.time())
        self._answers: weakref.WeakSet[Answer] = weakref.WeakSet()
        # Each answer has a thread that waits for its next piece: the default number would keep some waiting for one.
        self._readers = anyio.CapacityLimiter(engine.most_answers + 8)
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
            Route("/stats", self._stats),
            Route("/health", self._health),
        ]
        hosts = [] if any_host else [Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK_HOSTS)]
        handlers: dict[Any, Any] = {
            WireError: _tell_wire_error,
            VattError: _tell_vatt_error,
            HTTPException: _tell_http_error,
            Exception: _tell_other_error,
        }
        self.app = Starlette(routes=routes, middleware=hosts, exception_handlers=handlers)

    def cut_answers(self) -> None:
        """End the answers under way where they are; their readers get what there is, and the end of it."""
        for answer in list(self._answers):
            answer.cancel()

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_facts()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["model"])
        return JSONResponse(self._model_facts())

    async def _stats(self, request: Request) -> Response:
        return JSONResponse(dataclasses.asdict(await to_thread.run_sync(self._engine.stats)))

    async def _health(self, request: Request) -> Response:
        """503, and why, where no answer can get memory any more. `vattd`: the session's state; null without one."""
        state, outage = self._engine.session_state, self._engine.outage
        facts = {"status": "ok" if outage is None else "lost", "vattd": state.value if state is not None else None}
        if outage is not None:
            facts["reason"] = outage
        return JSONResponse(facts, 200 if outage is None else 503)

    async def _complete(self, request: Request) -> Response:
        wanted = ChatRequest.parse(await _json_body(request))
        self._check_model(wanted.model)
        answer = await to_thread.run_sync(self._engine.answer, wanted.messages, wanted.sampling)
        self._answers.add(answer)
        writer = CompletionWriter(
            completion_id=f"chatcmpl-{uuid.uuid4().hex}",
            model=self._engine.model_name,
            created_s=int(time.time()),
            includes_usage=wanted.includes_usage,
        )
        watcher = asyncio.create_task(_cancel_on_disconnect(request, answer))
        try:
            first = await self._next_piece(answer)
            if not wanted.is_streamed:
                while await self._next_piece(answer) is not None:
                    pass
        finally:
            watcher.cancel()
        if first is None:
            _check_answered(answer)
        if wanted.is_streamed:
            lines = self._stream(writer, answer, first)
            # An answer that nobody reads any more must end; one that has ended is not touched.
            return StreamingResponse(lines, media_type="text/event-stream", background=BackgroundTask(answer.cancel))
        return JSONResponse(writer.completion(answer.text, _ending(answer)))

    async def _stream(self, writer: CompletionWriter, answer: Answer, piece: str | None) -> AsyncIterator[str]:
        """Server-sent events, beginning with a piece that was read already."""
        yield _event(writer.first_chunk())
        try:
            while piece is not None:
                yield _event(writer.piece_chunk(piece))
                piece = await self._next_piece(answer)
        except Exception as error:  # noqa: BLE001  the status is sent: all that is left is to say it here
            yield _event(WireError(500, f"the answer failed: {error}").body)
            return
        for chunk in writer.last_chunks(_ending(answer)):
            yield _event(chunk)
        yield "data: [DONE]\n\n"

    async def _next_piece(self, answer: Answer) -> str | None:
        """The thread that waits may be left behind: the answer's end lets it go."""
        return await to_thread.run_sync(answer.next_piece, abandon_on_cancel=True, limiter=self._readers)

    def _check_model(self, model: str) -> None:
        if model != self._engine.model_name:
            message = f"model {model!r} is not here: this server has {self._engine.model_name!r}"
            raise WireError(404, message, code="model_not_found", param="model")

    def _model_facts(self) -> dict[str, Any]:
        return {
            "id": self._engine.model_name,
            "object": "model",
            "created": self._began_s,
            "owned_by": "vattention",
            "max_model_len": self._engine.max_context_length,
        }


def serve(engine: ChatEngine, listener: socket.socket, *, any_host: bool = False, log_level: str = "warning") -> None:
    """Serve on this socket until SIGINT or SIGTERM; answers under way have a few seconds to end. In the main thread."""
    chat = ChatServer(engine, any_host=any_host)
    config = uvicorn.Config(
        chat.app, log_level=log_level, access_log=False, timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S
    )
    # uvicorn ends in order at either signal, and then repeats it: so that it ends this call, and not the process.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            _Server(config, chat).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    """Cuts the answers that do not end by themselves when serving ends: uvicorn would drop their connections."""

    def __init__(self, config: uvicorn.Config, chat: ChatServer) -> None:
        super().__init__(config)
        self._chat = chat

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cut = asyncio.get_running_loop().call_later(ANSWERS_END_WITHIN_S, self._chat.cut_answers)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()


async def _cancel_on_disconnect(request: Request, answer: Answer) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    answer.cancel()


async def _json_body(request: Request) -> object:
    """Only what says that it is JSON: without asking first, a website's page may send anything else to this machine."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise WireError(415, f"content-type is {kind!r}: send application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY_BYTES:
            raise WireError(413, f"the body is larger than {MOST_BODY_BYTES} bytes")
    try:
        parsed: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(400, f"the body is not JSON: {error}") from error
    return parsed


def _ending(answer: Answer) -> Ending:
    if answer.ending is None:
        raise RuntimeError("an answer that was read to its end has not ended")
    return answer.ending


def _check_answered(answer: Answer) -> None:
    """Raises WireError for an answer that memory was too short to begin, or that was cut off before it began."""
    finish = _ending(answer).finish
    if finish.reason is FinishReason.MEMORY:
        raise WireError(503, f"memory is short: {finish.detail}", code="memory_short")
    if finish.reason is FinishReason.CANCELLED:
        raise WireError(503, f"the answer was cancelled: {finish.detail}", code="cancelled")


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _tell(error: WireError) -> Response:
    """In ASCII: what it repeats of a request may be half a character, which is JSON and no text."""
    return Response(json.dumps(error.body), error.status, media_type="application/json")


async def _tell_wire_error(request: Request, error: WireError) -> Response:
    return _tell(error)


async def _tell_vatt_error(request: Request, error: VattError) -> Response:
    if isinstance(error, ContextFull):
        return _tell(WireError(400, str(error), code="context_length_exceeded", param="messages"))
    if isinstance(error, InvalidRequest):
        return _tell(WireError(400, str(error)))
    return _tell(WireError(429 if isinstance(error, TooBusy) else 503, str(error), code=error.reason.lower()))


async def _tell_http_error(request: Request, error: HTTPException) -> Response:
    message = (
        f"{request.method} {request.url.path}: {error.detail}: see /v1/models, /v1/chat/completions, /stats, /health"
    )
    return _tell(WireError(error.status_code, message))


async def _tell_other_error(request: Request, error: Exception) -> Response:
    return _tell(WireError(500, f"the answer failed: {error}"))
