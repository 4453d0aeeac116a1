"""A VM goes to a new ferry-vm of the same host, by passing its memory instead of copying it."""
import os
import re
import signal
import socket
import time

import pytest

from vms import DEADLINE, MIB, RpcError

WORK = "ferry.work=threads=2,mem=16M,rate=8M"


@pytest.fixture
def working(vms, guest):
    """A VM whose guest fills and verifies its memory, and keeps a journal on a disk."""
    disk = vms.directory / "disk"
    disk.write_bytes(bytes(16 * MIB))
    vm = vms.start("v0", guest.definition("web", f"{WORK} ferry.disk=/dev/vda", disks=[{"path": str(disk)}],
                                          nets=[{"backend": "user"}]))
    vm.wait_for_work(2)
    vm.wait_for_console(r"^disk \d+ .*errors=0")
    return vm


@pytest.fixture
def unlocked(vms, guest):
    """One that has nothing that other hosts could see, and so no lock of its own."""
    vm = vms.start("v0", guest.definition("web", WORK))
    vm.wait_for_work(2)
    return vm


def assert_console_reads_on(vm):
    numbers = [number for number, _ in vm.work()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert vm.console().count("FERRY-GUEST READY") == 1


def assert_disk_goes_on(vm):
    vm.wait_for_console(r"^disk \d+ .*errors=0", len(vm.console()))
    assert not re.search(r"^disk .*errors=[1-9]", vm.console(), re.M)


def memory_inodes(vm):
    """Which memory the process has mapped for the guest."""
    with open(f"/proc/{vm.pid}/maps", encoding="utf-8") as maps:
        mapped = [line.split() for line in maps]
    # Files of a tmpfs that is mounted nowhere, or memfds: shared, and of no name that exists.
    return {words[4] for words in mapped if words[1] == "rw-s" and words[-1] == "(deleted)"}


def refused(call, *words):
    with pytest.raises(RpcError) as caught:
        call()
    for word in words:
        assert word in caught.value.message


def test_guest_goes_to_a_new_process_with_its_very_memory(vms, working):
    before = working.console()
    memory = memory_inodes(working)
    moved, end = vms.upgrade(working, "v1")
    assert (end["outcome"], end["error"], end["kind"]) == ("completed", "", "upgrade")
    assert end["source"] == end["destination"] == "a"
    assert end["wire_bytes"] < len(before) + 256 * 1024 and end["pages_raw"] == 0 and end["rounds"] == []
    assert end["memory_bytes"] == 256 * MIB
    assert 0 < end["downtime_ns"] <= end["total_ns"]
    assert sum(end["downtime_parts"].values()) == end["downtime_ns"]
    assert memory and memory_inodes(moved) == memory
    assert working.wait()["reason"] == "migrated"
    moved.wait_for_state("RUNNING")
    moved.wait_for_work(5, passes=2)
    assert moved.console().startswith(before)
    assert_console_reads_on(moved)
    assert_disk_goes_on(moved)
    assert moved.is_small()
    assert not (moved.directory / "migrate.sock").exists()
    assert "web is expected to come from another process" in moved.log() and "web starts" in moved.log()
    assert moved.stop()["reason"] == "powered-off"


def test_twenty_in_a_row(vms, working):
    vm = working
    for number in range(1, 21):
        moved, end = vms.upgrade(vm, f"v{number}")
        assert end["outcome"] == "completed", end["error"]
        assert vm.wait()["reason"] == "migrated"
        vm = moved
        vm.wait_for_work(2)
    vm.wait_for_work(2, passes=2)
    assert_console_reads_on(vm)
    assert_disk_goes_on(vm)


def test_harts_go_on_and_a_paused_vm_arrives_paused(vms, guest):
    vm = vms.start("v0", guest.definition("web", f"{WORK},procs=2", vcpus=2))
    vm.wait_for_work(2)
    vm.control.call("pause")
    moved, end = vms.upgrade(vm, "v1")
    assert end["outcome"] == "completed", end["error"]
    moved.wait_for_state("PAUSED")
    text = moved.console()
    moved.control.call("resume")
    moved.wait_for_work(3, passes=2)
    assert moved.console().startswith(text)
    assert_console_reads_on(moved)


def test_the_whole_console_log_stays(vms, guest):
    """More than the history that goes to other hosts."""
    vm = vms.start("v0", guest.definition("web"))
    vm.wait_for_console("FERRY-GUEST READY")
    vm.type("i=0; while [ $i -lt 20000 ]; do echo line $i of a long flood of output; i=$((i+1)); done; "
            "echo FLOOD-$((1+1))\n")
    vm.wait_for_console("FLOOD-2")
    moved, end = vms.upgrade(vm, "v1")
    assert end["outcome"] == "completed", end["error"]
    vm.wait()
    moved.type("echo AFTER-$((1+1))\n")
    moved.wait_for_console("AFTER-2")
    numbers = [int(number) for number in re.findall(r"^line (\d+) of a long flood of output$", moved.console(), re.M)]
    assert numbers == list(range(20000))
    assert moved.console().count("FLOOD-2") == 1


def test_forwarded_port_passes_over(vms, guest):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    vm = vms.start("v0", guest.definition("web", "ferry.echo=7", nets=[
        {"backend": f"user,hostfwd=tcp:127.0.0.1:{port}-:7"}]))
    vm.wait_for_console("FERRY-GUEST READY")

    def echo():
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", port), 5) as client:
                    client.settimeout(5)
                    client.sendall(b"hello\n")
                    if client.recv(6) == b"hello\n":
                        return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("no echo")

    echo()
    for number in range(1, 4):
        moved, end = vms.upgrade(vm, f"v{number}")
        assert end["outcome"] == "completed", end["error"]
        echo()
        assert "a forwarded port is missing" not in moved.log()
        vm.wait()
        vm = moved


def test_size_of_memory_does_not_matter(vms, guest):
    """Nothing is copied, reserved or faulted in: what the new process gets ready with and has mapped is small."""
    vm = vms.start("v0", guest.definition("web", WORK, memory=8192 * MIB))
    vm.wait_for_work(2)
    resident = vm.control.call("status")["memory_resident"]
    moved, end = vms.upgrade(vm, "v1")
    assert end["outcome"] == "completed", end["error"]
    assert end["memory_bytes"] == 8192 * MIB and end["wire_bytes"] < MIB
    assert moved.control.call("status")["memory_resident"] < resident + 64 * MIB
    moved.wait_for_work(2)


# --- what goes wrong ---


@pytest.mark.parametrize("kind, fault", [("working", "destination-before-memory"), ("unlocked", "destination-after-memory"),
                                         ("working", "destination-after-verdict"),
                                         ("unlocked", "destination-before-acquire"),
                                         ("unlocked", "destination-after-acquired"),
                                         ("working", "destination-before-started"),
                                         ("unlocked", "destination-before-started")])
def test_new_process_that_is_killed_leaves_the_old_one_running(vms, request, kind, fault):
    vm = request.getfixturevalue(kind)
    moved = vms.start_upgrade("v1", vm, env={**os.environ, "FERRY_FAULT": f"{fault}:crash"})
    vms.begin_upgrade(vm, moved, peer_timeout=5_000_000_000)
    end = vm.control.wait_for("migration.finished")
    assert end["outcome"] == "failed", end
    assert moved.process.wait(DEADLINE) == -signal.SIGKILL
    vm.wait_for_state("RUNNING")
    vm.wait_for_work(3, passes=2)
    assert_console_reads_on(vm)
    # and may try again
    moved, end = vms.upgrade(vm, "v2")
    assert end["outcome"] == "completed", end["error"]
    vm.wait()
    moved.wait_for_work(3, passes=2)
    assert_console_reads_on(moved)


@pytest.mark.parametrize("fault", ["source-after-memory", "source-after-pause", "source-after-verdict"])
def test_old_process_that_is_killed_before_it_said_go_ends_both(vms, guest, fault):
    vm = vms.start("v0", guest.definition("web", WORK), env={**os.environ, "FERRY_FAULT": f"{fault}:crash"})
    vm.wait_for_work(2)
    moved = vms.start_upgrade("v1", vm)
    vms.begin_upgrade(vm, moved, peer_timeout=5_000_000_000)
    assert vm.process.wait(DEADLINE) == -signal.SIGKILL
    assert moved.wait()["reason"] == "failed"


@pytest.mark.parametrize("fault", ["source-after-go", "source-before-running"])
def test_old_process_that_is_killed_after_it_said_go_is_not_missed(vms, guest, fault):
    vm = vms.start("v0", guest.definition("web", WORK), env={**os.environ, "FERRY_FAULT": f"{fault}:crash"})
    vm.wait_for_work(2)
    moved = vms.start_upgrade("v1", vm)
    vms.begin_upgrade(vm, moved)
    assert vm.process.wait(DEADLINE) == -signal.SIGKILL
    moved.wait_for_state("RUNNING")
    moved.wait_for_work(3, passes=2)
    assert_console_reads_on(moved)


def test_resume_that_fails_gives_the_guest_back_as_it_was(vms, working):
    moved = vms.start_upgrade("v1", working, env={**os.environ, "FERRY_FAULT": "destination-before-resume:error"})
    vms.begin_upgrade(working, moved)
    assert working.control.wait_for("migration.finished")["outcome"] == "failed"
    assert moved.wait()["reason"] == "failed"
    working.wait_for_work(3, passes=2)
    assert_console_reads_on(working)
    assert_disk_goes_on(working)


def test_memory_is_passed_to_its_awaiter_only(vms, unlocked):
    host = {"source": "a", "destination": "a"}
    moved = vms.start_upgrade("v1", unlocked)
    refused(lambda: moved.control.call("migrate.receive", id="1234", token="00" * 32, listen="127.0.0.1:0", **host),
            "Unix socket")
    other = vms.start_incoming("v2", unlocked.definition)
    vms.begin_upgrade(unlocked, other)
    end = unlocked.control.wait_for("migration.finished")
    assert end["outcome"] == "failed" and "requires features" in end["error"]
    unlocked.wait_for_work(3)


def test_directory_that_is_not_there_is_said(vms, unlocked):
    vm = vms.make("v1", unlocked.definition, "--upgrade", str(vms.directory / "nowhere"))
    assert "nowhere" in vm.ready["error"]
    assert vm.process.wait(DEADLINE) == 1
