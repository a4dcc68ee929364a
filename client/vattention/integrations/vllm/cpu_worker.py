"""vLLM's CPU worker with a KV cache that vattd lends. A module of its own: vLLM's is there on CPU builds only."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from vattention.integrations.vllm.worker import VattWorker


class VattCPUWorker(VattWorker, CPUWorker):
    """For host memory: a step is over when it returns, so dropped blocks are free at once."""
