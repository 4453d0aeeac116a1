"""ferry-vm alone: a running Linux guest into a checkpoint file and out of it, in another process."""
import re
import time
import uuid

import pytest

from vms import FERRY_VM, MIB, RpcError, WORK_LINE

WORK = "ferry.shell ferry.work=threads=2,mem=24M,rate=16M"


@pytest.fixture
def working(vms, guest):
    """A VM whose guest fills and verifies its memory."""
    vm = vms.start("a", guest.definition("web", WORK, memory=128 * MIB))
    vm.wait_for_work(2)
    vm.control.call("subscribe")
    return vm


def begin(vm, path, kind, **more):
    params = {"id": str(uuid.uuid4()), "path": str(path), "kind": kind, "compress": "off", "definition": {"a": 1}, **more}
    assert vm.control.call("checkpoint-save", **params) == {"id": params["id"]}
    return params["id"]


def save(vm, path, kind, **more):
    """Saves, and returns the last word about it."""
    identity = begin(vm, path, kind, **more)
    word = vm.control.wait_for("checkpoint", lambda params: params["outcome"] != "none")
    assert word["id"] == identity
    return word


def lines_are_whole(vm):
    """The console's history is there, and what comes now goes on from it: nothing missing, nothing twice."""
    numbers = [int(number) for number, *_ in WORK_LINE.findall(vm.console())]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return numbers[-1]


def clock_is_right(vm):
    """Not behind, as it would be had it stood still with the guest; a guest takes it from its RTC, in whole seconds."""
    now = time.time()
    vm.type("date +DATE-%s\n")
    told = int(vm.wait_for_console(r"^DATE-(\d+)").group(1))
    assert now - 1.6 < told < time.time() + 1


def resume(vms, name, vm, path, *arguments):
    return vms.start(name, vm.definition, "--resume", str(path), *arguments)


def test_suspended_guest_goes_on_in_another_process(vms, working):
    path = vms.directory / "file"
    word = save(working, path, "suspend")
    assert (word["outcome"], word["error"]) == ("completed", "")
    ended = working.wait()
    assert (ended["reason"], ended["file"], ended["checkpoint"]) == ("suspended", str(path), word["id"])
    before = lines_are_whole(working)
    # Long enough for the clock to be seen to be wrong, were it not set.
    time.sleep(3)
    again = resume(vms, "b", working, path, "--eager")
    again.wait_for_work(5, passes=1)
    assert lines_are_whole(again) > before
    assert "FERRY-GUEST READY" in again.console()
    assert "is resumed from" in again.log()
    clock_is_right(again)


def test_snapshot_of_a_running_guest_is_a_guest_of_its_own(vms, working):
    path = vms.directory / "file"
    word = save(working, path, "snapshot", compress="zstd")
    assert (word["outcome"], word["error"]) == ("completed", "")
    assert 0 < word["stopped_ns"] < word["total_ns"] and word["bytes"] > 0 and word["rounds"] > 0
    assert working.control.call("status")["checkpoint"]["outcome"] == "completed"
    working.wait_for_work(3, passes=1)
    first = resume(vms, "b", working, path)
    second = resume(vms, "c", working, path, "--paused")
    assert second.state() == "PAUSED"
    second.control.call("resume")
    for vm in (first, second, working):
        vm.wait_for_work(3, passes=1)
        lines_are_whole(vm)


def test_cancelled_and_failed_saves_leave_the_guest_running(vms, working):
    path = vms.directory / "file"
    identity = begin(working, path, "suspend", bandwidth=1 * MIB)
    with pytest.raises(RpcError, match="is being saved already"):
        begin(working, path, "snapshot")
    with pytest.raises(RpcError, match="is being saved into"):
        working.control.call("migrate.prepare", id=str(uuid.uuid4()), source="a", destination="b")
    working.control.call("checkpoint-cancel", id=identity)
    word = working.control.wait_for("checkpoint", lambda params: params["outcome"] != "none")
    assert word["outcome"] == "cancelled"
    assert list(vms.directory.glob("file*")) == []
    path.write_text("something else")
    with pytest.raises(RpcError, match="exists already"):
        begin(working, path, "suspend")
    assert path.read_text() == "something else"
    for wrong in ({"kind": "both"}, {"path": "file"}, {"compress": "lz4"}, {"definition": "text"}):
        with pytest.raises(RpcError, match=next(iter(wrong))):
            working.control.call("checkpoint-save", **{"id": str(uuid.uuid4()), "path": str(path) + "2",
                                                       "kind": "snapshot", "definition": {}, **wrong})
    assert working.state() == "RUNNING"
    working.wait_for_work(3, passes=1)


def test_what_does_not_fit_is_refused_by_name(vms, working, guest):
    path = vms.directory / "file"
    assert save(working, path, "suspend")["outcome"] == "completed"
    working.wait()
    for change, words in (({"memory": 256 * MIB}, "memory"), ({"vcpus": 2}, "vCPUs"),
                          ({"nets": [{"backend": "user"}]}, "networks")):
        vm = vms.make("b", {**working.definition, **change}, "--resume", str(path))
        assert words in vm.ready["error"] and str(path) in vm.ready["error"]
        vm.end()
    damaged = vms.directory / "damaged"
    data = bytearray(path.read_bytes())
    data[5 * MIB + 100] ^= 1
    damaged.write_bytes(data)
    vm = vms.make("b", working.definition, "--resume", str(damaged), "--eager")
    assert re.search(r"damaged: page \d+ of memory region \S+ is damaged", vm.ready["error"])
    vm.end()
    # Without waiting for its memory: nothing wrong runs, the guest stands still.
    vm = resume(vms, "b", working, damaged)
    vm.wait_for_state("PAUSED")
    status = vm.control.call("status")
    assert re.search(r"page \d+ of memory region \S+ is damaged", status["why"]) and not status["fill"]["complete"]
    with pytest.raises(RpcError, match="stands still"):
        vm.control.call("resume")
    with pytest.raises(RpcError, match="stands still"):
        begin(vm, vms.directory / "again", "snapshot")
    vm.control.call("quit")
    assert vm.wait()["reason"] == "killed"
    # And it still goes on.
    resume(vms, "b", working, path).wait_for_work(2, passes=1)


def test_killed_in_the_middle_it_leaves_nothing(vms, working):
    path = vms.directory / "file"
    begin(working, path, "snapshot", bandwidth=1 * MIB)
    working.control.wait_for("checkpoint", lambda params: params["bytes"] > 0)
    working.control.call("quit")
    assert working.wait()["reason"] == "killed"
    assert list(vms.directory.glob("file*")) == []
