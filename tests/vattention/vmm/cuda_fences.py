"""The fences of a GPU, against simulated kernels. Collected by test_fences_on_cuda.py's child, never by itself.

To unmap pages that the device may still use ends this whole process, so each `unmap` here is an assertion.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.cudasim.kernel import Reads, Writes, launch
from tests.vattention.vmm.cuda_only import Calls
from tests.vattention.vmm.rig import Rig
from vatt.errors import DriverError, InvalidRequest
from vatt.pages import Extent
from vattention.device_fence import Proof, default_fence
from vattention.vmm import cuda_event
from vattention.vmm.cuda_call import bindings, call
from vattention.vmm.cuda_errors import error_of
from vattention.vmm.cuda_event import ContextFence, stream_fence

NULL_STREAM = 0
SHORT_S, LONG_S = 0.01, 0.2
CAPTURING = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"


@dataclass
class Engine:
    """Four mapped pages, and two streams that wait neither for each other nor for the NULL stream."""

    rig: Rig
    address: int
    streams: list[int]

    def read(self, page: int, stream: int, duration_s: float = LONG_S) -> None:
        launch(stream, Reads(self.page(page), self.rig.page), duration_s=duration_s)

    def page(self, page: int) -> int:
        return self.address + page * self.rig.page

    def unmap(self, page: int, page_count: int = 1) -> None:
        self.rig.mapping.unmap(self.page(page), page_count * self.rig.page)


@pytest.fixture
def engine() -> Iterator[Engine]:
    rig = Rig.open(None)
    non_blocking = int(bindings().CUstream_flags.CU_STREAM_NON_BLOCKING)
    streams = [int(call("cuStreamCreate", non_blocking)) for _ in range(2)]
    yield Engine(rig, rig.map_new([Extent(0, 4)]), streams)
    call("cuCtxSynchronize")
    for stream in streams:
        call("cuStreamDestroy", stream)
    rig.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(cuda_event, "call", calls)
    return calls


def poll(proof: Proof) -> None:
    while not proof.done():
        time.sleep(0.001)


def in_thread(function: Callable[[], object]) -> None:
    """Run it where no context is current, and see that none is left behind."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
            assert int(call("cuCtxGetCurrent")) == 0
        except BaseException as failure:  # noqa: BLE001 - raised again below
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for failure in failures:
        raise failure


def is_busy(stream: int) -> bool:
    (result,) = bindings().cuStreamQuery(stream)
    return bool(result.name == "CUDA_ERROR_NOT_READY")


def test_a_proof_of_the_context_covers_every_stream(engine: Engine) -> None:
    for page, stream in enumerate([*engine.streams, NULL_STREAM]):
        engine.read(page, stream)
    proof = ContextFence(0)()
    assert not proof.done()
    poll(proof)
    engine.unmap(0, 3)


def test_a_proof_covers_nothing_that_is_submitted_later(engine: Engine) -> None:
    engine.read(0, engine.streams[0], SHORT_S)
    proofs: list[Proof] = [ContextFence(0)(), stream_fence(*engine.streams)()]
    engine.read(1, engine.streams[0], 5 * LONG_S)
    for proof in proofs:
        proof.wait()
        assert is_busy(engine.streams[0])
    engine.unmap(0)


def test_a_proof_of_streams_covers_all_of_them_and_no_other(engine: Engine) -> None:
    one, other = engine.streams
    engine.read(0, one, SHORT_S)
    engine.read(1, NULL_STREAM)
    engine.read(2, other, 5 * LONG_S)
    proof = stream_fence(one, NULL_STREAM)()
    assert not proof.done()
    proof.wait()
    assert proof.done()
    assert is_busy(other)
    engine.unmap(0, 2)


@pytest.mark.parametrize("ask", [poll, lambda proof: proof.wait()], ids=["asking", "waiting"])
def test_a_thread_without_a_context_can_mark_and_ask(engine: Engine, ask: Callable[[Proof], None]) -> None:
    fences: list[Callable[[], Proof]] = [ContextFence(0), stream_fence(*engine.streams)]
    for page, fence in enumerate(fences):
        engine.read(page, engine.streams[0])
        taken: list[Proof] = []
        in_thread(lambda fence=fence, taken=taken: taken.append(fence()))  # type: ignore[misc]
        in_thread(lambda taken=taken: ask(taken[0]))  # type: ignore[misc]
        engine.unmap(page)


def test_the_threads_context_and_capture_mode_stay_as_they_were(engine: Engine) -> None:
    modes = bindings().CUstreamCaptureMode
    mode = modes.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    before, mode_before = int(call("cuCtxGetCurrent")), call("cuThreadExchangeStreamCaptureMode", mode)
    for fence in (ContextFence(0), stream_fence(*engine.streams)):
        proof = fence()
        proof.done()
        proof.wait()
    assert int(call("cuCtxGetCurrent")) == before
    assert call("cuThreadExchangeStreamCaptureMode", mode_before) == mode


def test_waiting_lets_other_threads_run(engine: Engine) -> None:
    engine.read(0, engine.streams[0])
    proof = ContextFence(0)()
    thread = threading.Thread(target=proof.wait)
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        time.sleep(0)
    assert turns > 100


def test_many_threads_may_ask_one_proof_and_its_event_is_used_once_at_a_time(engine: Engine, calls: Calls) -> None:
    fence = ContextFence(0)
    for _ in range(20):
        engine.read(0, engine.streams[0], SHORT_S)
        proof = fence()
        threads = [threading.Thread(target=ask, args=(proof,)) for ask in (poll, type(proof).wait) * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert proof.done()
    first, second = fence(), fence()
    assert first._event is not second._event  # type: ignore[union-attr]


def test_events_are_used_again(engine: Engine, calls: Calls) -> None:
    fence = ContextFence(0)
    for _ in range(10):
        fence().wait()
    engine.read(0, engine.streams[0])
    for _ in range(10):
        assert not fence().done()  # and nobody asks again
    assert calls.count["cuEventCreate"] == 1
    held = [fence() for _ in range(3)]
    assert calls.count["cuEventCreate"] == len(held)


def test_a_closed_fence_lets_go_of_the_context_when_its_last_proof_is_gone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing = Calls()
    monkeypatch.setattr(cuda_event, "call_at_close", closing)
    fence = ContextFence(0)
    engine.read(0, engine.streams[0])
    proof = fence()
    fence.close()
    with pytest.raises(DriverError, match="closed"):
        fence()
    assert not closing.count
    proof.wait()
    engine.unmap(0)
    del proof
    gc.collect()
    assert closing.count == {"cuEventDestroy": 1, "cuDevicePrimaryCtxRelease": 1}


def test_a_collected_fence_lets_go_of_the_context_in_whatever_thread(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing = Calls()
    monkeypatch.setattr(cuda_event, "call_at_close", closing)
    in_thread(lambda: ContextFence(0)().wait())
    gc.collect()
    assert closing.count == {"cuEventDestroy": 1, "cuDevicePrimaryCtxRelease": 1}


def test_a_context_that_is_being_captured_is_marked_later(engine: Engine, calls: Calls) -> None:
    engine.read(0, engine.streams[0])
    calls.fail("cuCtxRecordEvent", at=1, code=CAPTURING)
    proof = ContextFence(0)()
    assert not proof.done()
    poll(proof)
    assert calls.count["cuCtxRecordEvent"] == 2
    engine.unmap(0)


def test_a_wait_that_a_capture_forbids_raises_and_can_be_repeated(engine: Engine, calls: Calls) -> None:
    engine.read(0, engine.streams[0])
    calls.fail("cuCtxRecordEvent", at=1, code=CAPTURING)
    proof = ContextFence(0)()
    calls.fail("cuCtxRecordEvent", at=1, code=CAPTURING)
    with pytest.raises(DriverError, match=CAPTURING):
        proof.wait()
    assert not proof.done()
    proof.wait()
    engine.unmap(0)


def test_a_stream_that_is_being_captured_is_marked_when_that_is_over(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    capturing, recorded = [True], []

    def capture(name: str, *args: object) -> Any:
        if name == "cuStreamIsCapturing":
            return int(capturing[0])
        if name == "cuEventRecord":
            recorded.append(args)
        return call(name, *args)

    monkeypatch.setattr(cuda_event, "call", capture)
    engine.read(0, engine.streams[0])
    proof = stream_fence(engine.streams[0])()
    assert not proof.done()
    with pytest.raises(DriverError, match=CAPTURING):
        proof.wait()
    assert not recorded
    capturing[0] = False
    proof.wait()
    engine.unmap(0)


@pytest.mark.parametrize("ask", ["cuEventQuery", "cuEventSynchronize"])
def test_a_mark_that_went_into_a_graph_is_made_again(engine: Engine, calls: Calls, ask: str) -> None:
    engine.read(0, engine.streams[0])
    proof = stream_fence(engine.streams[0])()
    calls.fail(ask, at=1, code="CUDA_ERROR_CAPTURED_EVENT")
    if ask == "cuEventSynchronize":
        with pytest.raises(DriverError, match="CAPTURED_EVENT"):
            proof.wait()
    assert not proof.done()
    proof.wait()
    assert calls.count["cuEventRecord"] == 1
    engine.unmap(0)


def test_a_fence_that_fails_takes_no_event_and_can_be_called_again(engine: Engine, calls: Calls) -> None:
    fence = ContextFence(0)
    calls.fail("cuCtxRecordEvent", at=1, code="CUDA_ERROR_INVALID_VALUE")
    with pytest.raises(DriverError, match="INVALID_VALUE"):
        fence()
    gc.collect()
    engine.read(0, engine.streams[0])
    fence().wait()
    assert calls.count["cuEventCreate"] == 1
    engine.unmap(0)


@pytest.mark.parametrize("missing", [error_of("cuCtxRecordEvent", "CUDA_ERROR_NOT_SUPPORTED"), DriverError("none")])
def test_a_driver_that_cannot_mark_a_context_waits_for_all_of_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, missing: DriverError
) -> None:
    def old(name: str, *args: object) -> Any:
        if name == "cuCtxRecordEvent":
            raise missing
        return call(name, *args)

    monkeypatch.setattr(cuda_event, "call", old)
    for page, stream in enumerate(engine.streams):
        launch(stream, Writes(engine.page(page), engine.rig.page), duration_s=LONG_S)
    fence = ContextFence(0)
    proof, second = fence(), fence()
    assert not proof.done()
    in_thread(proof.wait)
    assert proof.done()
    assert not second.done()
    engine.unmap(0, 2)


@pytest.mark.parametrize("handles", [(), (2,), (0, 2)])
def test_a_fence_of_no_stream_or_of_one_that_each_thread_has_its_own_of_is_refused(handles: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="stream_fence"):
        stream_fence(*handles)


def test_the_default_fence_of_a_gpu_is_its_contexts(engine: Engine) -> None:
    fence = default_fence(torch.device("cuda:0"))
    engine.read(0, engine.streams[0])
    proof = fence()
    assert proof is not None
    assert not proof.done()
    proof.wait()
    engine.unmap(0)
