"""Quick resume of the Linux guest by ferry-vm alone: it starts before its memory is there, through whatever breaks."""
import random
import socket
import threading
import time

import pytest

from vms import DEADLINE, MIB, RpcError

WORK = "ferry.work=threads=2,mem=16M,rate=8M"
SLOW = 8 * MIB  # bytes a second, for what nobody waits for: there is time for something to happen
SEED = 20261122


class Proxy:
    """Forwards TCP connections; cut() ends them and lets no new ones through until mend()."""

    def __init__(self, target):
        host, port = target.rsplit(":", 1)
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.lock = threading.Lock()
        self.open = True
        self.sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            with self.lock:
                if not self.open:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(self.target)
                except OSError:
                    near.close()
                    continue
                self.sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    @staticmethod
    def _forward(one, other):
        try:
            while data := one.recv(1 << 16):
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        with self.lock:
            self.open = False
            for end in self.sockets:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            self.sockets = []

    def mend(self):
        with self.lock:
            self.open = True

    def close(self):
        self.cut()
        self.listener.close()


@pytest.fixture
def proxies():
    made = []

    def make(target):
        made.append(Proxy(target))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def locks(tmp_path):
    return ["--lock-dir", str(tmp_path)]


@pytest.fixture
def working(vms, guest, locks):
    """A VM whose guest fills and verifies its memory."""
    vm = vms.start("a", guest.definition("web", WORK), *locks)
    vm.wait_for_work(2)
    return vm


def incoming(vms, vm, locks, name="b"):
    return vms.start(name, vm.definition, "--incoming", *locks)


def begin(vms, source, destination, proxies=None, **options):
    """Starts to move with quick resume; returns the migration's id, and the proxy between the two."""
    send = vms.prepare(source, destination)
    destination.control.call("subscribe")
    proxy = proxies(send["address"]) if proxies else None
    if proxy:
        send["address"] = proxy.address
    source.control.call("migrate.send", **send, **{"quick_resume": "now", "reconnect": 60_000_000_000, **options})
    return send["id"], proxy


def quick(vm):
    return vm.control.call("migrate.status")["quick_resume"] or {}


def wait(condition, what):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)


def await_fetching(source, destination):
    wait(lambda: quick(destination).get("fetching") and quick(source).get("fetching"), "memory to be fetched")


def await_lost(source, destination):
    wait(lambda: quick(destination).get("disconnected") and quick(source).get("disconnected"), "the lost connection")


def refused(call, *words):
    with pytest.raises(RpcError) as caught:
        call()
    for word in words:
        assert word in caught.value.message
    return caught.value


def assert_arrived(source, destination, last=None):
    """The guest runs at the destination with all of its memory, and the source is done."""
    last = last or source.wait()
    assert last["reason"] == "migrated" and last["report"]["outcome"] == "completed", last
    destination.wait_for_state("RUNNING")
    destination.wait_for_work(4, passes=2)
    status = destination.control.call("migrate.status")
    assert status["outcome"] == "completed" and status["remaining_bytes"] == 0
    for record in (status, last["report"]):
        assert record["quick_resume"]["missing_pages"] > 0 and not record["quick_resume"]["fetching"]
    return status["quick_resume"]


@pytest.mark.parametrize("rounds", [0, 1])
def test_guest_runs_before_its_memory_is_there(vms, working, locks, rounds):
    moved = incoming(vms, working, locks)
    before = working.console()
    begin(vms, working, moved, quick_resume_rounds=rounds)
    fetched = assert_arrived(working, moved)
    assert moved.console().startswith(before)
    assert "the guest runs" in moved.log().lower() and "All memory is here" in moved.log()
    if rounds == 0:
        assert fetched["faults"] > 0
        assert 0 < fetched["fault_median_ns"] <= fetched["fault_p99_ns"] <= fetched["fault_max_ns"]


def test_harts_disk_and_network_find_their_memory(vms, guest, locks):
    """Reads and writes of files, and packets, go straight to and from memory that is missing."""
    disk = vms.directory / "disk"
    disk.write_bytes(bytes(64 * MIB))
    vm = vms.start("a", guest.definition("web", WORK + " ferry.disk=/dev/vda", vcpus=2, disks=[{"path": str(disk)}],
                                         nets=[{"backend": "user"}]), *locks)
    vm.wait_for_work(2)
    for hop in range(2):
        moved = incoming(vms, vm, locks, f"hop{hop}")
        begin(vms, vm, moved, bandwidth_limit=64 * MIB)
        assert_arrived(vm, moved)
        vm = moved
    assert vm.stop()["reason"] == "powered-off"


def test_both_sides_say_where_the_guest_is(vms, working, locks):
    moved = incoming(vms, working, locks)
    identity, _ = begin(vms, working, moved, bandwidth_limit=SLOW)
    await_fetching(working, moved)
    assert moved.state() == "RUNNING(MIGR)" and working.state() == "NOT_RUNNABLE"
    assert "runs on host b" in working.control.call("status")["why"]
    wait(lambda: moved.control.call("migrate.status")["phase"] != "Frozen", "the destination to be told of the next phase")
    status = moved.control.call("migrate.status")
    assert status["phase"] == "Fetch" and status["outcome"] == "none" and status["remaining_bytes"] > 0
    # nothing that could harm it is done
    refused(lambda: working.control.call("migrate.cancel", id=identity), "too late", "the guest runs on b")
    refused(lambda: moved.control.call("migrate.cancel", id=identity), "too late")
    refused(lambda: working.control.call("quit"), "runs on host b", "--force-there")
    refused(lambda: working.control.call("resume"), "runs on host b")
    refused(lambda: working.control.call("recover", here=True), "out of date")
    moved.wait_for_work(2)
    moved.control.call("pause")
    assert moved.state() == "PAUSED(MIGR)"
    moved.control.call("resume")
    assert_arrived(working, moved)


def test_connection_cut_at_random_moments_is_made_again(vms, working, locks, proxies):
    chance = random.Random(SEED)
    moved = incoming(vms, working, locks)
    _, proxy = begin(vms, working, moved, proxies, bandwidth_limit=SLOW)
    await_fetching(working, moved)
    cuts = 0
    for _ in range(2):
        time.sleep(chance.uniform(0, 0.6))
        if moved.control.call("migrate.status")["remaining_bytes"] < SLOW:
            break  # it would be over before it is cut
        proxy.cut()
        await_lost(working, moved)
        assert moved.state() == "PAUSED(MIGR)"
        assert "is lost" in moved.control.call("status")["why"]
        time.sleep(chance.uniform(0, 0.5))
        proxy.mend()
        wait(lambda: not quick(moved).get("disconnected"), "the connection to come back")
        cuts += 1
    fetched = assert_arrived(working, moved)
    assert cuts > 0 and fetched["reconnects"] == cuts and fetched["paused_ns"] > 0, f"seed {SEED}"


def test_lost_connection_stops_the_guest_until_somebody_asks(vms, working, locks, proxies):
    moved = incoming(vms, working, locks)
    identity, proxy = begin(vms, working, moved, proxies, bandwidth_limit=SLOW, reconnect=1_000_000)
    await_fetching(working, moved)
    proxy.cut()
    await_lost(working, moved)
    wait(lambda: "not tried any more" in working.log(), "the source to stop trying")
    # it stands still, answers, and nothing is given up
    stood = moved.console()
    refused(lambda: moved.control.call("pause"), "stands still", "host a")
    time.sleep(1)
    assert moved.console() == stood
    assert moved.state() == "PAUSED(MIGR)" and working.state() == "NOT_RUNNABLE"
    proxy.mend()
    working.control.call("migrate.reconnect", id=identity)
    assert assert_arrived(working, moved)["reconnects"] == 1


def test_guest_that_ends_there_needs_nothing_more(vms, working, locks):
    moved = incoming(vms, working, locks)
    begin(vms, working, moved, bandwidth_limit=SLOW)
    await_fetching(working, moved)
    moved.control.call("quit")
    assert moved.wait()["reason"] == "killed"
    assert working.wait()["report"]["outcome"] == "completed"


def test_guest_that_powers_off_there_needs_nothing_more(vms, working, locks):
    moved = incoming(vms, working, locks)
    begin(vms, working, moved, bandwidth_limit=SLOW)
    await_fetching(working, moved)
    assert moved.stop()["reason"] == "powered-off"
    assert working.wait()["report"]["outcome"] == "completed"


def test_guest_reboots_when_its_memory_is_there(vms, guest, locks):
    vm = vms.start("a", guest.definition("web"), *locks)
    vm.wait_for_console("FERRY-GUEST READY")
    moved = incoming(vms, vm, locks)
    begin(vms, vm, moved, bandwidth_limit=8 * MIB)
    await_fetching(vm, moved)
    after = len(moved.console())
    moved.type("reboot -f\n")
    moved.wait_for_console("FERRY-GUEST READY", after)
    assert vm.wait()["report"]["outcome"] == "completed"
    assert moved.state() == "RUNNING"
