"""An environment whose packages do not fit together: what to type, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon import patched, run_command

BAD = {
    "grpc": "raise RuntimeError('the grpc package installed is at version 1.70.0')",
    "click": "raise ImportError('no click')",
}


@pytest.mark.parametrize("module", ["grpc", "click"])
def test_a_package_that_cannot_be_loaded_is_named_with_what_to_type(module: str, tmp_path: Path) -> None:
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text(BAD[module])
    result = run_command(["vattctl", "doctor"], patched(tmp_path, ""))
    assert result.returncode == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("vattctl: ")
    assert "1.70.0" in line or "no click" in line
    assert line.endswith("try `pip install --force-reinstall .  # in vattd's source folder`"), (
        "by their metadata all of them fit"
    )


def test_a_package_that_is_too_old_is_what_is_installed_anew(tmp_path: Path) -> None:
    (tmp_path / "grpc").mkdir()
    (tmp_path / "grpc" / "__init__.py").write_text(BAD["grpc"])
    info = tmp_path / "grpcio-1.70.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: grpcio\nVersion: 1.70.0\n")
    result = run_command(["vattctl", "status"], patched(tmp_path, ""))
    assert result.returncode == 1
    assert "try `pip install 'grpcio>=1.85.1'`" in result.stderr


def test_a_protobuf_of_another_version_is_no_traceback_either(tmp_path: Path) -> None:
    refuse = (
        "import google.protobuf.runtime_version as checked\ndef refuse(*_): raise checked.VersionError('gencode 7')\n"
    )
    env = patched(tmp_path, f"{refuse}checked.ValidateProtobufRuntimeVersion = refuse\n")
    result = run_command(["vattctl", "status"], env)
    assert result.returncode == 1
    assert (
        result.stderr
        == "vattctl: VersionError: gencode 7: try `pip install --force-reinstall .  # in vattd's source folder`\n"
    )
