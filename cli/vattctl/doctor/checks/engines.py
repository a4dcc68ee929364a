"""What engines need beyond vattd: torch for this driver, and the versions that the integrations are written for."""

from __future__ import annotations

from vattctl.doctor.facts import Distribution, Facts, numbers_of
from vattctl.doctor.finding import IN_SOURCES, Finding, broken, note, ok, warning

PLUGIN = "vattd"
SWITCH = "VATTD_VLLM"


def torch(facts: Facts) -> Finding:
    found, built_for = facts.software.torch, facts.software.torch_cuda
    if not found.version:
        return note("torch", "not installed here; vattd needs none, an engine does")
    words = f"torch {found.version}"
    if not found.fits:
        return warning("torch", f"{words}, and engines need {found.requirement}", f"pip install '{found.requirement}'")
    if not facts.cuda.gpus:
        return ok("torch", f"{words}, for CUDA {built_for}" if built_for else f"{words}, for CPUs")
    if not built_for:
        return warning(
            "torch",
            f"{words} is built for CPUs: engines started with this Python cannot use the GPU",
            f"pip install torch --index-url https://download.pytorch.org/whl/cu{_newest(facts)}",
        )
    driver_major = facts.cuda.version // 1000
    if numbers_of(built_for)[0] > driver_major:
        return broken(
            "torch",
            f"{words} is built for CUDA {built_for}, and the driver is for {driver_major}.x",
            f"pip install torch --index-url https://download.pytorch.org/whl/cu{_newest(facts)}",
            "update the NVIDIA driver",
        )
    return ok("torch", f"{words}, for CUDA {built_for}")


def transformers(facts: Facts) -> Finding:
    return _extra("transformers", facts.software.transformers, "the integration with transformers, and chat,")


def vllm(facts: Facts) -> Finding:
    """The plugin of this package is found by vLLM, and switched on or off on purpose."""
    found, environ = facts.software.vllm, facts.software.environ
    switch = environ.get(SWITCH, "")
    if switch not in ("", "0", "1"):
        return broken("vllm", f"{SWITCH} is {switch!r}, and may be 1, or 0 or unset", f"export {SWITCH}=1")
    finding = _extra("vllm", found, "the plugin for vLLM")
    if not found.version or not found.fits:
        return finding
    if PLUGIN not in facts.software.vllm_plugins:
        return broken(
            "vllm",
            f"vLLM {found.version} does not find vattd's plugin, so its engines take their memory by themselves",
            f"pip install --force-reinstall --no-deps .{IN_SOURCES}",
        )
    allowed = environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        names = ",".join(name for name in [*allowed.split(","), PLUGIN] if name)
        return warning(
            "vllm", f"VLLM_PLUGINS is {allowed!r}, so vLLM does not load vattd's plugin", f"export VLLM_PLUGINS={names}"
        )
    if switch != "1":
        return note("vllm", f"vLLM {found.version}; the plugin is there, and off", f"{SWITCH}=1 vllm serve ...")
    return ok("vllm", f"vLLM {found.version}, with vattd's plugin on ({SWITCH}=1)")


def _extra(name: str, found: Distribution, what: str) -> Finding:
    if not found.version:
        return note(name, f"not installed here; only {what} needs it")
    if not found.fits:
        words = f"{name} {found.version}, and {what} needs {found.requirement}"
        return warning(name, words, f"pip install '.[{name}]'{IN_SOURCES}")
    return ok(name, f"{name} {found.version}")


def _newest(facts: Facts) -> str:
    """PyTorch's name of a CUDA version that the driver can run: its first of the same major version."""
    return "130" if facts.cuda.version >= 13000 else "126"
