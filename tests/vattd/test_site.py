"""What vattd's HTTP server answers, over real HTTP: by path and method, and what no other origin may do with it."""

from __future__ import annotations

import gzip
import http.client
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vattd.config import Address
from vattd.metrics_access import MetricsAccess
from vattd.metrics_server import MetricsServer
from vattd.site import Content, Unanswered

ANSWER_WITHIN_S = 30
BODY = b"a page " * 1000


def one_figure() -> str:
    return "# HELP figure A figure.\n# TYPE figure gauge\nfigure 7.0\n"


def well() -> Content:
    return Content.of(BODY, "text/html; charset=utf-8", ("Content-Security-Policy", "default-src 'self'"))


def ill() -> Content:
    raise Unanswered("draining")


class Client:
    """Asks one server."""

    def __init__(self, server: MetricsServer) -> None:
        self.server = server

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.address.port, timeout=ANSWER_WITHIN_S)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()


@pytest.fixture
def serve() -> Iterator[Callable[[MetricsAccess], Client]]:
    """Makes a server that serves until the test ends."""
    with ExitStack() as stack:

        def make(access: MetricsAccess) -> Client:
            pages = {"/": well, "/healthz": ill}
            server = MetricsServer(Address("127.0.0.1", 0), access, one_figure, pages)
            stack.callback(server.close)
            return Client(server)

        yield make


@pytest.fixture
def client(serve: Callable[[MetricsAccess], Client]) -> Client:
    return serve(MetricsAccess())


def test_each_path_has_its_answer_and_others_name_those_that_there_are(client: Client) -> None:
    assert client.ask("/")[1] == BODY
    assert client.ask("/?a=b")[1] == BODY
    assert b"figure 7.0" in client.ask("/metrics")[1]
    for path in ("/metrics/", "/status", "/index.html", "/../metrics", "*"):
        answer, body = client.ask(path)
        assert answer.status == 404, path
        assert b"/metrics" in body


def test_what_cannot_be_said_now_is_503_with_the_reason(client: Client) -> None:
    answer, body = client.ask("/healthz")
    assert (answer.status, body) == (503, b"draining\n")


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/nowhere"])
def test_to_head_is_said_what_get_would_say_without_the_body(client: Client, path: str) -> None:
    whole, body = client.ask(path)
    head, nothing = client.ask(path, "HEAD")
    assert nothing == b""
    assert head.status == whole.status
    same = {name: value for name, value in whole.getheaders() if name != "Date"}
    assert {name: value for name, value in head.getheaders() if name != "Date"} == same
    assert head.headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz"])
def test_methods_that_could_change_something_are_refused_and_options_names_the_others(
    client: Client, path: str
) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.ask(path, method)[0].status == 405
    answer, _ = client.ask(path, "OPTIONS")
    assert (answer.status, answer.headers["Allow"]) == (200, "GET, HEAD, OPTIONS")


def test_who_takes_gzip_gets_the_same_smaller(client: Client) -> None:
    answer, body = client.ask("/", **{"Accept-Encoding": "br, gzip;q=0.8"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert len(body) < len(BODY)
    assert gzip.decompress(body) == BODY


@pytest.mark.parametrize(("path", "host"), [("/", ""), ("/metrics", ""), ("/nowhere", ""), ("/", "elsewhere.example")])
def test_no_other_origin_may_read_frame_or_guess_at_any_answer(client: Client, path: str, host: str) -> None:
    answer, _ = client.ask(path, Origin="https://elsewhere.example", **({"Host": host} if host else {}))
    assert not [name for name, _ in answer.getheaders() if name.lower().startswith("access-control-")]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert len(answer.headers.get_all("Content-Security-Policy") or []) == 1


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:9410", "localhost:80", "LOCALHOST", "vattd.localhost", "[::1]:9410", "10.2.3.4:9410", ""],
)
def test_on_loopback_it_answers_to_addresses_and_to_localhost(client: Client, host: str) -> None:
    assert client.ask("/metrics", Host=host)[0].status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9410", "127.0.0.1.evil.example", "localhost.evil.example", "a,127.0.0.1", "[x]"],
)
def test_on_loopback_a_name_that_somebody_had_resolve_to_it_is_refused(client: Client, host: str) -> None:
    for path in ("/", "/metrics", "/healthz"):
        answer, body = client.ask(path, Host=host)
        assert answer.status == 421
        assert b"figure" not in body
        assert b"localhost" in body


def test_a_password_or_the_operator_s_word_stands_for_the_name(
    serve: Callable[[MetricsAccess], Client], tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("a:b\n")
    passwords.chmod(0o600)
    locked = serve(MetricsAccess(password_file=passwords))
    assert serve(MetricsAccess(insecure=True)).ask("/metrics", Host="gpu7.example")[0].status == 200
    assert locked.ask("/metrics", Host="gpu7.example", Authorization="Basic YTpi")[0].status == 200


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/nowhere"])
def test_without_the_password_nothing_is_said_wherever_one_asks(
    serve: Callable[[MetricsAccess], Client], tmp_path: Path, path: str
) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("a:b\n")
    passwords.chmod(0o600)
    client = serve(MetricsAccess(password_file=passwords))
    answer, body = client.ask(path)
    assert answer.status == 401
    assert b"user and a password" in body
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert client.ask(path, Authorization="Basic YTpi")[0].status != 401
