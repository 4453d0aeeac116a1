"""ferry-vm alone, on the Linux guest: its life, its sockets, and moves from one process to another."""
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from vms import DEADLINE, FERRY_VM, MIB, Control, RpcError

READY = r"FERRY-GUEST READY"
WORK = "ferry.work=threads=2,mem=16M,rate=8M"
SLOW = 8 * MIB  # bytes a second: a move that lasts long enough for something to happen


@pytest.fixture
def running(vms, guest):
    """A VM that is up, with nothing to do but a shell."""
    vm = vms.start("a", guest.definition("web"))
    vm.wait_for_console(READY)
    return vm


@pytest.fixture
def working(vms, guest):
    """A VM whose guest fills and verifies its memory."""
    vm = vms.start("a", guest.definition("web", WORK))
    vm.wait_for_work(2)
    return vm


def refused(call, *words):
    with pytest.raises(RpcError) as caught:
        call()
    for word in words:
        assert word in caught.value.message
    return caught.value


def assert_goes_on(vm):
    assert vm.state() == "RUNNING"
    vm.wait_for_work(3)


# --- the command line ---


def ferry_vm(*arguments):
    return subprocess.run([str(FERRY_VM), *arguments], capture_output=True, text=True, timeout=DEADLINE)


def test_help_and_version_are_printed():
    assert "--incoming" in ferry_vm("--help").stdout
    assert ferry_vm("--version").stdout.startswith("ferry-vm ")


@pytest.mark.parametrize("arguments, word", [
    ([], "--dir"), (["--colour"], "--colour"), (["--dir"], "--dir"), (["--dir", "/tmp", "x"], "x"),
    (["--dir", "/tmp", "--ready-fd", "99"], "99"), (["--dir", "/tmp", "--ready-fd", "two"], "two"),
    (["--dir", "/tmp", "--incoming", "--paused"], "--paused"),
])
def test_bad_arguments_end_with_2_and_one_sentence(arguments, word):
    result = ferry_vm(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("ferry-vm: ") and result.stderr.count("\n") == 1
    assert word in result.stderr


def test_missing_directory_is_said_by_name():
    result = ferry_vm("--dir", "/nowhere/at/all", "--ready-fd", "1")
    assert result.returncode == 1
    assert "/nowhere/at/all" in result.stderr
    assert json.loads(result.stdout)["errno"] == 2


# --- starts that fail ---


@pytest.mark.parametrize("change, words", [
    ({"kernel": "/no/such/kernel"}, ["kernel", "/no/such/kernel", "does not exist"]),
    ({"kernel": "/etc"}, ["kernel", "/etc", "directory"]),
    ({"kernel": "/etc/passwd"}, ["/etc/passwd", "not a riscv64 kernel"]),
    ({"initrd": "/no/such/initrd"}, ["initrd", "/no/such/initrd"]),
    ({"memory": 12345}, ["memory", "12345"]),
    ({"memory": 16 * MIB}, ["kernel", "16 MiB", "more memory"]),
    ({"vcpus": 99}, ["vcpus", "99"]),
    ({"machine": "x86_64"}, ["x86_64"]),
    ({"disks": [{"path": "/no/such/disk"}]}, ["/no/such/disk"]),
    ({"nets": [{"backend": "pigeon"}]}, ["pigeon"]),
    ({"colour": "red"}, ["colour"]),
])
def test_failed_start_says_why_in_one_sentence(vms, guest, change, words):
    vm = vms.make("a", {**guest.definition("web"), **change})
    for word in words:
        assert word in vm.ready["error"]
    assert vm.ready["errno"] > 0 and "\n" not in vm.ready["error"]
    assert vm.wait()["reason"] == "failed"
    assert vm.process.returncode == 1
    assert not (vm.directory / "control.sock").exists()


@pytest.mark.parametrize("text, word", [(None, "definition.json"), ("{", "not JSON"), ("[]", "definition"),
                                        ("\0" * 100, "not JSON"), ("[" * 100000, "not JSON")])
def test_bad_definition_is_refused(vms, text, word):
    directory = vms.directory / "a"
    directory.mkdir()
    if text is not None:
        (directory / "definition.json").write_text(text)
    vm = vms.make("a", None)
    assert word in vm.ready["error"]


def test_disk_of_a_running_vm_is_refused(vms, guest):
    disk = vms.directory / "disk"
    disk.write_bytes(bytes(MIB))
    definition = guest.definition("web", disks=[{"path": str(disk)}])
    vms.start("a", definition)
    assert str(disk) in vms.make("b", {**definition, "name": "other"}).ready["error"]


def test_directory_in_use_is_refused_and_its_vm_lives_on(vms, running):
    second = vms.make("a", running.definition)
    assert "control.sock" in second.ready["error"]
    assert running.state() == "RUNNING"


# --- a life ---


def test_linux_boots_and_status_tells_about_it(running):
    status = running.control.call("status")
    assert status["name"] == "web" and status["state"] == "RUNNING" and status["pid"] == running.pid
    assert status["why"] == "" and status["migration"] is None
    assert status["definition"]["memory"] == running.definition["memory"]
    assert 10 * MIB < status["memory_resident"] <= running.definition["memory"]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d$", status["started"])


def test_process_is_small_and_stands_alone(running):
    assert running.is_small()
    assert os.getsid(running.pid) == running.pid
    targets = [os.readlink(entry) for entry in pathlib.Path(f"/proc/{running.pid}/fd").iterdir()]
    assert not [target for target in targets if target.startswith("pipe:")]
    for number in (1, 2):
        assert os.readlink(f"/proc/{running.pid}/fd/{number}").endswith("vm.log")
    assert "NoNewPrivs:\t1" in pathlib.Path(f"/proc/{running.pid}/status").read_text()


def test_interrupt_and_hangup_do_not_touch_it(running):
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        os.kill(running.pid, number)
    assert running.state() == "RUNNING"


def test_runs_without_privileges(vms, guest):
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    place = vms.directory / "unprivileged"
    place.mkdir()
    vms.directory.chmod(0o755)
    definition = guest.definition("web")
    for key in ("kernel", "initrd"):
        definition[key] = str(shutil.copy(definition[key], place / key))
    program = shutil.copy(FERRY_VM, place / "ferry-vm")
    directory = vms.directory / "a"
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    vm = vms.start("a", definition, program=program, user=65534, group=65534, extra_groups=[])
    vm.wait_for_console(READY)


def test_paused_vm_stands_still_and_goes_on(working):
    working.control.call("subscribe")
    working.control.call("pause")
    assert working.control.wait_for("vm.state")["state"] == "PAUSED"
    working.control.call("pause")
    before = working.control.call("status")
    assert before["state"] == "PAUSED"
    lines = working.work()
    time.sleep(0.5)
    assert working.work()[-1][0] <= lines[-1][0] + 1  # one may have been on its way
    working.control.call("resume")
    working.control.call("resume")
    assert_goes_on(working)


def test_start_paused_runs_nothing_until_resumed(vms, guest):
    vm = vms.start("a", guest.definition("web"), "--paused")
    assert vm.state() == "PAUSED"
    time.sleep(0.5)
    assert vm.console() == ""
    vm.control.call("resume")
    vm.wait_for_console(READY)


def test_stop_asks_the_guest(running):
    assert running.stop()["reason"] == "powered-off"
    assert running.process.returncode == 0


def test_stop_is_refused_while_nobody_in_the_guest_listens(vms, guest):
    vm = vms.start("a", guest.definition("web"), "--paused")
    refused(lambda: vm.control.call("stop"), "web", "cannot be asked")


def test_guest_that_powers_off_ends_the_process(vms, guest):
    vm = vms.start("a", guest.definition("web", "ferry.work=seconds=1,mem=4M ferry.poweroff"))
    assert vm.wait() == {"reason": "powered-off", "why": "the guest powered off", "migration": None,
                         "destination": None, "report": None, "save": None}
    assert not (vm.directory / "control.sock").exists() and not (vm.directory / "console.sock").exists()


def test_guest_reboots_in_the_same_process(running):
    after = len(running.console())
    running.type("reboot -f\n")
    running.wait_for_console(READY, after)
    assert running.state() == "RUNNING"
    assert running.stop()["reason"] == "powered-off"


def test_reboot_without_the_kernel_is_a_crash_with_the_reason(vms, guest):
    definition = guest.definition("web")
    kernel = pathlib.Path(shutil.copy(definition["kernel"], vms.directory / "kernel"))
    vm = vms.start("a", {**definition, "kernel": str(kernel)})
    vm.wait_for_console(READY)
    kernel.unlink()
    vm.type("reboot -f\n")
    end = vm.wait()
    assert end["reason"] == "crashed" and str(kernel) in end["why"]
    assert vm.process.returncode == 1


def test_panic_of_the_guest_is_a_crash_or_reboot_but_not_silence(vms, guest):
    vm = vms.start("a", guest.definition("web", "panic=-1"))
    vm.wait_for_console(READY)
    after = len(vm.console())
    vm.type("echo c >/proc/sysrq-trigger\n")
    vm.wait_for_console(READY, after)


@pytest.mark.parametrize("how", ["quit", "SIGTERM"])
def test_killing_ends_at_once_with_a_last_word(running, how):
    if how == "quit":
        running.control.call("quit")
    else:
        running.process.terminate()
    assert running.wait()["reason"] == "killed"


def test_directory_can_be_used_again_after_sudden_death(vms, running):
    running.process.kill()
    running.process.wait()
    again = vms.start("a", running.definition)
    again.wait_for_console(READY, len(running.console()))
    assert (again.directory / "vm.log.1").exists()
    assert again.console().count("FERRY-GUEST READY") == 2


# --- the control socket ---


def test_unknown_methods_and_parameters_are_refused(running):
    assert refused(lambda: running.control.call("dance"), "dance").code == -32601
    refused(lambda: running.control.call("pause", hard=True), "hard")
    refused(lambda: running.control.call("migrate.prepare", id="1", source="a"), "destination")
    refused(lambda: running.control.call("migrate.prepare", id="../../x", source="a", destination="b"), "id")
    refused(lambda: running.control.call("migrate.prepare", id=5, source="a", destination="b"), "id")
    refused(lambda: running.control.call("migrate.prepare", id="1", source="a\n", destination="b"), "source")
    refused(lambda: running.control.call("migrate.cancel", id="1"), "no migration")
    refused(lambda: running.control.call("migrate.send", id="1"), "not prepared")
    refused(lambda: running.control.call("migrate.receive", id="1", token="0" * 64, source="a", destination="b",
                                         listen="127.0.0.1:0"), "does not wait")
    assert running.control.call("migrate.status") is None
    assert running.state() == "RUNNING"


def test_garbage_on_the_control_socket_is_survived(running):
    seed = 4711
    print("seed", seed)
    numbers = random.Random(seed)
    pieces = [b"\n\n\n", b"{}\n", b"[]\n", b"null\n", b"[" * 100000 + b"\n", b'{"a":' * 3000 + b"\n",
              b'{"jsonrpc":"2.0","method":5,"id":1}\n', b'{"jsonrpc":"2.0","method":"status","params":[1],"id":1}\n',
              b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff\xfe\x00" * 50 + b"\n", b"x" * (3 * MIB)]
    for i in range(40):
        piece = pieces[i] if i < len(pieces) else numbers.randbytes(numbers.randrange(1, 20000)) + b"\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE)
            client.connect(str(running.directory / "control.sock"))
            try:
                client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass
    assert running.state() == "RUNNING"


def test_client_that_goes_away_in_mid_request_is_survived(running):
    for _ in range(50):
        control = Control(running.directory / "control.sock")
        control.send(b'{"jsonrpc":"2.0","id":1,"method":"status"}\n{"jsonrpc":"2.0","id":1,"met')
        control.close()
    assert running.state() == "RUNNING"


# --- the console ---


def test_console_reaches_all_clients_and_nothing_is_repeated(running):
    received = []
    clients = []
    for _ in range(3):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE)
        client.connect(str(running.directory / "console.sock"))
        clients.append(client)
    clients[0].sendall(b"echo one-$((40+2))-two\n")
    for client in clients:
        text = b""
        while b"one-42-two" not in text:
            text += client.recv(65536)
        received.append(text)
        client.close()
    assert all(b"FERRY-GUEST READY" not in text for text in received)


def test_flood_of_output_is_kept_to_its_bound_and_not_cut_in_lines(running):
    idle = socket.socket(socket.AF_UNIX)  # never reads
    idle.connect(str(running.directory / "console.sock"))
    running.type("i=0; while [ $i -lt 40000 ]; do echo line $i of a long flood of output; i=$((i+1)); done; "
                 "echo FLOOD-$((1+1))\n")
    running.wait_for_console("FLOOD-2")
    idle.close()
    log = running.console()
    assert len(log) <= 1.25 * MIB + 64 * 1024
    numbers = [int(number) for number in re.findall(r"^line (\d+) of a long flood of output$", log, re.M)]
    assert numbers == list(range(numbers[0], 40000))
    assert len(numbers) > 20000
    assert running.is_small()


def test_long_input_arrives_whole(running):
    text = "x" * 3000
    running.type("stty -icanon -echo; echo GO-$((1+1)); dd bs=1 count=3000 2>/dev/null | wc -c; stty icanon echo\n")
    running.wait_for_console("^GO-2")
    running.type(text)
    running.wait_for_console(r"^3000$")


# --- moves ---


def assert_console_reads_on(vm):
    """Every line of the workload once and in order: nothing missing where the hosts changed, nothing twice."""
    numbers = [number for number, _ in vm.work()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert vm.console().count("FERRY-GUEST READY") == 1


def test_memory_can_be_watched_while_it_is_written(working):
    answer = working.control.call("memory.sample", window_ns=500_000_000)
    looks = answer["looks"]
    assert [look["pages"] for look in looks] == sorted(look["pages"] for look in looks)
    assert looks[-1]["elapsed_ns"] >= 500_000_000 and looks[-1]["pages"] > 100
    assert 16 * MIB < answer["used_bytes"] <= 256 * MIB and 0 <= answer["zero_permille"] <= 1000
    assert all(0 < answer[way]["page_bytes"] < 4096 and answer[way]["page_ns"] > 0 for way in ("lz4", "zstd"))
    for bad in ({"window_ns": 1}, {"window_ns": 10**11}, {"x": 1}):
        refused(lambda: working.control.call("memory.sample", **bad), "window_ns" if "x" not in bad else "x")
    assert_goes_on(working)


def test_migration_ends_the_watching_of_memory(vms, guest, working):
    outcome = []
    other = working.connect()

    def watch():
        while not outcome:
            try:
                outcome.append(other.call("memory.sample", window_ns=10_000_000_000))
            except RpcError as error:  # a short one below may have been first
                if "watched already" not in error.message:
                    outcome.append(error.message)

    thread = threading.Thread(target=watch)
    thread.start()
    while True:  # until the first is under way, a second is not refused
        try:
            working.control.call("memory.sample", window_ns=10_000_000)
        except RpcError as error:
            assert "watched already" in error.message
            break
    destination = vms.start_incoming("b", guest.definition("web", WORK))
    assert vms.migrate(working, destination)["outcome"] == "completed"
    thread.join(DEADLINE)
    assert "it is to be migrated" in outcome[0]
    destination.wait_for_work(3)


def test_guest_moves_under_load_and_loses_nothing(vms, working):
    moved = vms.start_incoming("b", working.definition)
    assert moved.state() == "SETUP(MIGR)"
    before = working.console()
    end = vms.migrate(working, moved)
    assert end["outcome"] == "completed" and end["error"] == ""
    assert end["side"] == "source" and end["source"] == "a" and end["destination"] == "b"
    assert end["downtime_ns"] > 0 and sum(end["downtime_parts"].values()) == end["downtime_ns"]
    assert end["rounds"] and end["ended"] and end["log"]
    last = working.wait()
    assert last["reason"] == "migrated" and last["destination"] == "b" and last["migration"] == end["id"]
    assert last["report"]["outcome"] == "completed"
    moved.wait_for_work(5, passes=2)
    moved.wait_for_state("RUNNING")
    assert moved.console().startswith(before)
    assert_console_reads_on(moved)
    status = moved.control.call("migrate.status")
    assert status["outcome"] == "completed" and status["side"] == "destination" and status["id"] == end["id"]
    assert "web starts" in moved.log() and "web is expected to arrive" in moved.log()
    assert moved.is_small()


def test_guest_moves_back_and_forth_twenty_times(vms, working):
    vm = working
    for hop in range(20):
        moved = vms.start_incoming(f"hop{hop}", vm.definition)
        assert vms.migrate(vm, moved)["outcome"] == "completed"
        assert vm.wait()["reason"] == "migrated"
        vm = moved
        vm.wait_for_work(2)
    vm.wait_for_work(2, passes=2)
    assert_console_reads_on(vm)
    assert vm.stop()["reason"] == "powered-off"


def test_harts_and_disk_and_network_move(vms, guest):
    disk = vms.directory / "disk"
    with open(disk, "wb") as file:
        file.truncate(16 * MIB)
    definition = guest.definition("web", f"{WORK},procs=2 ferry.disk=/dev/vda ferry.echo=7", vcpus=2,
                                  disks=[{"path": str(disk)}], nets=[{"backend": "user"}])
    vm = vms.start("a", definition)
    vm.wait_for_work(2)
    vm.wait_for_console(r"^disk \d+ .*errors=0")
    for hop in range(3):
        moved = vms.start_incoming(f"hop{hop}", vm.definition)
        end = vms.migrate(vm, moved)
        assert end["outcome"] == "completed", end["error"]
        vm.wait()
        vm = moved
        after = len(vm.console())
        vm.wait_for_work(3)
        vm.wait_for_console(r"^disk \d+ ", after)
    assert not re.search(r"^disk .*errors=[1-9]", vm.console(), re.M)
    assert "Call Trace" not in vm.console()


def test_progress_is_told_in_order(vms, working):
    moved = vms.start_incoming("b", working.definition)
    vms.begin(working, moved, bandwidth_limit=64 * MIB)
    states, phases, methods = [], [], set()
    while True:
        note = working.control.notes.get(timeout=DEADLINE)
        methods.add(note["method"])
        params = note["params"]
        if note["method"] == "migration.progress":
            states.append(params["state_number"])
            phases.append(params["phase"])
            assert "log" not in params
        if note["method"] == "migration.finished":
            break
    order = [number for i, number in enumerate(states) if i == 0 or states[i - 1] != number]
    assert order == [1, 2, 3, 4, 5, 0]
    assert [p for i, p in enumerate(phases) if i == 0 or phases[i - 1] != p] == ["Init", "Copy", "I/O Quiesce", "Frozen"]
    assert {"vm.state", "migration.log"} <= methods
    moved.wait_for_state("RUNNING")


def test_paused_vm_arrives_paused(vms, working):
    working.control.call("pause")
    moved = vms.start_incoming("b", working.definition)
    assert vms.migrate(working, moved)["outcome"] == "completed"
    moved.wait_for_state("PAUSED")
    moved.control.call("resume")
    moved.wait_for_work(3, passes=1)
    assert_console_reads_on(moved)


def test_pause_and_resume_work_while_it_moves(vms, working):
    moved = vms.start_incoming("b", working.definition)
    vms.begin(working, moved, bandwidth_limit=SLOW)
    assert working.state() == "RUNNING(MIGR)"
    working.control.call("pause")
    assert working.state() == "PAUSED(MIGR)"
    working.control.call("resume")
    assert working.state() == "RUNNING(MIGR)"
    working.wait_for_work(2)
    working.control.call("migrate.cancel", id=working.control.call("migrate.status")["id"])
    working.control.wait_for("migration.finished")
    assert_goes_on(working)


def test_second_migration_at_the_same_time_is_refused(vms, working):
    moved = vms.start_incoming("b", working.definition)
    first = vms.begin(working, moved, bandwidth_limit=SLOW)
    refused(lambda: working.control.call("migrate.prepare", id="12", source="a", destination="c"), "already", first)
    refused(lambda: moved.control.call("migrate.prepare", id="12", source="a", destination="c"))
    refused(lambda: moved.control.call("migrate.receive", id="12", token="0" * 64, source="a", destination="c",
                                       listen="127.0.0.1:0"))
    refused(lambda: moved.control.call("resume"), "arriving")
    refused(lambda: moved.control.call("pause"), "arriving")
    working.control.call("migrate.cancel", id=first)


def test_cancelled_move_leaves_the_source_and_ends_the_destination(vms, working):
    moved = vms.start_incoming("b", working.definition)
    identity = vms.begin(working, moved, bandwidth_limit=SLOW)
    working.wait_for_work(2)
    working.control.call("migrate.cancel", id=identity)
    assert working.control.wait_for("migration.finished")["outcome"] == "cancelled"
    end = moved.wait()
    assert end["reason"] == "failed" and end["migration"] == identity
    assert_goes_on(working)
    # and it can be moved after all
    again = vms.start_incoming("c", working.definition)
    assert vms.migrate(working, again)["outcome"] == "completed"
    again.wait_for_work(3, passes=2)


def test_prepared_migration_can_be_cancelled(vms, working):
    working.control.call("migrate.prepare", id="12", source="a", destination="b")
    assert working.state() == "RUNNING(MIGR)"
    assert working.control.call("status")["migration"]["state"] == "MIGRATE_TO_VMX_READY"
    working.control.call("migrate.cancel", id="12")
    assert working.state() == "RUNNING"
    assert "too late" in refused(lambda: working.control.call("migrate.cancel", id="12")).message


def test_destination_that_dies_leaves_the_source(vms, working):
    moved = vms.start_incoming("b", working.definition)
    vms.begin(working, moved, bandwidth_limit=SLOW)
    working.wait_for_work(2)
    moved.process.kill()
    end = working.control.wait_for("migration.finished")
    assert end["outcome"] == "failed" and end["cause"] == "network" and end["error"]
    assert_goes_on(working)


def test_source_that_dies_ends_the_destination(vms, working):
    moved = vms.start_incoming("b", working.definition)
    vms.begin(working, moved, bandwidth_limit=SLOW)
    working.wait_for_work(1)
    working.process.kill()
    end = moved.wait()
    assert end["reason"] == "failed" and end["why"]


def test_destination_that_is_not_there_leaves_the_source(vms, working):
    moved = vms.start_incoming("b", working.definition)
    send = vms.prepare(working, moved)
    moved.process.kill()
    moved.process.wait()
    working.control.call("migrate.send", **send)
    end = working.control.wait_for("migration.finished")
    assert end["outcome"] == "failed" and send["address"] in end["error"]
    assert_goes_on(working)


def test_wrong_token_is_refused(vms, working):
    moved = vms.start_incoming("b", working.definition)
    send = vms.prepare(working, moved)
    send["token"] = "0" * 64
    working.control.call("migrate.send", **send)
    assert working.control.wait_for("migration.finished")["outcome"] == "failed"
    assert_goes_on(working)


def test_garbage_on_the_migration_port_harms_neither_side(vms, working):
    moved = vms.start_incoming("b", working.definition)
    send = vms.prepare(working, moved)
    address, port = send["address"].rsplit(":", 1)
    numbers = random.Random(99)
    for size in (1, 100, 100000):
        with socket.create_connection((address, int(port)), timeout=DEADLINE) as client:
            try:
                client.sendall(numbers.randbytes(size))
            except OSError:
                pass
    working.control.call("migrate.send", **send)
    end = working.control.wait_for("migration.finished")
    if end["outcome"] == "completed":
        moved.wait_for_work(3)
    else:
        assert moved.wait()["reason"] == "failed"
        assert_goes_on(working)


def test_different_machine_at_the_destination_is_refused(vms, working):
    for change in ({"memory": 128 * MIB}, {"vcpus": 2}):
        moved = vms.start_incoming("b-" + next(iter(change)), {**working.definition, **change})
        end = vms.migrate(working, moved)
        assert end["outcome"] == "failed" and end["error"]
        assert moved.wait()["reason"] == "failed"
        assert_goes_on(working)


def test_more_memory_than_the_host_has_is_refused_before_anything_is_copied(vms, guest):
    vm = vms.make("b", guest.definition("web", memory=1 << 40), "--incoming")
    assert "memory" in vm.ready["error"] and vm.ready["errno"] == 12


def test_only_loopback_is_listened_on(vms, working):
    moved = vms.start_incoming("b", working.definition)
    refused(lambda: moved.control.call("migrate.receive", id="12", token="0" * 64, source="a", destination="b",
                                       listen="0.0.0.0:0"), "loopback", "0.0.0.0")


def test_power_off_during_a_move_ends_move_and_vm(vms, guest):
    vm = vms.start("a", guest.definition("web", f"{WORK} ferry.shell"))
    vm.wait_for_work(2)
    moved = vms.start_incoming("b", vm.definition)
    vms.begin(vm, moved, bandwidth_limit=SLOW)
    vm.type("poweroff -f\n")
    end = vm.control.wait_for("migration.finished")
    assert end["outcome"] == "failed" and end["cause"] == "guest" and "powered off" in end["error"]
    assert vm.wait()["reason"] == "powered-off"
    assert moved.wait()["reason"] == "failed"


def test_reboot_during_a_move_is_part_of_it(vms, guest):
    vm = vms.start("a", guest.definition("web", f"{WORK} ferry.shell"))
    vm.wait_for_work(2)
    moved = vms.start_incoming("b", vm.definition)
    vms.begin(vm, moved, bandwidth_limit=MIB)  # longer than a reboot, also on a busy machine
    after = len(vm.console())
    vm.type("reboot -f\n")
    vm.wait_for_console("work begins", after)
    assert vm.state() == "RUNNING(MIGR)"
    vm.control.call("migrate.cancel", id=vm.control.call("migrate.status")["id"])
    vm.control.wait_for("migration.finished")
    again = vms.start_incoming("c", vm.definition)
    identity = vms.begin(vm, again, bandwidth_limit=100 * MIB)
    after = len(vm.console())
    vm.type("reboot -f\n")
    end = vm.control.wait_for("migration.finished")
    assert end["id"] == identity and end["outcome"] == "completed", end["error"]
    again.wait_for_console(r"work begins[\s\S]*^work \d+", after)
    assert "WORK ERROR" not in again.console()


def test_quit_during_a_move_ends_both(vms, working):
    moved = vms.start_incoming("b", working.definition)
    vms.begin(working, moved, bandwidth_limit=SLOW)
    working.wait_for_work(1)
    working.control.call("quit")
    assert working.wait()["reason"] == "killed"
    assert moved.wait()["reason"] == "failed"


def test_events_of_many_threads_do_not_hang_a_move(vms, working):
    """Pausing, resuming and asking all the time while it moves."""
    moved = vms.start_incoming("b", working.definition)
    stop = threading.Event()

    def bother():
        control = Control(working.directory / "control.sock")
        try:
            while not stop.is_set():
                for method in ("pause", "status", "resume", "migrate.status"):
                    try:
                        control.call(method)
                    except RpcError:
                        pass
        except (ConnectionError, OSError):
            pass
        finally:
            control.close()

    threads = [threading.Thread(target=bother) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        end = vms.migrate(working, moved)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert end["outcome"] == "completed", end["error"]
    moved.control.call("resume")
    moved.wait_for_work(3, passes=1)
    assert_console_reads_on(moved)
