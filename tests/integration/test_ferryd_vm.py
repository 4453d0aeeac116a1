"""ferryd with the real ferry-vm and a bare-metal guest that fills and verifies its memory."""
import datetime
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from fault_points import FaultyHosts
from hosts import BUILD, DEADLINE, Hosts, assert_refused, wait_until

GUEST = BUILD / "guest" / "stress-riscv64.elf"
SLOW = 20 << 20  # bytes/s: slow enough to do something in the middle of a move

pytestmark = pytest.mark.skipif(not GUEST.exists() or not (BUILD / "ferry-vm").exists(),
                                reason="needs ferry-vm and the bare-metal guests (make guests)")


@pytest.fixture
def hosts():
    with Hosts(vm_program=BUILD / "ferry-vm") as made:
        yield made


def run(host, name="web", **definition):
    return host.run(name, **{"kernel": str(GUEST), "cmdline": "mem=32M rate=8M", "memory": 64 << 20, **definition})


def console(host, name="web"):
    return host.request("GET", f"/v1/vms/{name}/console/log")[1].decode(errors="replace")


def ticks(host, name="web"):
    """The numbers of the lines the guest has printed; it must not have found an error."""
    text = console(host, name)
    assert not re.search(r"errors=[1-9]", text), text
    return [int(number) for number in re.findall(r"^work (\d+) .*errors=0", text, re.MULTILINE)]


def wait_for_ticks(host, more=3, name="web"):
    seen = ticks(host, name)
    last = seen[-1] if seen else -1
    wait_until(lambda: ticks(host, name)[-1:] >= [last + more], f"{more} more lines of the guest")


def wait_for_copying(host, migration):
    wait_until(lambda: host.get(f"/v1/migrations/{migration}")["wire_bytes"] > 0, "the first bytes")


def assert_told_in_order(host, migration):
    """Stopped there before it went on here, whoever learnt of it when."""
    def codes():
        return [event["code"] for event in host.get(f"/v1/migrations/{migration}")["events"]]

    wait_until(lambda: {"VMS2452", "VMS2432"} <= set(codes()), "both hosts' events")
    assert codes().index("VMS2452") < codes().index("VMS2432")


def test_guest_goes_on_through_moves_and_its_console_goes_with_it(hosts):
    a, b = hosts.pair()
    run(a)
    wait_for_ticks(a)
    for source, destination in ((a, b), (b, a), (a, b)):
        record = source.move("web", destination)
        assert record["outcome"] == "completed", record
        assert 0 < record["downtime_ns"] < record["total_ns"]
        assert record["downtime_ns"] == sum(record["downtime_parts"].values())
        assert source.has_left("web", destination)
        assert destination.vm("web")["state"] == "RUNNING"
        assert_told_in_order(destination, record["id"])
        wait_for_ticks(destination)
    numbers = ticks(b)
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), "a line of the console is missing or double"


def marks(host):
    return re.findall(r"^(HAL\d+) (\S+) VM web (stopped|continued) on host (\w)\r?$", console(host), re.MULTILINE)


def test_console_marks_tell_where_the_guest_stopped_and_went_on(hosts):
    a, b = hosts.pair()
    run(a, console_marks=True)
    wait_for_ticks(a)
    for source, destination in ((a, b), (b, a)):
        before, begin = marks(source), time.time()
        source.move("web", destination)
        wait_until(lambda: len(marks(destination)) == len(before) + 2, "both marks")
        stopped, went_on = marks(destination)[-2:]
        assert (stopped[0], *stopped[2:]) == ("HAL0331", "stopped", source.name)
        assert (went_on[0], *went_on[2:]) == ("HAL0332", "continued", destination.name)
        at = [datetime.datetime.fromisoformat(mark[1]).timestamp() for mark in (stopped, went_on)]
        assert begin - 0.001 <= at[0] <= at[1] <= time.time()
        wait_for_ticks(destination)
        text = console(destination)
        assert re.search(r"^work \d+", text[text.index(went_on[1]):], re.MULTILINE), "the guest goes on after it"
    destination.post("/v1/vms/web/pause")
    destination.move("web", b)
    assert len(marks(b)) == 4, "a guest that was paused neither stopped nor went on"


def test_console_marks_of_a_failed_move_end_at_the_source():
    with FaultyHosts() as hosts:
        a, b = hosts.pair()
        run(a, console_marks=True)
        hosts.set_fault(b, "destination-after-load:error")
        assert a.move("web", b)["outcome"] == "failed"
        assert [(mark[0], mark[3]) for mark in marks(a)] == [("HAL0331", "a"), ("HAL0332", "a")]
        wait_for_ticks(a)
        a.upgrade("web")
        wait_for_ticks(a)
        assert len(marks(a)) == 2


def log_files(host, name="web"):
    """The texts of vm.log, oldest file first."""
    directory = host.state_dir / "vms" / name
    numbers = sorted((int(path.suffix[1:]) for path in directory.glob("vm.log.*")), reverse=True)
    assert numbers == list(range(len(numbers), 0, -1))
    return [(directory / name).read_text() for name in [*(f"vm.log.{number}" for number in numbers), "vm.log"]]


def test_log_goes_on_at_the_destination_and_stays_bounded(hosts):
    a, b = hosts.pair("--vm-log-size", "4K", "--log-files", "2")
    run(a)
    for _ in range(20):
        migration = a.migrate("web", b, bandwidth_limit=SLOW)
        a.post(f"/v1/migrations/{migration}/cancel")
        record = a.finish(migration)
        assert record["outcome"] == "cancelled", record["error"]
        if len(log_files(a)) == 3:
            break
    files = log_files(a)
    assert len(files) == 3 and all(4096 < len(text) < 32 << 10 for text in files[:2]), [len(text) for text in files]
    times = [line[:29] for line in "".join(files).splitlines()]
    assert times == sorted(times)
    for source, destination in ((a, b), (b, a)):
        source.move("web", destination)
        wait_until(lambda: "The guest runs here" in log_files(destination)[-1], "the joined log")
        newest, before = log_files(destination)[-1], "".join(log_files(source))
        first = newest.splitlines()[0]
        assert first in before.splitlines() and "MIGRATE_TO_VMX_PRECOPY" in newest
        assert newest.startswith(before[before.index(first):][:1000]), "not the lines that were last at the source"
        said = subprocess.run([BUILD / "ferry", "--host", destination.state_dir, "logs", "web", "--process"],
                              stdout=subprocess.PIPE, text=True, check=True, timeout=DEADLINE).stdout
        assert said.startswith(newest)


def test_forecast_is_made_and_kept_beside_what_came_of_it(hosts):
    a, b = hosts.pair()
    run(a)
    wait_for_ticks(a)
    answer = a.post("/v1/vms/web/check", {"destination": "b", "forecast": True})
    assert answer["possible"] and answer["checks"] == []
    forecast = answer["forecast"]
    assert forecast["converges"] and forecast["end"] == "stop" and forecast["rounds"] >= 1
    assert 0 < forecast["downtime_ns"] < forecast["total_ns"]
    assert 32 << 20 <= forecast["memory_bytes"] <= 64 << 20
    assert a.move("web", b)["forecast"] == forecast
    assert a.restart().get("/v1/migrations")[0]["forecast"] == forecast
    slow = b.post("/v1/vms/web/check", {"destination": "a", "forecast": True, "bandwidth_limit": 1 << 20})["forecast"]
    assert slow["total_ns"] > 10 * forecast["total_ns"]
    # its memory is noise
    assert forecast["compress"] == slow["compress"] == "off"
    slow = b.post("/v1/vms/web/check", {"destination": "a", "forecast": True, "compress": "lz4"})["forecast"]
    assert slow["compress"] == "lz4"
    assert b.move("web", a)["forecast"] == slow
    wait_for_ticks(a)


def test_way_that_cannot_be_measured_is_a_warning(hosts):
    a, b = hosts.pair()
    run(a)
    request = {"id": "11111111-1111-4111-8111-111111111111", "source": "z"}
    b.post("/v1/probe", request)  # nobody comes to it
    assert_refused(lambda: b.post("/v1/probe", request), 409, "conflict", "measured by another host")
    answer = a.post("/v1/vms/web/check", {"destination": "b", "forecast": True})
    assert answer["possible"] and answer["forecast"] is None
    assert [(row["check"], row["severity"]) for row in answer["checks"]] == [("forecast", "warning")]
    for bad in ({}, {"id": "x", "source": "z"}, {**request, "source": "../z"}):
        assert_refused(lambda: b.post("/v1/probe", bad), 400, "usage")


def test_paused_vm_arrives_paused(hosts):
    a, b = hosts.pair()
    run(a)
    a.post("/v1/vms/web/pause")
    assert a.move("web", b)["outcome"] == "completed"
    assert b.vm("web")["state"] == "PAUSED"
    assert b.post("/v1/vms/web/unpause")["state"] == "RUNNING"
    wait_for_ticks(b)


def test_vm_is_adopted_after_ferryd_was_killed(hosts):
    a = hosts.start("a")
    pid = run(a)["pid"]
    wait_for_ticks(a)
    a.restart(signal.SIGKILL)
    assert (a.vm("web")["pid"], a.vm("web")["state"]) == (pid, "RUNNING")
    wait_for_ticks(a)
    assert a.post("/v1/vms/web/kill")["state"] == "STOPPED"
    assert a.post("/v1/vms/web/start")["state"] == "RUNNING"


@pytest.mark.parametrize("side", ["source", "destination", "both"])
def test_move_is_finished_though_ferryd_dies(hosts, side):
    a, b = hosts.pair()
    run(a)
    wait_for_ticks(a)
    migration = a.migrate("web", b, bandwidth_limit=SLOW)
    wait_for_copying(a, migration)
    killed = {"source": [a], "destination": [b], "both": [a, b]}[side]
    for host in killed:
        host.stop(signal.SIGKILL)
    for host in killed:
        host.start()
    assert a.finish(migration)["outcome"] == b.finish(migration)["outcome"] == "completed"
    assert a.has_left("web", b) and b.vm("web")["state"] == "RUNNING"
    wait_for_ticks(b)


def test_cancelled_move_leaves_the_guest_and_works_the_next_time(hosts):
    a, b = hosts.pair()
    pid = run(a)["pid"]
    wait_for_ticks(a)
    migration = a.migrate("web", b, bandwidth_limit=SLOW)
    wait_for_copying(a, migration)
    assert_refused(lambda: a.migrate("web", b), 409, "conflict", migration)
    a.post(f"/v1/migrations/{migration}/cancel")
    assert a.finish(migration)["outcome"] == "cancelled"
    assert (a.vm("web")["pid"], a.vm("web")["state"]) == (pid, "RUNNING") and b.vm("web") is None
    wait_for_ticks(a)
    assert a.move("web", b)["outcome"] == "completed"


def test_killed_destination_leaves_the_source_running(hosts):
    a, b = hosts.pair()
    pid = run(a)["pid"]
    migration = a.migrate("web", b, bandwidth_limit=SLOW)
    wait_for_copying(a, migration)
    os.kill(b.vm("web")["pid"], signal.SIGKILL)
    record = a.finish(migration)
    assert record["outcome"] == "failed" and record["error"]
    assert a.vm("web")["pid"] == pid and b.vm("web") is None
    wait_for_ticks(a)
    assert b.finish(migration)["outcome"] == "failed"
    assert a.move("web", b)["outcome"] == "completed"


def test_killed_source_leaves_nothing_at_the_destination(hosts):
    a, b = hosts.pair()
    pid = run(a)["pid"]
    migration = a.migrate("web", b, bandwidth_limit=SLOW)
    wait_for_copying(a, migration)
    os.kill(pid, signal.SIGKILL)
    assert a.finish(migration)["outcome"] == "failed"
    assert a.vm("web")["state"] == "CRASHED" and b.vm("web") is None
    assert b.finish(migration)["outcome"] == "failed"


def test_start_that_cannot_be_leaves_nothing(hosts):
    a = hosts.start("a")
    text = hosts.directory / "text"
    text.write_text("this is no kernel\n" * 100)
    disk = hosts.directory / "disk"
    disk.write_bytes(bytes(1 << 20))
    assert_refused(lambda: run(a, kernel=str(hosts.directory / "none")), 500, "failed", "none")
    assert_refused(lambda: run(a, kernel=str(text)), 500, "failed", "text", "kernel")
    assert_refused(lambda: run(a, disks=[{"path": str(hosts.directory / "nodisk")}]), 500, "failed", "nodisk")
    assert a.get("/v1/vms") == [] and hosts.vm_processes() == []
    run(a, "one", disks=[{"path": str(disk)}])
    assert_refused(lambda: run(a, "two", disks=[{"path": str(disk)}]), 409, "conflict", str(disk))
    assert [vm["name"] for vm in a.get("/v1/vms")] == ["one"]
    assert list((a.state_dir / "vms").iterdir()) == [a.state_dir / "vms" / "one"]


def test_disk_goes_along_and_stays_locked(hosts):
    a, b = hosts.pair()
    disk = hosts.directory / "disk"
    disk.write_bytes(bytes(1 << 20))
    run(a, disks=[{"path": str(disk)}])
    assert a.move("web", b)["outcome"] == "completed"
    assert_refused(lambda: run(a, "thief", disks=[{"path": str(disk)}]), 409, "conflict", str(disk))
    b.post("/v1/vms/web/kill")
    assert run(a, "heir", disks=[{"path": str(disk)}])["state"] == "RUNNING"


def test_vm_that_needs_a_taken_port_does_not_start(hosts):
    a = hosts.start("a")
    port = a.address.split(":")[1]
    net = {"backend": f"user,hostfwd=tcp:127.0.0.1:{port}-:22"}
    refused = assert_refused(lambda: run(a, nets=[net]), 409, "conflict", port)
    assert "web" in refused.message and a.get("/v1/vms") == []
