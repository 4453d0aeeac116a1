"""Who owns a VM: the lock beside its disk, what dies in the middle of a hand-over, and VMs in doubt. On real guests."""
import os
import re
import signal

import pytest

from hosts import BUILD, Hosts, agreed_records, assert_refused, introduce, wait_until

GUEST = BUILD / "guest" / "stress-riscv64.elf"
MIB = 1 << 20
SLOW = 20 * MIB  # bytes/s: slow enough to do something in the middle of a move

pytestmark = pytest.mark.skipif(not GUEST.exists() or not (BUILD / "ferry-vm").exists(),
                                reason="needs ferry-vm and the bare-metal guests (make guests)")


@pytest.fixture
def hosts():
    with Hosts(vm_program=BUILD / "ferry-vm") as made:
        yield made


def make_disk(hosts, name="disk.raw"):
    disk = hosts.directory / name
    disk.write_bytes(bytes(MIB))
    return {"path": str(disk)}


def run(host, name="web", **definition):
    return host.run(name, **{"kernel": str(GUEST), "cmdline": "mem=16M rate=8M", "memory": 64 * MIB, **definition})


def pair(hosts, fault="", *options):
    """Two hosts whose VMs fail at FAULT (src/engine/fault.h), which names its side."""
    a, b = hosts.new("a", *options), hosts.new("b", *options)
    for host in (a, b):
        if fault:
            host.environment["FERRY_FAULT"] = fault
        host.start()
    introduce(a, b)
    return a, b


def heal(*hosts):
    """What is started from now on does not fail."""
    for host in hosts:
        host.environment.clear()
        host.restart()


def ticks(host, name="web"):
    text = host.request("GET", f"/v1/vms/{name}/console/log")[1].decode(errors="replace")
    assert not re.search(r"errors=[1-9]", text), text
    return len(re.findall(r"^work \d+ .*errors=0", text, re.MULTILINE))


def wait_for_ticks(host, more=2):
    seen = ticks(host)
    wait_until(lambda: ticks(host) >= seen + more, f"{more} more lines of the guest on {host.name}")


def assert_one_runs(hosts, host, other):
    """HOST runs the VM, and OTHER does not."""
    # The source may have its answer from the lock while the destination is still at its end of the migration.
    wait_until(lambda: host.vm("web")["state"] == "RUNNING", f"web to run on {host.name}")
    wait_for_ticks(host)
    assert not other.vm("web") or other.vm("web")["state"] == "NOT_RUNNABLE"
    assert hosts.vm_processes() == [host.vm("web")["pid"]]


# --- one disk, one VM ---


def test_disk_in_two_vms_is_refused_naming_the_holder(hosts):
    host = hosts.start("a")
    disk, own = make_disk(hosts), make_disk(hosts, "own.raw")
    run(host, disks=[disk])
    assert_refused(lambda: run(host, "other", disks=[disk]), 409, "conflict", "web runs on host a")
    assert_refused(lambda: run(host, "other", disks=[own, disk]), 409, "conflict", disk["path"], "web runs on host a")
    assert_refused(lambda: run(host, "other", disks=[{**disk, "readonly": True}]), 409, "conflict", disk["path"],
                   "web runs on host a")
    assert host.vm("other") is None and host.vm("web")["state"] == "RUNNING"
    host.post("/v1/vms/web/kill")
    assert run(host, "other", disks=[own, disk])["state"] == "RUNNING"


def test_disk_may_be_shared_for_reading(hosts):
    host = hosts.start("a")
    disk = {**make_disk(hosts), "readonly": True}
    for name in ("web", "other"):
        assert run(host, name, disks=[disk])["state"] == "RUNNING"
    assert_refused(lambda: run(host, "third", disks=[{**disk, "readonly": False}]), 409, "conflict", disk["path"])


def test_start_is_refused_while_another_host_runs_it(hosts):
    a, b = pair(hosts)
    disk = make_disk(hosts)
    run(a, disks=[disk])
    assert_refused(lambda: run(b, disks=[disk]), 409, "conflict", "web runs on host a")
    assert a.move("web", b)["outcome"] == "completed"
    a.delete("/v1/vms/web")
    assert_refused(lambda: run(a, disks=[disk]), 409, "conflict", "web runs on host b")
    os.kill(b.vm("web")["pid"], signal.SIGKILL)
    wait_until(lambda: b.vm("web")["state"] == "CRASHED", "the end of web on b")
    assert run(a, disks=[disk])["state"] == "RUNNING"


def test_lock_directory_guards_a_vm_without_a_disk(hosts):
    locks = hosts.directory / "locks"
    locks.mkdir()
    a, b = pair(hosts, "", "--lock-dir", str(locks))
    run(a)
    assert (locks / "web.ferry-lock").stat().st_size == 512
    assert_refused(lambda: run(b), 409, "conflict", "web runs on host a")
    assert a.move("web", b)["outcome"] == "completed"
    assert_one_runs(hosts, b, a)


def test_move_is_refused_when_the_lock_is_not_in_the_same_place(hosts):
    locks = [hosts.directory / name for name in ("locks", "others")]
    for directory in locks:
        directory.mkdir()
    a = hosts.start("a", "--lock-dir", str(locks[0]))
    b = hosts.start("b")
    c = hosts.start("c", "--lock-dir", str(locks[1]))
    for other in (b, c):
        introduce(a, other)
        run(a)
        assert_refused(lambda: a.migrate("web", other), 422, "refused", "--lock-dir")
        a.post("/v1/vms/web/kill")
        a.delete("/v1/vms/web")
    run(a, disks=[make_disk(hosts)])
    assert a.move("web", b)["outcome"] == "completed"


# --- what dies in a hand-over ---


@pytest.mark.parametrize("step", ["before-acquired", "after-acquired", "before-started"])
@pytest.mark.parametrize("action", ["crash", "error"])
def test_destination_that_fails_before_started_leaves_the_source_running(hosts, step, action):
    a, b = pair(hosts, f"destination-{step}:{action}")
    pid = run(a, disks=[make_disk(hosts)])["pid"]
    wait_for_ticks(a)
    record = a.move("web", b)
    assert record["outcome"] == "failed", record
    assert a.vm("web")["pid"] == pid and b.vm("web") is None
    assert_one_runs(hosts, a, b)
    heal(b)
    assert a.move("web", b)["outcome"] == "completed"
    assert_one_runs(hosts, b, a)


def test_destination_that_dies_after_started_is_a_host_failure(hosts):
    a, b = pair(hosts, "destination-after-started:crash")
    run(a, disks=[make_disk(hosts)])
    migration = a.migrate("web", b)
    assert a.finish(migration)["outcome"] == "completed"
    for record in agreed_records(a, b, migration):
        assert record["outcome"] == "completed" and "signal 9" in record["error"], record
    assert hosts.vm_processes() == [] and b.vm("web")["state"] == "CRASHED"
    assert a.has_left("web", b)
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "host b")
    heal(a, b)
    assert b.post("/v1/vms/web/start")["state"] == "RUNNING"
    assert_one_runs(hosts, b, a)


def test_source_that_dies_after_handover_is_recovered_from_its_disks(hosts):
    a, b = pair(hosts, "source-after-handover:crash")
    disk = make_disk(hosts)
    run(a, disks=[disk])
    a.move("web", b)
    wait_until(lambda: b.vm("web") is None, "the end of web on b")
    assert_refused(lambda: run(b, disks=[disk]), 409, "conflict", "web is being moved from a to b", "recover web")
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "recover web")
    heal(a, b)
    assert a.post("/v1/vms/web/recover")["not_runnable"] is None
    assert a.post("/v1/vms/web/start")["state"] == "RUNNING"
    assert_one_runs(hosts, a, b)


def test_vm_that_died_on_both_hosts_is_recovered_on_the_source_alone(hosts):
    a, b = pair(hosts, "source-before-retake:crash,destination-before-acquire:crash")
    run(a, disks=[make_disk(hosts)])
    assert a.move("web", b)["outcome"] == "failed"
    wait_until(lambda: b.vm("web") is None, "what had arrived to be gone")
    assert hosts.vm_processes() == []
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "recover web")
    heal(a, b)
    assert a.post("/v1/vms/web/recover")["state"] == "STOPPED"
    assert a.post("/v1/vms/web/start")["state"] == "RUNNING"
    assert_one_runs(hosts, a, b)


def test_source_that_dies_after_go_has_moved_the_vm(hosts):
    a, b = pair(hosts, "source-before-running:crash")
    run(a, disks=[make_disk(hosts)])
    assert a.move("web", b)["outcome"] == "completed"
    assert a.has_left("web", b)
    assert_one_runs(hosts, b, a)


def test_lost_running_is_known_from_the_lock(hosts):
    a, b = pair(hosts, "destination-before-running:drop")
    run(a, disks=[make_disk(hosts)])
    migration = a.migrate("web", b, bandwidth_limit=SLOW)
    b.stop(signal.SIGKILL)
    assert a.finish(migration)["outcome"] == "lost"
    assert "owns the guest" in a.vm("web")["why"]
    b.start()
    assert agreed_records(a, b, migration)[0]["outcome"] == "completed"
    assert a.has_left("web", b)
    assert_one_runs(hosts, b, a)
    heal(a, b)
    assert b.move("web", a)["outcome"] == "completed"
    assert_one_runs(hosts, a, b)


def test_destination_that_hangs_with_the_lock_is_waited_for_and_then_decided_about(hosts):
    a, b = pair(hosts, "destination-after-acquired:hang", "--lock-wait", "1")
    run(a, disks=[make_disk(hosts)])
    record = a.move("web", b)
    assert record["outcome"] == "unknown", record
    assert a.vm("web")["state"] == "NOT_RUNNABLE" and a.vm("web")["pid"]
    assert_refused(lambda: a.post("/v1/vms/web/recover"), 422, "refused", "still going on")
    assert_refused(lambda: a.post("/v1/vms/web/recover", {"force": "here"}), 409, "conflict", "lock")
    os.kill(b.vm("web")["pid"], signal.SIGKILL)
    assert agreed_records(a, b, record["id"])[0]["outcome"] == "failed"
    assert b.vm("web") is None
    assert_one_runs(hosts, a, b)


# --- nothing shared ---


def doubtful(hosts, fault):
    """A VM that stays stopped on a because nobody can say whether it runs on b, whose ferryd is gone."""
    a, b = pair(hosts, fault)
    run(a)
    wait_for_ticks(a)
    migration = a.migrate("web", b, bandwidth_limit=SLOW)
    b.stop(signal.SIGKILL)
    record = a.finish(migration)
    assert (record["outcome"], record["agreed"]) == ("unknown", False), record
    vm = a.vm("web")
    assert vm["state"] == "NOT_RUNNABLE" and vm["pid"] and vm["not_runnable"]["set_by"] == "Migrate"
    assert "ferry recover web" in vm["not_runnable"]["reason"]
    for verb in ("start", "unpause"):
        assert_refused(lambda: a.post(f"/v1/vms/web/{verb}"), 409, "conflict", "web")
    a.restart(signal.SIGKILL)
    assert a.vm("web")["pid"] == vm["pid"] and a.vm("web")["not_runnable"] == vm["not_runnable"]
    assert_refused(lambda: a.post("/v1/vms/web/recover"), 422, "refused", "host b", "--force-here", "--force-there",
                   "its memory is lost")
    return a, b, migration


def test_doubt_ends_when_the_other_host_says_that_it_runs_there(hosts):
    a, b, migration = doubtful(hosts, "destination-before-running:drop")
    b.start()
    assert agreed_records(a, b, migration)[0]["outcome"] == "completed"
    assert a.has_left("web", b)
    assert_one_runs(hosts, b, a)


def test_doubt_ends_when_the_other_host_says_that_it_did_not_run_there(hosts):
    a, b, migration = doubtful(hosts, "destination-before-acquire:drop,destination-after-acquire:error")
    b.start()
    assert agreed_records(a, b, migration)[0]["outcome"] == "failed"
    assert a.vm("web")["not_runnable"] is None and b.vm("web") is None
    assert_one_runs(hosts, a, b)


def test_doubt_is_settled_by_force_here(hosts):
    a, b, migration = doubtful(hosts, "destination-before-acquire:crash")
    b.start()
    assert agreed_records(a, b, migration)[0]["outcome"] == "unknown"
    for host in (a, b):
        assert_refused(lambda: host.post("/v1/vms/web/recover"), 422, "refused", "--force-here", "--force-there")
    assert a.post("/v1/vms/web/recover", {"force": "here"})["state"] == "RUNNING"
    assert a.vm("web")["not_runnable"] is None and b.vm("web") is None
    assert_one_runs(hosts, a, b)


def test_doubt_is_settled_by_force_there(hosts):
    a, b, migration = doubtful(hosts, "destination-before-acquire:crash")
    assert a.post("/v1/vms/web/recover", {"force": "there"})["state"] == "NOT_RUNNABLE"
    assert a.has_left("web", b) and hosts.vm_processes() == []
    b.environment.clear()
    b.start()
    agreed_records(a, b, migration)
    assert b.vm("web")["state"] == "NOT_RUNNABLE"
    assert b.post("/v1/vms/web/recover", {"force": "here"})["state"] == "STOPPED"
    assert b.post("/v1/vms/web/start")["state"] == "RUNNING"
    assert_one_runs(hosts, b, a)
    assert_refused(lambda: a.post("/v1/vms/web/recover", {"force": "here"}), 409, "conflict", "host b")


def test_running_elsewhere_is_not_overruled(hosts):
    a, b, migration = doubtful(hosts, "destination-before-running:drop")
    b.start()
    assert_refused(lambda: a.post("/v1/vms/web/recover", {"force": "here"}), 409, "conflict", "web")
    agreed_records(a, b, migration)
    assert a.has_left("web", b)
    assert_one_runs(hosts, b, a)


# --- what is recovered ---


def test_recovered_vm_without_a_process_outlives_ferryd(hosts):
    a, b = pair(hosts, "source-after-go:crash,destination-before-acquired:crash")
    run(a, disks=[make_disk(hosts)])
    migration = a.migrate("web", b)
    assert agreed_records(a, b, migration)[0]["outcome"] == "failed"
    assert hosts.vm_processes() == []
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "recover web")
    heal(a, b)
    assert a.post("/v1/vms/web/recover")["state"] == "STOPPED"
    a.restart(signal.SIGKILL)
    vm = a.vm("web")
    assert vm["state"] == "STOPPED" and "from its disks" in vm["why"], vm
    assert a.post("/v1/vms/web/start")["state"] == "RUNNING"
    assert_one_runs(hosts, a, b)


def test_third_host_does_not_decide_about_a_move_of_two_others(hosts):
    a, b = pair(hosts, "source-after-handover:crash")
    disk = make_disk(hosts)
    c = hosts.start("c")
    run(c, disks=[disk])
    c.post("/v1/vms/web/kill")
    run(a, disks=[disk])
    a.move("web", b)
    assert_refused(lambda: c.post("/v1/vms/web/start"), 409, "conflict", "web is being moved from a to b")
    for force in ({}, {"force": "there"}):
        assert_refused(lambda: c.post("/v1/vms/web/recover", force), 422, "refused", "from a to b", "--force-here")
    assert c.post("/v1/vms/web/recover", {"force": "here"})["state"] == "STOPPED"
    assert c.post("/v1/vms/web/start")["state"] == "RUNNING"
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "web runs on host c")
