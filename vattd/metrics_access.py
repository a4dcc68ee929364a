"""Who may read the metrics: TLS, client certificates, passwords. Files are read once, when vattd starts."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vatt.errors import InvalidRequest

# WSGI's own types are of the standard library only from Python 3.11 on.
WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_REFUSED = b"this vattd's metrics need a user and a password\n"
_NOT_ITS_NAME = (
    b"without TLS or a password this vattd answers to addresses and to localhost only, not to other names: "
    b"say http://127.0.0.1:PORT/, or have the proxy pass that on as Host\n"
)


@dataclass(frozen=True, slots=True)
class MetricsAccess:
    """What `vattd start --metrics-...` was told, checked as far as can be without reading the files."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None  # clients show a certificate that this one signed
    password_file: Path | None = None
    insecure: bool = False  # the operator wants them open to whoever reaches the address

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidRequest("--metrics-cert and --metrics-key belong together: give both, or none")
        if self.client_ca is not None and self.certificate is None:
            raise InvalidRequest("--metrics-client-ca needs TLS: give --metrics-cert and --metrics-key as well")

    def check_host(self, host: str) -> None:
        """Raises InvalidRequest where the whole network could read, and nobody said that this is meant."""
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
        if not (is_loopback or self.certificate or self.password_file or self.insecure):
            raise InvalidRequest(
                f"--metrics-address {host} lets other machines read tenants' names and figures: give --metrics-cert "
                f"and --metrics-key, or --metrics-password-file, or say --metrics-insecure if that is meant"
            )

    def tls_context(self) -> ssl.SSLContext | None:
        """None: plain HTTP. Raises InvalidRequest if a file is not what it should be."""
        if self.certificate is None or self.key is None:
            return None
        if _is_anybodys(self.key):
            raise InvalidRequest(f"--metrics-key {self.key} may be read by anybody: `chmod o= {self.key}`")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # Else a key with a passphrase would have OpenSSL ask for it on the terminal.
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"cannot use --metrics-cert {self.certificate} with --metrics-key {self.key} ({error}): both are PEM "
                f"files, the key without a passphrase"
            ) from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ValueError) as error:
                raise InvalidRequest(f"cannot use --metrics-client-ca {self.client_ca} ({error})") from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def check_files(self) -> None:
        """Raises InvalidRequest if one is not what it should be."""
        self.tls_context()
        if self.password_file is not None:
            read_logins(self.password_file)

    def guard(self, app: WsgiApp) -> WsgiApp:
        """The same application, to those who may read it. Raises InvalidRequest."""
        if self.password_file is not None:
            return Guarded(app, read_logins(self.password_file))
        # A certificate is for a name, and `insecure` for everybody.
        return app if self.certificate is not None or self.insecure else called_by_address(app)


class Guarded:
    """A WSGI application behind HTTP basic authentication.

    Logins are compared by digest, each of them every time, so that the time of an answer tells nothing about any.
    """

    def __init__(self, app: WsgiApp, logins: Iterable[bytes]) -> None:
        self._app = app
        self._digests = [hashlib.sha256(login).digest() for login in logins]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._admits(environ.get("HTTP_AUTHORIZATION", "")):
            return self._app(environ, start_response)
        headers = [("Content-Type", "text/plain"), ("WWW-Authenticate", 'Basic realm="vattd metrics", charset="UTF-8"')]
        start_response("401 Unauthorized", headers)
        return [_REFUSED]

    def _admits(self, header: str) -> bool:
        scheme, _, encoded = header.partition(" ")
        try:
            login = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        digest = hashlib.sha256(login).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == "basic" and any(matches)


def called_by_address(app: WsgiApp) -> WsgiApp:
    """The same application, under addresses and `localhost` only.

    Else any page on the web could read what loopback keeps to this machine: through a browser on it, by a name of its
    own that it has resolve to 127.0.0.1 once it is loaded (DNS rebinding).
    """

    def app_for_addresses(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "")
        if _is_address(host):
            return app(environ, start_response)
        start_response("421 Misdirected Request", [("Content-Type", "text/plain; charset=utf-8")])
        return [_NOT_ITS_NAME]

    return app_for_addresses


def _is_address(host: str) -> bool:
    """Also if nothing is said: browsers always say a host."""
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    if name.lower() in ("", "localhost") or name.lower().endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _is_anybodys(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & 0o007)
    except OSError as error:
        raise InvalidRequest(f"cannot read {path} ({error.strerror})") from error


def read_logins(path: Path) -> list[bytes]:
    """`user:password` lines; empty ones and those that begin with # mean nothing. Raises InvalidRequest."""
    try:
        with open(path, "rb") as file:
            facts = os.fstat(file.fileno())
            content = file.read()
    except OSError as error:
        raise InvalidRequest(f"cannot read --metrics-password-file {path} ({error.strerror})") from error
    if facts.st_mode & 0o077 or facts.st_uid not in (os.geteuid(), 0):
        raise InvalidRequest(
            f"--metrics-password-file {path} must be yours, and no one else's to read: chmod 600 {path}"
        )
    logins = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip() or line.startswith(b"#"):
            continue
        user, _, password = line.partition(b":")
        if not user or not password:
            raise InvalidRequest(f"--metrics-password-file {path}: line {number} is not user:password")
        logins.append(line)
    if not logins:
        raise InvalidRequest(f"--metrics-password-file {path} has no line user:password")
    return logins
