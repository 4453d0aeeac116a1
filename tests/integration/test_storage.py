"""Cold migrations that take the VM's disks along, between two ferryd that share nothing but the machine."""
import os
import pathlib
import signal
import subprocess

import pytest

from certs import Authority
from hosts import BUILD, Hosts, Refused, agreed_records, assert_refused, introduce, wait_until
from moving import LINUX, needs_guests
from recorder import Recorder
from test_checkpoint_hosts import ferry, finish, resume, save
from test_ferryd_vm import run, ticks, wait_for_ticks
from way import Way

MIB = 1 << 20
PATTERN = b"what is on the disk of web, again and again, 64 bytes at a time\n"
assert len(PATTERN) == 64
SLOW = MIB  # bytes/s: slow enough to do something in the middle of the copying


@pytest.fixture
def hosts():
    with Hosts() as made:
        yield made


@pytest.fixture
def real_hosts():
    with Hosts(vm_program=BUILD / "ferry-vm") as made:
        yield made


def make_disk(directory, name="disk.img", data=MIB, size=64 * MIB):
    """A pattern at its begin and its end, and a hole between."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    with open(path, "wb") as file:
        file.write(PATTERN * (data // 64))
        file.seek(size - 4096)
        file.write(PATTERN * 64)
    return path


def stopped_vm(host, *disks, **definition):
    host.run("web", disks=[{"path": str(disk)} for disk in disks], **definition)
    host.post("/v1/vms/web/kill")


def store_of(hosts):
    path = hosts.directory / "store"
    path.mkdir(exist_ok=True)
    return path


def partials(hosts):
    return list(hosts.directory.glob("**/*.partial"))


def begin_slowly(a, b, store, limit=SLOW):
    """A move that is in the middle of its copying."""
    migration = a.migrate("web", b, cold=True, storage=str(store), bandwidth_limit=limit)
    wait_until(lambda: a.get(f"/v1/migrations/{migration}").get("disks", {}).get("bytes", 0) > 0, "the first bytes")
    return migration


def assert_nothing_there(hosts, b, store):
    assert b.vm("web") is None and not list(store.iterdir()) and not partials(hosts)


def test_disks_move_along_and_are_the_vms_from_then_on(hosts):
    a, b = hosts.pair()
    disks = [make_disk(hosts.directory / "a-disks", name) for name in ("disk.img", "data.img")]
    store, before = store_of(hosts), [disk.read_bytes() for disk in disks]
    stopped_vm(a, *disks)
    told = ferry(a, "migrate", "web", "b", "--cold", f"--storage={store}")
    assert told.returncode == 0, told.stdout + told.stderr
    assert " copied" in told.stdout.splitlines()[-1] and all(f"  {disk}\n" in told.stdout for disk in disks)
    records = agreed_records(a, b, told.stdout.splitlines()[-1].split(":")[0])
    for record in records:
        assert (record["outcome"], record["kind"], record["error"]) == ("completed", "cold", "")
        assert record["disks"]["bytes"] == record["disks"]["total_bytes"] >= 2 * MIB
        assert [file["destination"] for file in record["disks"]["files"]] == [str(store / disk.name) for disk in disks]
        assert 2 * MIB < record["wire_bytes"] < 3 * MIB
    assert f"{disks[0]} -> {store}/disk.img" in ferry(a, "migrations", "show", records[0]["id"]).stdout
    codes = [event["code"] for event in b.get(f"/v1/migrations/{records[0]['id']}")["events"]]
    assert {"VMS2450", "VMS2451", "VMS2430", "VMS3050", "VMS2431"} <= set(codes), codes

    assert sorted(path.name for path in store.iterdir()) == ["data.img", "disk.img"]
    for disk, content in zip(disks, before):
        copy = store / disk.name
        assert copy.read_bytes() == content == disk.read_bytes()
        assert copy.stat().st_blocks * 512 <= 2 * MIB and copy.stat().st_mtime_ns == disk.stat().st_mtime_ns
    for host in (a, b):
        host.restart(signal.SIGKILL)
    assert a.has_left("web", b)
    assert [disk["path"] for disk in b.vm("web")["definition"]["disks"]] == [str(store / disk.name) for disk in disks]
    assert b.post("/v1/vms/web/start")["state"] == "RUNNING"
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "migrated to b")
    b.post("/v1/vms/web/kill")
    assert ferry(b, "rm", "web").returncode == 0 and (store / "disk.img").exists()


def test_what_is_not_right_is_refused_before_anything_is_copied(hosts):
    a, b = hosts.pair()
    disk, store = make_disk(hosts.directory / "a-disks"), store_of(hosts)
    stopped_vm(a, disk)

    def refused(*words, status=422, error_class="refused", **options):
        assert_refused(lambda: a.migrate("web", b, **{"cold": True, "storage": str(store), **options}), status, error_class,
                       *words)

    refused("cannot move along yet", "--cold", cold=False, status=400, error_class="usage")
    refused("absolute", storage="store", status=400, error_class="usage")
    refused(str(disk), "as the same file", "leave --storage out", storage="")
    refused("no directory", f"{store}/none", storage=f"{store}/none")
    (store / "disk.img").write_text("mine")
    refused(f"{store}/disk.img", "exists already on host b", "never overwritten")
    checked = ferry(a, "check", "web", "b", "--cold", f"--storage={store}")
    assert checked.returncode == 3 and "exists already on host b" in checked.stdout
    assert (store / "disk.img").read_text() == "mine"
    (store / "disk.img").unlink()
    assert ferry(a, "check", "web", "b", "--cold", f"--storage={store}").returncode == 0
    disk.rename(f"{disk}.away")
    refused(str(disk), "No such file")
    pathlib.Path(f"{disk}.away").rename(disk)
    told = ferry(a, "migrate", "web", "b", "--storage")
    assert told.returncode == 2 and "--storage needs --cold" in told.stderr
    assert a.vm("web")["state"] == "STOPPED" and not list(store.iterdir())
    a.run("db")
    a.post("/v1/vms/db/kill")
    assert_refused(lambda: a.migrate("db", b, cold=True, storage=""), 422, "refused", "no disks")


@pytest.mark.skipif(subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0,
                    reason="needs a mount namespace")
def test_destination_without_room_is_found_out_before_and_meanwhile(hosts):
    store = store_of(hosts)
    a, b = hosts.new("a").start(), hosts.new("b")
    b.prefix = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=8m none {store} && exec "$0" "$@"']
    introduce(a, b.start())
    disk = make_disk(hosts.directory / "a-disks", data=12 * MIB)
    stopped_vm(a, disk)
    assert_refused(lambda: a.migrate("web", b, cold=True, storage=str(store)), 422, "refused", "they need 13 MiB",
                   "8 MiB are free")
    disk.unlink()
    make_disk(hosts.directory / "a-disks", data=6 * MIB)
    migration = begin_slowly(a, b, store)
    # Somebody else takes the room: as seen by b.
    pathlib.Path(f"/proc/{b.process.pid}/root{store}/other").write_bytes(bytes(5 * MIB))
    ended = a.finish(migration)
    assert (ended["outcome"], ended["cause"]) == ("failed", "storage") and "No space left" in ended["error"], ended
    assert a.vm("web")["state"] == "STOPPED" and b.vm("web") is None
    assert os.listdir(f"/proc/{b.process.pid}/root{store}") == ["other"]
    assert [record["outcome"] for record in agreed_records(a, b, migration)] == ["failed", "failed"]
    assert a.post("/v1/vms/web/start")["state"] == "RUNNING"


@pytest.mark.skipif(subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0,
                    reason="needs a mount namespace")
@needs_guests
@pytest.mark.parametrize("meanwhile", ["nothing", "another file"])
def test_running_vm_moves_with_its_disks_where_nothing_is_shared(real_hosts, meanwhile):
    """To the same paths; its guest's file, which is beside its disk, is not reached there either."""
    hosts = real_hosts
    place = hosts.directory / "a-disks"
    disk = make_disk(place, data=3 * MIB)
    a, b = hosts.new("a").start(), hosts.new("b")
    b.prefix = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {place} && exec "$0" "$@"']
    introduce(a, b.start())
    there = pathlib.Path(f"/proc/{b.process.pid}/root{place}")
    run(a, disks=[{"path": str(disk)}])
    wait_for_ticks(a)
    assert_refused(lambda: a.migrate("web", b, cold=True), 422, "refused", "cannot be reached on host b", "--storage")
    if meanwhile == "nothing":
        ended = a.move("web", b, cold=True, storage="")
        assert (ended["outcome"], ended["error"]) == ("completed", ""), ended
        assert b.vm("web")["state"] == "RUNNING" and a.has_left("web", b)
        assert (there / "disk.img").read_bytes() == disk.read_bytes()
    else:
        migration = a.migrate("web", b, cold=True, storage="", bandwidth_limit=16 * MIB)  # the suspend, too
        (there / "disk.img").write_text("mine")
        ended = a.finish(migration)
        assert ended["outcome"] == "failed" and "exists already" in ended["error"], ended
        assert a.vm("web")["state"] == "RUNNING" and b.vm("web") is None
        assert (there / "disk.img").read_text() == "mine" and not list(there.glob("*.partial"))
    here = b if meanwhile == "nothing" else a
    wait_for_ticks(here)
    numbers = ticks(here)
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert not list(hosts.directory.glob("**/*.ckpt")) and not list(there.glob("*.ckpt"))
    assert meanwhile != "nothing" or len(agreed_records(a, b, ended["id"])) == 2


def test_running_vm_whose_lock_nobody_knows_is_not_suspended_for_it(hosts):
    a, b = hosts.pair()
    a.run("web", disks=[{"path": str(make_disk(hosts.directory / "a-disks"))}])  # this ferry-vm takes no lock
    assert_refused(lambda: a.migrate("web", b, cold=True, storage=str(store_of(hosts))), 422, "refused", "no lock")
    assert a.vm("web")["state"] == "RUNNING"


@pytest.mark.parametrize("who", ["destination", "source"])
def test_ferryd_killed_while_disks_are_copied(hosts, who):
    a, b = hosts.pair()
    store, disk = store_of(hosts), make_disk(hosts.directory / "a-disks", data=8 * MIB)
    stopped_vm(a, disk)
    migration = begin_slowly(a, b, store, SLOW // 10)
    assert b.vm("web")["state"] == "SETUP(MIGR)" and partials(hosts)
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "migration")
    (b if who == "destination" else a).restart(signal.SIGKILL)
    assert [record["outcome"] for record in agreed_records(a, b, migration)] == ["failed", "failed"]
    wait_until(lambda: b.vm("web") is None, "b to have nothing of it")
    assert_nothing_there(hosts, b, store)
    assert a.vm("web")["state"] == "STOPPED" and disk.exists()
    assert a.move("web", b, cold=True, storage=str(store))["outcome"] == "completed"
    assert (store / "disk.img").read_bytes() == disk.read_bytes()


@pytest.mark.parametrize("side", ["a", "b"])
def test_cancelled_copying_leaves_all_as_it_was(hosts, side):
    a, b = hosts.pair()
    store, disk = store_of(hosts), make_disk(hosts.directory / "a-disks", data=8 * MIB)
    stopped_vm(a, disk)
    migration = begin_slowly(a, b, store, SLOW // 10)
    assert ferry(a if side == "a" else b, "cancel", migration[:8]).returncode == 0
    assert [record["outcome"] for record in agreed_records(a, b, migration)] == ["cancelled", "cancelled"]
    assert_nothing_there(hosts, b, store)
    assert a.post("/v1/vms/web/start")["state"] == "RUNNING"


def test_file_that_appears_meanwhile_is_left_alone(hosts):
    a, b = hosts.pair()
    store, disk = store_of(hosts), make_disk(hosts.directory / "a-disks", data=4 * MIB)
    stopped_vm(a, disk)
    migration = a.migrate("web", b, cold=True, storage=str(store), bandwidth_limit=SLOW)
    (store / "disk.img").write_text("mine")
    ended = a.finish(migration)
    assert ended["outcome"] == "failed" and "exists already" in ended["error"], ended
    assert [path.name for path in store.iterdir()] == ["disk.img"] and (store / "disk.img").read_text() == "mine"
    assert a.vm("web")["state"] == "STOPPED" and b.vm("web") is None
    assert a.post("/v1/vms/web/start")["state"] == "RUNNING"


def test_disk_written_to_meanwhile_does_not_move(hosts):
    a, b = hosts.pair()
    store, disk = store_of(hosts), make_disk(hosts.directory / "a-disks", data=4 * MIB)
    stopped_vm(a, disk)
    migration = begin_slowly(a, b, store)
    os.utime(disk, ns=(1, 1))
    ended = a.finish(migration)
    assert ended["outcome"] == "failed" and "written to disk" in ended["error"], ended
    assert_nothing_there(hosts, b, store)


def test_disks_go_encrypted_between_hosts_with_certificates(hosts, tmp_path):
    authority = Authority(tmp_path)
    for name in "ab":
        host = hosts.new(name)
        host.license(authority.issue(name, "127.0.0.1"))
        host.start()
    a, b = hosts.hosts
    introduce(a, b)
    disk, store = make_disk(hosts.directory / "a-disks"), store_of(hosts)
    stopped_vm(a, disk)
    with Recorder(a.address, PATTERN[:40], b"HTTP/1.1") as recorder:
        b.delete("/v1/hosts/a")
        b.post("/v1/hosts", {"name": "a", "address": recorder.address})
        ended = a.move("web", b, cold=True, storage=str(store), tls=True)
        assert (ended["outcome"], ended["error"]) == ("completed", ""), ended
        assert recorder.first and set(recorder.first) == {0x16}
        assert set(recorder.count.values()) == {0}
    assert (store / "disk.img").read_bytes() == disk.read_bytes()


@needs_guests
def test_suspended_guest_goes_on_with_its_copied_disk_once(real_hosts):
    hosts = real_hosts
    a, b = hosts.pair()
    disk, store = make_disk(hosts.directory / "a-disks", size=4 * MIB), store_of(hosts)
    file = hosts.directory / "web.ckpt"
    run(a, disks=[{"path": str(disk)}])
    wait_for_ticks(a)
    assert finish(a, save(a, "web", file))["outcome"] == "completed"
    assert a.move("web", b, cold=True, storage=str(store))["outcome"] == "completed"
    # The guest is b's. By what is left on a, nobody may let it go on, nor start it.
    left = "what web left on host a when it was given to host b", f"{disk}.ferry-lock", "ferry recover web on host a"
    assert_refused(lambda: resume(a, file), 409, "conflict", *left)
    assert a.has_left("web", b) and b.vm("web")["state"] == "SUSPENDED"
    assert_refused(lambda: run(a, "thief", disks=[{"path": str(disk)}]), 409, "conflict", *left)
    assert resume(b, file)["state"] == "RUNNING"
    wait_for_ticks(b)
    numbers = ticks(b)
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    # What is said there holds: not while it runs; and the disk alone is nobody's.
    assert_refused(lambda: a.post("/v1/vms/web/recover", {"force": "here"}), 409, "conflict", "runs there")
    b.post("/v1/vms/web/kill")
    with pytest.raises(Refused, match="defined otherwise"):
        resume(b, file)
    assert a.post("/v1/vms/web/recover", {"force": "here"})["state"] == "STOPPED"
    assert a.post("/v1/vms/web/start")["state"] == "RUNNING"
    a.post("/v1/vms/web/kill")
    with pytest.raises(Refused, match="has run since"):
        resume(a, file)


@needs_guests
@pytest.mark.parametrize("what", ["request", "answer"])
def test_word_that_gives_the_vm_away_is_lost(real_hosts, what):
    """The source does not know whether the VM is gone, and nobody starts it, until the other host says."""
    hosts = real_hosts
    a, b = hosts.start("a"), hosts.start("b")
    disk, store = make_disk(hosts.directory / "a-disks", size=4 * MIB), store_of(hosts)
    file = hosts.directory / "web.ckpt"
    with Way(b.address, b"/take HTTP", 0 if what == "answer" else None) as way:
        b.post("/v1/hosts", {"name": "a", "address": a.address})
        a.post("/v1/hosts", {"name": "b", "address": way.address})
        run(a, disks=[{"path": str(disk)}])
        wait_for_ticks(a)
        assert finish(a, save(a, "web", file))["outcome"] == "completed"
        migration = a.migrate("web", b, cold=True, storage=str(store))
        assert way.cut.wait(60)
        a.finish(migration)
        outcomes = [record["outcome"] for record in agreed_records(a, b, migration)]
    here, there = (a, b) if what == "request" else (b, a)
    assert outcomes == [["failed"] * 2, ["completed"] * 2][what == "answer"]
    if what == "request":
        assert_nothing_there(hosts, b, store)
    else:
        assert_refused(lambda: resume(a, file), 409, "conflict", "what web left on host a")
    assert here.vm("web")["state"] == "SUSPENDED"
    assert there.vm("web") is None or there.has_left("web", here)
    # The lock is as the guest knows it.
    assert resume(here, file)["state"] == "RUNNING"
    wait_for_ticks(here)


@needs_guests
def test_linux_keeps_what_it_has_on_its_disk(real_hosts):
    """While it runs (suspended, copied, resumed), and powered off; each time the guest itself verifies its journal."""
    hosts = real_hosts
    a, b = hosts.pair()
    disk, stores = make_disk(hosts.directory / "a-disks", size=4 * MIB), [hosts.directory / name for name in ("one", "two")]
    disk.write_bytes(bytes(4 * MIB))
    for store in stores:
        store.mkdir()
    a.run("web", kernel=str(LINUX / "kernel"), initrd=str(LINUX / "initrd"), memory=128 * MIB, disks=[{"path": str(disk)}],
          cmdline="console=ttyS0 quiet ferry.disk=/dev/vda,size=2M,rate=400K")

    def lines(host, word):
        text = host.request("GET", "/v1/vms/web/console/log")[1].decode(errors="replace").replace("\r", "")
        assert "DISK ERROR" not in text, text
        text = text[:text.rfind("\n") + 1]  # the last line may not be whole yet
        return [dict(part.split("=", 1) for part in line.split() if "=" in part) | {"number": line.split()[1]}
                for line in text.splitlines() if line.startswith(word)]

    def goes_on(host):
        seen = len(lines(host, "disk "))
        wait_until(lambda: len(lines(host, "disk ")) > seen + 2, "the guest to write and verify")
        assert lines(host, "disk ")[-1]["errors"] == "0"

    wait_until(lambda: lines(a, "disk journal"), "the guest to boot")
    goes_on(a)
    moved = a.move("web", b, cold=True, storage=str(stores[0]))
    assert (moved["outcome"], moved["error"]) == ("completed", ""), moved
    assert b.vm("web")["state"] == "RUNNING" and a.has_left("web", b)
    assert not list(hosts.directory.glob("**/*.ckpt"))
    goes_on(b)
    last = int(lines(b, "disk ")[-1]["number"])
    b.post("/v1/vms/web/kill")
    back = b.move("web", a, cold=True, storage=str(stores[1]))
    assert back["outcome"] == "completed", back
    assert a.post("/v1/vms/web/start")["state"] == "RUNNING"
    journal = wait_until(lambda: lines(a, "disk journal"), "the guest to boot")[-1]
    assert journal["bad"] == "0" and int(journal["last"]) >= last
    goes_on(a)
