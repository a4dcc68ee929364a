"""What runs while pictures are taken."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.monitoring.processes import Prometheus
from tests.monitoring.system import Load, Loaded, loaded_vattd, watched_by_prometheus

# Pools that are nearly enough, so that now and then somebody waits.
_PLACES = [
    (
        "224MiB",
        [Load("chat", "azure_conv", speed=0.8, patience_s=10), Load("code", "azure_code", speed=2.0, patience_s=5)],
        [["chat", "--min", "40%"], ["code", "--max", "70%"]],
    ),
    (
        "160MiB",
        [Load("chat", "azure_conv", speed=0.5, patience_s=10), Load("batch", "azure_code", speed=3.0, patience_s=5)],
        [["chat", "--weight", "2"], ["batch", "--max", "60%"]],
    ),
]
_SCRAPE_INTERVAL_S = 3


@dataclass(frozen=True, slots=True)
class Scene:
    """vattd after vattd, and the Prometheus over all of them. The first one is who single pictures are of."""

    places: tuple[Loaded, ...]
    prometheus: Prometheus

    @property
    def socket_dir(self) -> Path:
        """For `vattctl ... --socket-dir`."""
        return self.places[0].vattd.socket_dir

    @property
    def metrics_url(self) -> str:
        """Where the first vattd serves /metrics, and its status page."""
        return f"http://{self.places[0].address}"


@contextmanager
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vattd-screenshots-")))
        places = tuple(stack.enter_context(loaded_vattd(*place)) for place in _PLACES)
        addresses = [place.address for place in places]
        prometheus = stack.enter_context(
            watched_by_prometheus(directory, addresses, scrape_interval_s=_SCRAPE_INTERVAL_S)
        )
        yield Scene(places, prometheus)
