"""Both hosts tell the same of a migration, whoever died while it was made: either VM process, either ferryd."""
import os
import signal

import pytest

from fault_points import COPY, GO, STARTED, FaultyHosts
from hosts import Refused, agreed_records, assert_refused, record_of, wait_until
from test_meanwhile import assert_gone, goes_on, pytestmark, run  # noqa: F401

# What dies at the source and at the destination (src/engine/fault.h), and how the migration has ended then.
STORIES = [
    ("source-before-release:crash", "", "failed"),
    ("source-after-handover:crash", "", "failed"),
    ("source-before-running:crash", "", "completed"),
    ("", "destination-after-load:crash", "failed"),
    ("", "destination-after-acquired:crash", "failed"),
    ("", "destination-after-started:crash", "completed"),
    ("", "destination-after-running:crash", "completed"),
    ("source-after-go:crash", "destination-after-acquired:crash", "failed"),
    ("source-after-running:crash", "destination-after-running:crash", "completed"),
    ("", "destination-before-running:drop", "completed"),
]


@pytest.fixture
def hosts():
    with FaultyHosts() as made:
        yield made


def start(host):
    """By the documented commands: `ferry run`, and before it `ferry recover` when that is what the refusal says."""
    try:
        host.post("/v1/vms/web/start")
    except Refused as refused:
        assert "ferry recover" in refused.message
        host.post("/v1/vms/web/recover")
        host.post("/v1/vms/web/start")


def running(a, b):
    """The host on which it runs, after it was started anew where it must be."""
    for host in (a, b):
        if host.vm("web") and host.vm("web")["state"] == "RUNNING":
            return host
    host = next(host for host in (a, b) if host.vm("web") and host.vm("web")["state"] in ("CRASHED", "STOPPED"))
    start(host)
    return host


@pytest.mark.parametrize("gone", ["source", "destination", "both"])
@pytest.mark.parametrize("at_source, at_destination, outcome", STORIES,
                         ids=["+".join(filter(None, story[:2])) for story in STORIES])
def test_both_hosts_tell_the_same_whoever_dies(hosts, at_source, at_destination, outcome, gone):
    a, b = hosts.pair()
    run(hosts, a)
    hosts.set_fault(b, at_destination)
    migration, _ = hosts.start_held(COPY, "web", a, b)
    killed = {"source": [a], "destination": [b], "both": [a, b]}[gone]
    for host in killed:
        host.stop(signal.SIGKILL)
    hosts.set_fault(a, at_source)
    wait_until(lambda: len(hosts.vm_processes()) < 2, "the end of a VM process")
    for host in reversed(killed):
        host.start()
    for record in agreed_records(a, b, migration):
        assert record["outcome"] == outcome, record
    for host in (a, b):
        hosts.set_fault(host, "")
        host.restart(signal.SIGKILL)
    assert [record_of(host, migration)["outcome"] for host in (a, b)] == [outcome, outcome]
    host = running(a, b)
    goes_on(host)
    assert hosts.vm_processes() == [host.vm("web")["pid"]]


def test_guest_that_stopped_while_its_new_host_was_gone_has_arrived(hosts):
    """Its VM process ended by itself, and left its last words."""
    a, b = hosts.pair()
    run(hosts, a)
    migration, side = hosts.start_held(COPY, "web", a, b)
    arriving = b.vm("web")["pid"]
    b.stop(signal.SIGKILL)
    hosts.release(side)
    assert a.finish(migration)["outcome"] == "completed"
    os.kill(arriving, signal.SIGTERM)
    wait_until(lambda: hosts.vm_processes() == [], "the end of the guest on b")
    b.start()
    for record in agreed_records(a, b, migration):
        assert (record["outcome"], record["error"]) == ("completed", ""), record
    assert b.vm("web")["state"] == "STOPPED"
    assert b.post("/v1/vms/web/start")["state"] == "RUNNING"
    goes_on(b)


def test_lock_that_is_given_back_after_the_source_gave_up_leaves_the_vm_to_the_source(hosts):
    """The one sequence of two failures in which the guest's memory is lost though no host died."""
    a, b = hosts.pair("--peer-timeout", "1")
    run(hosts, a)
    hosts.hold(("started", "destination", "destination-after-started"), a, b)
    migration = a.migrate("web", b)
    hosts.wait_held(b)
    wait_until(lambda: a.get(f"/v1/migrations/{migration}?local=1")["outcome"] == "lost", "a to give up")
    assert a.vm("web")["pid"] is None
    hosts.set_fault(b, "destination-before-resume:error")
    for record in agreed_records(a, b, migration):
        assert record["outcome"] == "failed", record
    hosts.set_fault(b, "")
    assert b.vm("web") is None and hosts.vm_processes() == []
    assert a.vm("web")["state"] == "STOPPED" and a.vm("web")["not_runnable"] is None
    a.post("/v1/vms/web/start")
    goes_on(a)


def test_disagreement_lasts_no_longer_than_the_silence(hosts):
    """The destination is silent for a while, its ferryd is not killed: nothing but asking again ends it."""
    a, b = hosts.pair("--peer-timeout", "10")
    run(hosts, a)
    migration, side = hosts.start_held(GO, "web", a, b)
    os.kill(b.process.pid, signal.SIGSTOP)
    hosts.set_fault(side, "destination-before-running:drop")
    record = a.finish(migration)
    assert (record["outcome"], record["agreed"]) == ("lost", False), record
    os.kill(b.process.pid, signal.SIGCONT)
    assert agreed_records(a, b, migration)[0]["outcome"] == "completed"
    assert_gone(a)
    goes_on(b)


def test_hosts_agree_once_a_hung_destination_is_killed(hosts):
    a, b = hosts.pair("--peer-timeout", "1")
    run(hosts, a)
    hosts.hold(STARTED, a, b)
    migration = a.migrate("web", b)
    hosts.wait_held(b)
    assert a.finish(migration)["outcome"] == "lost"
    assert b.post("/v1/vms/web/kill")["pid"] is None
    assert agreed_records(a, b, migration)[0]["outcome"] == "completed"
    hosts.set_fault(b, "")
    start(b)
    goes_on(b)
    assert_gone(a)


def test_force_here_is_refused_while_the_other_host_has_a_process_of_it(hosts):
    """With nothing shared only the other host can tell: its process may run the guest in the next moment."""
    a, b = hosts.pair("--peer-timeout", "1")
    run(hosts, a, disks=[])
    hosts.hold(GO, a, b)
    migration = a.migrate("web", b)
    hosts.wait_held(b)
    assert a.finish(migration)["outcome"] == "unknown"
    assert_refused(lambda: a.post("/v1/vms/web/recover", {"force": "here"}), 409, "conflict", "host b", "kill web")
    assert_refused(lambda: a.post("/v1/vms/web/recover"), 422, "refused", "host b")
    assert a.vm("web")["state"] == "NOT_RUNNABLE"
    hosts.release(b)
    assert agreed_records(a, b, migration)[0]["outcome"] == "completed"
    assert_gone(a)
    goes_on(b)
