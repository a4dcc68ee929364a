"""The HTTP server behind /metrics and the status page. It reads and answers; nothing can be changed through it."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from vatt.errors import InvalidRequest
from vattd.config import Address
from vattd.metrics_access import MetricsAccess
from vattd.metrics_text import TextApp
from vattd.site import Pages, showing, site, with_safe_headers

log = logging.getLogger(__name__)

# A connection ends after this long, whatever it is at: a scrape takes milliseconds.
CONNECTION_WITHIN_S = 10.0
# Those beyond are closed at once: a thread each, so that clients that say nothing cannot take all of vattd's memory.
MAX_CONNECTIONS = 64


class MetricsServer:
    """/metrics on one address, and other pages beside it, to who may read them."""

    def __init__(
        self,
        address: Address,
        access: MetricsAccess,
        text: Callable[[], str],
        pages: Pages | None = None,
    ) -> None:
        """Raises InvalidRequest."""
        tls = access.tls_context()
        apps = {path: showing(read) for path, read in (pages or {}).items()}
        app = with_safe_headers(access.guard(site({**apps, "/metrics": TextApp(text)})))
        try:
            self._server = _Server(address, tls)
        except OSError as error:
            raise InvalidRequest(
                f"cannot serve metrics on {address} ({error}): choose another --metrics-address, or `off`"
            ) from error
        self._server.set_app(app)
        self._thread = threading.Thread(target=self._server.serve_forever, name="vattd-metrics", daemon=True)
        self._thread.start()
        self.address = Address(address.host, self._server.server_port)
        self.url = f"{'http' if tls is None else 'https'}://{self.address}/metrics"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not news."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, in which TLS is agreed on too.

    prometheus_client's own server does that in the thread that accepts, where one client that connects and says
    nothing keeps all others waiting.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: Address, tls: ssl.SSLContext | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._tls = tls
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((address.host, address.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()  # there is no thread
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        # A second descriptor of the connection: the first one may be in use, or closed, when the time is over.
        with request.dup() as line:
            ending = threading.Timer(CONNECTION_WITHIN_S, _hang_up, [line])
            ending.daemon = True
            ending.start()
            try:
                if self._tls is None:
                    super().finish_request(request, client_address)
                else:
                    with self._tls.wrap_socket(request, server_side=True) as agreed:
                        super().finish_request(agreed, client_address)
            finally:
                ending.cancel()
                ending.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, spoke no TLS, or was cut off."""
        log.debug("a metrics connection from %s ended early", client_address, exc_info=True)


def _hang_up(line: socket.socket) -> None:
    with suppress(OSError):  # it has just ended by itself
        line.shutdown(socket.SHUT_RDWR)
