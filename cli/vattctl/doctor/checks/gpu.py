"""The NVIDIA driver, and each GPU that it shows."""

from __future__ import annotations

from vatt.sizes import format_size
from vattctl.doctor.checks.commands import start_anew
from vattctl.doctor.facts import Answer, CudaGpu, Facts, GpuProcess, Is, NvmlGpu
from vattctl.doctor.finding import Finding, broken, note, ok, warning
from vattctl.words import some_of

# The driver's entry that cuda-bindings 13 looks for came with the first; the second is what it is made for.
OLDEST_CUDA, OWN_CUDA = 12000, 13000
# What `vattd start` takes of a GPU by default.
USUAL_POOL_PERCENT = 90
COMPUTE_MODES = {2: "PROHIBITED", 3: "EXCLUSIVE_PROCESS"}
LOOK_IN_LOG = "sudo dmesg | grep -i -e nvrm -e xid"
IN_CONTAINER = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility ..."


def driver(facts: Facts) -> Finding:
    cuda = facts.cuda
    if cuda.answer is Answer.NONE:
        return broken("driver", f"the CUDA driver hangs: {cuda.error}", LOOK_IN_LOG, "sudo reboot")
    if cuda.answer is Answer.CRASH:
        return broken("driver", f"asking the CUDA driver ended the process: {cuda.error}", LOOK_IN_LOG)
    if cuda.answer is Answer.NO_LIBRARY and not facts.has_gpu:
        return note("driver", "there is no NVIDIA GPU here: vattd lends host memory")
    if cuda.answer is Answer.NO_LIBRARY:
        where = ", in this container" if facts.container.kind else ""
        fix = IN_CONTAINER if facts.container.kind else "install the NVIDIA driver (Debian: apt install nvidia-driver)"
        return broken("driver", f"there is an NVIDIA GPU{where}, and {cuda.error}", fix)
    if cuda.answer is Answer.REFUSED:
        return _refused(facts)
    version = f"CUDA {cuda.version // 1000}.{cuda.version % 1000 // 10}"
    if cuda.version < OLDEST_CUDA:
        return broken("driver", f"the driver is for {version}, and vattd needs 12.0", "update the NVIDIA driver")
    count = f"{len(cuda.gpus)} GPU" + "s" * (len(cuda.gpus) != 1)
    if cuda.version < OWN_CUDA:
        return note(
            "driver", f"{version}, {count}; vattd is made for CUDA 13", "update the NVIDIA driver (580 or later)"
        )
    return ok("driver", f"{version}, {count}")


def _refused(facts: Facts) -> Finding:
    error, hidden = facts.cuda.error, facts.software.environ.get("CUDA_VISIBLE_DEVICES")
    if "NO_DEVICE" in error and hidden is not None:
        words = f"CUDA_VISIBLE_DEVICES is {hidden!r}, and hides every GPU from this shell"
        return (warning if facts.has_gpu else note)("driver", words, "unset CUDA_VISIBLE_DEVICES")
    if "NO_DEVICE" in error and not facts.has_gpu:
        return note("driver", "the NVIDIA driver is there, and no GPU: vattd lends host memory")
    if "MISMATCH" in error:
        return broken("driver", error, "sudo reboot")
    return broken("driver", error, "nvidia-smi", LOOK_IN_LOG)


def nvml(facts: Facts) -> Finding:
    """vattd reads a GPU's memory by it."""
    found, loaded = facts.nvml, facts.hardware.module_version
    if found.answer is Answer.NONE:
        return broken("nvml", f"NVML hangs: {found.error}", LOOK_IN_LOG, "sudo reboot")
    if found.answer is not Answer.GIVEN:
        fix = IN_CONTAINER if facts.container.kind else "nvidia-smi"
        return broken("nvml", f"vattd cannot read the GPU's memory: {found.error}", fix, "sudo reboot")
    if loaded and found.driver_version and loaded != found.driver_version:
        words = f"the kernel module is {loaded}, and the driver's libraries are {found.driver_version}"
        return broken("nvml", words, "sudo reboot")
    known = {uuid[4:] for one in found.gpus for uuid in (one.uuid, *one.mig_uuids)}
    unknown = [one.uuid for one in facts.cuda.gpus if one.uuid[4:] not in known]
    if unknown:
        words = f"NVML does not know {some_of(unknown)}, which CUDA shows: vattd could not read its memory"
        return broken("nvml", words, "nvidia-smi -L", "sudo reboot")
    return ok("nvml", f"driver {found.driver_version}")


def device_nodes(facts: Facts) -> Finding:
    """/dev/nvidia*, by which a process reaches the driver."""
    nodes = facts.hardware.nodes
    shut = [one for one in nodes if not one.is_open]
    if shut:
        groups = {one.group for one in shut} - {"root"}
        member = [f'sudo usermod -aG {group} "$USER"   # and log in anew' for group in sorted(groups)]
        words = ", ".join(f"{one.path} ({one.mode}, group {one.group})" for one in shut)
        return broken("device-nodes", f"not open to this user: {words}", *member, "sudo chmod a+rw /dev/nvidia*")
    names = {one.path for one in nodes}
    if "/dev/nvidiactl" in names and "/dev/nvidia-uvm" not in names:
        words = "/dev/nvidia-uvm is missing: CUDA does not start, though nvidia-smi works"
        return broken("device-nodes", words, IN_CONTAINER if facts.container.kind else "sudo nvidia-modprobe -u -c=0")
    if not nodes and Answer.GIVEN not in (facts.cuda.answer, facts.nvml.answer):
        fix = IN_CONTAINER if facts.container.kind else "sudo nvidia-modprobe -u -c=0"
        return broken("device-nodes", "there is no /dev/nvidia*: no process can reach the GPU", fix)
    return ok("device-nodes", f"{len(nodes)} device files, open to this user" if nodes else "none are needed here")


def mps_daemon(facts: Facts) -> Finding:
    pipe = facts.hardware.mps_pipe
    if not pipe:
        return ok("mps-daemon", "no MPS control daemon is seen")
    words = f"an MPS control daemon is at {pipe}"
    if any(one.uses_mps is Is.UNKNOWN for one in facts.cuda.gpus):
        return warning(
            "mps-daemon",
            f"{words}, and this driver (before CUDA 12.3) does not say who uses it: see docs/security.md",
            "echo quit | nvidia-cuda-mps-control",
        )
    return note("mps-daemon", words, "CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d) vattd start")


def vmm(facts: Facts, gpu: CudaGpu) -> Finding:
    return _ability("vmm", facts, gpu, gpu.has_vmm, "virtual memory management")


def fd_export(facts: Facts, gpu: CudaGpu) -> Finding:
    return _ability("fd-export", facts, gpu, gpu.exports_fds, "sharing memory by file descriptor")


def _ability(name: str, facts: Facts, gpu: CudaGpu, has_it: bool, words: str) -> Finding:
    if has_it:
        return ok(name, words, _subject(gpu))
    others = [one.ordinal for one in facts.cuda.gpus if one.has_vmm and one.exports_fds]
    fixes = [f"vattd start --gpu {others[0]}"] if others else []
    kind = warning if others else broken
    words = f"the driver does not offer {words} on {gpu.name}, so no pages can be lent of it"
    return kind(name, words, *fixes, "vattd start --gpu host", subject=_subject(gpu))


def mps(facts: Facts, gpu: CudaGpu) -> Finding:
    if gpu.uses_mps is Is.UNKNOWN:
        return note("mps", "the driver (before CUDA 12.3) does not say whether MPS is used", subject=_subject(gpu))
    if gpu.uses_mps is Is.NO:
        return ok("mps", "no MPS server stands before it", _subject(gpu))
    # Only vattd itself knows whether it was told --allow-mps.
    is_served = facts.serves(gpu.uuid) is not None
    who = "engines from this shell are refused" if is_served else "vattd does not start from this shell"
    return (warning if is_served else broken)(
        "mps",
        f"an MPS server stands before it: {who}, unless vattd has --allow-mps (docs/security.md)",
        "export CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)",
        "vattd start --allow-mps",
        subject=_subject(gpu),
    )


def compute_mode(facts: Facts, gpu: CudaGpu) -> Finding:
    mode = COMPUTE_MODES.get(gpu.compute_mode)
    if mode is None:
        return ok("compute-mode", "several processes may use it", _subject(gpu))
    words = f"compute mode {mode}: " + ("no process" if mode == "PROHIBITED" else "one process only") + " may use it"
    return broken("compute-mode", words, f"sudo nvidia-smi -i {gpu.uuid} -c DEFAULT", subject=_subject(gpu))


def mig(facts: Facts, gpu: NvmlGpu) -> Finding:
    subject = _nvml_subject(facts, gpu)
    if not gpu.has_mig:
        return ok("mig", "not split", subject)
    if not gpu.mig_uuids:
        words = "MIG is on, and no MIG device was made: nothing can use the GPU"
        return broken(
            "mig",
            words,
            f"sudo nvidia-smi mig -i {gpu.uuid} -lgip",
            f"sudo nvidia-smi -i {gpu.uuid} -mig 0",
            subject=subject,
        )
    starts = [f"vattd start --gpu {uuid}" for uuid in gpu.mig_uuids]
    words = f"split into {len(gpu.mig_uuids)} MIG devices: a vattd of its own for each of them"
    return note("mig", words, *starts, subject=subject)


def gpu_memory(facts: Facts, gpu: NvmlGpu) -> Finding:
    """Other programs may hold what the pool is to have."""
    subject = _nvml_subject(facts, gpu)
    served = facts.serves(gpu.uuid)
    pages_bytes = served.status.pages_bytes if served is not None and served.status is not None else 0
    other_bytes = max(0, gpu.total_bytes - gpu.free_bytes - pages_bytes)
    words = f"{format_size(gpu.free_bytes)} free of {format_size(gpu.total_bytes)}"
    if served is not None:
        words += f"; vattd's pages take {format_size(pages_bytes)}"
    if other_bytes * 100 <= gpu.total_bytes * (100 - USUAL_POOL_PERCENT):
        return ok("gpu-memory", words, subject)
    holders = some_of(_process_words(one) for one in gpu.processes)
    words = f"other programs hold {format_size(other_bytes)} of {format_size(gpu.total_bytes)}"
    spare_percent = max(1, (gpu.total_bytes - other_bytes) * 95 // gpu.total_bytes)
    size = f"--pool-max {spare_percent}%"
    start = f"vattd start --gpu {gpu.uuid} {size}" if served is None else start_anew(facts, served, size)
    return warning("gpu-memory", f"{words}: {holders}" if holders else words, "nvidia-smi", start, subject=subject)


def _process_words(process: GpuProcess) -> str:
    return f"{process.name or 'a process'} ({process.pid})"


def _subject(gpu: CudaGpu) -> str:
    return f"GPU {gpu.ordinal}"


def _nvml_subject(facts: Facts, gpu: NvmlGpu) -> str:
    """By CUDA's number where it is one of CUDA's."""
    ordinals = [one.ordinal for one in facts.cuda.gpus if one.uuid[4:] == gpu.uuid[4:]]
    return f"GPU {ordinals[0]}" if ordinals else gpu.uuid
