"""Other hosts, and VM processes, that accept and say nothing, are stopped, or are cut off: whoever waits for them ends in the
time that is set, names them, and keeps nobody else waiting."""
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from hosts import BUILD, Hosts, assert_refused, stopped, wait_until
from networks import cut, networked_pair, networks, swallow  # noqa: F401

PEER_TIMEOUT_S = 3
PATIENCE = ("--peer-timeout", str(PEER_TIMEOUT_S))
SLACK_S = 5  # for a slow machine
AT_ONCE_S = 2  # what does not wait for anybody; less than the timeout


@pytest.fixture
def hosts():
    with Hosts() as made:
        yield made


@contextlib.contextmanager
def mute(address):
    """Somebody who accepts at ADDRESS and never says a word."""
    place, port = address.rsplit(":", 1)
    with socket.create_server((place, int(port))):
        yield


@contextlib.contextmanager
def silent(host, how):
    if how == "stopped":
        with stopped(host.process.pid):
            yield
        return
    address = host.address
    host.stop()
    with mute(address):
        yield


def assert_unreachable_in_time(call, *words):
    begin = time.monotonic()
    assert_refused(call, 502, "unreachable", *words)
    took = time.monotonic() - begin
    assert PEER_TIMEOUT_S - 0.5 < took < PEER_TIMEOUT_S + SLACK_S, f"took {took:.1f} s"


@contextlib.contextmanager
def everybody_else_is_served(host):
    """Requests to HOST are answered at once meanwhile."""
    end = threading.Event()
    took = []

    def ask():
        while not took or not end.wait(0.05):
            begin = time.monotonic()
            host.get("/v1/vms")
            host.get("/v1/host")
            took.append(time.monotonic() - begin)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
    assert took and max(took) < AT_ONCE_S, took


@pytest.mark.parametrize("how", ["mute", "stopped"])
def test_host_that_says_nothing_is_noticed_in_time_and_named(hosts, how):
    a, b = hosts.pair(*PATIENCE)
    a.run("web")
    with silent(b, how), everybody_else_is_served(a):
        assert_unreachable_in_time(lambda: a.migrate("web", b), "VM web cannot move", "host b at " + b.address, "for 3.0 s")
        assert_unreachable_in_time(lambda: a.post("/v1/hosts", {"name": "c", "address": b.address}), "host c was not added")
        begin = time.monotonic()
        listed = {host["name"]: host for host in a.get("/v1/hosts")}
        assert time.monotonic() - begin < PEER_TIMEOUT_S + SLACK_S
        assert not listed["b"]["reachable"] and "no answer from host b" in listed["b"]["why"]
    assert a.vm("web")["state"] == "RUNNING"


def test_ferryd_that_ends_does_not_wait_for_a_silent_host(hosts):
    a, b = hosts.pair("--peer-timeout", "60")
    a.run("web")
    with silent(b, "stopped"):
        thread = threading.Thread(target=lambda: pytest.raises(Exception, a.migrate, "web", b))
        thread.start()
        wait_until(lambda: connections_to(b.address) > 0, "the call")
        begin = time.monotonic()
        assert a.stop() == 0
        assert time.monotonic() - begin < SLACK_S
        thread.join()


def connections_to(address, prefix=()):
    """Established TCP connections to ADDRESS, as the machine (or the network namespace of PREFIX) lists them."""
    place, port = address.rsplit(":", 1)
    wanted = "".join(f"{byte:02X}" for byte in reversed(socket.inet_aton(place))) + f":{int(port):04X}"
    table = subprocess.run([*prefix, "cat", "/proc/net/tcp"], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in table.splitlines()[1:]]
    return sum(row[1] == wanted and row[3] == "01" for row in rows)


def test_host_that_is_slow_is_waited_for_while_it_lives(hosts):
    a, b = hosts.pair("--peer-timeout", "1")
    a.run("web", cmdline="slow-arrive=4")
    assert a.move("web", b)["outcome"] == "completed"


def test_host_that_is_slow_is_waited_for_no_longer_than_is_set(hosts):
    a = hosts.start("a", *PATIENCE, "--start-timeout", "2")
    b = hosts.start("b", *PATIENCE)
    a.post("/v1/hosts", {"name": "b", "address": b.address})
    pid = a.run("web", cmdline="slow-arrive=60")["pid"]
    begin = time.monotonic()
    assert_refused(lambda: a.migrate("web", b), 422, "refused", "did not get ready in time")
    assert time.monotonic() - begin < 2 + SLACK_S
    assert a.vm("web")["state"] == "RUNNING" and hosts.vm_processes() == [pid] and b.vm("web") is None


def test_host_that_falls_silent_while_it_reserves_memory_keeps_nothing(hosts):
    a, b = hosts.pair(*PATIENCE)
    pid = a.run("web", cmdline="slow-arrive=4")["pid"]

    def stop_in_the_middle():
        wait_until(lambda: len(hosts.vm_processes()) == 2, "the process there")
        stack.enter_context(stopped(b.process.pid))

    with contextlib.ExitStack() as stack:
        thread = threading.Thread(target=stop_in_the_middle)
        thread.start()
        with everybody_else_is_served(a):
            assert_refused(lambda: a.migrate("web", b), 502, "unreachable", "VM web cannot move", "host b")
        thread.join()
        assert a.vm("web")["state"] == "RUNNING"
    # It comes to itself, finishes what it was asked for, and finds nobody there any more.
    wait_until(lambda: hosts.vm_processes() == [pid], "the process there to be gone", deadline=10)
    wait_until(lambda: b.vm("web") is None, "the VM there to be gone")
    assert a.vm("web")["migration"] is None


def test_host_that_falls_silent_in_the_middle_of_a_move_does_not_hold_up_its_end(hosts):
    a, b = hosts.pair(*PATIENCE)
    a.run("web", cmdline="slow-move")
    migration = a.migrate("web", b)
    begin = time.monotonic()
    with stopped(b.process.pid):  # its VM process goes on
        assert a.finish(migration)["outcome"] == "completed"
    # One timeout, not one for each thing it is to be told.
    assert time.monotonic() - begin < 2 * PEER_TIMEOUT_S + SLACK_S
    assert b.finish(migration)["outcome"] == "completed"


# --- a network that is cut ---

def test_host_that_is_cut_off_is_noticed_in_time_and_named(hosts, networks):  # noqa: F811
    a, b = networked_pair(hosts, networks, *PATIENCE)
    a.run("web")
    cut(networks[0], "down")
    assert_refused(lambda: a.migrate("web", b), 502, "unreachable", "VM web cannot move", "host b at 10.98.76.2:7300")
    cut(networks[0], "up")
    swallow(networks, "add")
    with everybody_else_is_served(a):
        assert_unreachable_in_time(lambda: a.migrate("web", b), "VM web cannot move", "host b at 10.98.76.2:7300")
    swallow(networks, "del")
    wait_until(lambda: reachable(a, "b"), "the network")
    assert a.move("web", b)["outcome"] == "completed"


def reachable(host, name):
    return any(row["name"] == name and row["reachable"] for row in host.get("/v1/hosts"))


FOLLOW = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1])
connection.request("GET", "/v1/events?follow=1")
print(connection.getresponse().status, flush=True)
sys.stdin.read()
"""


def test_client_that_is_cut_off_is_forgotten(hosts, networks):  # noqa: F811
    """A stream that has nothing to tell, too: its connection is kept alive, and given up when it is not."""
    _, b = networked_pair(hosts, networks, *PATIENCE)
    with subprocess.Popen(["ip", "netns", "exec", networks[0][0], sys.executable, "-c", FOLLOW, b.address],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "200\n"
        assert connections_to(b.address, b.prefix) == 1
        swallow(networks, "add")
        begin = time.monotonic()
        wait_until(lambda: connections_to(b.address, b.prefix) == 0, "the client to be forgotten")
        assert time.monotonic() - begin < 2 * PEER_TIMEOUT_S + SLACK_S
        client.stdin.close()
    b.restart()  # and no thread of it is left that would have to be waited for


def test_client_that_says_nothing_loses_its_connection(hosts):
    a = hosts.start("a", *PATIENCE)
    place, port = a.address.rsplit(":", 1)
    with socket.create_connection((place, int(port))) as idle, socket.create_connection((place, int(port))) as half:
        half.sendall(b"GET /v1/host HT")
        for connection in idle, half:
            connection.settimeout(2 * PEER_TIMEOUT_S + SLACK_S)
            while connection.recv(4096):
                pass


# --- VM processes ---

def test_vm_process_that_hangs_is_noticed_in_time_and_can_be_killed(hosts):
    a = hosts.start("a", "--vm-timeout", "2")
    pid = a.run("web")["pid"]
    a.run("other")
    with stopped(pid), everybody_else_is_served(a):
        begin = time.monotonic()
        assert_refused(lambda: a.post("/v1/vms/web/pause"), 500, "failed")
        assert 1.5 < time.monotonic() - begin < 2 + SLACK_S
        assert a.post("/v1/vms/other/pause")["state"] == "PAUSED"
        begin = time.monotonic()
        assert a.post("/v1/vms/web/kill")["state"] == "STOPPED"
        assert time.monotonic() - begin < 2 + SLACK_S
    assert a.vm("other")["state"] == "PAUSED"


def test_vm_process_that_hangs_does_not_hold_up_a_new_ferryd(hosts):
    a = hosts.start("a", "--vm-timeout", "2")
    pid = a.run("web")["pid"]
    a.run("other")
    a.stop()
    with stopped(pid):
        begin = time.monotonic()
        a.start()
        assert time.monotonic() - begin < 4 * 2 + SLACK_S
        assert a.post("/v1/vms/other/pause")["state"] == "PAUSED"
        begin = time.monotonic()
        assert {vm["name"]: vm["state"] for vm in a.get("/v1/vms")}["other"] == "PAUSED"
        assert time.monotonic() - begin < AT_ONCE_S
    wait_until(lambda: a.vm("web")["state"] == "RUNNING", "the VM to be known again")
    assert a.vm("web")["pid"] == pid


def test_vm_process_that_does_not_get_ready_is_ended_in_time(hosts):
    a = hosts.start("a", "--start-timeout", "2")
    begin = time.monotonic()
    assert_refused(lambda: a.run("web", cmdline="slow-start=60"), 500, "failed", "did not get ready in time")
    assert time.monotonic() - begin < 2 + SLACK_S
    assert a.vm("web") is None and hosts.vm_processes() == []


# --- ferry ---

def ferry(host, *words, timeout="1s", **more):
    """The command line, as a process."""
    environment = dict(os.environ, FERRY_HOST=str(host.state_dir), FERRY_HOST_TIMEOUT=timeout)
    return subprocess.Popen([BUILD / "ferry", *words], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **more)


def assert_gives_up(process, within):
    begin = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "has said nothing for 1 s" in errors, errors
    assert time.monotonic() - begin < within + SLACK_S


def read_until(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"ended without {text}: {process.stderr.read()}")


@pytest.fixture
def streaming(hosts):
    """ferry as it follows what host a tells, having got something."""
    a = hosts.start("a")
    a.run("web")
    process = ferry(a, "events", "-f")
    read_until(process, "VM web started")
    yield a, process
    process.kill()
    process.communicate()


def test_ferry_gives_up_a_ferryd_that_says_nothing(hosts):
    a = hosts.start("a")
    with stopped(a.process.pid):
        assert_gives_up(ferry(a, "list"), 1)
        assert_gives_up(ferry(a, "list", "--host-timeout", "1s", timeout="1h"), 1)
        assert_gives_up(ferry(a, "events", "-f"), 1)
        assert_gives_up(ferry(a, "console", "web"), 1)


def test_ferry_says_that_a_ferryd_it_follows_falls_silent_and_goes_on_when_it_is_back(streaming):
    a, process = streaming
    with stopped(a.process.pid):
        begin = time.monotonic()
        line = process.stderr.readline()
        assert "is away" in line and "has said nothing for 1 s" in line, line
        assert time.monotonic() - begin < 1 + SLACK_S
    assert "answers again" in process.stderr.readline()
    a.run("other")
    read_until(process, "VM other started")


def test_ferry_goes_on_with_a_stream_that_has_nothing_to_tell(streaming):
    a, process = streaming
    time.sleep(4)  # several times the timeout
    assert process.poll() is None
    a.run("other")
    read_until(process, "VM other started")


def test_ferry_that_was_stopped_itself_blames_nobody(streaming):
    a, process = streaming
    with stopped(process.pid):
        time.sleep(3)
    a.run("other")
    read_until(process, "VM other started")


def test_ferry_waits_for_a_ferryd_that_is_slow(hosts):
    a = hosts.start("a")
    kernel = a.state_dir / "kernel"
    kernel.touch()
    process = ferry(a, "run", "web", "--kernel", str(kernel), "--cmdline", "slow-start=4")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "web is running" in output, errors


def test_ferry_does_not_watch_a_ferryd_that_hangs_for_ever(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="slow-move")
    migration = ferry(a, "migrate", "web", "b")
    console = ferry(a, "console", "web")
    wait_until(lambda: a.vm("web")["migration"], "the migration")
    with stopped(a.process.pid):
        # The connection is made anew for three timeouts, as when a ferryd is restarted.
        assert_gives_up(migration, 6)
        assert_gives_up(console, 8)
    wait_until(lambda: (b.vm("web") or {}).get("state") == "RUNNING", "the VM to have moved all the same")


@pytest.mark.parametrize("timeout", ["0s", "48h", "soon"])
def test_timeout_that_cannot_be_is_refused(hosts, timeout):
    a = hosts.start("a")
    for process in ferry(a, "list", timeout=timeout), ferry(a, "list", "--host-timeout", timeout):
        assert process.communicate(timeout=60)[1] and process.returncode == 2
