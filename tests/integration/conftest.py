"""Fixtures that all integration tests may use."""
import pytest

from vms import GUESTS, Guest, Vms


@pytest.fixture(scope="session")
def guest():
    """Kernel and initrd of the Linux guest."""
    made = Guest(GUESTS)
    if not made.built():
        pytest.skip(f"{made.kernel} and {made.initrd} are not built (make guests)")
    return made


@pytest.fixture
def vms():
    """ferry-vm processes that are gone when the test ends, however it ends."""
    with Vms() as made:
        yield made
