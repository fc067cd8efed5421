"""What holds for every test here: what a live test needs, and when a skip may be.

Law: no fixtures of one package's tests; those live beside them.

With VNIC_NO_SKIP=1 (continuous integration sets it) a skip fails unless its reason begins with one of
ALLOWED_SKIPS, so that a test cannot vanish because a tool is missing.
"""

import functools
import os
from collections.abc import Generator, Iterator

import pytest

from tests import engines

ALLOWED_SKIPS = ("kernel lacks ",)
"""How the reason of a skip begins that no installation could avoid."""

FORBID_SKIPS = os.environ.get("VNIC_NO_SKIP") == "1"


@functools.cache
def missing_for_live() -> str | None:
    """Say what this machine or user lacks for live frames, or None."""
    if os.geteuid() != 0:
        return "needs root: run sudo scripts/test"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"needs /dev/net/tun: {error.strerror}"
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        choices=("reference", "native", "both"),
        help="engine of the cards under test, and of all daemons (default: both, if the native one is "
        "installed, and what vnicd chooses)",
    )


def pytest_configure(config: pytest.Config) -> None:
    engines.take_alone(config.getoption("--engine"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine_under_test" in metafunc.fixturenames:
        chosen = engines.chosen(metafunc.config.getoption("--engine"))
        metafunc.parametrize("engine_under_test", chosen, indirect=True, scope="module")


@pytest.fixture(scope="module")
def engine_under_test(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the engine that `engines.make_card` makes cards of."""
    engines.use(request.param)
    yield request.param
    engines.use("")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("live") and (reason := missing_for_live()) is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_forbidden_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_forbidden_skip(report)
    return report


def fail_forbidden_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip that has no allowed reason into a failure, where skips are forbidden."""
    if not FORBID_SKIPS or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not reason.removeprefix("Skipped: ").startswith(ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} may not be skipped here: {reason}"
