"""What every test may ask for."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_cluster import Cluster, obstacle

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (CIFAR-10, published results); the test is skipped where it is missing."""
    folder = Path(os.environ.get("LOSSATLAS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real data are not at {folder}; set LOSSATLAS_DATA to where they are")
    return folder


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Cluster]:
    """A throw-away Slurm cluster of two nodes; the test is skipped where Slurm is missing."""
    if reason := obstacle():
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_cluster: Cluster) -> Iterator[Cluster]:
    """The same with an empty queue and all nodes up, before and after the test."""
    slurm_cluster.clear()
    yield slurm_cluster
    slurm_cluster.clear()
