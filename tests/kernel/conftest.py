"""Under emulation a start of the agent takes seconds: it is forked from one imported before."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _programs(warm_python: None) -> None:
    """Programs of a lab are forked."""
