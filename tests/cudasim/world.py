"""A simulated machine, as a test sees it: make it, hand it to subprocesses, look into it."""

import ctypes
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .faults import Faults
from .library import build, default_directory

MIB = 1 << 20

# Microseconds per call, published: kvcached's benchmark on an A100, but release and free are vAttention's.
# What one cuMemSetAccess over many allocations costs is not known; here it costs the same as over one.
LATENCIES_US: Mapping[str, Mapping[str, float]] = {
    "none": {},
    "a100": {
        "cuMemCreate": 193.3,
        "cuMemMap": 1.45,
        "cuMemSetAccess": 36.0,
        "cuMemUnmap": 25.6,
        "cuMemRelease": 23.0,
        "cuMemAddressReserve": 19.0,
        "cuMemAddressFree": 1.0,
    },
}


@dataclass(frozen=True, slots=True)
class CallCount:
    """How often one driver call was made, and how often it did not succeed.

    `refused` is misuse; `exhausted` is OUT_OF_MEMORY, which a correct program may meet too; `injected` is what a test
    made fail, and in neither of those.
    """

    calls: int = 0
    refused: int = 0
    exhausted: int = 0
    injected: int = 0


class World:
    """One simulated machine. A context manager; `close` takes away all of it.

    It lives in a directory on tmpfs. Processes join it through the environment that `env` gives. Looking into it first
    takes back what dead processes held, so what it says is true now.
    """

    def __init__(
        self,
        *,
        devices: int = 1,
        memory_bytes: int = 1024 * MIB,
        latencies: str | Mapping[str, float] = "none",
        uuids: Sequence[uuid.UUID] | None = None,
        granularity_bytes: int = 2 * MIB,
        context_bytes: int = 300 * MIB,
        fresh_byte: int | None = None,
        name: str = "NVIDIA Simulated A100",
        libraries: Path | None = None,
    ) -> None:
        """Make `devices` GPUs of `memory_bytes` each.

        `latencies` names a set of LATENCIES_US or is one: microseconds by call name. `fresh_byte` fills every new
        allocation, as a real device's fresh memory is dirty; it costs real memory, None leaves zeros. `context_bytes`
        is what a process's first primary context on a device takes. `libraries` is what `build` returned.
        """
        if uuids is None:
            uuids = [uuid.uuid4() for _ in range(devices)]
        if not 1 <= devices == len(uuids):
            raise ValueError(f"{devices} devices with {len(uuids)} UUIDs")
        self.libraries = libraries or build(default_directory())
        self.uuids = tuple(uuids)
        self._control = _Control(self.libraries / "libcudasim.so")
        self._world: int | None = None
        with ExitStack() as undo:
            self.path = Path(tempfile.mkdtemp(prefix="cudasim-", dir="/dev/shm"))
            undo.callback(shutil.rmtree, self.path)
            world = self._control.create(
                self.path, granularity_bytes, context_bytes, -1 if fresh_byte is None else fresh_byte
            )
            undo.callback(self._control.close, world)
            for identity in uuids:
                self._control.add_device(world, name, identity.bytes, memory_bytes)
            self._world = world
            self.faults = self._control.faults(world)
            self.set_latencies(LATENCIES_US[latencies] if isinstance(latencies, str) else latencies)
            self._undo = undo.pop_all()

    def __enter__(self) -> "World":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def env(
        self, *, mps: bool = False, attributes: Mapping[int, int] | None = None, mig_devices: int | None = None
    ) -> dict[str, str]:
        """The environment variables that put a process into this world; merge them over `os.environ`.

        With `mps` the driver tells the process that an MPS server stands between it and the devices. `attributes` are
        what it says of all devices instead of what it would, by CUdevice_attribute. With `mig_devices` NVML says that
        MIG is on, and each device split into so many (CUDA is not told).
        """
        inherited = os.environ.get("LD_LIBRARY_PATH")
        paths = [str(self.libraries), *([inherited] if inherited else [])]
        env = {"CUDASIM_WORLD": str(self.path), "LD_LIBRARY_PATH": ":".join(paths), "CUDASIM_MPS": str(int(mps))}
        if attributes:
            env["CUDASIM_ATTRIBUTES"] = ",".join(f"{attribute}={value}" for attribute, value in attributes.items())
        if mig_devices is not None:
            env["CUDASIM_MIG"] = str(mig_devices)
        return env

    def set_latencies(self, latencies_us: Mapping[str, float]) -> None:
        """From now on, delay these calls by so many microseconds and no others."""
        unknown = set(latencies_us) - set(self._control.call_names)
        if unknown:
            raise ValueError(f"no such driver calls: {sorted(unknown)}")
        for call, name in enumerate(self._control.call_names):
            self._control.set_latency_ns(self._open_world(), call, round(latencies_us.get(name, 0) * 1000))

    def counters(self, pid: int | None = None) -> dict[str, CallCount]:
        """Counts by call name, of all processes there ever were, or of one. Every known call has an entry."""
        return self._control.counters(self._open_world(), pid)

    def refused(self) -> int:
        """How many calls were misuse, in all processes."""
        return sum(count.refused for count in self.counters().values())

    def used_bytes(self, device: int = 0) -> int:
        """Memory of one device that somebody holds: allocations and contexts."""
        if not 0 <= device < len(self.uuids):
            raise ValueError(f"no device {device}")
        return self._control.used_bytes(self._open_world(), device)

    def allocation_count(self) -> int:
        """Physical allocations that somebody holds, on all devices."""
        return self._control.allocation_count(self._open_world())

    def close(self) -> None:
        """Remove the world's files. A process still in it keeps what it has mapped. Closing twice is harmless."""
        self._world = None
        self._undo.close()

    def _open_world(self) -> int:
        if self._world is None:
            raise ValueError("this world is closed")
        return self._world


class _Control:
    """libcudasim.so: the only code that knows the layout of the shared state."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path), use_errno=True)
        library.cudasim_create.restype = ctypes.c_void_p
        library.cudasim_create.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
        library.cudasim_add_device.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64]
        library.cudasim_set_latency_ns.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64]
        library.cudasim_set_latency_ns.restype = None
        library.cudasim_counters.argtypes = [ctypes.c_void_p, ctypes.c_int, *[ctypes.POINTER(ctypes.c_uint64)] * 4]
        library.cudasim_counters.restype = None
        library.cudasim_used_bytes.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.cudasim_used_bytes.restype = ctypes.c_uint64
        library.cudasim_allocation_count.argtypes = [ctypes.c_void_p]
        library.cudasim_close.argtypes = [ctypes.c_void_p]
        library.cudasim_close.restype = None
        library.cudasim_call_name.restype = ctypes.c_char_p
        self._library = library
        self.call_names: list[str] = [
            library.cudasim_call_name(call).decode() for call in range(library.cudasim_call_count())
        ]

    def create(self, path: Path, granularity_bytes: int, context_bytes: int, fresh_byte: int) -> int:
        world = self._library.cudasim_create(os.fsencode(path), granularity_bytes, context_bytes, fresh_byte)
        if world is None:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(path))
        return int(world)

    def add_device(self, world: int, name: str, identity: bytes, memory_bytes: int) -> None:
        if self._library.cudasim_add_device(world, name.encode(), identity, memory_bytes):
            raise ValueError("too many devices")

    def faults(self, world: int) -> Faults:
        return Faults(self._library, world, self.call_names)

    def set_latency_ns(self, world: int, call: int, latency_ns: int) -> None:
        self._library.cudasim_set_latency_ns(world, call, latency_ns)

    def counters(self, world: int, pid: int | None) -> dict[str, CallCount]:
        counts = [(ctypes.c_uint64 * len(self.call_names))() for _ in range(4)]
        self._library.cudasim_counters(world, pid or 0, *counts)
        return {name: CallCount(*(count[at] for count in counts)) for at, name in enumerate(self.call_names)}

    def used_bytes(self, world: int, device: int) -> int:
        return int(self._library.cudasim_used_bytes(world, device))

    def allocation_count(self, world: int) -> int:
        return int(self._library.cudasim_allocation_count(world))

    def close(self, world: int) -> None:
        self._library.cudasim_close(world)
