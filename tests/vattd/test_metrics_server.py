"""Who may read the metrics, and that nobody who may not, or says nothing, keeps others from it."""

from __future__ import annotations

import base64
import http.client
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemon import Vattd, run_command
from vatt.errors import InvalidRequest
from vattd import metrics_server
from vattd.config import Address
from vattd.metrics_access import MetricsAccess, read_logins
from vattd.metrics_server import MetricsServer

ANSWER_WITHIN_S = 30
LOOPBACK = Address("127.0.0.1", 0)


def one_figure() -> str:
    return "figure 7\n"


@pytest.fixture
def serve() -> Iterator[Callable[..., MetricsServer]]:
    """Makes a server that serves until the test ends."""
    with ExitStack() as stack:

        def make(access: MetricsAccess | None = None, address: Address = LOOPBACK) -> MetricsServer:
            server = MetricsServer(address, access or MetricsAccess(), one_figure)
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, and vattd.pem and client.pem that it signed, each with its .key; and stranger.pem."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificates with the openssl command")
    folder = tmp_path_factory.mktemp("certificates")

    def make(name: str, *more: str) -> None:
        command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}", *more]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    make("ca")
    for name in ("vattd", "client"):
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
        make(name, *signed, "-addext", "subjectAltName=IP:127.0.0.1")
    make("stranger")
    return folder


def tls_of(certificates: Path, client_ca: Path | None = None) -> MetricsAccess:
    return MetricsAccess(certificates / "vattd.pem", certificates / "vattd.key", client_ca)


def trusting(certificates: Path, client: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    if client is not None:
        context.load_cert_chain(certificates / f"{client}.pem", certificates / f"{client}.key")
    return context


def scrape(url: str, context: ssl.SSLContext | None = None, login: str | None = None) -> str:
    request = urllib.request.Request(url)
    if login is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    with urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S, context=context) as answer:
        return str(answer.read().decode())


def passwords(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "passwords"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_only_reading_methods_are_answered(serve: Callable[..., MetricsServer]) -> None:
    server = serve()
    assert "figure 7" in scrape(server.url)
    for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "NONSENSE"):
        connection = http.client.HTTPConnection("127.0.0.1", server.address.port, timeout=ANSWER_WITHIN_S)
        connection.request(method, "/metrics")
        assert connection.getresponse().status == 405, method
        connection.close()


def test_with_tls_plain_http_is_refused_and_who_trusts_the_certificate_is_served(
    serve: Callable[..., MetricsServer], certificates: Path
) -> None:
    server = serve(tls_of(certificates))
    assert server.url.startswith("https://")
    assert "figure 7" in scrape(server.url, trusting(certificates))
    with pytest.raises(OSError, match=r".*"):  # cut off, in one way or another
        scrape(server.url.replace("https", "http"))
    with pytest.raises(urllib.error.URLError, match="certificate verify failed"):
        scrape(server.url)


def test_with_a_client_ca_only_clients_that_it_signed_are_served(
    serve: Callable[..., MetricsServer], certificates: Path
) -> None:
    server = serve(tls_of(certificates, client_ca=certificates / "ca.pem"))
    assert "figure 7" in scrape(server.url, trusting(certificates, "client"))
    for client in (None, "stranger"):
        with pytest.raises(OSError, match=r".*"):
            scrape(server.url, trusting(certificates, client))


def test_with_passwords_only_who_gives_one_is_served(serve: Callable[..., MetricsServer], tmp_path: Path) -> None:
    path = passwords(tmp_path, "# scrapers\nprometheus:sésame:2\n\nother:x\n")
    server = serve(MetricsAccess(password_file=path))
    for login in ("prometheus:sésame:2", "other:x"):
        assert "figure 7" in scrape(server.url, login=login)
    for wrong in (None, "", "prometheus:sésame", "prometheus:", ":", "other:x\n", "# scrapers", "prometheus:x"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            scrape(server.url, login=wrong)
        assert caught.value.code == 401
        assert "figure" not in caught.value.read().decode()
        assert caught.value.headers["WWW-Authenticate"].startswith("Basic ")
        caught.value.close()


@pytest.mark.parametrize("header", ["Basic", "Basic ====", "Basic é", "Bearer b3RoZXI6eA==", "b3RoZXI6eA==", "\t"])
def test_an_authorization_that_is_none_is_refused(
    serve: Callable[..., MetricsServer], tmp_path: Path, header: str
) -> None:
    server = serve(MetricsAccess(password_file=passwords(tmp_path, "other:x\n")))
    connection = http.client.HTTPConnection("127.0.0.1", server.address.port, timeout=ANSWER_WITHIN_S)
    connection.request("GET", "/metrics", headers={"Authorization": header.encode("latin-1")})
    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("a:b\n", 0o644, "chmod 600"),
        ("a:b\n", 0o640, "chmod 600"),
        ("a:b\nab\n", 0o600, "line 2 is not user:password"),
        (":b\n", 0o600, "line 1 is not"),
        ("a:\n", 0o600, "line 1 is not"),
        ("# nobody\n", 0o600, "has no line"),
    ],
)
def test_a_password_file_that_others_may_read_or_that_makes_no_sense_is_refused(
    tmp_path: Path, text: str, mode: int, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        read_logins(passwords(tmp_path, text, mode))


def test_files_that_are_no_certificates_are_refused(certificates: Path) -> None:
    with pytest.raises(InvalidRequest, match="--metrics-cert"):
        MetricsAccess(certificates / "ca.key", certificates / "vattd.key").tls_context()
    with pytest.raises(InvalidRequest, match="--metrics-cert"):
        MetricsAccess(certificates / "vattd.pem", certificates / "client.key").tls_context()
    with pytest.raises(InvalidRequest, match="--metrics-client-ca"):
        tls_of(certificates, client_ca=certificates / "ca.key").tls_context()


@pytest.mark.parametrize("tls", [False, True])
def test_clients_that_say_nothing_or_stop_in_the_middle_keep_nobody_waiting(
    serve: Callable[..., MetricsServer], certificates: Path, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "CONNECTION_WITHIN_S", 3600.0)
    server = serve(tls_of(certificates) if tls else None)
    with ExitStack() as stack:
        for said in (b"", b"\x16\x03\x01" if tls else b"GET /met") * 5:
            silent = stack.enter_context(socket.create_connection(("127.0.0.1", server.address.port)))
            silent.sendall(said)
        assert "figure 7" in scrape(server.url, trusting(certificates) if tls else None)


@pytest.mark.parametrize("tls", [False, True])
def test_a_connection_that_takes_too_long_is_ended(
    serve: Callable[..., MetricsServer], certificates: Path, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "CONNECTION_WITHIN_S", 0.1)
    server = serve(tls_of(certificates) if tls else None)
    with socket.create_connection(("127.0.0.1", server.address.port), ANSWER_WITHIN_S) as silent:
        assert silent.recv(1) == b""


def test_connections_beyond_the_most_are_closed_and_served_again_when_there_is_room(
    serve: Callable[..., MetricsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "MAX_CONNECTIONS", 2)
    server = serve()
    place = ("127.0.0.1", server.address.port)
    with socket.create_connection(place), socket.create_connection(place):
        with socket.create_connection(place, ANSWER_WITHIN_S) as third:
            assert third.recv(1) == b""
    while True:
        try:
            assert "figure 7" in scrape(server.url)
        except OSError:  # those two have not been noticed to be gone
            continue
        break


def test_an_ipv6_address_is_served(serve: Callable[..., MetricsServer]) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert "figure 7" in scrape(serve(address=Address("::1", 0)).url)


def test_vattd_serves_its_metrics_behind_tls_and_a_password(certificates: Path, tmp_path: Path) -> None:
    path = passwords(tmp_path, "prometheus:secret\n")
    files = ["--metrics-cert", certificates / "vattd.pem", "--metrics-key", certificates / "vattd.key"]
    arguments = ["--metrics-address", "0.0.0.0:0", *map(str, files), "--metrics-password-file", str(path)]
    with Vattd("--pool-max", "64MiB", *arguments) as vattd:
        url = vattd.ready["metrics"].replace("0.0.0.0", "127.0.0.1")
        text = scrape(url, trusting(certificates), "prometheus:secret")
        assert "vattd_context_bytes 0" in text.splitlines()
        with pytest.raises(urllib.error.HTTPError) as caught:
            scrape(url, trusting(certificates))
        assert caught.value.code == 401
        caught.value.close()
        with socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0]))):
            assert vattd.status().daemon.state == "serving"
            assert "secret" not in vattd.log


def test_metrics_for_everybody_are_served_where_that_is_said() -> None:
    with Vattd("--pool-max", "64MiB", "--metrics-address", "0.0.0.0:0", "--metrics-insecure") as vattd:
        assert "vattd_build_info" in scrape(vattd.ready["metrics"].replace("0.0.0.0", "127.0.0.1"))


def test_a_password_file_that_others_may_read_keeps_vattd_from_starting(tmp_path: Path) -> None:
    path = passwords(tmp_path, "a:b\n", 0o644)
    arguments = ["--gpu", "host", "--socket-dir", str(tmp_path / "s"), "--metrics-address", "127.0.0.1:0"]
    result = run_command(["vattd", "start", *arguments, "--metrics-password-file", str(path)])
    assert result.returncode == 1
    assert f"chmod 600 {path}" in result.stderr
