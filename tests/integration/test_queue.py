"""How many VMs leave a host at once, who waits, and how they share the host's bandwidth."""
import re
import signal

import pytest

from hosts import BUILD, Hosts, assert_refused, wait_until

GUEST = BUILD / "guest" / "stress-riscv64.elf"


@pytest.fixture
def hosts():
    with Hosts() as made:
        yield made


def pair(hosts, *options):
    """A host a with these options, and b."""
    a, b = hosts.start("a", *options), hosts.start("b")
    a.post("/v1/hosts", {"name": "b", "address": b.address})
    b.post("/v1/hosts", {"name": "a", "address": a.address})
    return a, b


def look(host, migration):
    return host.get(f"/v1/migrations/{migration}?local=1")


def is_queued(host, migration, number):
    found = look(host, migration)
    return (found["phase"], found["state_number"], found["queue"], found["outcome"]) == ("Queued", 0, number, "none")


def log_of(host, migration):
    return [line["text"] for line in look(host, migration)["log"]]


def test_more_than_the_most_wait_and_begin_in_order(hosts):
    a, b = pair(hosts, "--migrate-max", "2")
    names = ["one", "two", "three", "four"]
    for name in names:
        a.run(name, cmdline="slow-move")
    ids = [a.migrate(name, b) for name in names]
    assert [look(a, each)["queue"] for each in ids] == [0, 0, 1, 2]
    assert is_queued(a, ids[2], 1) and is_queued(a, ids[3], 2)
    active = a.get("/v1/migrations?view=active")
    assert sorted(each["id"] for each in active) == sorted(ids)
    # It runs on as ever, and nothing is taken for it at the destination.
    assert a.vm("three")["state"] == "RUNNING" and a.vm("three")["migration"] == ids[2]
    assert b.vm("three") is None
    assert_refused(lambda: a.migrate("three", b), 409, "conflict", "in progress")
    for each in ids:
        assert a.finish(each)["outcome"] == "completed"
    ends = [look(a, each)["ended"] for each in ids]
    assert max(ends[:2]) <= min(ends[2:])
    assert any("a place is free" in line for line in log_of(a, ids[2]))
    assert all(a.has_left(name, b) for name in names)


def test_first_in_the_queue_begins_first(hosts):
    a, b = pair(hosts, "--migrate-max", "1")
    names = ["one", "two", "three"]
    for name in names:
        a.run(name, cmdline="slow-move")
    ids = [a.migrate(name, b) for name in names]
    ends = [a.finish(each)["ended"] for each in ids]
    assert ends == sorted(ends)


def test_queued_one_can_be_cancelled_and_the_others_move_up(hosts):
    a, b = pair(hosts, "--migrate-max", "1")
    for name in ("one", "two", "three"):
        a.run(name, cmdline="slow-move")
    first, second, third = (a.migrate(name, b) for name in ("one", "two", "three"))
    assert is_queued(a, third, 2)
    a.post(f"/v1/migrations/{second}/cancel")
    record = a.finish(second)
    assert (record["outcome"], record["cause"]) == ("cancelled", "cancelled")
    assert "queued" in record["error"]
    assert is_queued(a, third, 1)
    assert a.vm("two")["state"] == "RUNNING" and a.vm("two")["migration"] is None
    assert a.finish(first)["outcome"] == a.finish(third)["outcome"] == "completed"
    assert a.move("two", b)["outcome"] == "completed"


def test_vm_that_ends_leaves_the_queue(hosts):
    a, b = pair(hosts, "--migrate-max", "1")
    a.run("one", cmdline="slow-move")
    a.run("two")
    first, second = a.migrate("one", b), a.migrate("two", b)
    assert is_queued(a, second, 1)
    a.post("/v1/vms/two/kill")
    record = a.finish(second)
    assert (record["outcome"], record["cause"]) == ("failed", "guest")
    assert a.vm("two")["state"] == "STOPPED"
    assert a.finish(first)["outcome"] == "completed"


def test_what_changed_meanwhile_is_checked_again(hosts):
    a, b = pair(hosts, "--migrate-max", "1")
    a.run("one", cmdline="slow-move")
    a.run("two")
    first, second = a.migrate("one", b), a.migrate("two", b)
    b.run("two")
    record = a.finish(second)
    assert record["outcome"] == "failed" and "name already" in record["error"]
    assert a.vm("two")["state"] == "RUNNING"
    assert a.finish(first)["outcome"] == "completed"


def test_queue_outlives_ferryd(hosts):
    a, b = pair(hosts, "--migrate-max", "1")
    for name in ("one", "two", "three"):
        a.run(name, cmdline="slow-move")
    first, second, third = (a.migrate(name, b, throttle_max=7) for name in ("one", "two", "three"))
    a.stop(signal.SIGKILL)
    a.start()
    for each in (first, second, third):
        assert a.finish(each)["outcome"] == "completed"
    assert all(a.has_left(name, b) for name in ("one", "two", "three"))
    assert any('"throttle_max": 7' in line for line in log_of(a, third)), log_of(a, third)


def test_no_limit_queues_nobody(hosts):
    a, b = pair(hosts, "--migrate-max", "0")
    names = ["one", "two", "three", "four"]
    for name in names:
        a.run(name, cmdline="slow-move")
    ids = [a.migrate(name, b) for name in names]
    assert [look(a, each)["queue"] for each in ids] == [0, 0, 0, 0]
    assert a.get("/v1/host")["migrate_max"] == 0
    for each in ids:
        assert a.finish(each)["outcome"] == "completed"


def limits_told(host, migration):
    """What ferry-vm was told, from the first word on."""
    first, later = [], []
    for line in log_of(host, migration):
        first += re.findall(r'told to send with .*"bandwidth_limit": (\d+)', line)
        later += re.findall(r"^limited to (\d+)", line)
    return [int(value) for value in first + later]


def test_bandwidth_of_the_host_is_shared(hosts):
    a, b = pair(hosts, "--migrate-bandwidth", "1000M", "--migrate-max", "3")
    for name in ("one", "two", "three"):
        a.run(name, cmdline="hang-send")
    mib = 1 << 20
    one = a.migrate("one", b)
    wait_until(lambda: limits_told(a, one) == [1000 * mib], "the whole bandwidth")
    two = a.migrate("two", b, bandwidth_limit=100 * mib)
    three = a.migrate("three", b)
    wait_until(lambda: limits_told(a, three) == [450 * mib], "the third one's part")
    assert limits_told(a, one) == [1000 * mib, 900 * mib, 450 * mib]
    assert limits_told(a, two) == [100 * mib]
    a.post(f"/v1/migrations/{one}/cancel")
    wait_until(lambda: limits_told(a, three) == [450 * mib, 900 * mib], "the first one's part")
    for each in (two, three):
        a.post(f"/v1/migrations/{each}/cancel")
    for each in (one, two, three):
        assert a.finish(each)["outcome"] == "cancelled"
    assert a.get("/v1/host")["migrate_bandwidth"] == 1000 * mib


def test_disks_that_are_copied_take_their_part_of_the_bandwidth(hosts):
    a, b = pair(hosts, "--migrate-bandwidth", "64K", "--migrate-max", "1")
    store = hosts.directory / "store"
    store.mkdir()
    for name in ("one", "two"):
        disk = hosts.directory / f"{name}.img"
        disk.write_bytes(b"what is on it..." * (1 << 20))
        a.run(name, disks=[{"path": str(disk)}])
        a.post(f"/v1/vms/{name}/kill")
    a.run("hot", cmdline="hang-send")

    def limits():
        return [look(a, each)["bandwidth_limit"] for each in ids]

    ids = [a.migrate("one", b, cold=True, storage=str(store))]
    wait_until(lambda: limits() == [65536], "the whole bandwidth")
    ids.append(a.migrate("hot", b))
    wait_until(lambda: limits() == [32768, 32768], "half of it")
    wait_until(lambda: limits_told(a, ids[1]) == [32768], "ferry-vm to be told")
    # It does not wait for a place.
    ids.append(a.migrate("two", b, cold=True, storage=str(store), bandwidth_limit=4096))
    wait_until(lambda: limits() == [30720, 30720, 4096], "what the third one leaves")
    wait_until(lambda: limits_told(a, ids[1]) == [32768, 30720], "ferry-vm to be told")
    a.post(f"/v1/migrations/{ids[0]}/cancel")
    assert a.finish(ids[0])["outcome"] == "cancelled"
    wait_until(lambda: limits()[1:] == [61440, 4096], "the first one's part")
    for each in ids[1:]:
        a.post(f"/v1/migrations/{each}/cancel")
        assert a.finish(each)["outcome"] == "cancelled"


@pytest.mark.skipif(not GUEST.exists() or not (BUILD / "ferry-vm").exists(),
                    reason="needs ferry-vm and the bare-metal guests (make guests)")
def test_real_guests_together_keep_the_bandwidth_of_the_host():
    total = 16_000_000
    with Hosts(vm_program=BUILD / "ferry-vm") as hosts:
        a, b = pair(hosts, "--migrate-bandwidth", str(total), "--migrate-max", "3")
        names = ["one", "two", "three"]
        for name in names:
            a.run(name, kernel=str(GUEST), cmdline="mem=16M rate=1M", memory=64 << 20)
            wait_until(lambda: "pass=1" in a.request("GET", f"/v1/vms/{name}/console/log")[1].decode(),
                       "memory to be filled", 120)
        ids = [a.migrate(name, b) for name in names]
        samples = []
        while any(look(a, each)["outcome"] == "none" and look(a, each)["phase"] != "Frozen" for each in ids):
            objects = [look(a, each) for each in ids]
            if all(each["phase"] == "Copy" and each["setup_ns"] for each in objects):
                samples.append([(each["total_ns"] / 1e9, each["wire_bytes"]) for each in objects])
        assert len(samples) > 5
        # Each by its own clock, as its process told it.
        rates = [(last[1] - first[1]) / (last[0] - first[0])
                 for first, last in zip(samples[0], samples[-1]) if last[0] - first[0] >= 0.5]
        assert len(rates) == 3 and sum(rates) <= 1.03 * total, rates
        assert max(rates) < 0.5 * total, rates
        for each in ids:
            assert a.finish(each)["outcome"] == "completed"
        for name in names:
            text = b.request("GET", f"/v1/vms/{name}/console/log")[1].decode()
            assert not re.search(r"errors=[1-9]", text), text
