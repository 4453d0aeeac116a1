"""ferry upgrade: a VM goes on in a new ferry-vm of its host, whatever dies meanwhile."""
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from fault_points import FaultyHosts, phase_name
from hosts import BUILD, assert_refused, wait_until

STRESS = BUILD / "guest" / "stress-riscv64.elf"
LINUX = BUILD / "guest" / "riscv64"

pytestmark = pytest.mark.skipif(not STRESS.exists() or not (LINUX / "kernel").exists(),
                                reason="needs the guests (make guests)")

INIT = ("Init", "destination", "destination-before-memory")
FROZEN = ("Frozen", "source", "source-after-pause")
RESTORE = ("restoring", "destination", "destination-before-load")
RELEASED = ("released", "source", "source-after-release")
GO = ("GO", "destination", "destination-before-acquire")
STARTED = ("started", "destination", "destination-before-resume")
RUNS_THERE = ("runs there", "destination", "destination-before-running")

PHASES = [INIT, FROZEN, RESTORE, RELEASED, GO, STARTED, RUNS_THERE]


@pytest.fixture
def hosts():
    with FaultyHosts() as made:
        yield made


@pytest.fixture
def host(hosts):
    return hosts.start("a", "--lock-wait", "3", "--peer-timeout", "3")


def run(hosts, host, name="web", **definition):
    disk = hosts.directory / f"{name}.disk"
    disk.write_bytes(bytes(1 << 20))
    return host.run(name, **{"kernel": str(STRESS), "cmdline": "mem=8M rate=4M interval=20", "memory": 32 << 20,
                             "disks": [{"path": str(disk)}], **definition})


def console(host, name="web"):
    return host.request("GET", f"/v1/vms/{name}/console/log")[1].decode(errors="replace").replace("\r", "")


def last_life(text):
    """Since the last boot: the workload's lines begin anew."""
    numbers = [int(number) for number in re.findall(r"^work (\d+) .*$", text, re.M)]
    starts = [index for index, number in enumerate(numbers) if number == 1]
    return numbers[starts[-1]:] if starts else numbers


def goes_on(host, name="web"):
    begin = len(console(host, name))
    wait_until(lambda: console(host, name)[begin:].count("work ") >= 3, f"the guest {name} to go on")
    text = console(host, name)
    assert "errors=1" not in text and "WORK ERROR" not in text
    numbers = last_life(text)
    assert numbers == list(range(1, len(numbers) + 1)), "lines of the guest are missing or double"


def pid_of(host, name="web"):
    return host.vm(name)["pid"]


def wait_started(host, name="web"):
    wait_until(lambda: "work 2 " in console(host, name), "the guest to be up")


def nothing_is_left(hosts, host, pid):
    """One process, and the directories of one."""
    wait_until(lambda: hosts.vm_processes() == [pid], f"processes other than {pid} to be gone")
    for room in ("new", "old"):
        wait_until(lambda: not list((host.state_dir / room).glob("*")), f"{room} to be empty")


def ferry(host, *words):
    return subprocess.run([str(BUILD / "ferry"), "--host", str(host.state_dir), *words], capture_output=True, text=True,
                          timeout=120, stdin=subprocess.DEVNULL)


def test_vm_goes_on_in_a_new_process(hosts, host):
    before = run(hosts, host)
    wait_started(host)
    text = console(host)
    end = host.finish(host.upgrade("web"))
    assert (end["outcome"], end["error"], end["kind"], end["agreed"]) == ("completed", "", "upgrade", True), end
    assert (end["source"], end["destination"], end["side"]) == ("a", "a", "source")
    after = host.vm("web")
    assert (after["state"], after["migration"]) == ("RUNNING", None)
    assert after["pid"] != before["pid"]
    assert end["upgrade"] == {"old_pid": before["pid"], "old_version": after["version"], "new_pid": after["pid"],
                              "new_version": after["version"]}
    assert 0 < end["downtime_ns"] <= end["total_ns"] and end["memory_bytes"] == 32 << 20
    goes_on(host)
    assert console(host).startswith(text)
    nothing_is_left(hosts, host, after["pid"])
    assert sorted(path.name for path in (host.state_dir / "vms").iterdir()) == ["web"]
    # one record, with the words of both ends
    assert [entry["id"] for entry in host.get("/v1/migrations")] == [end["id"]]
    log = "\n".join(line["text"] for line in host.get(f"/v1/migrations/{end['id']}")["log"])
    for words in ("MIGRATE_TO received", "MIGRATE_FROM received", "MIGRATE_TO_VMX_WAIT_HANDSHAKE (4)",
                  "MIGRATE_FROM_VMX_CHECKPT (10)", "Restore-OK", "The guest runs here", "goes on in process"):
        assert words in log, log
    assert "missing" not in log
    assert "vm-upgraded" in host.event_codes(end["id"])
    # what the processes before said is kept beside what this one says
    assert "web starts" in (host.state_dir / "vms" / "web" / "vm.log.1").read_text()
    # and it can be moved, stopped and started like any other
    assert host.post("/v1/vms/web/kill")["state"] == "STOPPED"
    host.post("/v1/vms/web/start")
    goes_on(host)


def test_twenty_in_a_row_under_linux_with_its_disk(hosts, host):
    disk = hosts.directory / "disk"
    disk.write_bytes(bytes(8 << 20))
    host.run("web", kernel=str(LINUX / "kernel"), initrd=str(LINUX / "initrd"), memory=256 << 20,
             disks=[{"path": str(disk)}], nets=[{"backend": "user"}],
             cmdline="console=ttyS0 quiet ferry.work=threads=2,mem=16M,rate=8M,interval=50 ferry.disk=/dev/vda")
    wait_until(lambda: re.search(r"^disk \d+ .*errors=0", console(host), re.M), "the guest's disk")
    wait_started(host)
    pids = {pid_of(host)}
    for _ in range(20):
        end = host.finish(host.upgrade("web"))
        assert end["outcome"] == "completed", end["error"]
        lines = len(console(host).splitlines())
        wait_until(lambda: len(console(host).splitlines()) > lines + 1, "the guest to go on")
        pids.add(pid_of(host))
    assert len(pids) == 21
    passes = int(re.findall(r"pass=(\d+)", console(host))[-1])
    wait_until(lambda: int(re.findall(r"pass=(\d+)", console(host))[-1]) >= passes + 2, "all memory to be verified")
    goes_on(host)
    text = console(host)
    disks = len(re.findall(r"^disk \d+ ", text, re.M))
    wait_until(lambda: len(re.findall(r"^disk \d+ ", console(host), re.M)) > disks, "the journal to go on")
    assert not re.search(r"^disk .*errors=[1-9]|Call Trace", console(host), re.M)
    assert text.count("FERRY-GUEST READY") == 1
    nothing_is_left(hosts, host, pid_of(host))


def test_paused_vm_stays_paused(hosts, host):
    run(hosts, host)
    wait_started(host)
    host.post("/v1/vms/web/pause")
    assert host.finish(host.upgrade("web"))["outcome"] == "completed"
    assert host.vm("web")["state"] == "PAUSED"
    host.post("/v1/vms/web/unpause")
    goes_on(host)


def test_upgraded_vm_moves_to_another_host(hosts):
    a, b = hosts.pair()
    run(hosts, a)
    wait_started(a)
    assert a.finish(a.upgrade("web"))["outcome"] == "completed"
    assert a.move("web", b)["outcome"] == "completed"
    assert a.has_left("web", b)
    goes_on(b)
    assert b.finish(b.upgrade("web"))["outcome"] == "completed"
    goes_on(b)
    assert b.move("web", a)["outcome"] == "completed"
    goes_on(a)


# --- the command ---


def test_command_prints_both_processes_time_and_downtime(hosts, host):
    for name in ("web", "mail"):
        run(hosts, host, name)
        wait_started(host, name)
    old = {name: pid_of(host, name) for name in ("web", "mail")}
    version = host.vm("web")["version"]
    done = ferry(host, "upgrade", "web")
    assert done.returncode == 0, done.stderr
    match = re.fullmatch(rf"web goes on in process (\d+) \(ferry-vm (\S+)\), before: process {old['web']} "
                         rf"\(ferry-vm (\S+)\); [0-9.]+ m?s, downtime [0-9.]+ m?s\n", done.stdout)
    assert match and int(match[1]) == pid_of(host) and match[2] == match[3] == version
    assert f"process          {pid_of(host)}, ferry-vm {version}" in re.sub(r" {2,}", "          ",
                                                                             ferry(host, "show", "web").stdout)
    before = pid_of(host)
    done = ferry(host, "upgrade", "--all")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["mail", "web"]
    assert pid_of(host) != before and pid_of(host, "mail") != old["mail"]
    assert "(new process)" in ferry(host, "migrations").stdout
    shown = ferry(host, "migrations", "show", host.get("/v1/migrations")[0]["id"]).stdout
    assert "upgrade" in shown and f"process {before} (ferry-vm {version})" in shown
    lines = ferry(host, "upgrade", "web", "mail", "--json").stdout.splitlines()
    assert [json.loads(line)["vm"] for line in lines] == ["web", "mail"]
    for name in ("web", "mail"):
        goes_on(host, name)


def test_command_goes_on_after_one_that_fails(hosts, host):
    run(hosts, host)
    wait_started(host)
    done = ferry(host, "upgrade", "nowhere", "web")
    assert done.returncode == 1 and "nowhere" in done.stderr and done.stdout.startswith("web goes on in process")
    assert ferry(host, "upgrade").returncode == 2
    assert ferry(host, "upgrade", "--all", "web").returncode == 2
    host.post("/v1/vms/web/kill")
    done = ferry(host, "upgrade", "--all")
    assert done.returncode == 0 and "no VM runs" in done.stderr


def test_vm_in_another_program_than_is_installed_is_told(hosts):
    program = hosts.directory / "ferry-vm"
    shutil.copy(BUILD / "ferry-vm", program)
    hosts.vm_program = program
    host = hosts.start("a")
    for name in ("web", "mail"):
        run(hosts, host, name)
        wait_started(host, name)
    assert [vm["outdated"] for vm in host.get("/v1/vms")] == [False, False]
    assert "ferry upgrade" not in ferry(host, "list").stdout + ferry(host, "show", "web").stdout
    shutil.copy(BUILD / "ferry-vm", hosts.directory / "new")
    (hosts.directory / "new").rename(program)
    host.restart()
    assert host.finish(host.upgrade("mail"))["outcome"] == "completed"
    assert {vm["name"]: vm["outdated"] for vm in host.get("/v1/vms")} == {"web": True, "mail": False}
    listed = {line.split()[0]: line for line in ferry(host, "list").stdout.splitlines()}
    assert "another ferry-vm than is installed" in listed["web"] and "ferry-vm" not in listed["mail"]
    assert "not the one installed now" in ferry(host, "show", "web").stdout
    pid = pid_of(host, "mail")
    done = ferry(host, "upgrade", "--outdated")
    assert done.returncode == 0 and done.stdout.startswith("web goes on") and len(done.stdout.splitlines()) == 1
    assert pid_of(host, "mail") == pid
    done = ferry(host, "upgrade", "--outdated")
    assert (done.returncode, done.stdout) == (0, "") and "up to date" in done.stderr
    program.unlink()
    assert host.vm("web")["outdated"] is None
    goes_on(host)


def test_logs_and_console_read_on(hosts, host):
    run(hosts, host)
    wait_started(host)
    follower = subprocess.Popen([str(BUILD / "ferry"), "--host", str(host.state_dir), "logs", "web", "-f"],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(3):
            assert host.finish(host.upgrade("web"))["outcome"] == "completed"
            goes_on(host)
        last = last_life(console(host))[-1]
        host_text = []
        for line in follower.stdout:
            host_text.append(line)
            if f"work {last} " in line:
                break
    finally:
        follower.kill()
        follower.communicate()
    numbers = last_life("".join(host_text).replace("\r", ""))
    assert numbers == list(range(1, last + 1))


# --- refused ---


def test_vm_that_does_not_run_is_refused(hosts, host):
    assert_refused(lambda: host.upgrade("nobody"), 404, "not_found", "nobody")
    run(hosts, host)
    host.post("/v1/vms/web/kill")
    assert_refused(lambda: host.upgrade("web"), 409, "conflict", "STOPPED")


def test_vm_that_moves_or_is_upgraded_already_is_refused(hosts):
    a, b = hosts.pair()
    run(hosts, a)
    wait_started(a)
    migration, side = hosts.start_held(("Copy", "source", "source-after-round"), "web", a, b)
    assert_refused(lambda: a.upgrade("web"), 409, "conflict", "migration in progress")
    hosts.release(side)
    assert a.finish(migration)["outcome"] == "completed"
    side = hosts.hold(FROZEN, b, b)
    upgrade = b.upgrade("web")
    hosts.wait_held(side)
    assert_refused(lambda: b.upgrade("web"), 409, "conflict", "in progress")
    assert_refused(lambda: b.migrate("web", a), 409, "conflict", "in progress")
    hosts.release(side)
    assert b.finish(upgrade)["outcome"] == "completed"
    goes_on(b)


@pytest.mark.parametrize("broken", ["missing", "no program", "dies", "refuses"])
def test_new_program_that_does_not_start_changes_nothing(hosts, broken):
    program = hosts.directory / "ferry-vm"
    shutil.copy(BUILD / "ferry-vm", program)
    hosts.vm_program = program
    host = hosts.start("a")
    pid = run(hosts, host)["pid"]
    wait_started(host)
    program.rename(hosts.directory / "former")
    words = {"missing": "No such file", "no program": "Exec format error", "dies": "was killed by signal",
             "refuses": "of no use"}[broken]
    if broken == "no program":
        program.write_bytes(b"\x7fELF nonsense")
    elif broken == "dies":
        program.write_text("#!/bin/sh\nkill -SEGV $$\n")
    elif broken == "refuses":
        program.write_text("#!/bin/sh\necho '{\"error\": \"it is of no use\", \"errno\": 5}' >&3\n")
    if broken != "missing":
        program.chmod(0o755)
    assert_refused(lambda: host.upgrade("web"), 422, "refused", "its new process does not start", words)
    done = ferry(host, "upgrade", "web")
    assert done.returncode == 3 and words in done.stderr
    assert (host.vm("web")["state"], host.vm("web")["pid"]) == ("RUNNING", pid)
    assert host.get("/v1/migrations") == []
    goes_on(host)
    nothing_is_left(hosts, host, pid)
    program.unlink(missing_ok=True)
    (hosts.directory / "former").rename(program)
    assert host.finish(host.upgrade("web"))["outcome"] == "completed"
    goes_on(host)


# --- what happens meanwhile ---


def test_cancelled_upgrade_leaves_the_vm_where_it_was(hosts, host):
    pid = run(hosts, host)["pid"]
    wait_started(host)
    side = hosts.hold(RESTORE, host, host)
    upgrade = host.upgrade("web")
    hosts.wait_held(side)
    host.post(f"/v1/migrations/{upgrade}/cancel")
    hosts.release(side)
    assert host.finish(upgrade)["outcome"] == "cancelled"
    assert (host.vm("web")["state"], pid_of(host)) == ("RUNNING", pid)
    goes_on(host)
    nothing_is_left(hosts, host, pid)


@pytest.mark.parametrize("phase", [INIT, FROZEN, GO, RUNS_THERE], ids=phase_name)
def test_kill_ends_both_processes(hosts, host, phase):
    run(hosts, host)
    wait_started(host)
    side = hosts.hold(phase, host, host)
    upgrade = host.upgrade("web")
    hosts.wait_held(side)
    host.post("/v1/vms/web/kill")
    hosts.release(side)
    host.finish(upgrade)
    wait_until(lambda: hosts.vm_processes() == [], "both processes to be gone")
    assert host.vm("web")["pid"] is None
    host.post("/v1/vms/web/start")
    goes_on(host)


@pytest.mark.parametrize("phase", PHASES, ids=phase_name)
def test_ferryd_that_dies_meanwhile_finds_the_vm_where_it_is(hosts, host, phase):
    pid = run(hosts, host)["pid"]
    wait_started(host)
    side = hosts.hold(phase, host, host)
    upgrade = host.upgrade("web")
    hosts.wait_held(side)
    host.stop(signal.SIGKILL)
    hosts.release(side)
    time.sleep(0.5)  # they come to an end without it, or nearly so
    host.start()
    end = host.finish(upgrade)
    assert end["outcome"] == "completed" and end["kind"] == "upgrade", end
    assert host.vm("web")["state"] == "RUNNING" and pid_of(host) == end["upgrade"]["new_pid"] != pid
    goes_on(host)
    nothing_is_left(hosts, host, pid_of(host))
    assert host.finish(host.upgrade("web"))["outcome"] == "completed"
    goes_on(host)


@pytest.mark.parametrize("phase", PHASES[1:], ids=phase_name)
def test_ferryd_that_is_back_before_it_is_over_takes_it_up(hosts, host, phase):
    run(hosts, host)
    wait_started(host)
    side = hosts.hold(phase, host, host)
    upgrade = host.upgrade("web")
    hosts.wait_held(side)
    host.restart(signal.SIGKILL)
    assert host.vm("web")["state"] == "RUNNING(MIGR)"
    hosts.release(side)
    end = host.finish(upgrade)
    assert end["outcome"] == "completed", end
    goes_on(host)
    nothing_is_left(hosts, host, pid_of(host))


def test_ferryd_that_is_back_before_the_new_process_answers_lets_it_go_on(hosts, host):
    pid = run(hosts, host)["pid"]
    wait_started(host)
    side = hosts.hold(INIT, host, host)
    upgrade = host.upgrade("web")
    hosts.wait_held(side)
    host.restart(signal.SIGKILL)
    hosts.release(side)
    assert host.finish(upgrade)["outcome"] == "completed"
    assert pid_of(host) != pid
    goes_on(host)
    nothing_is_left(hosts, host, pid_of(host))


@pytest.mark.parametrize("over", [True, False], ids=["over", "not over"])
@pytest.mark.parametrize("phase", [FROZEN, GO], ids=phase_name)
def test_records_that_are_gone_do_not_decide(hosts, host, phase, over):
    run(hosts, host)
    wait_started(host)
    side = hosts.hold(phase, host, host)
    upgrade = host.upgrade("web")
    hosts.wait_held(side)
    host.stop(signal.SIGKILL)
    for file in host.state_dir.glob("ferryd.db*"):
        file.unlink()
    if over:
        hosts.release(side)
        time.sleep(0.5)
    host.start()
    hosts.release(side)
    end = host.finish(upgrade)
    assert (end["outcome"], end["kind"]) == ("completed", "upgrade"), end
    assert pid_of(host) == end["upgrade"]["new_pid"]
    goes_on(host)
    nothing_is_left(hosts, host, pid_of(host))


def test_remains_of_upgrades_are_swept_up(hosts, host):
    """As a ferryd leaves them that dies at the end of one."""
    pid = run(hosts, host)["pid"]
    wait_started(host)
    host.stop(signal.SIGKILL)
    sleeper = subprocess.Popen(["sleep", "1000"])
    try:
        with open(f"/proc/{sleeper.pid}/stat", encoding="ascii") as stat:
            started = int(stat.read().rsplit(")", 1)[1].split()[19])
        for room, name in (("old", "0123"), ("new", "web"), ("new", "gone")):
            directory = host.state_dir / room / name
            directory.mkdir(parents=True)
            (directory / "vm.log").write_text("said something\n")
            (directory / "process.json").write_text(json.dumps(
                {"pid": sleeper.pid, "start_time": started if room == "old" else 1, "boot_id": ""}))
        host.start()
        assert sleeper.wait(10) == -signal.SIGKILL
    finally:
        sleeper.kill()
        sleeper.wait()
    goes_on(host)
    nothing_is_left(hosts, host, pid)


def test_ferryd_that_dies_with_both_processes_can_start_the_vm_anew(hosts, host):
    """In the one moment in which nobody owns it: no command but the start is needed, for nobody else can have it."""
    run(hosts, host)
    wait_started(host)
    side = hosts.hold(RELEASED, host, host)
    upgrade = host.upgrade("web")
    hosts.wait_held(side)
    host.stop(signal.SIGKILL)
    for pid in hosts.vm_processes():
        os.kill(pid, signal.SIGKILL)
    hosts.release(side)
    host.start()
    assert host.finish(upgrade)["outcome"] == "failed"
    assert host.vm("web")["state"] == "CRASHED"
    host.post("/v1/vms/web/start")
    goes_on(host)
    nothing_is_left(hosts, host, pid_of(host))


def failures_of_the_new_process():
    """All but the drops that may come too late; what hangs takes seconds, and is tried once with and without a lock."""
    for kind in ("crash", "error", "drop", "hang"):
        for point in ("before-memory", "after-verdict", "before-acquire", "before-started"):
            for disks in (True, False):
                if kind == "drop" and point != "before-memory":
                    continue
                if kind == "hang" and (point, disks) not in (("before-memory", False), ("before-acquire", True)):
                    continue
                yield pytest.param(f"destination-{point}:{kind}", disks,
                                   id=f"{point}:{kind}-{'lock' if disks else 'no lock'}")


@pytest.mark.parametrize("fault, disks", failures_of_the_new_process())
def test_new_process_that_fails_leaves_the_vm_in_the_old_one(hosts, host, fault, disks):
    pid = run(hosts, host, **({} if disks else {"disks": []}))["pid"]
    wait_started(host)
    hosts.set_fault(host, fault)
    upgrade = host.upgrade("web")
    end = host.finish(upgrade)
    hosts.set_fault(host, "")
    assert end["outcome"] == "failed", end
    assert (host.vm("web")["state"], pid_of(host)) == ("RUNNING", pid), host.vm("web")
    goes_on(host)
    nothing_is_left(hosts, host, pid)
    assert host.finish(host.upgrade("web"))["outcome"] == "completed"
    goes_on(host)


@pytest.mark.parametrize("disks", [True, False], ids=["lock", "no lock"])
@pytest.mark.parametrize("point, lives", [("source-after-memory", False), ("source-before-release", False),
                                          ("source-after-release", False), ("source-after-go", True),
                                          ("source-before-running", True)])
def test_old_process_that_dies_is_the_vm_until_it_says_go(hosts, host, point, lives, disks):
    run(hosts, host, **({} if disks else {"disks": []}))
    wait_started(host)
    hosts.set_fault(host, f"{point}:crash")
    end = host.finish(host.upgrade("web"))
    hosts.set_fault(host, "")
    if lives:
        assert end["outcome"] == "completed", end
    else:
        assert end["outcome"] == "failed", end
        assert host.vm("web")["state"] == "CRASHED"
        host.post("/v1/vms/web/start")
    goes_on(host)
    nothing_is_left(hosts, host, pid_of(host))


def test_new_process_that_dies_once_it_runs_the_vm_is_the_vm(hosts, host):
    run(hosts, host)
    wait_started(host)
    hosts.set_fault(host, "destination-after-resume:crash")
    end = host.finish(host.upgrade("web"))
    hosts.set_fault(host, "")
    assert end["outcome"] == "completed" and end["error"], end
    assert host.vm("web")["state"] == "CRASHED"
    host.post("/v1/vms/web/start")
    goes_on(host)
    nothing_is_left(hosts, host, pid_of(host))
