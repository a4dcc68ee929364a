"""Compiling the simulated libraries, once per content of their sources."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
FLAGS = [
    "-std=gnu11",
    "-O1",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-pthread",
]

SHARED_STATE = ["world.c", "physical.c"]
DRIVER = ["entry.c", "process.c", "fault.c", "error.c", "device.c", "context.c", "handle.c", "allocation.c"]
WORK = ["work.c", "stream.c", "event.c", "kernel.c", "transfer.c"]
ADDRESSES = ["reservation.c", "mapping.c", "ballast.c", "pointer.c"]
LIBRARIES = {
    "libcuda.so.1": [*DRIVER, *WORK, *ADDRESSES, *SHARED_STATE],
    "libnvidia-ml.so.1": ["nvml.c", *SHARED_STATE],
    "libcudasim.so": ["control.c", *SHARED_STATE],
}


def build(directory: Path) -> Path:
    """Compile into a subdirectory of `directory` and return it; it holds libcuda.so.1 and libnvidia-ml.so.1.

    The subdirectory is named by the sources' content, so nothing is compiled twice and nothing stale is ever used.
    Several processes may build at once: the first to finish wins.
    """
    finished = directory / _digest()
    if finished.is_dir():
        return finished
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="building-", dir=directory))
    try:
        for name, sources in LIBRARIES.items():
            command = ["cc", *FLAGS, f"-Wl,-soname,{name}", "-o", str(scratch / name), *sources]
            subprocess.run(command, cwd=SOURCES, check=True)
        try:
            scratch.rename(finished)
        except OSError:
            if not finished.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return finished


def default_directory() -> Path:
    """Where libraries go if the caller names no place: outside the source tree, one per user."""
    return Path(tempfile.gettempdir()) / f"cudasim-{os.getuid()}"


def _digest() -> str:
    content = hashlib.sha256(repr((FLAGS, LIBRARIES)).encode())
    for source in sorted(SOURCES.iterdir()):
        content.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return content.hexdigest()[:16]
