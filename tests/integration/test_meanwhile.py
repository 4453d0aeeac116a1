"""What is done while a VM moves, in every phase: it is cancelled, paused, killed; its guest reboots or powers off; ferryd
dies. Each has one outcome, the one of docs/SWITCHOVER.md."""
import signal
import socket
import time

import pytest

from fault_points import (AFTER_GO, BEFORE_GO, BEFORE_RELEASE, COPY, FROZEN, INIT, PHASES, RELEASED, FaultyHosts,
                          phase_name)
from hosts import BUILD, Refused, assert_refused, wait_until

STRESS = BUILD / "guest" / "stress-riscv64.elf"
LINUX = BUILD / "guest" / "riscv64"
AT_ONCE_S = 5  # much less than any deadline of a migration, and plenty for a slow machine

pytestmark = pytest.mark.skipif(not STRESS.exists() or not (LINUX / "kernel").exists(),
                                reason="needs the guests (make guests)")


@pytest.fixture
def hosts():
    with FaultyHosts() as made:
        yield made


def run(hosts, host, **definition):
    disk = hosts.directory / "disk"
    disk.touch()
    if disk.stat().st_size == 0:
        disk.write_bytes(bytes(1 << 20))
    return host.run("web", **{"kernel": str(STRESS), "cmdline": "mem=8M rate=4M interval=20", "memory": 32 << 20,
                              "disks": [{"path": str(disk)}], **definition})


def console(host):
    return host.request("GET", "/v1/vms/web/console/log")[1].decode(errors="replace").replace("\r", "")


def goes_on(host):
    """The guest on HOST prints more, and has found no error."""
    begin = len(console(host))
    wait_until(lambda: console(host)[begin:].count("work ") >= 3, f"the guest on {host.name} to go on")
    assert "errors=1" not in console(host) and "WORK ERROR" not in console(host)


def pid_of(host):
    vm = host.vm("web")
    return vm["pid"] if vm else None


def assert_gone(host):
    """No process of the VM is left there; it may still be known, as not runnable."""
    assert pid_of(host) is None
    assert host.vm("web") is None or host.vm("web")["state"] == "NOT_RUNNABLE"


def stays(hosts, a, b, pid):
    """The VM is where it was, by the same process, and nothing is left of the attempt."""
    assert (a.vm("web")["state"], pid_of(a)) == ("RUNNING", pid)
    assert b.vm("web") is None
    goes_on(a)
    assert hosts.vm_processes() == [pid]


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
        assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
        goes_on(b)
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
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    assert_gone(a)
    goes_on(b)


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


@pytest.mark.parametrize("phase", PHASES, ids=phase_name)
def test_pause_is_done_and_arrives_or_is_refused_while_handed_over(hosts, phase):
    a, b = hosts.pair()
    run(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    if phase in (INIT, COPY):
        assert a.post("/v1/vms/web/pause")["state"] == "PAUSED(MIGR)"
        expected = "PAUSED"
    else:
        assert_refused(lambda: a.post("/v1/vms/web/pause"), 409, "conflict", "handed over")
        expected = "RUNNING"
    hosts.release(side)
    assert a.finish(migration)["outcome"] == "completed"
    assert b.vm("web")["state"] == expected
    if expected == "PAUSED":
        b.post("/v1/vms/web/unpause")
    goes_on(b)


@pytest.mark.parametrize("phase", BEFORE_RELEASE, ids=phase_name)
def test_kill_ends_the_vm_and_its_migration(hosts, phase):
    a, b = hosts.pair()
    run(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    assert a.post("/v1/vms/web/kill")["state"] == "STOPPED"
    hosts.release(side)
    assert a.finish(migration)["outcome"] in ("failed", "cancelled")
    assert a.vm("web")["state"] == "STOPPED" and b.vm("web") is None and hosts.vm_processes() == []
    a.post("/v1/vms/web/start")
    goes_on(a)


@pytest.mark.parametrize("phase", AFTER_GO[1:], ids=phase_name)
def test_kill_at_the_source_after_the_destination_took_it_does_not_harm_it(hosts, phase):
    a, b = hosts.pair()
    run(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    a.post("/v1/vms/web/kill")
    hosts.release(side)
    assert b.finish(migration)["outcome"] == "completed"
    assert a.finish(migration)["outcome"] == "completed"
    assert_gone(a)
    goes_on(b)


@pytest.mark.parametrize("phase", BEFORE_GO, ids=phase_name)
def test_kill_of_the_arriving_copy_leaves_the_source_running(hosts, phase):
    a, b = hosts.pair()
    pid = run(hosts, a)["pid"]
    migration, side = hosts.start_held(phase, "web", a, b)
    b.post("/v1/vms/web/kill")
    hosts.release(side)
    assert a.finish(migration)["outcome"] in ("failed", "cancelled")
    stays(hosts, a, b, pid)


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
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    assert_gone(a)
    assert b.vm("web")["state"] == "RUNNING"
    goes_on(b)


# --- the guest acts ---

def boot_linux(hosts, host):
    run(hosts, host, kernel=str(LINUX / "kernel"), initrd=str(LINUX / "initrd"), memory=128 << 20,
        cmdline="console=ttyS0 quiet ferry.shell ferry.work=threads=1,mem=1M,rate=1M,interval=50")
    wait_until(lambda: "FERRY-GUEST READY" in console(host), "the guest to boot")
    wait_until(lambda: "work 3 " in console(host), "the guest's work")


def type_at(host, text):
    with socket.socket(socket.AF_UNIX) as terminal:
        terminal.connect(str(host.state_dir / "vms" / "web" / "console.sock"))
        terminal.sendall(text.encode())


@pytest.mark.parametrize("phase", [INIT, COPY], ids=phase_name)
def test_reboot_of_the_guest_does_not_break_the_move(hosts, phase):
    a, b = hosts.pair()
    boot_linux(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    type_at(a, "\nreboot -f\n")
    wait_until(lambda: "the guest reboots" in (a.state_dir / "vms" / "web" / "vm.log").read_text(), "the reboot")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == "completed"
    wait_until(lambda: console(b).count("FERRY-GUEST READY") == 2, "the guest to be up again")
    goes_on(b)


@pytest.mark.parametrize("phase", [INIT, COPY], ids=phase_name)
@pytest.mark.parametrize("how", ["by itself", "ferry stop"])
def test_power_off_of_the_guest_cancels_the_move_cleanly(hosts, phase, how):
    a, b = hosts.pair()
    boot_linux(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    if how == "ferry stop":
        a.post("/v1/vms/web/stop")
    else:
        type_at(a, "\npoweroff -f\n")
    wait_until(lambda: a.vm("web")["state"].startswith("STOPPED"), "the guest to power off")
    hosts.release(side)
    record = a.finish(migration)
    assert (record["outcome"], record["cause"]) == ("failed", "guest"), record
    assert b.finish(migration)["outcome"] == "failed"
    wait_until(lambda: hosts.vm_processes() == [], "the process to end")
    assert a.vm("web")["state"] == "STOPPED" and b.vm("web") is None
    a.post("/v1/vms/web/start")
    goes_on(a)


def test_panic_of_the_guest_moves_as_it_stands(hosts):
    a, b = hosts.pair()
    boot_linux(hosts, a)
    migration, side = hosts.start_held(COPY, "web", a, b)
    type_at(a, "\necho c > /proc/sysrq-trigger\n")
    wait_until(lambda: "Kernel panic" in console(a), "the panic")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == "completed"
    assert b.vm("web")["state"] == "RUNNING" and "Kernel panic" in console(b)


def test_stop_while_the_guest_is_frozen_is_refused(hosts):
    a, b = hosts.pair()
    boot_linux(hosts, a)
    migration, side = hosts.start_held(FROZEN, "web", a, b)
    assert_refused(lambda: a.post("/v1/vms/web/stop"), 409, "conflict", "handed over")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == "completed"
    goes_on(b)
