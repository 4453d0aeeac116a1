"""Quick resume as an operator sees it: where the VM is while its memory is still arriving, what a lost connection and dead
processes do to it, and that both hosts, restarted or not, tell the same."""
import json
import os
import signal

import pytest

from hosts import agreed_records, assert_refused, wait_until
from moving import BEGIN, console, hosts, lives, needs_guests, passes, pid_of, run  # noqa: F401
from networks import cut, networked_pair, networks  # noqa: F401

pytestmark = needs_guests

MIB = 1 << 20
SLOW = 1 * MIB  # bytes a second, for what nobody waits for: there is time for something to happen
WORK = {"cmdline": "mem=20M rate=4M interval=20", "memory": 64 * MIB}


def begin(hosts, a, b, **options):
    """The guest runs on B, and most of its memory is on A; returns the migration's id."""
    run(hosts, a, **WORK)
    wait_until(lambda: BEGIN in console(a), "the guest to fill its memory")
    migration = a.migrate("web", b, quick_resume="now", **{"bandwidth_limit": SLOW, **options})
    await_fetching(a, b)
    return migration


def await_fetching(a, b):
    wait_until(lambda: state(b) == "RUNNING(MIGR)", "the guest to run at the destination")
    wait_until(lambda: state(a) == "NOT_RUNNABLE", "the source to know")


def state(host):
    vm = host.vm("web")
    return vm["state"] if vm else None


def fetch(host, migration):
    return host.get(f"/v1/migrations/{migration}?local=1")["quick_resume"]


def assert_kept(a, b, migration):
    """Both hosts tell that the guest is on B, and that A keeps memory for it."""
    vm = a.vm("web")
    assert vm["state"] == "NOT_RUNNABLE" and vm["migration"] == migration and vm["pid"], vm
    assert vm["not_runnable"]["set_by"] == "Migrate" and f"runs on host {b.name}" in vm["not_runnable"]["reason"], vm
    assert b.vm("web")["migration"] == migration
    for host in (a, b):
        assert [row["id"] for row in host.get("/v1/migrations?view=active")] == [migration]
        assert fetch(host, migration)["fetching"]


def refused_while_needed(a, b, migration):
    assert_refused(lambda: a.post("/v1/vms/web/kill"), 409, "conflict", "still needs", "the guest is lost", "--force")
    assert_refused(lambda: a.delete("/v1/vms/web"), 409, "conflict", "still on its way")
    assert_refused(lambda: b.migrate("web", a), 409, "conflict", "still on its way")
    assert_refused(lambda: a.post("/v1/vms/web/unpause"), 409, "conflict", f"runs on host {b.name}")
    assert_refused(lambda: a.post(f"/v1/migrations/{migration}/cancel"), 409, "conflict", "too late")
    assert_refused(lambda: b.post(f"/v1/migrations/{migration}/cancel"), 409, "conflict", "too late")
    assert_refused(lambda: a.post("/v1/vms/web/recover"), 409, "conflict", "nothing to recover")


def assert_lost(hosts, a, b, migration, *words):
    """Both say so; nothing of it is left but the definition on B, where it starts anew."""
    for record in agreed_records(a, b, migration):
        assert record["outcome"] == "lost" and record["quick_resume"]["missing_pages"] > 0, record
        for word in ("the guest is lost", "start it anew from its disks", *words):
            assert word in record["error"], record["error"]
    for host in (a, b):
        assert migration in [row["id"] for row in host.get("/v1/migrations?view=failed")]
    assert (state(b), pid_of(b)) == ("CRASHED", None)
    assert (state(a), pid_of(a)) == ("NOT_RUNNABLE", None)
    assert hosts.vm_processes() == []
    b.post("/v1/vms/web/start")
    wait_until(lambda: lives(b) == 1, "the guest to boot")


def kill_both(a, b):
    for host in (a, b):
        host.restart(signal.SIGKILL)


def test_connection_is_lost_and_made_again_by_recover(hosts, networks):
    a, b = networked_pair(hosts, networks, "--peer-timeout", "2", "--reconnect-time", "1")
    migration = begin(hosts, a, b)
    before = passes(b)
    assert_kept(a, b, migration)
    refused_while_needed(a, b, migration)

    cut(networks[0], "down")
    wait_until(lambda: state(b) == "PAUSED(MIGR)" and fetch(a, migration)["disconnected"], "both to miss each other")
    wait_until(lambda: "not tried any more" in json.dumps(a.get(f"/v1/migrations/{migration}?local=1")["log"]),
               "the source to wait for somebody")
    kill_both(a, b)
    stood = console(b)
    assert_kept(a, b, migration)
    assert state(b) == "PAUSED(MIGR)" and "is lost" in b.vm("web")["why"]
    assert_refused(lambda: b.post("/v1/vms/web/unpause"), 409, "conflict", "stands still")
    assert_refused(lambda: b.post("/v1/vms/web/recover"), 502, "unreachable", "a")
    assert console(b) == stood

    cut(networks[0], "up")
    wait_until(lambda: all(each["reachable"] for each in b.get("/v1/hosts")), "the hosts to reach each other")
    assert b.post("/v1/vms/web/recover")["state"] == "RUNNING(MIGR)"
    kill_both(a, b)
    records = agreed_records(a, b, migration)
    for record in records:
        told = record["quick_resume"]
        assert record["outcome"] == "completed" and not record["error"], record
        assert told["reconnects"] == 1 and told["paused_ns"] > 0 and told["faults"] > 0
        assert 0 < told["fault_median_ns"] <= told["fault_p99_ns"] <= told["fault_max_ns"]
    assert state(b) == "RUNNING" and a.has_left("web", b)
    # since it has arrived it has verified every page once
    wait_until(lambda: passes(b) >= before + 2, "the guest to verify its memory")
    assert lives(b) == 1 and hosts.vm_processes() == [pid_of(b)]
    assert [code for code in b.event_codes(migration) if code == "VMS2432"] == ["VMS2432"]


@pytest.mark.parametrize("agents", ["live", "dead"])
def test_source_that_dies_takes_the_guest_with_it(hosts, agents):
    a, b = hosts.pair()
    migration = begin(hosts, a, b)
    if agents == "live":
        a.post("/v1/vms/web/kill", {"force": True})
    else:
        victim = pid_of(a)
        for host in (a, b):
            host.stop(signal.SIGKILL)
        os.kill(victim, signal.SIGKILL)
        for host in (a, b):
            host.start()
    assert_lost(hosts, a, b, migration, "gone with its process on host a")


@pytest.mark.parametrize("agents", ["live", "dead"])
def test_destination_that_dies_takes_the_guest_with_it(hosts, agents):
    a, b = hosts.pair()
    migration = begin(hosts, a, b)
    victim = pid_of(b)
    if agents == "dead":
        for host in (a, b):
            host.stop(signal.SIGKILL)
    os.kill(victim, signal.SIGKILL)
    if agents == "dead":
        for host in (a, b):
            host.start()
    assert_lost(hosts, a, b, migration)


def test_memory_is_given_up_by_a_person(hosts, networks):
    """The destination's host is gone for good: its disks are free, and what is left at the source is let go."""
    a, b = networked_pair(hosts, networks, "--peer-timeout", "2")
    begin(hosts, a, b)
    cut(networks[0], "down")
    wait_until(lambda: state(b) == "PAUSED(MIGR)", "the destination to miss the source")
    b.stop(signal.SIGKILL)
    os.kill(hosts.vm_processes()[-1], 0)
    assert_refused(lambda: a.post("/v1/vms/web/recover", {"force": "here"}), 409, "conflict", "out of date",
                   "--force-there")
    a.post("/v1/vms/web/recover", {"force": "there"})
    assert (state(a), pid_of(a)) == ("NOT_RUNNABLE", None)


def test_quick_resume_is_an_option_with_two_values(hosts):
    a, b = hosts.pair()
    run(hosts, a)
    assert_refused(lambda: a.migrate("web", b, quick_resume="soon"), 400, "usage", "allowed", "now")
    # allowed: not used when there is no need
    last = a.move("web", b, quick_resume="allowed")
    assert last["outcome"] == "completed" and last["quick_resume"] is None
    wait_until(lambda: passes(b) >= 1, "the guest to verify its memory")
