"""An alert's whole way: vattd ends, Prometheus sees it, Alertmanager tells a webhook; and the same when it is back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.daemon import Vattd
from tests.monitoring.processes import Alertmanager, Prometheus, eventually, free_port
from tests.monitoring.system import DEPLOYED, watched_by_prometheus
from tests.monitoring.webhook import Webhook

pytestmark = [pytest.mark.monitoring, pytest.mark.timeout(300)]

WITHIN_S = 60.0


def hurried_alerts(path: Path) -> Path:
    """The deployed ones, each of which waits for a second at most."""
    rules = yaml.safe_load((DEPLOYED / "rules" / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["for"] = "1s"
    path.write_text(yaml.safe_dump(rules))
    return path


def hurried_alertmanager(path: Path, webhook: Webhook) -> Path:
    """The deployed one, without its patience, and with our receivers."""
    config = yaml.safe_load((DEPLOYED / "alertmanager.yml").read_text())
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"group_wait": "1s", "group_interval": "1s"}
    for receiver in config["receivers"]:
        receiver["webhook_configs"] = [{"url": f"{webhook.url}/{receiver['name']}"}]
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as receiver:
        yield receiver


def next_of(webhook: Webhook, name: str, status: str) -> tuple[str, dict[str, Any]]:
    """The receiver, and the alert."""
    while True:
        receiver, message = webhook.next(WITHIN_S)
        for alert in message["alerts"]:
            if (alert["labels"]["alertname"], alert["status"]) == (name, status):
                return receiver, alert


def is_up(prometheus: Prometheus) -> bool:
    return [sample["value"][1] for sample in prometheus.query("up")] == ["1"]


def test_a_vattd_that_ends_is_told_to_the_webhook_and_so_is_its_return(tmp_path: Path, webhook: Webhook) -> None:
    address, port = f"127.0.0.1:{free_port()}", free_port()
    with ExitStack() as stack:
        vattd = stack.enter_context(Vattd("--pool-max", "16MiB", "--metrics-address", address))
        stack.enter_context(Alertmanager(tmp_path, hurried_alertmanager(tmp_path / "am.yml", webhook), port))
        rules = [hurried_alerts(tmp_path / "alerts.yml")]
        prometheus = stack.enter_context(
            watched_by_prometheus(tmp_path, [address], rules=rules, alertmanager=f"127.0.0.1:{port}")
        )
        eventually("vattd is scraped", lambda: is_up(prometheus), WITHIN_S)
        assert vattd.stop() == 0
        receiver, alert = next_of(webhook, "VattdDown", "firing")
        assert receiver == "now"
        assert alert["labels"]["severity"] == "critical"
        assert alert["annotations"]["summary"] == f"vattd {address} does not answer"
        assert "`vattctl status`" in alert["annotations"]["runbook"]
        vattd.start()
        receiver, alert = next_of(webhook, "VattdDown", "resolved")
        assert receiver == "now"
        assert alert["labels"]["instance"] == address
