"""What the environment says, read once a connection into one frozen value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vatt.errors import InvalidRequest
from vatt.sockets import search_dirs

DAEMON_VARIABLE = "VATTENTION_DAEMON"
EMBEDDED = "embedded"
TENANT_VARIABLE = "VATTENTION_TENANT"
LAYOUT_VARIABLE = "VATTENTION_LAYOUT"
# Values of vattention.layout.Layout, which needs numpy. Not per_head: upstream's tensors have heads beside each other.
LAYOUTS = ("per_layer", "megacache", "fused")


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Where a client looks for vattd, and whether it may start one of its own instead."""

    socket_dirs: tuple[Path, ...]
    embedded: bool = False

    def __post_init__(self) -> None:
        if not self.socket_dirs:
            raise InvalidRequest("no directory to look for vattd in")


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """What the functions of vattention.upstream have no argument for."""

    tenant: str = "vattention"
    layout: str = "per_layer"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise InvalidRequest(f"{LAYOUT_VARIABLE} is {self.layout!r}: it may be unset, or {', '.join(LAYOUTS)}")


def read_config(environ: Mapping[str, str] = os.environ) -> ClientConfig:
    """The config that VATTD_SOCKET_DIR, XDG_RUNTIME_DIR and VATTENTION_DAEMON ask for."""
    daemon = environ.get(DAEMON_VARIABLE, "")
    if daemon not in ("", EMBEDDED):
        raise InvalidRequest(f"{DAEMON_VARIABLE} is {daemon!r}: it may be unset, or {EMBEDDED!r}")
    return ClientConfig(tuple(search_dirs(environ)), embedded=daemon == EMBEDDED)


def read_upstream_config(environ: Mapping[str, str] = os.environ) -> UpstreamConfig:
    """The config that VATTENTION_TENANT and VATTENTION_LAYOUT ask for; empty is unset."""
    default = UpstreamConfig()
    return UpstreamConfig(
        environ.get(TENANT_VARIABLE) or default.tenant, environ.get(LAYOUT_VARIABLE) or default.layout
    )
