"""What a guest does while it moves, in every phase: it reboots, powers off, crashes the machine, panics, loses a hart in its
trap handler. Each has one outcome, the one of docs/SWITCHOVER.md.

The bare-metal guest does what one typed character says: r reboots, o powers off, c reports a failure, t makes its last hart
trap with a handler that faults itself, for ever. While the guest stands still the character waits, and moves with it."""
import pytest

from fault_points import COPY, GUEST_RUNS, GUEST_STANDS, PAUSING, phase_name
from hosts import wait_until
from moving import (assert_gone, assert_here, boot_linux, console, goes_on, hosts, life, lives,  # noqa: F401
                    needs_guests, pid_of, run, stays, type_at)

LOST = "is lost"
ENDS = {"o": "STOPPED", "c": "CRASHED"}

pytestmark = needs_guests


def log(host):
    return (host.state_dir / "vms" / "web" / "vm.log").read_text()


def assert_ended(hosts, migration, a, b, state):  # noqa: F811
    """The guest ended where it was, and with it the move; it can be started again there."""
    wait_until(lambda: a.vm("web")["state"].startswith(state), "the guest to end")
    record = a.finish(migration)
    assert (record["outcome"], record["cause"]) == ("failed", "guest"), record
    assert b.finish(migration)["outcome"] == "failed"
    wait_until(lambda: hosts.vm_processes() == [], "the process to end")
    assert a.vm("web")["state"] == state and b.vm("web") is None
    a.post("/v1/vms/web/start")
    assert_here(hosts, a, b, booted=2)


# --- reboot ---

@pytest.mark.parametrize("phase", GUEST_RUNS, ids=phase_name)
def test_guest_that_reboots_before_it_is_frozen_moves_as_it_then_is(hosts, phase):  # noqa: F811
    a, b = hosts.pair()
    run(hosts, a)
    goes_on(a)
    migration, side = hosts.start_held(phase, "web", a, b)
    type_at(a, "r")
    wait_until(lambda: "the guest reboots" in log(a), "the reboot")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    assert_here(hosts, b, a, booted=2)


@pytest.mark.parametrize("phase", [COPY, PAUSING], ids=phase_name)
def test_linux_that_reboots_before_it_is_frozen_is_up_again_at_the_destination(hosts, phase):  # noqa: F811
    a, b = hosts.pair()
    boot_linux(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    type_at(a, "\nreboot -f\n")
    wait_until(lambda: "the guest reboots" in log(a), "the reboot")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    wait_until(lambda: lives(b) == 2, "the guest to be up again")
    assert_here(hosts, b, a, booted=2)


@pytest.mark.parametrize("phase", GUEST_STANDS, ids=phase_name)
def test_guest_that_is_frozen_reboots_at_the_destination(hosts, phase):  # noqa: F811
    a, b = hosts.pair()
    run(hosts, a)
    goes_on(a)
    migration, side = hosts.start_held(phase, "web", a, b)
    before = console(a)
    type_at(a, "r")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    wait_until(lambda: lives(b) == 2, "the guest to be up again")
    assert console(b).startswith(before) and "the guest reboots" in log(b)
    assert_here(hosts, b, a, booted=2)


@pytest.mark.parametrize("phase", GUEST_STANDS, ids=phase_name)
def test_guest_whose_frozen_move_is_cancelled_reboots_where_it_was(hosts, phase):  # noqa: F811
    a, b = hosts.pair()
    pid = run(hosts, a)["pid"]
    goes_on(a)
    migration, side = hosts.start_held(phase, "web", a, b)
    type_at(a, "r")
    a.post(f"/v1/migrations/{migration}/cancel")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == "cancelled"
    wait_until(lambda: lives(a) == 2, "the guest to be up again")
    stays(hosts, a, b, pid, booted=2)


@pytest.mark.parametrize("attempt", range(5))
def test_guest_that_reboots_just_when_it_is_frozen_moves(hosts, attempt):  # noqa: F811
    a, b = hosts.pair()
    run(hosts, a)
    goes_on(a)
    migration, side = hosts.start_held(PAUSING, "web", a, b)
    type_at(a, "r")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    wait_until(lambda: lives(b) == 2, "the guest to be up again")
    assert_here(hosts, b, a, booted=2)


# --- power-off, and a crash of the machine ---

@pytest.mark.parametrize("phase", GUEST_RUNS, ids=phase_name)
@pytest.mark.parametrize("typed", "oc")
def test_guest_that_ends_before_it_is_frozen_ends_the_move(hosts, phase, typed):  # noqa: F811
    a, b = hosts.pair()
    run(hosts, a)
    goes_on(a)
    migration, side = hosts.start_held(phase, "web", a, b)
    type_at(a, typed)
    wait_until(lambda: a.vm("web")["state"].startswith(ENDS[typed]), "the guest to end")
    hosts.release(side)
    assert_ended(hosts, migration, a, b, ENDS[typed])


@pytest.mark.parametrize("phase", GUEST_STANDS, ids=phase_name)
@pytest.mark.parametrize("typed", "oc")
def test_guest_that_is_frozen_ends_at_the_destination(hosts, phase, typed):  # noqa: F811
    a, b = hosts.pair()
    run(hosts, a)
    goes_on(a)
    migration, side = hosts.start_held(phase, "web", a, b)
    type_at(a, typed)
    hosts.release(side)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    wait_until(lambda: b.vm("web")["state"] == ENDS[typed], "the guest to end there")
    assert_gone(a)
    wait_until(lambda: hosts.vm_processes() == [], "the process to end")
    b.post("/v1/vms/web/start")
    assert_here(hosts, b, a, booted=2)


@pytest.mark.parametrize("attempt", range(5))
def test_guest_that_powers_off_just_when_it_is_frozen_ends_once(hosts, attempt):  # noqa: F811
    a, b = hosts.pair()
    run(hosts, a)
    goes_on(a)
    migration, side = hosts.start_held(PAUSING, "web", a, b)
    type_at(a, "o")
    hosts.release(side)
    outcome = a.finish(migration)["outcome"]
    assert b.finish(migration)["outcome"] == outcome
    host, other = {"completed": (b, a), "failed": (a, b)}[outcome]
    wait_until(lambda: host.vm("web")["state"] == "STOPPED", f"the guest to end on {host.name}")
    assert_gone(other)
    wait_until(lambda: hosts.vm_processes() == [], "the process to end")
    host.post("/v1/vms/web/start")
    assert_here(hosts, host, other, booted=2)


@pytest.mark.parametrize("phase", [COPY, PAUSING], ids=phase_name)
@pytest.mark.parametrize("how", ["by itself", "ferry stop"])
def test_linux_that_powers_off_ends_the_move(hosts, phase, how):  # noqa: F811
    a, b = hosts.pair()
    boot_linux(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    if how == "ferry stop":
        a.post("/v1/vms/web/stop")
    else:
        type_at(a, "\npoweroff -f\n")
    wait_until(lambda: a.vm("web")["state"].startswith("STOPPED"), "the guest to power off")
    hosts.release(side)
    assert_ended(hosts, migration, a, b, "STOPPED")


# --- panic, and a trap handler that faults itself ---

@pytest.mark.parametrize("phase", [COPY, PAUSING], ids=phase_name)
def test_panic_of_the_guest_moves_as_it_stands(hosts, phase):  # noqa: F811
    a, b = hosts.pair()
    boot_linux(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    type_at(a, "\necho c > /proc/sysrq-trigger\n")
    wait_until(lambda: "Kernel panic" in console(a), "the panic")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    assert b.vm("web")["state"] == "RUNNING" and "Kernel panic" in console(b)
    assert_gone(a)


@pytest.mark.parametrize("phase", GUEST_RUNS, ids=phase_name)
def test_guest_that_has_lost_a_hart_moves_as_it_stands(hosts, phase):  # noqa: F811
    a, b = hosts.pair()
    run(hosts, a, "harts=2", vcpus=2)
    goes_on(a)
    migration, side = hosts.start_held(phase, "web", a, b)
    type_at(a, "t")
    wait_until(lambda: LOST in console(a), "the hart to be lost")
    goes_on(a)
    hosts.release(side)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    assert_here(hosts, b, a)
    assert life(b).count(LOST) == 1
    assert b.move("web", a)["outcome"] == "completed"
    assert_here(hosts, a, b)


@pytest.mark.parametrize("phase", GUEST_STANDS, ids=phase_name)
def test_guest_that_is_frozen_loses_a_hart_at_the_destination(hosts, phase):  # noqa: F811
    a, b = hosts.pair()
    run(hosts, a, "harts=2", vcpus=2)
    goes_on(a)
    migration, side = hosts.start_held(phase, "web", a, b)
    type_at(a, "t")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    wait_until(lambda: LOST in console(b), "the hart to be lost")
    assert_here(hosts, b, a)


def test_guest_that_has_lost_its_only_hart_is_a_vm_like_any_other(hosts):  # noqa: F811
    a, b = hosts.pair()
    for host in (a, b):
        host.environment["FERRY_VERIFY_MEMORY"] = "1"  # the guest itself cannot any more
        host.restart()
    run(hosts, a)
    goes_on(a)
    type_at(a, "t")
    wait_until(lambda: LOST in console(a), "the hart to be lost")
    said = life(a)
    assert a.post("/v1/vms/web/pause")["state"] == "PAUSED"
    assert a.post("/v1/vms/web/unpause")["state"] == "RUNNING"
    for source, destination in ((a, b), (b, a)):
        assert source.move("web", destination)["outcome"] == "completed"
        assert destination.vm("web")["state"] == "RUNNING" and life(destination) == said
        assert_gone(source)
        assert hosts.vm_processes() == [pid_of(destination)]
    assert a.post("/v1/vms/web/kill")["state"] == "STOPPED"
    a.post("/v1/vms/web/start")
    assert_here(hosts, a, b, booted=2)
