"""Where a process serves HTTP, and whether it answers: what the kernel says it listens at, whatever it was told."""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

from vattctl.doctor.facts import Metrics

WITHIN_S = 2.0
USUAL_HOST, USUAL_PORT = "127.0.0.1", 9410  # `vattd start --metrics-address`
_LISTEN = "0A"  # of /proc/net/tcp


def read_metrics(pid: int) -> tuple[list[Metrics], bool]:
    """And whether they are hidden from this user."""
    try:
        inodes = _socket_inodes(pid)
    except PermissionError:
        return [], True
    except OSError:  # it has just ended
        return [], False
    return [_ask(host, port) for host, port in _listening(pid, inodes)], False


def usual_port_error() -> str:
    """Empty: it is free."""
    try:
        with socket.socket() as usual:
            usual.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vattd does
            usual.bind((USUAL_HOST, USUAL_PORT))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _socket_inodes(pid: int) -> set[str]:
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:  # it has been closed
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    return inodes


def _listening(pid: int, inodes: set[str]) -> Iterator[tuple[str, int]]:
    for table in ("tcp", "tcp6"):
        file = Path(f"/proc/{pid}/net/{table}")
        for line in file.read_text().splitlines()[1:] if file.exists() else []:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in inodes:
                address, _, port = fields[1].partition(":")
                yield _host(address), int(port, 16)


def _host(address: str) -> str:
    """The table has it as words of the machine's own byte order. Of one that stands for all, the loopback one."""
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    host = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    if host.is_unspecified:
        return "127.0.0.1" if host.version == 4 else "::1"
    return str(host)


def _ask(host: str, port: int) -> Metrics:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    plain = http.client.HTTPConnection(host, port, timeout=WITHIN_S)
    error = _error_of(plain)
    if not error:
        return Metrics(f"http://{where}/metrics", "")
    # It speaks TLS, perhaps. Whose certificate it has is not asked here.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    secure = http.client.HTTPSConnection(host, port, timeout=WITHIN_S, context=context)
    if not _error_of(secure):
        return Metrics(f"https://{where}/metrics", "")
    return Metrics(f"http://{where}/metrics", error)


def _error_of(connection: http.client.HTTPConnection) -> str:
    """Any answer is one: who wants a password is there."""
    try:
        connection.request("GET", "/metrics")
        status = connection.getresponse().status
    except ssl.SSLError as error:
        # An alert is an answer too: it wants a certificate of ours.
        return "" if "ALERT" in str(error).upper() else str(error)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return "" if status < 500 else f"HTTP {status}"
