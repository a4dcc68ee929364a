"""What the package promises as a whole: imports point one way, stubs are current, one wheel with four packages."""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"vatt": "proto/vatt", "vattention": "client/vattention", "vattd": "vattd", "vattctl": "cli/vattctl"}
# What each may import of ours; vattd also sees the physical half of vattention.vmm.
MAY_IMPORT = {
    "vatt": {"vatt"},
    "vattention": {"vattention", "vatt"},
    "vattd": {"vattd", "vatt", "vattention.vmm"},
    "vattctl": {"vattctl", "vattention", "vatt"},
}
PURE = [
    "vattd/ledger.py",
    "vattd/stock.py",
    "vattd/shelf.py",
    "vattd/old_zones.py",
    "vattd/claims.py",
    "vattd/page_run.py",
    "vattd/tenants.py",
    "vattd/policy.py",
    "vattd/lending.py",
    "vattd/wish.py",
    "vattd/wishes.py",
    "vattd/gathering.py",
    "vattd/share_out.py",
    "vattd/reclaim.py",
    "vattd/pressure.py",
    "vattd/guarantee.py",
    "vattd/idle_watch.py",
    "vattd/reservation.py",
    "vattd/rates.py",
    "vattd/scrub.py",
    "vattd/snapshot.py",
    "vattd/driver_calls.py",
    "vattd/tallies.py",
    "vattd/happenings.py",
    "vattd/page_map.py",
    "vattd/timeline.py",
    "client/vattention/block_geometry.py",
    "client/vattention/integrations/vllm/budget.py",
    "client/vattention/integrations/vllm/clusters.py",
    "client/vattention/integrations/vllm/usage.py",
    "cli/vattctl/top/cells.py",
    "cli/vattctl/top/curve.py",
    "cli/vattctl/top/frame.py",
    "cli/vattctl/top/head.py",
    "cli/vattctl/top/history.py",
    "cli/vattctl/top/keys.py",
    "cli/vattctl/top/marks.py",
    "cli/vattctl/top/page_map.py",
    "cli/vattctl/top/paint.py",
    "cli/vattctl/top/pool_bar.py",
    "cli/vattctl/top/rates.py",
    "cli/vattctl/top/reading.py",
    "cli/vattctl/top/session_rows.py",
    "cli/vattctl/top/shape.py",
    "cli/vattctl/top/table.py",
    "cli/vattctl/top/tenant_rows.py",
    "cli/vattctl/top/view.py",
    "proto/vatt/pages.py",
    "proto/vatt/usage.py",
]
IMPURE = {"asyncio", "cuda", "grpc", "logging", "os", "random", "socket", "threading", "time"}


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    for path in (ROOT / PACKAGES[package]).rglob("*.py"):
        for name in imports_of(path):
            if name.split(".")[0] in PACKAGES:
                allowed = any(name == root or name.startswith(f"{root}.") for root in MAY_IMPORT[package])
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("module", PURE)
def test_the_core_is_pure(module: str) -> None:
    roots = {name.split(".")[0] for name in imports_of(ROOT / module)}
    assert not roots & IMPURE


def test_the_generated_stubs_are_current() -> None:
    with tempfile.TemporaryDirectory() as fresh:
        outputs = [f"--{kind}_out={fresh}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
        proto = "proto/vatt/v1/vatt.proto"
        command = [sys.executable, "-m", "grpc_tools.protoc", "-Iproto", *outputs, proto]
        bin_dir = str(Path(sys.executable).parent)
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={"PATH": f"{bin_dir}:/usr/bin:/bin"})
        made = sorted(Path(fresh).rglob("vatt_pb2*"))
        assert len(made) == 4
        for path in made:
            committed = ROOT / "proto" / path.relative_to(fresh)
            assert committed.read_text() == path.read_text(), f"{committed.name} is stale: run `make stubs`"


def test_the_wheel_holds_four_packages_and_nothing_named_client_cli_or_proto() -> None:
    with tempfile.TemporaryDirectory() as folder:
        code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
        built = subprocess.run(
            [sys.executable, "-c", code, folder], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
        names = zipfile.ZipFile(Path(folder) / built).namelist()
    roots = {name.split("/")[0] for name in names}
    assert {root for root in roots if not root.endswith((".dist-info", ".data"))} == set(PACKAGES)
    assert any(name.endswith(".data/data/share/man/man1/vattctl.1") for name in names)
    assert {"vatt/v1/vatt.proto", "vattd/status_page/index.html", "vattd/status_page/page.css"} <= set(names)
    assert all(f"{package}/py.typed" in names for package in PACKAGES)


def test_the_project_names_no_machine() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if path.suffix in {".md", ".py", ".toml", ".txt", ".c", ".h", ".proto", ".yml"} or path.name == "Makefile":
            text = path.read_text()
            assert "/" + "work/" not in text, f"{name} names a path of one machine"
