"""vLLM's workers, with a KV cache that vattd lends.

A worker takes its KV cache from a session with vattd instead of from torch, and carries out the scheduler's orders
before each step. Attention kernels and model runners (V1 and V2) are vLLM's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.v1.kv_cache_interface import KVCacheConfig, SlidingWindowSpec, UniformTypeKVCacheSpecs
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.gpu import attn_utils
from vllm.v1.worker.gpu_worker import Worker

from vatt.errors import InvalidRequest
from vatt.sizes import format_size
from vattention.block_geometry import BlockGeometry, Stripe, joined
from vattention.integrations.rebinding import rebound
from vattention.integrations.vllm.channel import socket_path
from vattention.integrations.vllm.kv_memory import KVMemory
from vattention.integrations.vllm.options import Options
from vattention.integrations.vllm.scheduler import ORDERS
from vattention.session import Session

log = init_logger("vllm.plugins.vattd")  # vLLM shows its own loggers only

# Modules that call allocate_kv_cache by a name of their own: model runners V1 and V2.
RUNNER_MODULES = (gpu_model_runner, attn_utils)
# Blocks come in multiples of this, so that layers that lie one after the other begin on a page.
BLOCKS_MULTIPLE = 64
# How long a lease waits for a vattd that is being started anew: the scheduler stands still meanwhile.
PATIENCE_S = 1.0


class VattWorker(Worker):
    """For CUDA devices: pages are unmapped behind an event of all that was submitted."""

    def determine_available_memory(self) -> int:
        """All that the tenant could ever have, in bytes: addresses cost nothing, so there is a block for each."""
        super().determine_available_memory()  # for what it does beside: warming up, profiling
        options = Options.of(self.vllm_config)
        self._session = _connect(options)
        lendable_bytes = self._session.pool_pages * self._session.page_size_bytes
        log.info(
            "KV cache: from the vattd of %s, for tenant %s, %s at most",
            self._session.device_uuid,
            options.tenant,
            format_size(lendable_bytes),
        )
        if self._session.device_uuid == "host":
            lendable_bytes //= self.parallel_config.world_size  # all ranks have the same pool
        unit_bytes = BLOCKS_MULTIPLE * sum(spec.page_size_bytes for spec in self.get_kv_cache_spec().values())
        return lendable_bytes // unit_bytes * unit_bytes or lendable_bytes

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        parallel = self.parallel_config
        path = socket_path(self.vllm_config.instance_id, parallel.data_parallel_index, self.rank)
        self._kv_memory: KVMemory | None = None

        def allocate(config: KVCacheConfig, *arguments: Any, **named: Any) -> dict[str, torch.Tensor]:
            if self._kv_memory is not None:
                raise InvalidRequest("this model has several KV caches: vattd can lend to one")
            if self._session.device_uuid != "host":
                refuse_windows(config)
            geometry = geometry_of(config, self._session.page_size_bytes)
            self._kv_memory = KVMemory(self._session, geometry, path)
            views: dict[str, torch.Tensor] = stock_allocate(config, torch.device("meta"), *arguments[1:], **named)
            return {name: moved(view, self._kv_memory.tensor) for name, view in views.items()}

        stock_allocate = gpu_model_runner.allocate_kv_cache
        with ExitStack() as restored:  # there is no switch for another allocator
            for module in RUNNER_MODULES:
                restored.enter_context(rebound(module, allocate_kv_cache=allocate))
            super().initialize_from_config(kv_cache_config)

    def execute_model(self, scheduler_output: Any) -> Any:
        if self._kv_memory is not None:
            orders = getattr(scheduler_output, ORDERS, None)
            if orders is not None:
                self._kv_memory.carry_out(orders)
            elif not self._kv_memory.is_attached:
                self._kv_memory.warm_up(_new_blocks(scheduler_output))
        return super().execute_model(scheduler_output)

    def shutdown(self) -> None:
        super().shutdown()  # after it no kernel reads the cache
        session = getattr(self, "_session", None)
        if session is not None:
            session.close()


def refuse_windows(config: KVCacheConfig) -> None:
    """Blocks before a sliding window lose their memory, and GPU kernels read whole tiles, which may begin in one."""
    if any(isinstance(spec, SlidingWindowSpec) for group in config.kv_cache_groups for spec in _specs_of(group)):
        raise InvalidRequest(
            "this model has layers with a sliding window, whose kernels may read what is before it on a GPU: give "
            "--disable-hybrid-kv-cache-manager, so that those layers keep all of their blocks"
        )


def geometry_of(config: KVCacheConfig, page_size_bytes: int) -> BlockGeometry:
    """Where the blocks of all of a cache's layers lie. Raises InvalidRequest for caches of several pools."""
    stripes: list[Stripe] = []
    for tensor in config.kv_cache_tensors:
        if config.num_blocks_of(tensor) != config.num_blocks:
            raise InvalidRequest("this model keeps part of its KV cache in host memory: vattd can lend one pool only")
        for index, layer in enumerate(tensor.layers):
            spec = _spec_of(config, layer)
            offset_bytes = tensor.offset + index * tensor.layer_stride
            stripes.append(Stripe(offset_bytes, tensor.block_stride, spec.page_size_bytes))
    return BlockGeometry(config.num_blocks, joined(stripes), page_size_bytes)


def moved(view: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """A view of the same bytes as `view` (without data) has in its storage, of `memory`: [bytes], uint8."""
    return memory.view(view.dtype).as_strided(view.size(), view.stride(), view.storage_offset())


def _spec_of(config: KVCacheConfig, layer: str) -> Any:
    spec = next(group.kv_cache_spec for group in config.kv_cache_groups if layer in group.layer_names)
    return spec.kv_cache_specs[layer] if isinstance(spec, UniformTypeKVCacheSpecs) else spec


def _specs_of(group: Any) -> Iterable[Any]:
    spec = group.kv_cache_spec
    return spec.kv_cache_specs.values() if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]


def _new_blocks(scheduler_output: Any) -> list[int]:
    """The blocks that a step made by hand uses for the first time."""
    new = [request.block_ids for request in scheduler_output.scheduled_new_reqs]
    grown = [block_ids for block_ids in scheduler_output.scheduled_cached_reqs.new_block_ids if block_ids is not None]
    return [block for groups in [*new, *grown] for blocks in groups for block in blocks]


def _connect(options: Options) -> Session:
    return Session.connect(
        options.tenant,
        device=options.device,
        socket_dir=options.socket_dir,
        client_name="vattention-vllm",
        patience_s=PATIENCE_S,
    )
