"""What every test may ask for."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (CIFAR-10, published results); the test is skipped where it is missing."""
    folder = Path(os.environ.get("LOSSATLAS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real data are not at {folder}; set LOSSATLAS_DATA to where they are")
    return folder
