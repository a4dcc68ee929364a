"""What vattd costs a vLLM engine on this machine: the same requests through an engine on lent memory and a stock one.

    make bench-vllm

Both engines are up all the time and have their turns, pass by pass, so that whatever else the machine does meets both.
The requests are the same and so are the answers, or it fails. Needs an environment with vLLM in it.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from tests.daemon import Vattd
from vatt.sizes import format_size

MAX_MODEL_LEN = 2048
VOCABULARY = 1000
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": MAX_MODEL_LEN,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
}


class Engine:
    """A child process that runs the requests whenever it is told to."""

    def __init__(self, model_dir: str, request_count: int, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.vllm_overhead", "--serve", model_dir, "--requests", str(request_count)],
            env={**os.environ, **ENVIRONMENT, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read()

    def run(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException("an engine ended: is vLLM installed, and is there memory enough?")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(model_dir: str, request_count: int) -> None:
    """The child: a line on stdin is a pass; each is answered with its times and a digest of its tokens."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model_dir,
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        seed=0,
        max_num_seqs=16,
        max_model_len=MAX_MODEL_LEN,
        enable_prefix_caching=False,
    )
    chosen = random.Random(7)
    lengths = [chosen.randint(20, 1500) for _ in range(request_count)]
    prompts = [{"prompt_token_ids": [chosen.randrange(3, VOCABULARY) for _ in range(length)]} for length in lengths]
    sampling = SamplingParams(max_tokens=64, temperature=0, ignore_eos=True, detokenize=False)
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        times = {"wall_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - began_cpu_s}
        tokens = hash(tuple(token for output in outputs for token in output.outputs[0].token_ids))
        print(json.dumps({**times, "tokens": tokens}), file=answers, flush=True)


def compare(request_count: int, pass_count: int, pool: str) -> None:
    with ExitStack() as closed:
        directory = closed.enter_context(tempfile.TemporaryDirectory(prefix="vattd-"))
        Path(directory, "config.json").write_text(json.dumps(MODEL))
        vattd = closed.enter_context(Vattd("--pool-max", pool))
        lent = {"VATTD_VLLM": "1", "VATTD_SOCKET_DIR": str(vattd.socket_dir)}
        engines = {
            "stock": Engine(directory, request_count, {"VATTD_VLLM": "0", "VLLM_CPU_KVCACHE_SPACE": "2"}),
            "on vattd": Engine(directory, request_count, lent),
        }
        for engine in engines.values():
            closed.callback(engine.close)
            engine.run()  # kernels are chosen, memory is touched
        print(f"Both engines are up; {pass_count} passes of each follow.", file=sys.stderr)
        passes: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
        for number in range(pass_count):
            for name in sorted(engines, reverse=bool(number % 2)):
                passes[name].append(engines[name].run())
        report(passes, vattd.status().pool.peak_leased_bytes)


def report(passes: dict[str, list[dict[str, Any]]], most_leased_bytes: int) -> None:
    if len({each["tokens"] for runs in passes.values() for each in runs}) != 1:
        raise click.ClickException("the engines gave different answers")
    print("            wall, median     least       CPU, median")
    for name, runs in passes.items():
        wall, cpu = [run["wall_s"] for run in runs], [run["cpu_s"] for run in runs]
        print(f"{name:10} {statistics.median(wall):10.2f} s {min(wall):8.2f} s {statistics.median(cpu):12.2f} s")
    for what in ("wall_s", "cpu_s"):
        pairs = zip(passes["on vattd"], passes["stock"], strict=True)
        ratios = sorted(mine[what] / theirs[what] for mine, theirs in pairs)
        print(
            f"{what.removesuffix('_s'):4} on vattd over stock, pass by pass: median {statistics.median(ratios):.3f}, "
            f"from {ratios[0]:.3f} to {ratios[-1]:.3f}"
        )
    print(
        f"most leased at one time: {format_size(most_leased_bytes)}; the stock engine's cache: 2.00 GiB, as it was told"
    )


@click.command()
@click.option("--requests", "request_count", default=12, show_default=True, help="In each pass.")
@click.option("--passes", "pass_count", default=7, show_default=True, help="Of each engine.")
@click.option("--pool", default="2GiB", show_default=True, help="vattd's --pool-max.")
@click.option("--serve", "model_dir", hidden=True, help="Be one of the engines.")
def main(request_count: int, pass_count: int, pool: str, model_dir: str | None) -> None:
    """Compare a vLLM engine on lent memory with a stock one, pass by pass."""
    if model_dir is not None:
        serve(model_dir, request_count)
    else:
        compare(request_count, pass_count, pool)


if __name__ == "__main__":
    main()
