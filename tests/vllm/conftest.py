"""The model that all engines run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vllm.engine_process import MODEL


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory: Path = tmp_path_factory.mktemp("tiny-llama")
    (directory / "config.json").write_text(json.dumps(MODEL))
    return str(directory)
