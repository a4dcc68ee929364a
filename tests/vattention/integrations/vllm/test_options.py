"""How the plugin is switched on, and what it refuses."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace
from typing import Any

import pytest

from vatt.errors import InvalidRequest
from vattention.integrations.vllm import plugin
from vattention.integrations.vllm.options import Options


def engine(**changed: Any) -> Any:
    """A vLLM configuration, as far as the plugin looks at it."""
    facts = {
        "additional_config": {},
        "pipeline_parallel_size": 1,
        "nnodes": 1,
        "distributed_executor_backend": "mp",
        "worker_cls": "vllm.v1.worker.cpu_worker.CPUWorker",
        "scheduler_cls": None,
        "async_scheduling": False,
        "kv_transfer_config": None,
        "enable_sleep_mode": False,
        "kv_cache_memory_bytes": None,
        "device_type": "cpu",
        **changed,
    }
    part = SimpleNamespace(**facts)
    return SimpleNamespace(
        additional_config=part.additional_config,
        kv_transfer_config=part.kv_transfer_config,
        parallel_config=part,
        scheduler_config=part,
        cache_config=part,
        model_config=part,
        device_config=part,
    )


@pytest.mark.parametrize(
    ("switch", "additional_config", "is_on"),
    [
        ("1", {}, True),
        ("0", {"vattd": {}}, False),
        ("", {"vattd": {}}, True),
        ("", {"other": {}}, False),
        ("", None, False),
    ],
)
def test_it_is_on_by_the_environment_or_by_its_option(switch: str, additional_config: object, is_on: bool) -> None:
    assert Options.are_given(additional_config, {"VATTD_VLLM": switch}) is is_on


def test_a_switch_that_is_neither_on_nor_off_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="VATTD_VLLM is 'yes': it may be 1"):
        Options.are_given({}, {"VATTD_VLLM": "yes"})


def test_options_come_before_the_environment_and_unknown_ones_are_refused() -> None:
    assert Options.of(engine(), {}).tenant == "vllm"
    assert Options.of(engine(), {"VATTENTION_TENANT": "chat"}).tenant == "chat"
    given = engine(additional_config={"vattd": {"tenant": "code", "prefix_cache_bytes": 5}})
    assert Options.of(given, {"VATTENTION_TENANT": "chat"}) == Options(tenant="code", prefix_cache_bytes=5)
    for wrong in ({"tenent": "x"}, {"tenant": ""}, {"prefix_cache_bytes": -1}, {"prefix_cache_bytes": "1GiB"}, 3):
        with pytest.raises(InvalidRequest):
            Options.of(engine(additional_config={"vattd": wrong}), {})


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"nnodes": 2}, "several machines"),
        ({"distributed_executor_backend": "ray"}, "several machines"),
        ({"kv_transfer_config": object()}, "a KV connector"),
        ({"enable_sleep_mode": True}, "sleep mode"),
        ({"scheduler_cls": "mine.Scheduler"}, r"scheduler_cls mine\.Scheduler"),
        ({"worker_cls": "mine.Worker"}, r"worker_cls mine\.Worker"),
    ],
)
def test_what_does_not_work_with_it_is_named(changed: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidRequest, match=f"does not work with {what}: leave that out"):
        plugin.lend_to(engine(**changed))


@pytest.mark.parametrize("is_async", [False, True])
def test_the_classes_are_vllms_own_options(is_async: bool) -> None:
    config = engine(async_scheduling=is_async, worker_cls="vllm.v1.worker.gpu_worker.Worker", device_type="cuda")
    plugin.lend_to(config)
    assert config.scheduler_config.scheduler_cls == (plugin.ASYNC_SCHEDULER if is_async else plugin.SCHEDULER)
    assert config.parallel_config.worker_cls == "vattention.integrations.vllm.worker.VattWorker"
    assert config.cache_config.kv_cache_memory_bytes is None


def test_on_cpus_vllm_is_told_that_the_cache_takes_nothing_of_its_own_memory() -> None:
    config = engine()
    plugin.lend_to(config)
    assert config.cache_config.kv_cache_memory_bytes == plugin.NOMINAL_BYTES


@pytest.mark.parametrize(("version", "is_refused"), [("0.32.4", False), ("0.33.0", True), ("0.3.2", True)])
def test_another_vllm_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, version: str, is_refused: bool) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    if is_refused:
        with pytest.raises(InvalidRequest, match=r"for vLLM 0\.32, and this is vllm " + version):
            plugin.check_version()
    else:
        plugin.check_version()
