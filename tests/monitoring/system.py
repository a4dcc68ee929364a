"""A real system to look at: vattd, two tenants' engines under load, and a Prometheus that scrapes all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.daemon import Vattd, run_command
from tests.monitoring.processes import Prometheus, free_port

ROOT = Path(__file__).parents[2]
DEPLOYED = ROOT / "deploy" / "prometheus"
RULES = [DEPLOYED / "rules" / "recording.yml", DEPLOYED / "rules" / "alerts.yml"]
CONSOLES = DEPLOYED / "consoles"
END_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Load:
    """One engine process: whose, which trace, how much faster than it was recorded, and how long a request waits."""

    tenant: str
    trace: str
    speed: float
    patience_s: float


# Together they want more than the pool has, so that leases wait and memory is asked back.
POOL = "160MiB"
LOADS = [Load("chat", "azure_conv", speed=1.2, patience_s=8.0), Load("code", "azure_code", speed=3.0, patience_s=4.0)]
GUARANTEES = [["chat", "--max", "80%"], ["code", "--min", "30%", "--weight", "2"]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A vattd whose engines are at work, and where Prometheus can scrape it."""

    vattd: Vattd
    address: str


@contextmanager
def loaded_vattd(
    pool: str = POOL, loads: Sequence[Load] = LOADS, guarantees: Sequence[Sequence[str]] = GUARANTEES
) -> Iterator[Loaded]:
    """`guarantees` are what `vattctl reserve` is told."""
    address = f"127.0.0.1:{free_port()}"  # the same after it was started anew
    with ExitStack() as stack:
        vattd = stack.enter_context(Vattd("--pool-max", pool, "--headroom", "1MiB", "--metrics-address", address))
        for words in guarantees:
            done = run_command(["vattctl", "reserve", *words, "--socket-dir", str(vattd.socket_dir)])
            if done.returncode:
                raise AssertionError(done.stderr)
        for load in loads:
            stack.enter_context(engine(vattd, load))
        yield Loaded(vattd, address)


@contextmanager
def engine(vattd: Vattd, load: Load) -> Iterator[subprocess.Popen[str]]:
    """From when it is attached."""
    command = [sys.executable, "-m", "tests.monitoring.engine", "--socket-dir", str(vattd.socket_dir)]
    command += ["--tenant", load.tenant, "--trace", load.trace]
    command += ["--speed", str(load.speed), "--patience", str(load.patience_s)]
    path = vattd.socket_dir / f"{load.tenant}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("attached"):
            raise AssertionError(f"the engine of {load.tenant}: {path.read_text()}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def prometheus_config(
    directory: Path, targets: Sequence[str], rules: Sequence[Path], alertmanager: str | None, scrape_interval_s: int
) -> Path:
    """The one that is deployed, with these targets, and in a hurry."""
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    interval = f"{scrape_interval_s}s"
    config["global"] = {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    config["rule_files"] = [str(path) for path in rules]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}] if alertmanager else []
    [job] = config["scrape_configs"]
    del job["static_configs"]
    job["file_sd_configs"] = [{"files": [str(directory / "targets" / "*.json")]}]
    point_at(directory, targets)
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def point_at(directory: Path, targets: Sequence[str]) -> None:
    """What Prometheus scrapes, in a file that it watches."""
    (directory / "targets").mkdir(exist_ok=True)
    (directory / "targets" / "vattd.json").write_text(json.dumps([{"targets": list(targets)}]))


@contextmanager
def watched_by_prometheus(
    directory: Path,
    targets: Sequence[str],
    *,
    rules: Sequence[Path] = RULES,
    alertmanager: str | None = None,
    scrape_interval_s: int = 1,
) -> Iterator[Prometheus]:
    config = prometheus_config(directory, targets, rules, alertmanager, scrape_interval_s)
    with Prometheus(directory, config, CONSOLES) as prometheus:
        yield prometheus
