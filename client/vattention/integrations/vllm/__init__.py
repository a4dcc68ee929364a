"""vLLM on memory that vattd lends: a plugin, on with VATTD_VLLM=1.

    VATTD_VLLM=1 VATTENTION_TENANT=chat vllm serve ...

vLLM's own kernels, model runners and policies; what changes is where the KV cache's memory comes from. The scheduler
(`scheduler`, `block_pool`, `budget`) decides which blocks have memory, the workers (`worker`, `kv_memory`) map pages
behind them, in step with the SchedulerOutput that carries the orders.
"""
