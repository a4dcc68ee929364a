"""What vattd's HTTP server answers, by path. It is only read: nothing can be changed through it."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.exposition import gzip_accepted

from vattd.metrics_access import WsgiApp

Headers = list[tuple[str, str]]
StartResponse = Callable[..., Any]

_METHODS = ("GET", "HEAD", "OPTIONS")
# Of every answer: no other origin may read it, frame it, or take it for what it is not.
_SAFE = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)
_POLICY = "Content-Security-Policy"
# Of what is no page.
_NOTHING_ALLOWED = "default-src 'none'; frame-ancestors 'none'"
PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Content:
    """What is sent, and the same compressed: a page is read through tunnels, again and again."""

    body: bytes
    zipped: bytes
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, body: bytes, content_type: str, *more: tuple[str, str]) -> Content:
        headers = (("Content-Type", content_type), ("Cache-Control", "no-store"), ("Vary", "Accept-Encoding"), *more)
        return cls(body, gzip.compress(body, compresslevel=5, mtime=0), headers)


class Unanswered(Exception):
    """Why there is no content now: a line for people."""


# What is shown, by path.
Pages = Mapping[str, Callable[[], Content]]


def showing(read: Callable[[], Content]) -> WsgiApp:
    """Answers with what `read` returns; 503 with the words of the Unanswered that it raises."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        try:
            content = read()
        except Unanswered as error:
            return say("503 Service Unavailable", str(error), start_response)
        headers, body = list(content.headers), content.body
        if gzip_accepted(environ.get("HTTP_ACCEPT_ENCODING", "")):
            headers.append(("Content-Encoding", "gzip"))
            body = content.zipped
        start_response("200 OK", headers)
        return [body]

    return app


def site(apps: Mapping[str, WsgiApp]) -> WsgiApp:
    """Each path's application, for methods that only read; to HEAD what GET would say, less the body."""
    known = f"nothing here: this vattd has {', '.join(apps)}"

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        method, inner = environ["REQUEST_METHOD"], apps.get(environ.get("PATH_INFO", ""))
        if method not in _METHODS:
            words = f"{method[:20]} changes nothing here: use {', '.join(_METHODS)}"
            return say("405 Method Not Allowed", words, start_response, ("Allow", ", ".join(_METHODS)))
        if inner is None:
            return say("404 Not Found", known, start_response)
        if method == "OPTIONS":
            return say("200 OK", "", start_response, ("Allow", ", ".join(_METHODS)))
        if method == "GET":
            return inner(environ, start_response)
        return _head(inner, environ, start_response)

    return app


def _head(inner: WsgiApp, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    answer: list[Any] = []
    length = sum(map(len, inner({**environ, "REQUEST_METHOD": "GET"}, lambda *head: answer.extend(head))))
    status, headers = answer[0], answer[1]
    start_response(status, [*headers, ("Content-Length", str(length))])
    return []


def with_safe_headers(app: WsgiApp) -> WsgiApp:
    """Outermost: refusals have them too."""

    def outer(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: Headers, *more: Any) -> Any:
            has_policy = any(name == _POLICY for name, _ in headers)
            policy: Headers = [] if has_policy else [(_POLICY, _NOTHING_ALLOWED)]
            return start_response(status, [*headers, *_SAFE, *policy], *more)

        return app(environ, start)

    return outer


def say(status: str, words: str, start_response: StartResponse, *more: tuple[str, str]) -> Iterable[bytes]:
    """A line for people."""
    start_response(status, [("Content-Type", PLAIN), ("Cache-Control", "no-store"), *more])
    return [f"{words}\n".encode()] if words else [b""]
