"""What operators do while a VM moves, in every phase: they cancel, pause, unpause, stop and kill it, and ferryd dies. Each
has one outcome, the one of docs/SWITCHOVER.md. What the guest does meanwhile is in test_guest_acts.py."""
import signal
import time

import pytest

from fault_points import (AFTER_GO, BEFORE_GO, BEFORE_RELEASE, GO, GUEST_RUNS, GUEST_STANDS, PHASES, RELEASED,
                          RUNS_THERE, STARTED, phase_name)
from hosts import Refused, assert_refused, wait_until
from moving import assert_gone, assert_here, boot_linux, goes_on, hosts, lives, needs_guests, pid_of, run, stays  # noqa: F401

AT_ONCE_S = 5  # much less than any deadline of a migration, and plenty for a slow machine
STAYS_STOPPED = [phase for phase in PHASES if phase not in GUEST_RUNS]

pytestmark = needs_guests


def assert_moved(hosts, migration, a, b):
    """It completed, and the guest goes on at b with the memory it had."""
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    assert_here(hosts, b, a)


def refused_by_both(operation, a, b, phase):
    """OPERATION is refused at either end: the source hands the VM over, at the destination it is not there yet."""
    assert_refused(lambda: a.post(f"/v1/vms/web/{operation}"), 409, "conflict", "handed over")
    if phase is not RUNS_THERE:
        assert_refused(lambda: b.post(f"/v1/vms/web/{operation}"), 409, "conflict", "arriving")


# --- cancel ---

@pytest.mark.parametrize("by", ["source", "destination"])
@pytest.mark.parametrize("phase", BEFORE_GO, ids=phase_name)
def test_cancel_before_go_wins_and_is_answered_at_once(hosts, phase, by):
    a, b = hosts.pair()
    pid = run(hosts, a)["pid"]
    migration, side = hosts.start_held(phase, "web", a, b)
    host = a if by == "source" else b
    begin = time.monotonic()
    if phase is RELEASED and by == "source":  # the lock is given away: GO follows at once
        assert_refused(lambda: a.post(f"/v1/migrations/{migration}/cancel"), 409, "conflict", "too late")
        hosts.release(side)
        assert_moved(hosts, migration, a, b)
        return
    host.post(f"/v1/migrations/{migration}/cancel")
    try:
        host.post(f"/v1/migrations/{migration}/cancel")  # once more changes nothing
    except Refused as refused:
        assert refused.status == 409
    assert time.monotonic() - begin < AT_ONCE_S
    hosts.release(side)
    assert a.finish(migration)["outcome"] == "cancelled", a.finish(migration)
    assert b.finish(migration)["outcome"] == "cancelled", b.finish(migration)
    stays(hosts, a, b, pid)
    assert a.move("web", b)["outcome"] == "completed"


@pytest.mark.parametrize("phase", AFTER_GO, ids=phase_name)
def test_cancel_after_go_is_too_late_on_either_side(hosts, phase):
    a, b = hosts.pair()
    run(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    for host in (a, b, a):
        begin = time.monotonic()
        assert_refused(lambda: host.post(f"/v1/migrations/{migration}/cancel"), 409, "conflict", "too late")
        assert time.monotonic() - begin < AT_ONCE_S
    hosts.release(side)
    assert_moved(hosts, migration, a, b)


def test_cancel_during_quick_failures_is_answered_and_changes_nothing(hosts):
    a, b = hosts.pair()
    pid = run(hosts, a)["pid"]
    for point in ("destination-before-welcome", "destination-after-load", "destination-before-acquire"):
        hosts.set_fault(b, f"{point}:error")
        migration = a.migrate("web", b)
        for host in (a, b, a):
            try:
                host.post(f"/v1/migrations/{migration}/cancel")
            except Refused as refused:
                assert refused.status in (404, 409), refused
        assert a.finish(migration)["outcome"] in ("failed", "cancelled")
        hosts.set_fault(b, "")
        stays(hosts, a, b, pid)


# --- pause, unpause, stop ---

@pytest.mark.parametrize("phase", GUEST_RUNS, ids=phase_name)
def test_vm_paused_while_its_guest_runs_arrives_paused(hosts, phase):
    a, b = hosts.pair()
    run(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    assert a.post("/v1/vms/web/pause")["state"] == "PAUSED(MIGR)"
    hosts.release(side)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    assert b.vm("web")["state"] == "PAUSED"
    b.post("/v1/vms/web/unpause")
    assert_here(hosts, b, a)


@pytest.mark.parametrize("phase", STAYS_STOPPED, ids=phase_name)
def test_pause_is_refused_while_the_guest_is_handed_over(hosts, phase):
    a, b = hosts.pair()
    run(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    refused_by_both("pause", a, b, phase)
    hosts.release(side)
    assert_moved(hosts, migration, a, b)


@pytest.mark.parametrize("phase", GUEST_RUNS, ids=phase_name)
def test_paused_vm_that_is_unpaused_arrives_running(hosts, phase):
    a, b = hosts.pair()
    run(hosts, a)
    a.post("/v1/vms/web/pause")
    migration, side = hosts.start_held(phase, "web", a, b)
    assert a.post("/v1/vms/web/unpause")["state"] == "RUNNING(MIGR)"
    goes_on(a)
    hosts.release(side)
    assert_moved(hosts, migration, a, b)


@pytest.mark.parametrize("phase", STAYS_STOPPED, ids=phase_name)
def test_unpause_is_refused_while_the_guest_is_handed_over(hosts, phase):
    a, b = hosts.pair()
    run(hosts, a)
    a.post("/v1/vms/web/pause")
    migration, side = hosts.start_held(phase, "web", a, b)
    refused_by_both("unpause", a, b, phase)
    hosts.release(side)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    assert b.vm("web")["state"] == "PAUSED"
    b.post("/v1/vms/web/unpause")
    assert_here(hosts, b, a)


@pytest.mark.parametrize("phase", [*GUEST_STANDS, STARTED], ids=phase_name)
def test_stop_is_refused_while_the_guest_could_not_hear(hosts, phase):
    a, b = hosts.pair()
    boot_linux(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    refused_by_both("stop", a, b, phase)
    hosts.release(side)
    assert_moved(hosts, migration, a, b)


def test_stop_that_the_guest_hears_after_the_move_stops_it_there(hosts):
    a, b = hosts.pair()
    boot_linux(hosts, a)
    a.post("/v1/vms/web/pause")
    a.post("/v1/vms/web/stop")  # it waits in the guest's port
    assert a.move("web", b)["outcome"] == "completed"
    assert_gone(a)
    b.post("/v1/vms/web/unpause")
    wait_until(lambda: b.vm("web")["state"] == "STOPPED", "the guest to power off")
    b.post("/v1/vms/web/start")
    wait_until(lambda: lives(b) == 2, "the guest to boot")
    assert_here(hosts, b, a, booted=2)


# --- kill ---

@pytest.mark.parametrize("phase", BEFORE_RELEASE, ids=phase_name)
def test_kill_ends_the_vm_and_its_migration(hosts, phase):
    a, b = hosts.pair()
    run(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    assert a.post("/v1/vms/web/kill")["state"] == "STOPPED"
    hosts.release(side)
    assert a.finish(migration)["outcome"] in ("failed", "cancelled")
    assert_ended(hosts, a, b)


def assert_ended(hosts, a, b):
    """Nothing of the VM is left but its entry on a, which starts it anew."""
    assert a.vm("web")["state"] == "STOPPED" and hosts.vm_processes() == []
    wait_until(lambda: b.vm("web") is None, "what had arrived to be gone")
    a.post("/v1/vms/web/start")
    assert_here(hosts, a, b, booted=2)


@pytest.mark.parametrize("phase", GUEST_STANDS, ids=phase_name)
def test_kill_ends_a_vm_whose_migration_hangs(hosts, phase):
    a, b = hosts.pair()
    run(hosts, a)
    hosts.set_fault(a, f"{phase[2]}:hang")
    migration = a.migrate("web", b)
    wait_until(lambda: a.get(f"/v1/migrations/{migration}")["phase"] == phase[0], f"phase {phase[0]}")
    assert a.post("/v1/vms/web/kill")["state"] == "STOPPED"
    hosts.set_fault(a, "")
    assert a.finish(migration)["outcome"] == "failed"
    assert_ended(hosts, a, b)


def test_kill_at_the_source_after_handover_leaves_the_vm_to_be_recovered(hosts):
    a, b = hosts.pair()
    run(hosts, a)
    migration, side = hosts.start_held(RELEASED, "web", a, b)
    a.post("/v1/vms/web/kill")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == "failed"
    assert b.finish(migration)["outcome"] in ("failed", "cancelled")
    assert hosts.vm_processes() == []
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "recover web")
    assert a.post("/v1/vms/web/recover")["state"] == "STOPPED"
    a.post("/v1/vms/web/start")
    assert_here(hosts, a, b, booted=2)


@pytest.mark.parametrize("phase", AFTER_GO, ids=phase_name)
def test_kill_at_the_source_after_go_does_not_harm_the_vm(hosts, phase):
    a, b = hosts.pair()
    run(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    a.post("/v1/vms/web/kill")
    hosts.release(side)
    assert_moved(hosts, migration, a, b)


@pytest.mark.parametrize("phase", BEFORE_GO, ids=phase_name)
def test_kill_of_the_arriving_copy_leaves_the_source_running(hosts, phase):
    a, b = hosts.pair()
    pid = run(hosts, a)["pid"]
    migration, side = hosts.start_held(phase, "web", a, b)
    b.post("/v1/vms/web/kill")
    hosts.release(side)
    assert a.finish(migration)["outcome"] in ("failed", "cancelled")
    stays(hosts, a, b, pid)


def test_kill_of_the_copy_that_is_to_take_the_vm_gives_it_back(hosts):
    a, b = hosts.pair()
    pid = run(hosts, a)["pid"]
    migration, side = hosts.start_held(GO, "web", a, b)
    b.post("/v1/vms/web/kill")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == "failed"
    stays(hosts, a, b, pid)


@pytest.mark.parametrize("phase", [STARTED, RUNS_THERE], ids=phase_name)
def test_kill_of_the_copy_that_has_taken_the_vm_kills_a_vm_that_has_moved(hosts, phase):
    a, b = hosts.pair()
    run(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    b.post("/v1/vms/web/kill")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    assert b.vm("web")["state"] == "STOPPED" and hosts.vm_processes() == []
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "host b")
    b.post("/v1/vms/web/start")
    assert_here(hosts, b, a, booted=None)


# --- ferryd ---

@pytest.mark.parametrize("who", ["source", "destination"])
@pytest.mark.parametrize("phase", PHASES, ids=phase_name)
def test_death_of_ferryd_in_any_phase_changes_nothing(hosts, phase, who):
    a, b = hosts.pair()
    run(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    killed = a if who == "source" else b
    killed.stop(signal.SIGKILL)
    hosts.release(side)
    killed.start()
    assert_moved(hosts, migration, a, b)
