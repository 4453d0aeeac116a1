"""ferryd as its callers see it, with VM processes that only pretend (tests/host/fake_ferry_vm.py)."""
import json
import os
import pathlib
import signal
import socket
import sqlite3
import subprocess
import threading

import pytest

from hosts import (BUILD, DEADLINE, FAKE_VM, KVM, Hosts, Refused, agreed_records, assert_refused, introduce, record_of,
                   wait_until)


@pytest.fixture
def hosts():
    with Hosts() as made:
        yield made


@pytest.fixture
def host(hosts):
    return hosts.start("a")


# --- the command line ---


def ferryd(*arguments, **more):
    return subprocess.run([str(BUILD / "ferryd"), *arguments], capture_output=True, text=True, timeout=DEADLINE,
                          env=dict(os.environ, FERRY_VM=str(FAKE_VM)), **more)


def assert_one_sentence(result, status, *words):
    assert result.returncode == status, result.stderr
    assert result.stderr.startswith("ferryd: ")
    for word in words:
        assert word in result.stderr


def test_version_and_help_are_printed():
    assert ferryd("--version").stdout.startswith("ferryd ")
    assert "--state-dir" in ferryd("--help").stdout


def test_bad_usage_ends_with_2(tmp_path):
    assert_one_sentence(ferryd(), 2, "--state-dir")
    assert_one_sentence(ferryd("--colour"), 2, "--colour")
    assert_one_sentence(ferryd("--state-dir", str(tmp_path / "s"), "--listen", "nowhere"), 2, "nowhere")
    assert_one_sentence(ferryd("--state-dir", str(tmp_path / "s"), "--listen", "0.0.0.0:1"), 2, "--insecure")
    assert not (tmp_path / "s").exists()


def test_second_ferryd_on_a_state_directory_is_refused(hosts, host):
    assert_one_sentence(ferryd("--state-dir", str(host.state_dir)), 1, str(host.process.pid), str(host.state_dir))
    assert host.get("/v1/host")["name"] == "a"


def test_taken_port_is_refused(hosts, host):
    other = hosts.new("b")
    assert_one_sentence(ferryd("--state-dir", str(other.state_dir), "--listen", host.address), 1, host.address)


def test_state_directory_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert_one_sentence(ferryd("--state-dir", str(tmp_path / "file")), 1, str(tmp_path / "file"))
    assert_one_sentence(ferryd("--state-dir", "/proc/ferry"), 1, "/proc/ferry")
    assert_one_sentence(ferryd("--state-dir", str(tmp_path / "no" / "such")), 1, "no/such")


def test_newer_or_damaged_records_are_refused(hosts, host):
    host.stop()
    path = host.state_dir / "ferryd.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9")
    assert_one_sentence(ferryd("--state-dir", str(host.state_dir)), 1, str(path), "newer Ferry")
    for leftover in host.state_dir.glob("ferryd.db*"):
        leftover.unlink()
    path.write_bytes(b"not a database " * 1000)
    assert_one_sentence(ferryd("--state-dir", str(host.state_dir)), 1, str(path), "move it away")


def test_config_file_is_read(hosts):
    config = hosts.directory / "ferryd.conf"
    config.write_text("name = fromfile\nmemory-limit = 1G\n")
    host = hosts.new("a", "--config", str(config)).start()
    assert host.get("/v1/host")["memory_available"] <= 1 << 30
    assert host.get("/v1/host")["name"] == "a"


def test_socket_is_the_owners_alone(host):
    assert host.socket.stat().st_mode & 0o777 == 0o600


def open_stream(host, path):
    """A socket on which the answer to GET PATH has begun to arrive."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(DEADLINE)
    stream.connect(str(host.socket))
    stream.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    assert stream.recv(8).startswith(b"HTTP/1.")
    return stream


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly_and_streams_end_too(host, number):
    host.run("web")
    streams = [open_stream(host, path) for path in ("/v1/events?follow=1", "/v1/vms/web/console/log?follow=1")]
    assert host.stop(number) == 0
    for stream in streams:
        while stream.recv(65536):
            pass
        stream.close()


# --- the door ---


def test_host_object_is_complete(host):
    answer = host.get("/v1/host", tcp=True)
    assert answer["name"] == "a" and answer["protocol"] == 1 and answer["vms"] == 0
    assert answer["migration"] == "enabled" and answer["pid"] == host.process.pid
    assert 0 < answer["memory_available"] < answer["memory_total"]
    assert {machine["machine"] for machine in answer["machines"]} == {"riscv64", "x86_64"}


def error_of(host, method, path, body=None, headers=None, tcp=False):
    status, data = host.request(method, path, body, headers, tcp)
    return status, json.loads(data)["error"]["class"]


def test_requests_that_make_no_sense_are_refused(host):
    usage = (400, "usage")
    kind = {"Content-Type": "application/json"}
    assert error_of(host, "GET", "/v1/host", headers={"Origin": "http://evil"}) == usage
    assert error_of(host, "GET", "/v1/host", headers={"Host": "evil.example"}, tcp=True) == usage
    assert error_of(host, "POST", "/v1/hosts", b"{}") == usage
    assert error_of(host, "POST", "/v1/hosts", b"{}", {"Content-Type": "text/plain"}) == usage
    assert error_of(host, "POST", "/v1/hosts", b"{", kind) == usage
    assert error_of(host, "POST", "/v1/hosts", b"[]", kind) == usage
    assert error_of(host, "POST", "/v1/hosts", b"[" * 100000, kind) == usage
    assert error_of(host, "POST", "/v1/hosts", b'{"name": "' + b"x" * (1 << 20) + b'"}', kind) == usage
    assert error_of(host, "POST", "/v1/hosts", {"name": "b", "address": "1.2.3.4:5", "x": 1}) == usage
    assert error_of(host, "POST", "/v1/host", {}) == usage
    assert error_of(host, "GET", "/v1/migrations?view=all") == usage
    assert error_of(host, "GET", "/v1/events?since=x") == usage
    assert error_of(host, "GET", "/v2/host") == (404, "not_found")
    assert error_of(host, "GET", "/v1/vms/%2e%2e") == (404, "not_found")


def test_unknown_things_are_not_found(host):
    for method, path in [("GET", "/v1/vms/none"), ("POST", "/v1/vms/none/start"), ("POST", "/v1/vms/none/pause"),
                         ("POST", "/v1/vms/none/kill"), ("DELETE", "/v1/vms/none"), ("DELETE", "/v1/hosts/none"),
                         ("GET", "/v1/migrations/abc"), ("GET", "/v1/migrations/abc/watch"),
                         ("POST", "/v1/migrations/abc/cancel"), ("GET", "/v1/vms/none/console/log"),
                         ("DELETE", "/v1/incoming/11111111-1111-4111-8111-111111111111")]:
        assert error_of(host, method, path) == (404, "not_found"), path


GARBAGE = [b"\0" * 5000, os.urandom(20000), b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20000, b"GET /" + b"x" * 100000,
           b"POST /v1/vms HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\n",
           b"POST /v1/vms HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
           b"POST /v1/vms HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
           b"POST /v1/vms HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{", b"\x16\x03\x01\x02\x00\x01"]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_to_the_ports_does_no_harm(host, data):
    address, port = host.address.split(":")
    for family, target in ((socket.AF_INET, (address, int(port))), (socket.AF_UNIX, str(host.socket))):
        with socket.socket(family) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(target)
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                pass
    assert host.get("/v1/host")["name"] == "a"


# --- hosts ---


def test_hosts_are_added_listed_and_removed(hosts):
    a, b = hosts.start("a"), hosts.start("b")
    assert a.post("/v1/hosts", {"name": "b", "address": b.address}) == {"name": "b", "address": b.address}
    assert [(row["name"], row["reachable"]) for row in a.get("/v1/hosts")] == [("a", True), ("b", True)]
    a.restart()
    b.stop()
    rows = a.get("/v1/hosts")
    assert rows[1]["name"] == "b" and not rows[1]["reachable"] and rows[1]["why"]
    a.delete("/v1/hosts/b")
    assert len(a.get("/v1/hosts")) == 1


def test_host_that_is_not_who_it_should_be_is_not_added(hosts):
    a, b = hosts.start("a"), hosts.start("b")
    add = lambda name, address: lambda: a.post("/v1/hosts", {"name": name, "address": address})
    assert_refused(add("c", b.address), 409, "conflict", "called b")
    assert_refused(add("a", a.address), 409, "conflict", "own name")
    assert_refused(add("b", "nowhere"), 400, "usage", "nowhere")
    assert_refused(add("b", "127.0.0.1:1"), 502, "unreachable", "127.0.0.1:1")
    assert_refused(add("../b", b.address), 400, "usage", "../b")
    with socket.create_server(("127.0.0.1", 0)) as other:
        def answer():
            connection, _ = other.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            connection.close()
        threading.Thread(target=answer, daemon=True).start()
        assert_refused(add("b", "127.0.0.1:%d" % other.getsockname()[1]), 502, "unreachable", "not a ferryd")
    a.post("/v1/hosts", {"name": "b", "address": b.address})
    assert_refused(add("b", b.address), 409, "conflict", "already")


def test_migration_can_be_disabled_and_stays_so(host):
    assert host.post("/v1/host/migration", {"enabled": False})["migration"] == "disabled"
    host.restart()
    assert host.get("/v1/host")["migration"] == "disabled"
    assert_refused(lambda: host.post("/v1/host/migration", {"enabled": "no"}), 400, "usage", "enabled")


# --- VMs ---


def test_vm_runs_pauses_stops_starts_and_goes(host):
    vm = host.run("web", memory=64 << 20, nets=[{"backend": "user"}])
    assert vm["state"] == "RUNNING" and vm["host"] == "a" and vm["migration"] is None
    assert vm["definition"]["memory"] == 64 << 20 and vm["definition"]["nets"][0]["mac"]
    assert host.vm("web")["pid"] == vm["pid"]
    assert host.post("/v1/vms/web/pause")["state"] == "PAUSED"
    assert host.post("/v1/vms/web/unpause")["state"] == "RUNNING"
    assert_refused(lambda: host.post("/v1/vms/web/start"), 409, "conflict", "runs already")
    assert_refused(lambda: host.delete("/v1/vms/web"), 409, "conflict", "RUNNING")
    host.post("/v1/vms/web/stop")
    stopped = wait_until(lambda: host.vm("web")["state"] == "STOPPED" and host.vm("web"), "power-off")
    assert stopped["why"] == "the guest powered off" and stopped["pid"] is None
    assert_refused(lambda: host.post("/v1/vms/web/pause"), 409, "conflict", "STOPPED")
    assert host.post("/v1/vms/web/start", {"paused": True})["state"] == "PAUSED"
    assert host.post("/v1/vms/web/kill")["state"] == "STOPPED"
    host.delete("/v1/vms/web")
    assert host.get("/v1/vms") == [] and host.vm("web") is None
    assert not (host.state_dir / "vms" / "web").exists()


def test_vm_keeps_its_uuid_for_ever(hosts):
    given = "1b4e28ba-2fa1-41d2-883f-0016d3cca427"
    a, b = hosts.pair()
    made = a.run("web")["definition"]["uuid"]
    assert a.run("other", uuid=given.upper())["definition"]["uuid"] == given != made
    assert_refused(lambda: a.run("third", uuid="web"), 400, "usage", "uuid")
    assert a.move("web", b)["outcome"] == "completed"
    assert b.vm("web")["definition"]["uuid"] == made
    # A VM of before there were any is given one.
    a.stop()
    file = a.state_dir / "vms" / "other" / "definition.json"
    definition = json.loads(file.read_text())
    del definition["uuid"]
    file.write_text(json.dumps(definition))
    new = a.start().vm("other")["definition"]["uuid"]
    assert new not in (given, made) and len(new) == 36
    assert a.restart().vm("other")["definition"]["uuid"] == new


def test_definition_that_makes_no_sense_is_refused(host):
    for definition, word in [({}, "name"), ({"name": "web"}, "kernel"), ({"name": "web", "memory": 0}, "memory"),
                             ({"name": "a/b"}, "a/b"), ({"name": "web", "machine": "vax"}, "vax"),
                             ({"name": "web", "vcpus": 99}, "99"), ({"name": "web", "colour": 1}, "colour")]:
        if word != "kernel":
            definition.setdefault("kernel", "/k")
        assert_refused(lambda: host.post("/v1/vms", {"definition": definition}), 400, "usage", word)
    assert_refused(lambda: host.post("/v1/vms", {"definition": 1}), 400, "usage", "definition")
    if not KVM:
        assert_refused(lambda: host.run("x86", machine="x86_64"), 500, "failed", "x86_64")
    assert_refused(lambda: host.run("big", memory=1 << 43), 409, "conflict", "memory")
    assert list((host.state_dir / "vms").iterdir()) == []


def test_failed_start_leaves_nothing(hosts, host):
    assert_refused(lambda: host.run("web", kernel="/nonexistent"), 500, "failed", "web", "/nonexistent")
    assert_refused(lambda: host.run("web", cmdline="fail-start=it_is_broken"), 500, "failed", "it is broken")
    assert_refused(lambda: host.run("web", cmdline="die-start"), 500, "failed", "status 3")
    assert "something went very wrong" in host.log()
    assert host.get("/v1/vms") == [] and hosts.vm_processes() == []
    assert list((host.state_dir / "vms").iterdir()) == []
    assert host.run("web")["state"] == "RUNNING"


def test_missing_vm_program_is_told(hosts):
    host = hosts.new("a")
    host.vm_program = "/nonexistent/ferry-vm"
    host.start()
    assert_refused(lambda: host.run("web"), 500, "failed", "/nonexistent/ferry-vm")
    assert host.get("/v1/vms") == []


def test_taken_name_is_refused(host):
    host.run("web")
    assert_refused(lambda: host.run("web"), 409, "conflict", "web")
    assert len(host.get("/v1/vms")) == 1


def test_memory_limit_of_the_host_holds(hosts):
    host = hosts.start("a", "--memory-limit", "512M")
    host.run("one", memory=300 << 20)
    assert_refused(lambda: host.run("two", memory=300 << 20), 409, "conflict", "300 MiB", "212 MiB")
    assert host.run("three", memory=200 << 20)["state"] == "RUNNING"


def test_vm_that_dies_is_crashed_and_says_how(host):
    vm = host.run("web")
    os.kill(vm["pid"], signal.SIGKILL)
    crashed = wait_until(lambda: host.vm("web")["state"] == "CRASHED" and host.vm("web"), "the crash")
    assert crashed["why"] == "ferry-vm was killed by signal 9"
    assert "vm-crashed" in [event["code"] for event in host.lines("/v1/events")]
    assert host.post("/v1/vms/web/start")["state"] == "RUNNING"


def test_vm_that_its_filter_ended_names_the_call(host):
    vm = host.run("web")
    with open(host.state_dir / "vms" / "web" / "vm.log", "a", encoding="utf-8") as log:  # as ferry-vm does
        log.write("ferry-vm: thread net-user made system call 59 (execve), which it may not make (--seccomp): the process ends\n")
    os.kill(vm["pid"], signal.SIGSYS)
    crashed = wait_until(lambda: host.vm("web")["state"] == "CRASHED" and host.vm("web"), "the crash")
    assert crashed["why"] == ("ferry-vm was ended for a system call that it may not make: "
                              "thread net-user made system call 59 (execve)")


def test_concurrent_callers_do_not_get_in_each_others_way(host):
    failures = []

    def churn(number):
        try:
            for _ in range(3):
                name = f"vm{number}"
                host.run(name)
                host.get("/v1/vms")
                host.post(f"/v1/vms/{name}/kill")
                host.delete(f"/v1/vms/{name}")
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert failures == [] and host.get("/v1/vms") == []


# --- ferryd's own end ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_vm_lives_on_without_ferryd_and_is_adopted(host, number):
    vm = host.run("web")
    host.post("/v1/vms/web/pause")
    host.restart(number)
    adopted = host.vm("web")
    assert adopted["pid"] == vm["pid"] and adopted["state"] == "PAUSED"
    assert host.post("/v1/vms/web/unpause")["state"] == "RUNNING"
    os.kill(vm["pid"], signal.SIGKILL)
    wait_until(lambda: host.vm("web")["state"] == "CRASHED", "the adopted VM's end")
    assert host.vm("web")["why"] == "ferry-vm is gone without a word"


def test_what_happened_while_ferryd_was_away_is_known(host):
    off, dead = host.run("off"), host.run("dead")
    host.stop(signal.SIGKILL)
    os.kill(dead["pid"], signal.SIGKILL)
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(host.state_dir / "vms" / "off" / "control.sock"))
        control.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "stop"}\n')
        control.recv(100)
    wait_until(lambda: not pathlib.Path(f"/proc/{off['pid']}/cwd").exists(), "power-off")
    host.start()
    assert (host.vm("off")["state"], host.vm("off")["why"]) == ("STOPPED", "the guest powered off")
    assert (host.vm("dead")["state"], host.vm("dead")["why"]) == ("CRASHED", "ferry-vm is gone without a word")


def test_directory_that_makes_no_sense_is_left_alone(host):
    host.stop()
    odd = host.state_dir / "vms" / "odd"
    odd.mkdir()
    (odd / "definition.json").write_text("{")
    host.start()
    assert host.get("/v1/vms") == [] and odd.exists()
    assert_refused(lambda: host.run("odd"), 500, "failed", str(odd))


def test_records_that_cannot_be_written_endanger_nothing(hosts, host):
    host.run("web")
    with sqlite3.connect(host.state_dir / "ferryd.db") as database:
        for table in ("settings", "hosts", "migrations", "migration_lines", "events"):
            database.execute(f"DROP TABLE {table}")
    assert host.post("/v1/vms/web/pause")["state"] == "PAUSED"
    host.post("/v1/vms/web/kill")
    assert host.run("other")["state"] == "RUNNING"
    assert "vm-started" in [event["code"] for event in host.lines("/v1/events")]
    assert "not recorded" in host.log()


# --- console and events ---


def test_console_history_is_streamed(host):
    host.run("web")
    assert host.request("GET", "/v1/vms/web/console/log") == (200, b"booted\n")


def test_console_is_a_live_connection(host):
    host.run("web")
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(DEADLINE)
        console.connect(str(host.socket))
        console.sendall(b"GET /v1/vms/web/console HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
                        b"Upgrade: ferry-console\r\n\r\nearly ")
        received = b""
        while b"echo early " not in received:
            received += console.recv(4096)
        assert received.startswith(b"HTTP/1.1 101 ")
        console.sendall(b"hello")
        while b"echo hello" not in received:
            received += console.recv(4096)
        host.post("/v1/vms/web/kill")
        while console.recv(4096):
            pass


def test_console_without_upgrade_or_vm_is_refused(host):
    host.run("web")
    assert_refused(lambda: host.get("/v1/vms/web/console"), 400, "usage", "Upgrade")
    host.post("/v1/vms/web/kill")
    assert_refused(lambda: host.get("/v1/vms/web/console", headers={
        "Connection": "Upgrade", "Upgrade": "ferry-console"}), 409, "conflict", "does not run")


def test_followed_console_log_goes_on_and_survives_its_cut(host):
    host.run("web")
    log = host.state_dir / "vms" / "web" / "console.log"
    with open_stream(host, "/v1/vms/web/console/log?follow=1") as stream:
        received = b""
        with open(log, "ab") as file:
            file.write(b"one\ntwo\nthree\n")
        while b"three\n" not in received:
            received += stream.recv(4096)
        fresh = log.with_suffix(".new")
        fresh.write_bytes(b"two\nthree\n")
        fresh.rename(log)
        with open(log, "ab") as file:
            file.write(b"four\n")
        while b"four\n" not in received:
            received += stream.recv(4096)
        host.post("/v1/vms/web/kill")
        while True:
            more = stream.recv(4096)
            if not more:
                break
            received += more
    assert received.split(b"\r\n\r\n", 1)[1] == b"booted\none\ntwo\nthree\nfour\n"


def test_events_are_numbered_and_survive(host):
    host.run("web")
    first = host.lines("/v1/events")
    assert [event["number"] for event in first] == list(range(1, len(first) + 1))
    assert {"number", "time", "host", "code", "level", "vm", "migration", "text"} == set(first[0])
    host.restart()
    assert host.lines("/v1/events")[:len(first)] == first
    assert host.lines(f"/v1/events?since={len(first)}")[0]["number"] == len(first) + 1


def test_followed_events_arrive_as_they_happen(host):
    with open_stream(host, "/v1/events?follow=1") as stream:
        host.run("web")
        received = b""
        while b"vm-started" not in received:
            received += stream.recv(4096)


def start_following(host, *options):
    """`ferry events -f` there, and what it has printed so far."""
    command = [str(BUILD / "ferry"), "--host", str(host.state_dir), "events", "-f", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen, words = [], []
    for stream, kept in ((process.stdout, seen), (process.stderr, words)):
        threading.Thread(target=lambda stream=stream, kept=kept: kept.extend(stream), daemon=True).start()
    return process, seen, words


def test_followed_events_are_of_all_hosts_each_once_and_go_on_when_one_was_away(hosts):
    a, b = hosts.pair()
    process, seen, words = start_following(a)

    def codes(host):
        return [event["code"] for event in map(json.loads, seen) if event["host"] == host]

    try:
        wait_until(lambda: "host-started" in codes("a"), "what is recorded on a")
        wait_until(lambda: b.post("/v1/host/migration", {"enabled": False}) and
                   b.post("/v1/host/migration", {"enabled": True}) and "host-setting" in codes("b"), "an event of b")
        for host in (a, b):
            host.run("of-" + host.name)
            wait_until(lambda: "vm-started" in codes(host.name), f"the start on {host.name}")
        a.move("of-a", b)
        wait_until(lambda: {"VMS2451", "VMS2431"} <= {*codes("a"), *codes("b")}, "the end of the move")
        b.restart(signal.SIGKILL)
        wait_until(lambda: "host-started" in codes("b"), "b's restart")
        a.restart()
        wait_until(lambda: codes("a").count("host-started") == 2, "a's restart")
        for sentence in ("b is away", "b answers again"):
            wait_until(lambda: any(sentence in line for line in words), sentence)
        for host, codes_there in (("a", SOURCE_CODES), ("b", DESTINATION_CODES)):
            assert all(codes(host).count(code) == 1 for code in codes_there), codes(host)
    finally:
        process.terminate()
        process.wait()


# --- migrations ---


def test_vm_moves_and_both_hosts_know_all_about_it(hosts):
    a, b = hosts.pair()
    vm = a.run("web")
    record = a.move("web", b)
    assert record["outcome"] == "completed" and record["side"] == "source" and record["ended"]
    assert a.has_left("web", b) and [vm["state"] for vm in a.get("/v1/vms")] == ["NOT_RUNNABLE"]
    assert a.get("/v1/host")["vms"] == 0
    moved = b.vm("web")
    assert moved["state"] == "RUNNING" and moved["definition"] == vm["definition"] and moved["pid"] != vm["pid"]
    assert not (a.state_dir / "vms" / "web" / "process.json").exists()
    assert not (b.state_dir / "vms" / "web" / "incoming.json").exists()
    other = b.get(f"/v1/migrations/{record['id']}")
    assert other["outcome"] == "completed" and other["side"] == "destination" and other["ended"]
    for host in (a, b):
        for view, count in (("active", 0), ("history", 1), ("failed", 0)):
            assert len(host.get(f"/v1/migrations?view={view}")) == count
        codes = host.event_codes(record["id"])
        for code in ("VMS2450", "VMS2452", "VMS4024", "VMS2451", "VMS2430", "VMS3050", "VMS2432", "VMS2431"):
            assert code in codes, host.name
    assert b.move("web", a)["outcome"] == "completed"
    assert a.vm("web")["state"] == "RUNNING" and a.vm("web")["not_runnable"] is None and b.has_left("web", a)


SOURCE_CODES = {"VMS2450", "VMS2452", "VMS4024", "VMS2451"}
DESTINATION_CODES = {"VMS2430", "VMS3050", "VMS2432", "VMS2431"}


def test_record_has_the_events_of_both_hosts_on_their_sides(hosts):
    a, b = hosts.pair()
    a.run("web")
    record = a.move("web", b)
    for host in (a, b):
        def codes(side):
            events = host.get(f"/v1/migrations/{record['id']}")["events"]
            return {event["code"] for event in events if event["host"] == side}

        times = [event["time"] for event in host.get(f"/v1/migrations/{record['id']}")["events"]]
        assert times == sorted(times)
        wait_until(lambda: codes("a") == SOURCE_CODES and codes("b") == DESTINATION_CODES, f"all events on {host.name}")


def test_statistics_count_every_migration_once_by_its_end(hosts):
    a, b = hosts.pair()
    a.run("web")
    a.run("bad", cmdline="fail-move=the_network_is_gone")
    assert a.get("/v1/migrations/statistics") == {"active": 0, "kinds": {}}
    assert a.move("web", b)["outcome"] == b.move("web", a)["outcome"] == "completed"
    assert a.move("bad", b)["outcome"] == "failed"
    for host in (a, b):
        wait_until(lambda: host.get("/v1/migrations/statistics")["active"] == 0, f"the last end on {host.name}")
        hot = host.get("/v1/migrations/statistics")["kinds"]["hot"]
        assert (hot["count"], hot["completed"], hot["failed"], hot["success_permille"]) == (3, 2, 1, 666)
        assert hot["causes"] == {"network": 1}
        assert 0 < hot["downtime_ns"]["median"] <= hot["downtime_ns"]["p99"] == hot["downtime_ns"]["most"]


def file_text(host, name):
    path = host.state_dir / "migration" / name
    return path.read_text() if path.exists() else None


def view_file(host, name):
    """The lines about migrations of STATE_DIR/migration/NAME."""
    return [line for line in (file_text(host, name) or "").splitlines() if not line.startswith("#")]


def test_log_of_ferryd_is_rotated_and_bounded(hosts):
    a = hosts.start("a", "--log-size", "4K", "--log-files", "2")
    for number in range(200):
        a.post("/v1/host/migration", {"enabled": bool(number % 2)})
    files = sorted(path.name for path in a.state_dir.glob("ferryd.log*"))
    assert files == ["ferryd.log", "ferryd.log.1", "ferryd.log.2"]
    for name in files:
        assert (a.state_dir / name).stat().st_size < 5 << 10
    lines = "".join((a.state_dir / name).read_text() for name in reversed(files)).splitlines()
    words = ["enabled" if " enabled " in line else "disabled" for line in lines]
    assert words == (["disabled", "enabled"] * 100)[-len(words):], "a line is missing"
    a.restart(signal.SIGKILL)
    assert len(list(a.state_dir.glob("ferryd.log*"))) == 3


def read_journal(path, lines):
    """What systemd's journal would do, until it is told that the migration is complete."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(path))
        journal.settimeout(DEADLINE)
        while not lines or lines[-1].get("FERRY_CODE") != "VMS2451":
            lines.append(dict(field.split("=", 1) for field in journal.recv(65536).decode().splitlines()))


def test_journal_is_told_what_lines_are_about(hosts, tmp_path):
    """A socket stands for systemd's journal; standard error is what $JOURNAL_STREAM says."""
    a, b = hosts.new("a"), hosts.start("b")
    path, lines = tmp_path / "journal", []
    reader = threading.Thread(target=read_journal, args=(path, lines))
    reader.start()
    wait_until(path.exists, "the journal")
    a.environment["FERRY_JOURNAL_SOCKET"] = str(path)
    a.prefix = ["sh", "-c", 'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$@"', "sh"]
    a.start()
    introduce(a, b)
    a.run("web")
    migration = a.move("web", b)["id"]
    reader.join()
    about = [line for line in lines if line.get("FERRY_MIGRATION_ID") == migration]
    assert {line["FERRY_VM"] for line in about} == {"web"} and "a" in {line["FERRY_HOST"] for line in about}
    assert all(f"[migration {migration}] {line['MESSAGE']}" in a.log() for line in about)


def test_views_are_files_too(hosts):
    a, b = hosts.pair()
    a.run("web")
    a.run("bad", cmdline="fail-move=the_network_is_gone")
    a.run("slow", cmdline="hang-send")
    done, failed = a.move("web", b), a.move("bad", b)
    migration = a.migrate("slow", b)
    for host in (a, b):
        wait_until(lambda: f" id={migration} vm=slow from=a to=b " in "".join(view_file(host, "active")),
                   f"slow in {host.name}'s active")
    a.post(f"/v1/migrations/{migration}/cancel")
    for host in (a, b):
        wait_until(lambda: len(view_file(host, "history")) == 3, f"all in {host.name}'s history")
        wait_until(lambda: view_file(host, "active") == [], f"none in {host.name}'s active")
        line, = (line for line in view_file(host, "history") if done["id"] in line)
        assert " outcome=completed " in line and line.startswith(host.get(f"/v1/migrations/{done['id']}")["ended"])
        wait_until(lambda: len(view_file(host, "failed")) == 2, f"both in {host.name}'s failed")
        line, = (line for line in view_file(host, "failed") if failed["id"] in line)
        assert " cause=network " in line and 'the network is gone"' in line
        assert "# kind=hot count=3 completed=1 failed=1 cancelled=1 " in file_text(host, "history")
        assert "# kind=hot cause=network count=1\n" in file_text(host, "failed")


def test_views_are_right_after_ferryd_was_killed(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="hang-send")
    migration = a.migrate("web", b)
    wait_until(lambda: view_file(a, "active"), "web in a's active")
    a.stop(signal.SIGKILL)
    (a.state_dir / "migration" / "history").write_text("torn")
    a.start()
    wait_until(lambda: file_text(a, "history") == "", "a's history")
    assert len(view_file(a, "active")) == 1
    a.post(f"/v1/migrations/{migration}/cancel")
    wait_until(lambda: any(migration in line for line in view_file(a, "history")), "web in a's history")
    wait_until(lambda: view_file(a, "active") == [], "none in a's active")


def test_views_that_cannot_be_written_are_no_reason_to_fail(hosts):
    a, b = hosts.pair()
    for name in ("active", "history", "failed"):
        wait_until((a.state_dir / "migration" / name).exists, name)
        (a.state_dir / "migration" / f".{name}.new").mkdir()
    a.run("web")
    migration = a.move("web", b)
    assert migration["outcome"] == "completed"
    wait_until(lambda: "is left as it was, and ferry migrations has what it does not" in a.log(), "a word about it")
    assert view_file(a, "history") == []
    for name in ("active", "history", "failed"):
        (a.state_dir / "migration" / f".{name}.new").rmdir()
    a.stop()
    assert migration["id"] in view_file(a, "history")[0]


def test_log_lines_of_both_hosts_are_merged(hosts):
    a, b = hosts.pair()
    a.run("web")
    record = a.move("web", b)
    for host in (a, b):
        log = host.get(f"/v1/migrations/{record['id'][:8]}")["log"]
        texts = [line["text"] for line in log]
        assert any("set up" in text and "destination VM process id" in text for text in texts)
        assert any(text.startswith("Another pre-copy iteration needed with ") for text in texts)
        assert any(text.startswith("Stopping pre-copy: only ") for text in texts)
        assert "Restore-OK" in texts
        assert {line["host"] for line in log} == {"a", "b"}
        assert [line["time"] for line in log] == sorted(line["time"] for line in log)
    b.stop()
    log = a.get(f"/v1/migrations/{record['id']}")["log"]
    assert "the lines of host b are missing" in log[-1]["text"]
    assert record["id"] in a.log() and record["id"] in b.log()


def test_states_while_moving_are_shown_on_both(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="slow-move")
    migration = a.migrate("web", b)
    assert a.vm("web")["state"] == "RUNNING(MIGR)" and a.vm("web")["migration"] == migration
    assert b.vm("web")["state"] == "SETUP(MIGR)" and b.vm("web")["migration"] == migration
    assert len(a.get("/v1/migrations?view=active")) == len(b.get("/v1/migrations?view=active")) == 1
    assert_refused(lambda: a.migrate("web", b), 409, "conflict", migration)
    assert_refused(lambda: a.delete("/v1/vms/web"), 409, "conflict", migration)
    assert_refused(lambda: b.delete("/v1/vms/web"), 409, "conflict", migration)
    assert_refused(lambda: b.run("web"), 409, "conflict", "web")
    lines = a.lines(f"/v1/migrations/{migration}/watch")
    assert lines[-1]["outcome"] == "completed" and lines[0]["outcome"] == "none"
    assert [line["round"] for line in lines] == sorted(line["round"] for line in lines)


def test_migration_is_cancelled_by_the_name_of_its_vm(hosts):
    a, b = hosts.pair()
    ferry = [str(BUILD / "ferry"), "--host", str(a.state_dir), "cancel"]
    a.run("web", cmdline="slow-move")
    idle = subprocess.run([*ferry, "web"], capture_output=True, text=True, check=False)
    assert idle.returncode == 1 and "web is not being migrated" in idle.stderr
    unknown = subprocess.run([*ferry, "shop"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 1 and "shop" in unknown.stderr
    migration = a.migrate("web", b)
    done = subprocess.run([*ferry, "web"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "web stays on a" in done.stdout, done.stderr
    assert a.finish(migration)["outcome"] == "cancelled"


def test_cancelled_migration_leaves_the_vm_and_a_retry_works_at_once(hosts):
    a, b = hosts.pair()
    pid = a.run("web", cmdline="hang-send")["pid"]
    for _ in range(3):
        migration = a.migrate("web", b)
        a.post(f"/v1/migrations/{migration}/cancel")
        record = a.finish(migration)
        assert record["outcome"] == "cancelled"
        assert (a.vm("web")["state"], a.vm("web")["pid"]) == ("RUNNING", pid)
        assert b.vm("web") is None and b.get("/v1/migrations?view=active") == []
    assert len(a.get("/v1/migrations?view=failed")) == 3
    assert_refused(lambda: a.post(f"/v1/migrations/{migration}/cancel"), 409, "conflict", "too late")
    assert len(hosts.vm_processes()) == 1


def test_failed_migration_says_why_and_leaves_no_trace_at_the_destination(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="fail-move=the_network_is_gone")
    record = a.move("web", b)
    assert (record["outcome"], record["error"], record["cause"]) == ("failed", "the network is gone", "network")
    assert a.vm("web")["state"] == "RUNNING" and b.vm("web") is None
    assert not (b.state_dir / "vms" / "web").exists()
    for host in (a, b):
        assert "migration-failed" in host.event_codes(record["id"])


def test_source_vm_that_dies_while_moving_is_crashed_and_not_at_the_destination(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="die-move")
    record = a.move("web", b)
    assert record["outcome"] == "failed" and "signal 9" in record["error"]
    assert a.vm("web")["state"] == "CRASHED" and b.vm("web") is None


def test_destination_process_that_dies_leaves_the_source_running(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="die-arrive")
    assert a.move("web", b)["outcome"] == "failed"
    assert a.vm("web")["state"] == "RUNNING" and b.vm("web") is None
    assert b.get("/v1/migrations")[0]["outcome"] == "failed"


def test_destination_that_died_restored_is_given_up_when_the_source_goes_on(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="die-restored")
    assert a.move("web", b)["outcome"] == "failed"
    assert a.vm("web")["state"] == "RUNNING" and b.vm("web") is None
    assert not (b.state_dir / "vms" / "web").exists()


def test_destination_that_died_restored_is_not_started_while_the_source_cannot_say(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="die-restored slow-move")
    migration = a.migrate("web", b)
    wait_until(lambda: a.get(f"/v1/migrations/{migration}")["round"] > 0, "the first round")
    a.stop(signal.SIGKILL)
    assert b.finish(migration)["outcome"] == "unknown"
    left = b.vm("web")
    assert left["state"] == "NOT_RUNNABLE" and "taking over from host a" in left["why"]
    assert_refused(lambda: b.post("/v1/vms/web/start"), 409, "conflict", "host a", "recover web")
    b.restart()
    assert_refused(lambda: b.post("/v1/vms/web/start"), 409, "conflict", "host a", "recover web")
    assert_refused(lambda: b.post("/v1/vms/web/recover"), 422, "refused", "host a", "--force-here", "--force-there")
    a.start()
    assert a.finish(migration)["outcome"] == "failed"
    assert a.vm("web")["state"] == "RUNNING" and b.vm("web") is None


def test_lost_vm_is_not_startable_at_the_source(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="lost-move slow-move")
    migration = a.migrate("web", b)
    wait_until(lambda: a.get(f"/v1/migrations/{migration}")["round"] > 0, "the first round")
    b.stop(signal.SIGKILL)
    record = a.finish(migration)
    assert (record["outcome"], record["agreed"]) == ("lost", False)
    assert not a.has_left("web", b) and "owns the guest" in a.vm("web")["why"]
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "not runnable on host a", "set by Migrate")
    assert len(a.get("/v1/migrations?view=failed")) == 1
    a.restart(signal.SIGKILL)
    b.start()
    assert agreed_records(a, b, migration)[0]["outcome"] == "completed"
    wait_until(lambda: a.has_left("web", b), "a to know that web has moved")
    assert b.vm("web")["state"] == "RUNNING" and a.get("/v1/migrations?view=failed") == []
    assert_refused(lambda: a.post("/v1/vms/web/recover", {"force": "here"}), 409, "conflict", "host b", "runs there")


def test_running_that_was_lost_on_the_way_is_asked_for(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="lost-move")
    record = a.move("web", b)
    assert (record["outcome"], record["error"], record["agreed"]) == ("completed", "", True), record
    assert a.has_left("web", b) and b.vm("web")["state"] == "RUNNING"
    assert b.move("web", a)["outcome"] == "completed"


def test_end_of_a_migration_is_told_by_its_other_host_only(hosts):
    a, b = hosts.pair()
    a.run("web")
    record = a.move("web", b)
    path = f"/v1/migrations/{record['id']}/end"
    agreed_records(a, b, record["id"])
    assert b.post(path, {"host": "a", "outcome": "completed"})["outcome"] == "completed"
    assert_refused(lambda: b.post(path, {"host": "z", "outcome": "failed"}), 409, "conflict", "host z")
    for body in ({"host": "a"}, {"host": "a", "outcome": "none"}, {"host": "a", "outcome": "failed", "x": 1}):
        assert_refused(lambda: b.post(path, body), 400, "usage")
    assert_refused(lambda: b.post("/v1/migrations/11111111-1111-4111-8111-111111111111/end",
                                  {"host": "a", "outcome": "failed"}), 404, "not_found")
    assert b.post(path, {"host": "a", "outcome": "failed"})["outcome"] == "completed"
    assert record_of(b, record["id"])["outcome"] == "completed"


def test_vm_that_left_is_not_runnable_until_it_comes_back_or_is_removed(hosts):
    a, b = hosts.pair()
    a.run("web")
    assert a.move("web", b)["outcome"] == "completed"
    for _ in range(2):
        assert a.has_left("web", b)
        assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "the guest has migrated to b")
        assert_refused(lambda: a.post("/v1/vms/web/runnable", {"runnable": True}), 409, "conflict", "recover web")
        assert_refused(lambda: a.run("web"), 409, "conflict", "ferry rm web")
        assert a.post("/v1/vms/web/recover")["state"] == "NOT_RUNNABLE"
        a.restart(signal.SIGKILL)
    assert b.move("web", a)["outcome"] == "completed"
    assert a.vm("web")["state"] == "RUNNING" and a.vm("web")["not_runnable"] is None
    assert b.has_left("web", a)
    b.delete("/v1/vms/web")
    assert b.vm("web") is None and not (b.state_dir / "vms" / "web").exists()
    assert a.move("web", b)["outcome"] == "completed"


def test_arrival_that_fails_leaves_the_former_vm_not_runnable(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="die-arrive-at-a")
    assert a.move("web", b)["outcome"] == "completed"
    assert b.move("web", a)["outcome"] == "failed"
    assert b.vm("web")["state"] == "RUNNING"
    wait_until(lambda: a.vm("web")["state"] == "NOT_RUNNABLE", "the end of the arrival")
    assert a.has_left("web", b)
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "the guest has migrated to b")


def test_administrator_makes_a_vm_not_runnable(hosts):
    a, b = hosts.pair()
    a.run("web")
    assert_refused(lambda: a.post("/v1/vms/web/runnable", {"runnable": False}), 409, "conflict", "stop or kill")
    a.post("/v1/vms/web/kill")
    vm = a.post("/v1/vms/web/runnable", {"runnable": False, "reason": "its licence has ended"})
    assert vm["not_runnable"] == {"set_by": "Admin", "reason": "its licence has ended"}
    assert (vm["state"], vm["why"]) == ("NOT_RUNNABLE", "its licence has ended")
    a.restart()
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "set by Admin", "its licence has ended",
                   "ferry runnable web on")
    assert_refused(lambda: a.post("/v1/vms/web/recover"), 409, "conflict", "an administrator said so")
    b.run("web")
    assert_refused(lambda: b.migrate("web", a), 422, "refused", "an administrator", "ferry runnable web on")
    assert a.post("/v1/vms/web/runnable", {"runnable": True})["state"] == "STOPPED"
    assert a.post("/v1/vms/web/start")["state"] == "RUNNING"
    assert_refused(lambda: a.post("/v1/vms/web/recover"), 409, "conflict", "nothing to recover")
    assert_refused(lambda: a.post("/v1/vms/web/recover", {"force": "x"}), 400, "usage", "force")


def told_to_send(host, migration):
    """The options ferryd gave its VM process for a move."""
    lines = [line["text"] for line in host.get(f"/v1/migrations/{migration}?local=1")["log"]]
    return json.loads(next(line.split(" ", 4)[4] for line in lines if line.startswith("told to send with")))


def test_options_of_a_move_reach_the_vm(hosts):
    a, b = hosts.pair()
    a.run("web")
    options = {"downtime_limit": 30_000_000, "bandwidth_limit": 1 << 20, "copy_time_limit": 5_000_000_000,
               "throttle_max": 0, "streams": 3, "compress": "lz4"}
    migration = a.migrate("web", b, **options)
    a.finish(migration)
    sent = told_to_send(a, migration)
    assert {key: sent.get(key) for key in options} == options
    migration = b.migrate("web", a)
    b.finish(migration)
    assert not options.keys() & told_to_send(b, migration).keys()


def test_what_a_move_cost_is_known_to_the_next_one(hosts):
    a, b = hosts.pair()
    a.run("web")
    a.run("db")
    first = a.migrate("web", b)
    a.finish(first)
    assert "known" not in told_to_send(a, first)
    b.move("web", a)
    again = a.migrate("web", b)
    a.finish(again)
    known = told_to_send(a, again)["known"]
    assert known["state_bytes"] == 4321 and known["downtime_parts"]["lock"] == 3_000_000
    other = a.migrate("db", b)
    a.finish(other)
    known = told_to_send(a, other)["known"]
    assert "state_bytes" not in known and known["downtime_parts"]["pause"] == 1_200_000


def test_checks_refuse_before_anything_moves(hosts):
    a, b = hosts.pair()
    a.run("web")
    a.run("off")
    a.post("/v1/vms/off/kill")
    assert_refused(lambda: a.post("/v1/vms/web/migrate", {"destination": "z"}), 404, "not_found", "host add z")
    assert_refused(lambda: a.post("/v1/vms/web/migrate", {"destination": "a"}), 409, "conflict", "already")
    assert_refused(lambda: a.post("/v1/vms/web/migrate", {}), 400, "usage", "destination")
    assert_refused(lambda: a.migrate("web", b, streams=99), 400, "usage", "streams")
    assert_refused(lambda: a.migrate("web", b, throttle_max=100), 400, "usage", "throttle_max", "99")
    assert_refused(lambda: a.migrate("web", b, compress="gzip"), 400, "usage", "compress", "gzip", "lz4")
    assert_refused(lambda: a.migrate("none", b), 404, "not_found", "none")
    assert_refused(lambda: a.migrate("off", b), 409, "conflict", "STOPPED")
    b.run("web")
    assert_refused(lambda: a.migrate("web", b), 422, "refused", "web", "host b", "name already")
    b.post("/v1/vms/web/kill")
    b.delete("/v1/vms/web")
    for host in (a, b):
        host.post("/v1/host/migration", {"enabled": False})
        assert_refused(lambda: a.migrate("web", b), 422, "refused", f"disabled on host {host.name}")
        host.post("/v1/host/migration", {"enabled": True})
    b.stop()
    assert_refused(lambda: a.migrate("web", b), 502, "unreachable", "web", "host b is not reachable")
    assert a.vm("web")["state"] == "RUNNING" and a.get("/v1/migrations") == []


def test_check_tells_all_reasons_and_changes_nothing(hosts):
    a, b = hosts.pair()
    a.run("web")
    assert a.post("/v1/vms/web/check", {"destination": "b"}) == {
        "vm": "web", "source": "a", "destination": "b", "possible": True, "checks": []}
    b.run("web")
    for host in (a, b):
        host.post("/v1/host/migration", {"enabled": False})
    answer = a.post("/v1/vms/web/check", {"destination": "b"})
    assert not answer["possible"]
    assert {row["check"] for row in answer["checks"]} >= {"enabled-source", "enabled-destination"}
    b.post("/v1/host/migration", {"enabled": True})
    answer = a.post("/v1/vms/web/check", {"destination": "b"})
    assert [(row["check"], row["severity"]) for row in answer["checks"]] == [("enabled-source", "error"), ("name", "error")]
    b.stop()
    answer = a.post("/v1/vms/web/check", {"destination": "b"})
    assert not answer["possible"] and "not reachable" in answer["checks"][-1]["message"]
    assert_refused(lambda: a.post("/v1/vms/web/check", {"destination": "z"}), 404, "not_found", "host add z")
    assert_refused(lambda: a.post("/v1/vms/none/check", {"destination": "b"}), 404, "not_found", "none")
    assert_refused(lambda: a.post("/v1/vms/web/check", {}), 400, "usage", "destination")
    assert a.vm("web")["state"] == "RUNNING" and a.get("/v1/migrations") == []


def test_too_little_memory_at_the_destination_is_refused(hosts):
    a = hosts.start("a")
    b = hosts.start("b", "--memory-limit", "128M")
    introduce(a, b)
    a.run("web")
    assert_refused(lambda: a.migrate("web", b), 422, "refused", "256 MiB", "128 MiB", "host b")
    assert a.vm("web")["state"] == "RUNNING" and b.get("/v1/vms") == []


def test_reservation_that_fails_is_refused_and_the_source_untouched(hosts):
    a, b = hosts.pair()
    b.stop()
    b.vm_program = "/bin/false"
    b.start()
    a.run("web")
    assert_refused(lambda: a.migrate("web", b), 422, "refused", "web", "host b", "status 1")
    assert a.vm("web")["state"] == "RUNNING" and a.vm("web")["migration"] is None
    assert b.get("/v1/vms") == [] and a.get("/v1/migrations") == []
    b.stop()
    b.vm_program = FAKE_VM
    b.start()
    assert a.move("web", b)["outcome"] == "completed"


def test_disk_that_is_not_there_is_refused(hosts):
    a, b = hosts.pair()
    disk = hosts.directory / "disk"
    disk.write_bytes(b"\0" * 4096)
    a.run("web", disks=[{"path": str(disk)}])
    disk.rename(hosts.directory / "gone")
    assert_refused(lambda: a.migrate("web", b), 422, "refused", str(disk), "host b")
    (hosts.directory / "gone").rename(disk)
    assert a.move("web", b)["outcome"] == "completed"


def test_incoming_refuses_what_makes_no_sense(host):
    offer = {"id": "11111111-1111-4111-8111-111111111111", "source": "z", "protocol": 1,
             "definition": {"name": "web", "kernel": "/k"}, "check_only": True}
    assert set(host.post("/v1/incoming", offer)) == {"checks", "disks", "lock", "boot_id"}
    offer["check_only"] = False
    for change, status, word in [({"id": "x"}, 400, "UUID"), ({"source": ".."}, 400, "source"),
                                 ({"protocol": 2}, 422, "protocol"), ({"source": "a"}, 422, "both hosts"),
                                 ({"definition": {"name": "web"}}, 400, "kernel"), ({"extra": 1}, 400, "extra"),
                                 ({"definition": {"name": "w", "kernel": "/k", "machine": "vax"}}, 400, "vax"),
                                 ({"definition": {"name": "w", "kernel": "/k", "nets": [{"backend": "lan"}]}}, 422,
                                  "lan")]:
        with pytest.raises(Refused) as refused:
            host.post("/v1/incoming", {**offer, **change})
        assert refused.value.status == status and word in refused.value.message
    assert host.get("/v1/vms") == []


def test_reservation_can_be_given_back(hosts, host):
    offer = {"id": "11111111-1111-4111-8111-111111111111", "source": "z", "protocol": 1,
             "definition": {"name": "web", "kernel": "/k"}}
    answer = host.post("/v1/incoming", offer)
    assert len(answer["token"]) == 64 and answer["pid"] and ":" in answer["address"]
    assert host.vm("web")["state"] == "SETUP(MIGR)"
    assert_refused(lambda: host.post("/v1/incoming", offer), 409, "conflict", offer["id"])
    host.delete("/v1/incoming/" + offer["id"])
    assert host.get("/v1/vms") == [] and hosts.vm_processes() == []


def test_running_vm_cannot_be_withdrawn(hosts):
    a, b = hosts.pair()
    a.run("web")
    record = a.move("web", b)
    assert_refused(lambda: b.delete(f"/v1/incoming/{record['id']}"), 409, "conflict", "runs on host b")
    assert b.vm("web")["state"] == "RUNNING"


# --- ferryd dies in the middle ---


@pytest.mark.parametrize("side", ["source", "destination", "both"])
@pytest.mark.parametrize("back", ["at once", "afterwards"])
def test_migration_survives_the_death_of_ferryd(hosts, side, back):
    a, b = hosts.pair()
    a.run("web", cmdline="slow-move")
    migration = a.migrate("web", b)
    wait_until(lambda: a.get(f"/v1/migrations/{migration}")["round"] > 0, "the first round")
    killed = {"source": [a], "destination": [b], "both": [a, b]}[side]
    for host in killed:
        host.stop(signal.SIGKILL)
    if back == "afterwards":
        gone = a.state_dir / "vms" / "web" / "exit.json"
        moved = gone.with_name("not-runnable.json")
        wait_until(lambda: gone.exists() or moved.exists(), "the move without ferryd")
    for host in killed:
        host.start()
    for host in (a, b):
        assert host.finish(migration)["outcome"] == "completed", host.name
    assert a.has_left("web", b) and b.vm("web")["state"] == "RUNNING"
    assert len(hosts.vm_processes()) == 1
    for host in (a, b):
        assert host.get("/v1/migrations?view=active") == []
    assert b.move("web", a)["outcome"] == "completed"


def test_failure_while_ferryd_was_away_is_recorded_and_cleared_up(hosts):
    a, b = hosts.pair()
    pid = a.run("web", cmdline="slow-move")["pid"]
    migration = a.migrate("web", b)
    wait_until(lambda: a.get(f"/v1/migrations/{migration}")["round"] > 0, "the first round")
    a.stop(signal.SIGKILL)
    b.stop(signal.SIGKILL)
    for number in hosts.vm_processes():
        if number != pid:
            os.kill(number, signal.SIGKILL)
    a.start()
    b.start()
    assert a.finish(migration)["outcome"] == "failed"
    assert b.finish(migration)["outcome"] == "failed"
    assert a.vm("web")["state"] == "RUNNING" and b.vm("web") is None
    assert a.move("web", b)["outcome"] == "completed"
