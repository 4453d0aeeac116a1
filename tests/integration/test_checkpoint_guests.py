"""Snapshots, suspends and cold moves between two ferryd with the real ferry-vm: a guest that fills and verifies its memory, and
has a disk that is written to, whose lock decides."""
import json
import os
import signal

import pytest

from hosts import assert_refused, wait_until
from test_checkpoint_hosts import ferry, finish, resume, save
from test_ferryd_vm import hosts, pytestmark, run, ticks, wait_for_ticks  # noqa: F401 (a fixture, and what the test needs)


@pytest.fixture
def disk(hosts):
    path = hosts.directory / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def run_with_disk(host, disk):
    run(host, disks=[{"path": str(disk)}])
    wait_for_ticks(host)


def assert_whole(host):
    """No line of the console is missing or double, and every check of memory was right."""
    numbers = ticks(host)
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_suspended_guest_goes_on_on_another_host_once(hosts, disk):
    a, b = hosts.pair()
    file = hosts.directory / "web.ckpt"
    run_with_disk(a, disk)
    ended = finish(a, save(a, "web", file))
    assert (ended["outcome"], ended["error"]) == ("completed", ""), ended
    assert a.vm("web")["state"] == "SUSPENDED"
    assert resume(b, file)["state"] == "RUNNING"
    wait_for_ticks(b)
    assert_whole(b)
    assert a.vm("web")["not_runnable"]["reason"] == "the guest was resumed on host b"
    assert_refused(lambda: resume(a, file), 409, "conflict", "still runs on host b")
    b.post("/v1/vms/web/kill")
    # Its disk may be ahead of the file now.
    for host in (a, b):
        assert_refused(lambda: resume(host, file), 422, "refused", "has run since, on host b", "--disks-restored")
    assert resume(a, file, disks_restored=True)["state"] == "RUNNING"
    wait_for_ticks(a)
    assert_whole(a)


def test_snapshot_goes_on_beside_its_guest_as_another_vm(hosts):
    a = hosts.start("a")
    file = hosts.directory / "web.ckpt"
    run(a, nets=[{"backend": "user"}])
    wait_for_ticks(a)
    assert finish(a, save(a, "web", file, "snapshot"))["outcome"] == "completed"
    other = resume(a, file, name="web2")
    assert other["definition"]["nets"][0]["mac"] != a.vm("web")["definition"]["nets"][0]["mac"]
    for name in ("web", "web2"):
        wait_for_ticks(a, name=name)
    # From now on its identity is its own, wherever it goes on.
    again = hosts.directory / "web2.ckpt"
    assert finish(a, save(a, "web2", again))["outcome"] == "completed"
    assert resume(a, again)["definition"]["nets"] == other["definition"]["nets"]
    wait_for_ticks(a, name="web2")


def test_disk_written_to_behind_its_lock_is_noticed(hosts, disk):
    a = hosts.start("a")
    file = hosts.directory / "web.ckpt"
    run_with_disk(a, disk)
    assert finish(a, save(a, "web", file))["outcome"] == "completed"
    disk.write_bytes(b"x" * (1 << 20))
    later = file.stat().st_mtime_ns + 60_000_000_000  # whatever the clock's grain
    os.utime(disk, ns=(later, later))
    assert_refused(lambda: resume(a, file), 422, "refused", str(disk), "was written to", "--disks-restored")
    assert a.vm("web")["state"] == "SUSPENDED"


def test_resume_that_fails_leaves_it_resumable(hosts, disk):
    """Its memory is damaged: that is found after the lock was taken, and before the guest runs."""
    a = hosts.start("a")
    file, good = hosts.directory / "web.ckpt", hosts.directory / "good"
    run_with_disk(a, disk)
    assert finish(a, save(a, "web", file))["outcome"] == "completed"
    good.write_bytes(file.read_bytes())
    content = bytearray(good.read_bytes())
    for at in range(len(content) // 4, len(content), 1 << 16):  # noise is in its pages
        content[at] ^= 1
    file.write_bytes(content)
    assert_refused(lambda: resume(a, file, eager=True), 500, "failed", str(file))
    assert a.vm("web")["state"] == "SUSPENDED"
    a.restart(signal.SIGKILL)
    file.write_bytes(good.read_bytes())
    assert resume(a, file, eager=True)["state"] == "RUNNING"
    wait_for_ticks(a)
    assert_whole(a)


def test_checkpoint_files_are_shown_and_compared(hosts, disk):
    a = hosts.start("a")
    one, two = hosts.directory / "one", hosts.directory / "two"
    run_with_disk(a, disk)
    finish(a, save(a, "web", one, "snapshot"))
    wait_for_ticks(a)
    finish(a, save(a, "web", two, "snapshot", compress="zstd"))
    shown = ferry(a, "checkpoint", "show", str(one), "--json")
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    sections = {section["name"]: section["fields"] for section in told["sections"]}
    assert int(sections["hart0"]["pc"], 16) >= 0x80000000 and sections["virtio-blk0"]["capacity"] == "0x800"
    assert all(sections.values()) and told["damage"] == "" and told["definition"]["disks"][0]["path"] == str(disk)
    assert len(told["regions"][0]["map"]) == 64 and sum(told["regions"][0]["map"]) > 0
    assert "hart0" in ferry(a, "checkpoint", "show", str(two)).stdout

    same = ferry(a, "checkpoint", "diff", str(one), str(one))
    assert (same.returncode, same.stdout) == (0, "")
    differs = ferry(a, "checkpoint", "diff", str(one), str(two))
    assert differs.returncode == 1 and "hart0.retired" in differs.stdout and "memory ram0: " in differs.stdout
    assert "capacity" not in differs.stdout

    content = bytearray(one.read_bytes())
    content[len(content) // 4] ^= 1  # noise is there
    one.write_bytes(content)
    damaged = ferry(a, "checkpoint", "show", str(one))
    assert damaged.returncode == 1 and "memory region ram0 is damaged" in damaged.stderr
    assert ferry(a, "checkpoint", "show", str(disk)).returncode == 1


def test_running_guest_moves_cold(hosts, disk):
    a, b = hosts.pair()
    run_with_disk(a, disk)
    ended = a.move("web", b, cold=True)
    assert (ended["outcome"], ended["kind"], ended["error"]) == ("completed", "cold", ""), ended
    wait_for_ticks(b)
    assert_whole(b)
    assert a.has_left("web", b)
    b.post("/v1/vms/web/kill")
    back = b.move("web", a, cold=True)
    assert back["outcome"] == "completed", back
    assert a.post("/v1/vms/web/start")["state"] == "RUNNING"
    assert b.has_left("web", a)
    wait_until(lambda: ticks(a)[-1:] >= [1], "it to boot")
