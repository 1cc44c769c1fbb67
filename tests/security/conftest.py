"""What the attack suites are judged by: whether this host has a control group for memory."""

import pytest

import onetrip


@pytest.fixture(scope="session")
def memory_group() -> bool:
    with onetrip.local() as ot:
        return any(name.endswith(":memory") for name in ot.run("1").isolation.mechanisms)
