"""The Docker engine of this run."""

import pytest

from tests.containers.engine import Engine, engine


@pytest.fixture(scope="session")
def docker_engine() -> Engine:
    """A real engine; the test is skipped, with the reason, where none can be started."""
    return engine()
