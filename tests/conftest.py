"""Shared fixtures, and settings that packages read when they are imported.

Where pytest-xdist runs several processes, they share the cores: torch with a thread for each core in all of them would
be many times slower. Triton runs in its interpreter where there is no GPU.
"""

import os

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    each = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(each)  # processes that tests start have it too

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Small models of the official architectures, in folders that their own `save_pretrained` wrote."""
    from official import save_all  # imports the model packages, which few tests need

    return save_all(tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def encoders(zoo):
    """Those models loaded through tsprobe."""
    from official import FAMILIES

    from tsprobe.encoders import load_encoder

    return {family: load_encoder(f"{family}:{zoo.folders[family]}") for family in FAMILIES}


@pytest.fixture(scope="session")
def postgresql():
    """A function that makes a database on a PostgreSQL of the tests' own and gives its address; or a skip."""
    from servers import postgres

    with postgres() as database:
        yield database
