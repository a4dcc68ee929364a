"""One vLLM engine in a process of its own: `python -m tests.vllm.engine_process SPEC` prints a Report, each as JSON.

A tiny llama with random weights, which are the same in every process. The requests come from a seed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_MODEL_LEN = 1024
VOCABULARY = 1000
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": MAX_MODEL_LEN,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
}
# What vLLM holds for a block of 128 tokens (its size on CPUs): K and V of all layers.
BLOCK_BYTES = 128 * 4 * 2 * 4 * 32 * 4
STARTED, IDLE = "started", "idle"


@dataclass(frozen=True)
class Spec:
    """What to run. `engine` are further options of vllm.LLM."""

    model_dir: str
    engine: dict[str, Any] = field(default_factory=dict)
    requests: int = 16
    longest_prompt: int = 700
    shared_prefix: int = 0  # tokens that all prompts begin with
    new_tokens: int = 24
    passes: int = 1
    seed: int = 1
    watch: bool = False  # look at blocks and pages after every step; the engine must be in this process
    idle_s: float = 0.0  # stay so long at the end, without a request; with `watch`, until nothing is held without need
    interpret_triton: bool = False  # run the Triton kernels of model runner V2 in Triton's interpreter


@dataclass
class Report:
    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    preemptions: int = 0
    steps: list[dict[str, int]] = field(default_factory=list)
    idle: dict[str, int] = field(default_factory=dict)
    duration_s: float = 0.0


def prompts(spec: Spec) -> list[dict[str, list[int]]]:
    chosen = random.Random(spec.seed)
    shared = [chosen.randrange(3, VOCABULARY) for _ in range(spec.shared_prefix)]

    def prompt() -> list[int]:
        own = chosen.randint(20, spec.longest_prompt - spec.shared_prefix)
        return shared + [chosen.randrange(3, VOCABULARY) for _ in range(own)]

    return [{"prompt_token_ids": prompt()} for _ in range(spec.requests)]


def run(spec: Spec) -> Report:
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=spec.model_dir,
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        seed=0,
        **{"max_num_seqs": 8, "max_model_len": MAX_MODEL_LEN, "enable_prefix_caching": False, **spec.engine},
    )
    report = Report()
    if spec.watch:
        watch(llm.llm_engine.engine_core.engine_core, report)
    sampling = SamplingParams(max_tokens=spec.new_tokens, temperature=0, ignore_eos=True, detokenize=False, logprobs=0)
    tell(STARTED)
    began_s = time.perf_counter()
    for _ in range(spec.passes):
        for answer in llm.generate(prompts(spec), sampling, use_tqdm=False):
            (output,) = answer.outputs
            report.tokens.append(list(output.token_ids))
            report.logprobs.append([next(iter(each.values())).logprob for each in output.logprobs])
    report.duration_s = time.perf_counter() - began_s
    tell(IDLE)
    if spec.watch and spec.idle_s:
        report.idle = held_when_idle(llm.llm_engine.engine_core.engine_core, time.monotonic() + spec.idle_s)
    elif spec.idle_s:
        time.sleep(spec.idle_s)
    return report


def held_when_idle(core: Any, deadline_s: float) -> dict[str, int]:
    """What is held once that is no more than blocks need, or at the deadline. Nothing tells when it is so."""
    while (now := held(core))["leased_pages"] > now["needed_pages"] and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return now


def watch(core: Any, report: Report) -> None:
    """Count preemptions, and note after each step what the blocks in use need and what is held for them."""
    scheduler = core.scheduler
    preempt: Callable[..., None] = scheduler._preempt_request
    execute: Callable[..., Any] = core.model_executor.execute_model

    def counted(*arguments: Any, **named: Any) -> None:
        report.preemptions += 1
        preempt(*arguments, **named)

    def noted(*arguments: Any, **named: Any) -> Any:
        output = execute(*arguments, **named)
        if hasattr(scheduler, "_budget"):
            report.steps.append(held(core))
        return output

    scheduler._preempt_request, core.model_executor.execute_model = counted, noted


def held(core: Any) -> dict[str, int]:
    worker, scheduler = core.model_executor.driver_worker.worker, core.scheduler
    memory, pool = worker._kv_memory, scheduler._pool
    return {
        "used_blocks": pool.used_count,
        "idle_blocks": pool.idle_count,
        "promised_pages": scheduler._budget.promised_pages,
        "credit_pages": scheduler._budget.credit_pages,
        "needed_pages": memory.needed_pages,
        "mapped_pages": memory.mapped_pages,
        "leased_pages": worker._session.leased_pages,
        "pool_pages": worker._session.pool_pages,
        "page_size_bytes": worker._session.page_size_bytes,
    }


def tell(message: str) -> None:
    """One line on what was stdout: vLLM writes to stdout too."""
    os.write(REPORT_FD, f"{message}\n".encode())


def interpret_triton() -> None:
    """vLLM asks for a Triton that compiles for CPUs before it lets model runner V2 run on one; Triton's own interpreter
    runs the same kernels, slowly."""
    os.environ["TRITON_INTERPRET"] = "1"
    from types import SimpleNamespace

    import triton.backends

    driver = SimpleNamespace(is_active=lambda: True)
    triton.backends.backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    if spec.interpret_triton:
        interpret_triton()
    tell(json.dumps(dataclasses.asdict(run(spec))))


if __name__ == "__main__":
    # Whatever vLLM and its workers print goes to stderr; the first stdout is for the report alone.
    REPORT_FD = os.dup(1)
    os.dup2(2, 1)
    main()
