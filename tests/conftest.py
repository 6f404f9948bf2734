"""Shared fixtures, and Triton's interpreter where there is no GPU: triton looks at the setting when it is imported."""

import os

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
