"""The test process lives in the lab's namespace, which has no route out; the lab starts on demand."""

from collections.abc import Iterator
from typing import NoReturn

import pytest

from tests.lab import Lab, LabUnavailable, enter

_unavailable = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-lab",
        action="store_true",
        help="fail, rather than skip, the tests that need the test network where it can't be made",
    )


def pytest_configure(config: pytest.Config) -> None:
    try:
        enter()
    except LabUnavailable as error:
        config.stash[_unavailable] = str(error)


@pytest.fixture(scope="session")
def running_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The one lab of this run, with whatever earlier tests have left in it. Tests take ``lab``."""
    reason = request.config.stash.get(_unavailable, None)
    lab = None
    if reason is None:
        try:
            lab = Lab.start()
        except LabUnavailable as error:
            reason = str(error)
    if lab is None:
        _without_lab(request.config, reason or "")
    yield lab
    lab.close()


@pytest.fixture
def lab(running_lab: Lab) -> Iterator[Lab]:
    """The test network: no records, the default zone, no connection of another test's."""
    running_lab.reset()
    yield running_lab
    assert running_lab.faults() == [], "the origin itself has failed during this test"


@pytest.fixture
def require_lab(request: pytest.FixtureRequest) -> None:
    """For tests that need the namespace but not the origin: skipped where there is none."""
    reason = request.config.stash.get(_unavailable, None)
    if reason is not None:
        _without_lab(request.config, reason)


def _without_lab(config: pytest.Config, reason: str) -> NoReturn:
    if config.getoption("--require-lab"):
        pytest.fail(f"no test network: {reason}", pytrace=False)
    pytest.skip(f"no test network: {reason}")
