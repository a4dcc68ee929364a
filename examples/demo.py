"""Two engines, two tenants, one vattd: text from one pool that is smaller than their static caches would be.

    make demo

Starts vattd on what the machine has, and two engine processes with the same real model and very different prompts.
They run each batch twice, with vattd's pages and with transformers' DynamicCache, both engines at the same time with
the same cache, and must say the same, token for token. Ends with status 0 only if they did and every page came back.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from examples import children, report, smollm2
from examples.children import Daemon, EngineProcess
from examples.errors import ChildFailed, DemoFailed
from examples.memory import DeviceCounter, Peak, SlabCounter
from examples.messages import DYNAMIC, VATT, Finish, Finished, Ready, Result, Run
from examples.messages import Progress as TokensSoFar

POOL_MAX = "384MiB"
# Status is asked for when one engine has written so much; the other is then at work as well.
STATUS_AFTER_TOKENS = 16
ALL_BACK_WITHIN_S = 10.0
WIDTH = 100
INTERRUPTED = 130  # the exit status of what Ctrl-C ended


@dataclass(frozen=True, slots=True)
class Tenant:
    """A workload: whose it is, what is asked, and how long an answer may be."""

    name: str
    new_tokens: int

    @property
    def prompts(self) -> Path:
        return Path(__file__).parent / "prompts" / f"{self.name}.txt"


TENANTS = [Tenant("chat", new_tokens=48), Tenant("summaries", new_tokens=40)]


class Demo:
    """One run, from the first process to the last check."""

    def __init__(self, console: Console, daemon: Daemon, engines: list[EngineProcess], peak: Peak) -> None:
        self._console, self._daemon, self._engines, self.peak = console, daemon, engines, peak
        self.ready: dict[str, Ready] = {}
        self.results: dict[str, list[Result]] = {engine.tenant: [] for engine in engines}

    async def get_ready(self) -> None:
        self._console.print("Loading the model in both engines")
        started_s = time.monotonic()
        for engine in self._engines:
            message = await engine.hear()
            if not isinstance(message, Ready):
                raise DemoFailed(f"the engine of {engine.tenant} said {message} before it was ready")
            self.ready[engine.tenant] = message
        self._console.print(f"Both are ready after {time.monotonic() - started_s:.1f} s")

    async def generate(self) -> None:
        """Every batch with both caches, which takes turns at being first."""
        rounds = max(len(ready.batches) for ready in self.ready.values())
        for number in range(rounds):
            for cache in (VATT, DYNAMIC) if number % 2 == 0 else (DYNAMIC, VATT):
                await self._phase(number, rounds, cache)

    async def finish(self) -> None:
        for engine in self._engines:
            engine.tell(Finish())
        for engine in self._engines:
            if not isinstance(await engine.hear(), Finished):
                raise DemoFailed(f"the engine of {engine.tenant} did not finish")
            if await engine.process.wait() != 0:
                raise ChildFailed(f"the engine of {engine.tenant}", "ended badly", engine.log)

    async def status(self) -> dict[str, Any]:
        [answer] = json.loads(await self._vattctl("-o", "json"))["daemons"]
        return dict(answer)

    async def all_pages_back(self) -> None:
        """By the ledger and by the kernel. vattd gives idle memory back in the background, so within some seconds."""
        deadline_s = time.monotonic() + ALL_BACK_WITHIN_S
        while True:
            pages = {row["state"]: row["page_count"] for row in (await self.status())["pool"]["pages_by_state"]}
            held_bytes = self.peak.counter.read_bytes() if isinstance(self.peak.counter, SlabCounter) else 0
            if sum(pages.values()) == pages["unbacked"] and held_bytes == 0:
                return
            if time.monotonic() > deadline_s:
                raise DemoFailed(f"not all pages are back: by state {pages}; the kernel counts {held_bytes} bytes")
            await asyncio.sleep(0.05)

    async def _phase(self, number: int, rounds: int, cache: str) -> None:
        """Both engines at the same time, each with its own batch of this round.

        In the last round status is asked for while they work: with both caches, since asking takes time from them.
        """
        name = "vattd's pages" if cache == VATT else "DynamicCache"
        busy = [engine for engine in self._engines if number < len(self.ready[engine.tenant].batches)]
        at_work = asyncio.Event()
        with self._progress() as progress:
            bars = {engine.tenant: self._add_bar(progress, engine.tenant, number) for engine in busy}
            work = [self._run(engine, Run(number, cache), progress, bars[engine.tenant], at_work) for engine in busy]
            asking = asyncio.create_task(self._vattctl_when(at_work)) if number == rounds - 1 else None
            results = await asyncio.gather(*work)
            if asking is not None:
                status = await asking
                if cache == VATT:
                    self._console.print("\n$ vattctl status", style="bold")
                    self._console.print(status, markup=False)
        for engine, result in zip(busy, results, strict=True):
            self.results[engine.tenant].append(result)
        took = ", ".join(f"{e.tenant} {r.duration_s:.1f} s" for e, r in zip(busy, results, strict=True))
        self._console.print(f"Round {number + 1} of {rounds} with {name}: {took}")

    async def _run(
        self, engine: EngineProcess, run: Run, progress: Progress, bar: TaskID, at_work: asyncio.Event
    ) -> Result:
        engine.tell(run)
        while True:
            message = await engine.hear()
            if isinstance(message, Result):
                at_work.set()  # a batch may be done before it says that much
                progress.update(bar, completed=progress.tasks[bar].total, state="done")
                return message
            if isinstance(message, TokensSoFar):
                state = f"{message.tokens} tokens" if message.tokens else "reading the prompts"
                progress.update(bar, completed=message.tokens, state=state)
                if message.tokens >= STATUS_AFTER_TOKENS:
                    at_work.set()

    def _add_bar(self, progress: Progress, tenant: str, number: int) -> TaskID:
        lengths = self.ready[tenant].batches[number]
        new_tokens = next(one.new_tokens for one in TENANTS if one.name == tenant)
        span = f"{min(lengths)}-{max(lengths)}" if len(lengths) > 1 else f"{lengths[0]}"
        return progress.add_task(f"  {tenant}: {len(lengths)} x {span} tokens", total=new_tokens, state="")

    def _progress(self) -> Progress:
        """Bars where somebody watches; elsewhere the lines after each phase are enough."""
        columns = [TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[state]}")]
        unseen = not self._console.is_terminal
        return Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True, disable=unseen)

    async def _vattctl_when(self, at_work: asyncio.Event) -> str:
        await at_work.wait()
        return await self._vattctl()

    async def _vattctl(self, *options: str) -> str:
        command = [sys.executable, "-m", "vattctl", "status", "--socket-dir", str(self._daemon.socket_dir)]
        return await children.output_of([*command, *options])


async def run(console: Console) -> None:
    started_s = time.monotonic()
    device, why = device_for_demo()
    console.print(f"vattd runs on {'host memory' if device == 'host' else f'GPU {device}'}: {why}")
    threads = max(1, len(os.sched_getaffinity(0)) // len(TENANTS))
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vattd-demo-")))
        daemon = await stack.enter_async_context(children.daemon(directory, ["--gpu", device, "--pool-max", POOL_MAX]))
        counter = SlabCounter(daemon.process.pid) if device == "host" else DeviceCounter(daemon.device)
        peak = Peak(counter)
        engines = []
        for tenant in TENANTS:
            options = ["--prompts", str(tenant.prompts), "--new-tokens", str(tenant.new_tokens)]
            options += ["--threads", str(threads)]
            engines.append(await stack.enter_async_context(children.engine(tenant.name, directory, options)))
        demo = Demo(console, daemon, engines, peak)
        with peak.watching():
            await demo.get_ready()
            report.print_plan(console, demo.ready, POOL_MAX, threads)
            await demo.generate()
            await demo.finish()
        status = await demo.status()
        await demo.all_pages_back()
        await daemon.stop()
    report.print_texts(console, demo.results)
    report.print_memory(console, demo.ready, status, peak)
    report.print_speed(console, demo.results)
    check(demo, status)
    took = f"{time.monotonic() - started_s:.0f} s"
    console.print(f"Both caches said the same, token for token; every page came back; {took}.", style="bold green")


def check(demo: Demo, status: dict[str, Any]) -> None:
    """Raises DemoFailed for whatever contradicts what the demo is there to show."""
    for tenant, results in demo.results.items():
        mine = {result.batch: result for result in results if result.cache == VATT}
        theirs = {result.batch: result for result in results if result.cache == DYNAMIC}
        if mine.keys() != theirs.keys() or len(mine) != len(demo.ready[tenant].batches):
            raise DemoFailed(f"{tenant}: not every batch ran with both caches")
        for batch, result in mine.items():
            for answer, other in zip(result.answers, theirs[batch].answers, strict=True):
                if answer.token_ids != other.token_ids:
                    raise DemoFailed(
                        f"{tenant}: the two caches disagree about {answer.prompt!r}:\n"
                        f"vattd's pages: {answer.text}\nDynamicCache:  {other.text}"
                    )
    if demo.peak.peak_bytes == 0:
        raise DemoFailed("no memory was seen behind any page")
    static_bytes = sum(ready.static_reservation_bytes for ready in demo.ready.values())
    if status["pool"]["max_bytes"] >= static_bytes:
        raise DemoFailed("the pool is not smaller than the two static reservations together")


def device_for_demo() -> tuple[str, str]:
    """What `vattd start --gpu` is told, and why. The engines need a torch that can use the device."""
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        count = 0
    if not count:
        return "host", "this machine has no NVIDIA GPU"
    import torch

    if not torch.cuda.is_available():
        return "host", "there is a GPU, but the torch that is installed cannot use it"
    return "0", "the first GPU of this machine"


def console_for(stream_is_terminal: bool) -> Console:
    width = min(WIDTH, Console().width) if stream_is_terminal else WIDTH
    return Console(width=width, highlight=False)


async def main(console: Console) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await run(console)
    except DemoFailed as error:
        console.print(f"The demo failed: {error}", style="bold red", markup=False)
        return 1
    return 0


def start() -> int:
    """The demo's exit status. Ctrl-C and SIGTERM end the children; a second one does not wait for those that linger."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the loop has a handler of its own
    try:
        smollm2.unpack()  # long, the first time; inside the loop it would hold up Ctrl-C
        return asyncio.run(main(console_for(sys.stdout.isatty())))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("Stopped.", flush=True)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(start())
