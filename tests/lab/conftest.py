"""Lab tests need root; a failing one says where the logs of its daemons are."""

import os
from collections.abc import Generator

import pytest

from nostrvpn.lab.topology import Lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("lab"):
            item.add_marker(pytest.mark.skip(reason="NOT RUN: the lab needs root"))


@pytest.fixture(scope="session", autouse=True)
def _programs(warm_python: None) -> None:
    """Programs of a lab are forked."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    # A lab that the test itself opened is closed by now, and has said the same to standard error.
    report = yield
    if report.failed:
        for lab in Lab.living:
            report.sections.append((f"lab of {item.name} at {call.when}", lab.report()))
    return report
