"""A side that falls silent: its process is stopped, its network cut, its disk full. Nothing waits for ever, one copy runs,
and the next attempt works at once."""
import contextlib
import subprocess
import time

import pytest

from fault_points import COPY, FROZEN, GO, INIT, RESTORE, RUNS_THERE, STARTED, phase_name
from hosts import Refused, stopped, wait_until
from moving import assert_gone, console, goes_on, hosts, needs_guests, pid_of, run, stays  # noqa: F401
from networks import cut, networked_pair, networks  # noqa: F401

pytestmark = needs_guests
PEER_TIMEOUT_S = 2
# The peer timeout, the last words on either side, and plenty for a slow machine; less than it and the 10 s that outstanding
# I/O may take, and less than the kernels' buffers take at VERY_SLOW.
NOTICED_S = PEER_TIMEOUT_S + 6
SLOW = 8 << 20  # bytes/s
VERY_SLOW = SLOW >> 5


@contextlib.contextmanager
def in_time(what):
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < NOTICED_S, f"{what} took {time.monotonic() - begin:.1f} s"


def wait_given_up(host, migration):
    """Until the VM process on HOST has ended MIGRATION: a guest that was frozen runs again."""
    wait_until(lambda: host.get(f"/v1/migrations/{migration}")["error"], f"{host.name} to give up")


@pytest.mark.parametrize("phase", [INIT, COPY, FROZEN, RESTORE], ids=phase_name)
def test_destination_that_is_stopped_before_go_gives_the_guest_back_at_once(hosts, phase):  # noqa: F811
    a, b = hosts.pair("--peer-timeout", str(PEER_TIMEOUT_S))
    pid = run(hosts, a)["pid"]
    migration, side = hosts.start_held(phase, "web", a, b)
    with stopped(pid_of(b)):
        hosts.release(side)
        with in_time("the source's patience"):
            wait_given_up(a, migration)
        record = a.finish(migration)
        assert record["outcome"] == "failed" and record["cause"] == "network", record
        assert b.finish(migration)["outcome"] == "failed"
        stays(hosts, a, b, pid)
        assert a.move("web", b)["outcome"] == "completed"


@pytest.mark.parametrize("phase", [COPY, FROZEN, RESTORE], ids=phase_name)
def test_source_that_is_stopped_before_go_goes_on_when_it_may(hosts, phase):  # noqa: F811
    a, b = hosts.pair("--peer-timeout", str(PEER_TIMEOUT_S))
    pid = run(hosts, a)["pid"]
    migration, side = hosts.start_held(phase, "web", a, b)
    with stopped(pid):
        hosts.release(side)
        # the port and the memory there are free while the source is still silent
        with in_time("the destination's patience"):
            assert b.finish(migration)["outcome"] == "failed"
        assert b.vm("web") is None
    assert a.finish(migration)["outcome"] == "failed"
    stays(hosts, a, b, pid)
    assert a.move("web", b)["outcome"] == "completed"


@pytest.mark.parametrize("who", ["source", "destination"])
def test_side_that_is_stopped_in_the_middle_of_a_round_is_noticed(hosts, who):  # noqa: F811
    a, b = hosts.pair("--peer-timeout", str(PEER_TIMEOUT_S))
    pid = run(hosts, a)["pid"]
    migration = a.migrate("web", b, bandwidth_limit=VERY_SLOW)
    wait_until(lambda: a.get(f"/v1/migrations/{migration}")["wire_bytes"] > VERY_SLOW, "the first pages")
    with stopped(pid if who == "source" else pid_of(b)), in_time("the other side's patience"):
        wait_given_up(b if who == "source" else a, migration)
    record = a.finish(migration)
    assert record["outcome"] == b.finish(migration)["outcome"] == "failed" and record["cause"] == "network", record
    stays(hosts, a, b, pid)
    assert a.move("web", b)["outcome"] == "completed"


@pytest.mark.parametrize("phase", [STARTED, RUNS_THERE], ids=phase_name)
def test_destination_that_is_stopped_when_it_owns_the_vm_keeps_it(hosts, phase):  # noqa: F811
    a, b = hosts.pair("--peer-timeout", str(PEER_TIMEOUT_S))
    run(hosts, a)
    migration, side = hosts.start_held(phase, "web", a, b)
    with stopped(pid_of(b)):
        hosts.release(side)
        assert a.finish(migration)["outcome"] == "lost"
        assert_gone(a)
    assert b.finish(migration)["outcome"] == "completed"
    goes_on(b)


def test_destination_that_is_stopped_at_go_finds_the_vm_taken_back(hosts):  # noqa: F811
    a, b = hosts.pair("--peer-timeout", str(PEER_TIMEOUT_S))
    pid = run(hosts, a)["pid"]
    migration, side = hosts.start_held(GO, "web", a, b)
    wait_until(lambda: "taken back" in a.log(), "the source to take it back")  # the destination waits, silent
    hosts.release(side)
    assert a.finish(migration)["outcome"] == "failed"
    assert b.finish(migration)["outcome"] == "failed"
    stays(hosts, a, b, pid)


@pytest.mark.parametrize("phase", [GO, RUNS_THERE], ids=phase_name)
def test_source_that_is_stopped_after_go_does_not_stand_in_the_way(hosts, phase):  # noqa: F811
    a, b = hosts.pair("--peer-timeout", str(PEER_TIMEOUT_S))
    pid = run(hosts, a)["pid"]
    migration, side = hosts.start_held(phase, "web", a, b)
    with stopped(pid):
        hosts.release(side)
        wait_until(lambda: b.vm("web")["state"].startswith("RUNNING"), "the guest to run there")
        goes_on(b)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    assert_gone(a)
    goes_on(b)


@pytest.mark.parametrize("phase", [COPY, FROZEN], ids=phase_name)
def test_source_that_is_stopped_is_killed_like_any_other(hosts, phase):  # noqa: F811
    a, b = hosts.pair("--peer-timeout", str(PEER_TIMEOUT_S))
    pid = run(hosts, a)["pid"]
    migration, side = hosts.start_held(phase, "web", a, b)
    with stopped(pid):
        assert a.post("/v1/vms/web/kill")["state"] == "STOPPED"
    hosts.release(side)
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "failed"
    assert a.vm("web")["state"] == "STOPPED" and b.vm("web") is None and hosts.vm_processes() == []
    a.post("/v1/vms/web/start")
    goes_on(a, booted=2)


# --- a network that is cut ---

@pytest.mark.parametrize("phase", [COPY, FROZEN], ids=phase_name)
def test_cut_network_is_noticed_and_the_retry_works_at_once(hosts, networks, phase):  # noqa: F811
    a, b = networked_pair(hosts, networks, "--peer-timeout", str(PEER_TIMEOUT_S), "--lock-wait", "3")
    pid = run(hosts, a)["pid"]
    migration, side = hosts.start_held(phase, "web", a, b, bandwidth_limit=SLOW)
    cut(networks[0], "down")
    hosts.release(side)
    begin = time.monotonic()
    assert b.finish(migration)["outcome"] == "failed"
    assert b.vm("web") is None, "the reservation is given back without the source's word"
    wait_until(lambda: a.vm("web")["state"] == "RUNNING(MIGR)" or a.vm("web")["state"] == "RUNNING", "the guest")
    wait_until(lambda: a.vm("web")["migration"] is None, "the source to give up")
    assert time.monotonic() - begin < 45
    assert a.finish(migration)["cause"] == "network"
    stays(hosts, a, b, pid)
    cut(networks[0], "up")
    assert wait_until(lambda: attempt(a, b), "the network")["outcome"] == "completed"
    goes_on(b)


def attempt(a, b):
    """A move; None while the network is still coming up."""
    try:
        return a.move("web", b)
    except Refused as refused:
        assert refused.error_class == "unreachable", refused
        return None


def test_network_that_is_cut_after_go_leaves_the_vm_to_the_destination(hosts, networks):  # noqa: F811
    a, b = networked_pair(hosts, networks, "--peer-timeout", str(PEER_TIMEOUT_S), "--lock-wait", "3")
    run(hosts, a)
    migration, side = hosts.start_held(STARTED, "web", a, b)
    cut(networks[0], "down")
    hosts.release(side)
    assert b.finish(migration)["outcome"] == "completed"
    assert a.finish(migration)["outcome"] == "lost"
    assert_gone(a)
    goes_on(b)


# --- a full disk ---

@pytest.fixture
def small_disk(hosts):  # noqa: F811
    """The hosts' directories are on file systems of a few MiB."""
    mounted = []
    for name in "ab":
        path = hosts.directory / name
        path.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", str(path)], capture_output=True).returncode:
            pytest.skip("cannot mount a small file system here")
        mounted.append(path)
    yield
    for host in hosts.hosts:
        host.stop()
    hosts.end_vms()
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(host):
    with contextlib.suppress(OSError), (host.state_dir / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("where", ["source", "destination"])
def test_full_disk_under_records_and_logs_endangers_no_vm(hosts, small_disk, where):  # noqa: F811
    a, b = hosts.pair("--peer-timeout", str(PEER_TIMEOUT_S))
    pid = run(hosts, a)["pid"]
    migration, side = hosts.start_held(COPY, "web", a, b)
    full = a if where == "source" else b
    fill(full)
    hosts.release(side)
    outcomes = a.finish(migration)["outcome"], b.finish(migration)["outcome"]
    assert outcomes in (("completed", "completed"), ("failed", "failed")), outcomes
    host = b if outcomes[0] == "completed" else a
    assert host.vm("web")["state"] == "RUNNING"
    assert len(hosts.vm_processes()) == 1
    (full.state_dir / "ballast").unlink()
    goes_on(host)
    if host is a:
        assert pid_of(a) == pid
    other = b if host is a else a
    assert host.move("web", other)["outcome"] == "completed"
    goes_on(other)
