"""transformers' continuous batching on its own cache and on leased pages: the same requests, in pairs of runs.

`python -m benchmarks.continuous_batching` runs a random model of some million parameters on the CPU: what is compared
is the work around it, and a larger model only makes that a smaller part. The cache of both holds all requests at their
full lengths at once, which is what one must configure to be sure that none is preempted.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from tests.daemon import Vattd
from vattention import Session
from vattention.integrations.continuous_batching import paged_batching

MIB = 1 << 20
VOCABULARY = 2048
BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Request:
    prompt: list[int]
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """What one way of holding the cache took for all requests."""

    wall_s: float
    cpu_s: float  # of the process
    tokens: list[list[int]]
    mapped_bytes: list[int]  # at each step; empty for a cache that is not mapped


def some_requests(count: int, longest_tokens: int) -> list[Request]:
    """Lengths as of chats: log-normal, most of them far from the longest."""
    random = np.random.default_rng(3)
    prompts = np.clip(random.lognormal(4.5, 1.0, count), 4, longest_tokens * 3 // 4).astype(int)
    answers = np.clip(random.lognormal(3.5, 0.8, count), 4, longest_tokens // 4).astype(int)
    return [
        Request(random.integers(2, VOCABULARY, prompt).tolist(), int(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def random_model(layers: int) -> Any:
    torch.manual_seed(7)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "attn_implementation": "sdpa",
    }
    return LlamaForCausalLM(LlamaConfig(**shape))


def block_bytes(model: Any) -> int:
    config = model.config
    return int(config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 4 * BLOCK_TOKENS)


@contextmanager
def steps_noted(model: Any, session: Session, mapped_bytes: list[int]) -> Iterator[None]:
    hook = model.register_forward_pre_hook(
        lambda *_: mapped_bytes.append(session.mapper.mapped_pages * session.page_size_bytes)
    )
    with paged_batching(session):
        yield
    hook.remove()


def run(model: Any, requests: Sequence[Request], blocks: int, session: Session | None) -> Run:
    """On the pages of `session`; None: in a tensor of transformers' own."""
    made: Any = GenerationConfig
    options = {
        "generation_config": made(do_sample=False, eos_token_id=-1, pad_token_id=0),
        "continuous_batching_config": ContinuousBatchingConfig(
            page_size=BLOCK_TOKENS, num_blocks=blocks, max_batch_tokens=256, max_requests_per_batch=64
        ),
    }
    mapped_bytes: list[int] = []
    outputs: dict[str, Any] = {}
    with steps_noted(model, session, mapped_bytes) if session is not None else nullcontext():
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        with model.continuous_batching_context_manager(**options) as manager:
            ids = [manager.add_request(each.prompt, max_new_tokens=each.new_tokens) for each in requests]
            while len(outputs) < len(requests):
                output = manager.get_result(timeout=60)
                if output is None or output.error is not None:
                    raise RuntimeError(f"a request failed: {output}")
                outputs[output.request_id] = output
            wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return Run(wall_s, cpu_s, [outputs[name].generated_tokens for name in ids], mapped_bytes)


def ratio_of(numbers: Sequence[tuple[float, float]]) -> str:
    """On leased pages / in its own cache, pair by pair."""
    ratios = [paged / stock for stock, paged in numbers]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def table_of(pairs: Sequence[tuple[Run, Run]], stock_bytes: int) -> Table:
    mapped_bytes = pairs[-1][1].mapped_bytes
    tokens = pairs[-1][1].tokens
    table = Table(
        title=f"{len(tokens)} requests, {sum(map(len, tokens)):,} new tokens, {len(pairs)} pairs of runs; same tokens",
        title_justify="left",
    )
    for column in ("", "its own cache", "leased pages", "ratio, by pair"):
        table.add_column(column, justify="right" if column else "left")
    for name, field in (("wall time", "wall_s"), ("CPU time", "cpu_s")):
        seconds = [(getattr(stock, field), getattr(paged, field)) for stock, paged in pairs]
        medians = (f"{statistics.median(column):.2f} s" for column in zip(*seconds, strict=True))
        table.add_row(name, *medians, ratio_of(seconds))
    for name, paged_bytes in (("memory, most", max(mapped_bytes)), ("mean of steps", statistics.fmean(mapped_bytes))):
        sizes = (f"{number / MIB:.1f} MiB" for number in (stock_bytes, paged_bytes))
        table.add_row(name, *sizes, f"{paged_bytes / stock_bytes:.2f}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="pairs of runs, after one that is not counted")
    parser.add_argument("--requests", type=int, default=32, help="requests, all there at the start")
    parser.add_argument("--layers", type=int, default=4, help="layers of the model")
    parser.add_argument("--longest-tokens", type=int, default=1024, help="most tokens of a request with its answer")
    chosen = parser.parse_args(arguments)
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # a second one waits for its turn where the machine is shared, and measures that
    gc.freeze()  # transformers collects garbage at the end of a run, all modules otherwise
    model = random_model(chosen.layers)
    requests = some_requests(chosen.requests, chosen.longest_tokens)
    blocks = chosen.requests * math.ceil(chosen.longest_tokens / BLOCK_TOKENS)
    stock_bytes = (blocks + 2) * block_bytes(model)  # two blocks are for padding
    pairs: list[tuple[Run, Run]] = []
    with (
        Vattd("--pool-max", str(stock_bytes + 64 * MIB)) as vattd,
        Session.connect("bench", socket_dir=vattd.socket_dir) as session,
    ):
        for number in range(chosen.pairs + 1):
            order = (None, session) if number % 2 else (session, None)
            runs = {how: run(model, requests, blocks, how) for how in order}
            if runs[None].tokens != runs[session].tokens:
                raise RuntimeError("other tokens on leased pages than in transformers' own cache")
            if number:
                pairs.append((runs[None], runs[session]))
    Console(width=140).print(table_of(pairs, stock_bytes))


if __name__ == "__main__":
    main()
