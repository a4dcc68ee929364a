"""What the doctor knows when it judges: collected once, and never changed."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

UNLIMITED = 1 << 63  # of a resource: more than any machine has


class Answer(enum.Enum):
    """How a driver's library took it to be asked."""

    GIVEN = "given"
    NO_LIBRARY = "no_library"
    REFUSED = "refused"  # with an error
    NONE = "none"  # in time
    CRASH = "crash"  # of the process that asked


class Is(enum.Enum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Distribution:
    """A Python package that something of ours needs, in versions from `least` to before `below`; "" is no bound."""

    name: str
    version: str  # "": it is not installed
    least: str = ""
    below: str = ""

    @property
    def fits(self) -> bool:
        numbers = numbers_of(self.version)
        return bool(self.version) and not (
            (self.least and numbers < numbers_of(self.least)) or (self.below and numbers >= numbers_of(self.below))
        )

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        bounds = [f">={self.least}"] * bool(self.least) + [f"<{self.below}"] * bool(self.below)
        return self.name + ",".join(bounds)


def numbers_of(version: str) -> tuple[int, ...]:
    """Of a version, the local part (`+cpu`) left out."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0]))


@dataclass(frozen=True, slots=True)
class Software:
    python: tuple[int, int, int]
    version: str  # of the package: vattctl's and the library's
    needed: Sequence[Distribution]
    torch: Distribution
    torch_cuda: str  # that torch was built for, "13.0"; "": none
    transformers: Distribution
    vllm: Distribution
    vllm_plugins: Sequence[str]  # names that are registered with vLLM
    environ: Mapping[str, str]  # those of VARIABLES that are set


# What the checks read of the environment.
VARIABLES = (
    "CUDA_MPS_PIPE_DIRECTORY",
    "CUDA_VISIBLE_DEVICES",
    "VATTD_SOCKET_DIR",
    "VATTD_VLLM",
    "VATTENTION_DAEMON",
    "VATTENTION_LAYOUT",
    "VLLM_PLUGINS",
)


@dataclass(frozen=True, slots=True)
class CudaGpu:
    """As CUDA shows it to this process."""

    ordinal: int
    uuid: str  # "GPU-...", also of a MIG device: CUDA does not say
    name: str
    has_vmm: bool
    exports_fds: bool
    uses_mps: Is
    compute_mode: int


@dataclass(frozen=True, slots=True)
class Cuda:
    answer: Answer
    error: str = ""
    version: int = 0  # 13000 for 13.0
    gpus: Sequence[CudaGpu] = ()


@dataclass(frozen=True, slots=True)
class GpuProcess:
    pid: int
    name: str  # "": it cannot be seen


@dataclass(frozen=True, slots=True)
class NvmlGpu:
    """As NVML shows it to all of the machine."""

    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    has_mig: bool = False  # switched on
    mig_uuids: Sequence[str] = ()
    processes: Sequence[GpuProcess] = ()


@dataclass(frozen=True, slots=True)
class Nvml:
    answer: Answer
    error: str = ""
    driver_version: str = ""  # of the libraries
    gpus: Sequence[NvmlGpu] = ()


@dataclass(frozen=True, slots=True)
class DeviceNode:
    path: str
    is_open: bool  # to this process, to read and write
    mode: str  # "crw-rw----"
    group: str


@dataclass(frozen=True, slots=True)
class Hardware:
    pci_gpus: int  # NVIDIA's, on the bus
    module_version: str  # of the kernel module that is loaded; "": none is
    nodes: Sequence[DeviceNode]
    mps_pipe: str  # of an MPS control daemon; "": there is none
    has_rdma: bool = False  # InfiniBand or RoCE

    @property
    def is_there(self) -> bool:
        return bool(self.pci_gpus or self.module_version or self.nodes)


@dataclass(frozen=True, slots=True)
class Kernel:
    release: str
    has_peer_pidfd: bool  # SO_PEERPIDFD
    refuses_descriptors: bool  # SO_PASSRIGHTS
    pidfd_error: str  # "": pidfd_open works
    memfd_error: str  # "": a sealed memfd can be made
    hides_processes: bool  # of other users, from this one


@dataclass(frozen=True, slots=True)
class Container:
    kind: str  # "docker", "kubernetes", ...; "": this is none that we know
    own_pids: bool  # a pid namespace that is not the machine's first
    own_users: bool  # the same of users


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a process that this shell starts, and of the kernel."""

    nofile_soft: int
    nofile_hard: int
    memlock_bytes: int
    address_space_bytes: int
    file_bytes: int
    max_map_count: int
    overcommit_mode: int
    commit_left_bytes: int  # of what may be promised, where overcommit_mode is 2


@dataclass(frozen=True, slots=True)
class Memory:
    """The host's."""

    machine_bytes: int
    total_bytes: int  # the tightest limit of all
    available_bytes: int
    headroom_bytes: int  # that vattd leaves to others
    limit: str  # what says `available_bytes`
    swap_bytes: int
    swap_used_bytes: int
    huge_pages: int  # of 2 MiB, set aside
    huge_pages_free: int
    shm_bytes: int  # /dev/shm


class Trouble(enum.Enum):
    """Why no sockets of a directory are used."""

    NONE = "none"
    UNSAFE = "unsafe"  # another user could put sockets there
    HIDDEN = "hidden"  # from this user
    TOO_LONG = "too_long"  # for the path of a socket


@dataclass(frozen=True, slots=True)
class Directory:
    """Where sockets are looked for."""

    path: Path
    is_chosen: bool  # by an option or a variable
    exists: bool
    trouble: Trouble = Trouble.NONE
    error: str = ""  # the trouble in words
    is_mounted: bool = False  # a mount, or in one that is not /


@dataclass(frozen=True, slots=True)
class Status:
    """What a vattd says of itself."""

    version: str
    state: str
    start_s: float  # by the clock as it was then
    backend: str
    page_size_bytes: int
    max_bytes: int
    pages_bytes: int
    session_count: int
    shortage: str


@dataclass(frozen=True, slots=True)
class Metrics:
    url: str
    error: str  # "": it answers


@dataclass(frozen=True, slots=True)
class Daemon:
    """A vattd whose sockets were found, and how it took it to be asked, as an engine asks and as an operator."""

    device: str
    directory: Path  # of all devices' sockets
    connect_error: str = ""  # of the handle socket, by errno's name
    pid: int = 0  # as this process sees it; 0: not at all
    is_stopped: bool = False
    refusal: str = ""  # what vattd's welcome says against this process; "": nothing
    is_silent: bool = False  # no welcome came
    wire_versions: tuple[int, int] = (0, 0)
    status: Status | None = None  # None: `status_error` says why
    status_error: str = ""
    process_start_s: float = 0.0  # by the clock as it is now; 0: cannot be seen
    nofile: int = 0  # 0: cannot be seen
    metrics: Sequence[Metrics] = ()
    metrics_hidden: bool = False  # whether it serves any cannot be seen

    @property
    def subject(self) -> str:
        return f"{self.device} in {self.directory}"

    @property
    def is_heard(self) -> bool:
        """Does it speak to this process?"""
        return not (self.connect_error or self.is_stopped or self.is_silent or self.refusal)


@dataclass(frozen=True, slots=True)
class Facts:
    now_s: float
    software: Software
    hardware: Hardware
    cuda: Cuda
    nvml: Nvml
    kernel: Kernel
    container: Container
    limits: Limits
    memory: Memory
    directories: Sequence[Directory]
    other_places: Sequence[Path] = ()  # where sockets of a vattd are too, by the kernel's list
    daemons: Sequence[Daemon] = ()
    metrics_port_error: str = ""  # why a vattd that starts now could not have its usual one

    @property
    def has_gpu(self) -> bool:
        """Or should have: there is something of one."""
        return self.hardware.is_there or Answer.GIVEN in (self.cuda.answer, self.nvml.answer)

    @property
    def uses_host_memory(self) -> bool:
        """Is, or will be, a pool on the host?"""
        return not self.cuda.gpus or any(one.device == "host" for one in self.daemons)

    def serves(self, uuid: str) -> Daemon | None:
        """The vattd that serves a GPU."""
        return next((one for one in self.daemons if one.status is not None and one.device[4:] == uuid[4:]), None)
