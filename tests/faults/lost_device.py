"""Both CUDA drivers with a device that is lost at each of their calls in turn. A program, for a simulated machine:
a lost device stays lost, so every case has a process of its own, forked before CUDA is initialized.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import traceback

from tests.cudasim.faults import STICKY
from tests.faults.calls import CudaCalls
from tests.faults.operations import ALL_OR_NOTHING, Operation, destroying, name_of, releasing
from tests.vattention.vmm.rig import Rig
from vatt.errors import DeviceLost
from vatt.pages import Extent
from vattention.vmm import cuda_call

CASE_WITHIN_S = 30
OVER, FAILED = 10, 11


def main() -> int:
    cuda_call.bindings()  # so that it is imported once
    case_count = failed_count = 0
    for operation in [*ALL_OR_NOTHING, destroying, releasing]:
        for code in sorted(STICKY):
            for at in itertools.count(1):
                status = _in_a_child(operation, code, at)
                if status == OVER:
                    break
                case_count += 1
                if status != 0:
                    failed_count += 1
                    print(f"FAILED: {name_of(operation)}, {code} at call {at}: {status}")
    print(f"cases: {case_count}")
    return failed_count


def _in_a_child(operation: Operation, code: str, at: int) -> int:
    pid = os.fork()
    if pid == 0:
        status = FAILED
        try:
            signal.alarm(CASE_WITHIN_S)
            status = _case(operation, code, at)
        except BaseException:  # noqa: BLE001  a forked child must end here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _case(operation: Operation, code: str, at: int) -> int:
    rig, calls = Rig.open(None), CudaCalls()
    ready = operation(rig)
    act = ready.__enter__()  # and never out again: nothing can be taken back
    calls.fail(code, at)
    try:
        act()
    except DeviceLost:
        is_lost = True
    else:
        is_lost = False
    if not calls.clear():
        return OVER
    assert is_lost, "the caller was not told"
    try:
        rig.physical.create(Extent(77, 1))
    except DeviceLost:
        pass
    else:
        raise AssertionError("the device works again")
    rig.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
