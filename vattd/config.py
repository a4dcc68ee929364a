"""What `vattd start` was told, read once and checked."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vatt.errors import InvalidRequest
from vatt.sizes import parse_size, parse_size_or_percent
from vatt.sockets import SOCKET_DIR_VARIABLE
from vattd.metrics_access import MetricsAccess
from vattd.rules import PoolRules
from vattd.scrub import Scrub

DEFAULT_POOL_MAX = {"cuda": "90%", "host": "50%"}
DEFAULT_HUGE_POOL_MAX = "100%"  # of the huge pages, which are set aside for this
DEFAULT_METRICS_ADDRESS = "127.0.0.1:9410"  # 9400 is dcgm-exporter's
# Kept ready for each tenant that has a session, so that its next lease finds pages made.
DEFAULT_HEADROOM = "16MiB"
DEFAULT_RECOVERY_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where metrics are served. Port 0: any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address | None:
    """`HOST:PORT` with an IP address or `localhost`; None for `off`. Raises InvalidRequest with an example."""
    if text == "off":
        return None
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    try:
        if host != "localhost":
            ipaddress.ip_address(host)
        if not colon or not 0 <= int(port) < 1 << 16:
            raise ValueError(text)
    except ValueError:
        raise InvalidRequest(
            f"{text!r} is not an address: write for example {DEFAULT_METRICS_ADDRESS}, or off"
        ) from None
    return Address(host, int(port))


def default_state_dir(socket_dir: Path | None, environ: Mapping[str, str]) -> Path:
    """What must survive a restart: beside the sockets where they have a chosen place, so that two vattd never share it;
    else in the system's place for root, or the user's."""
    chosen = socket_dir or environ.get(SOCKET_DIR_VARIABLE)
    if chosen:
        return Path(chosen) / "state"
    if os.geteuid() == 0:
        return Path("/var/lib/vattd")
    home = environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "vattd"


@dataclass(frozen=True, slots=True)
class Config:
    """Checked as far as can be without the device: percentages are of its memory, known later."""

    device: str | None  # "host", a CUDA ordinal or a UUID; None: the first GPU, else the host
    pool_min: str
    pool_max: str | None  # None: the backend's default
    headroom: str
    state_dir: Path
    page_size_bytes: int | None  # None: the backend's default
    socket_dir: Path
    metrics_address: Address | None
    metrics_access: MetricsAccess = field(default_factory=MetricsAccess)
    huge_pages: bool = False  # the host's; which sizes a page may have then, the driver says
    exit_with_parent: bool = False
    replace: bool = False  # end the vattd that runs
    recovery_grace_s: float = DEFAULT_RECOVERY_GRACE_S
    tenants_path: Path | None = None
    rules: PoolRules = field(default_factory=PoolRules)
    scrub: Scrub = Scrub.CROSS_TENANT
    allow_mps: bool = False  # sessions, and vattd itself, may use the GPU through an MPS server
    isolate: bool = False  # pages that leave a tenant are destroyed, also where they could be scrubbed and passed on

    def __post_init__(self) -> None:
        sizes = {"--pool-min": self.pool_min, "--pool-max": self.pool_max, "--headroom": self.headroom}
        for option, text in sizes.items():
            if text is not None:
                try:
                    parse_size_or_percent(text, 1 << 40)
                except InvalidRequest as error:
                    raise InvalidRequest(f"{option}: {error}") from error
        if self.page_size_bytes is not None and self.page_size_bytes < 1:
            raise InvalidRequest("--page-size: a page has at least one byte")
        if self.metrics_address is not None:
            self.metrics_access.check_host(self.metrics_address.host)
        elif self.metrics_access != MetricsAccess():
            raise InvalidRequest("--metrics-address off, and options that say how to serve them: leave one of them out")
        if self.device == "":
            raise InvalidRequest("--gpu is empty: give a number, a UUID or host, or leave it out")
        if self.isolate and self.scrub is Scrub.NEVER:
            raise InvalidRequest(
                "--isolate keeps tenants apart, and with --scrub never their new pages may hold anybody's old bytes: "
                "leave one of them out"
            )


def parse_page_size(text: str | None) -> int | None:
    return None if text is None else parse_size(text)
