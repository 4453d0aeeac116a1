"""Suspended VMs that move to a host that does not reach the file their guest is in: it is copied there."""
import pathlib
import signal
import subprocess
import time

import pytest

from certs import Authority
from hosts import BUILD, Hosts, agreed_records, introduce, wait_until
from moving import needs_guests
from recorder import Recorder
from test_checkpoint_hosts import ferry, finish, resume, save, suspended
from test_ferryd_vm import run, ticks, wait_for_ticks
from way import Way

pytestmark = pytest.mark.skipif(subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0,
                                reason="needs a mount namespace")

MIB = 1 << 20


def apart(hosts, *options, authority=None):
    """Hosts a and b, and a directory of which b has another one under the same path."""
    place = hosts.directory / "place"
    place.mkdir()
    a, b = hosts.new("a", *options), hosts.new("b")
    for host in (a, b) if authority else ():
        host.license(authority.issue(host.name, "127.0.0.1"))
    b.prefix = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {place} && exec "$0" "$@"']
    introduce(a.start(), b.start())
    return a, b, place


def begin_slowly(a, b):
    """A move in the middle of its copying, for a minute and more."""
    migration = a.migrate("web", b, cold=True, bandwidth_limit=1024)
    wait_until(lambda: a.get(f"/v1/migrations/{migration}").get("disks", {}).get("bytes", 0) > 0, "the first bytes")
    return migration


def left_at(b):
    return sorted(path.name for path in b.state_dir.iterdir() if "ckpt" in path.name)


@needs_guests
@pytest.mark.parametrize("with_disk", [False, True])
def test_guest_goes_on_from_the_copy_of_its_file_which_kept_the_limit(with_disk):
    limit = 8 * MIB
    with Hosts(vm_program=BUILD / "ferry-vm") as hosts:
        a, b, place = apart(hosts, *([] if with_disk else ["--migrate-bandwidth", "8M"]))
        disk, file = place / "disk.img", place / "web.ckpt"
        disk.write_bytes(bytes(MIB) + b"what is on it\n  " * 1024)
        run(a, disks=[{"path": str(disk)}] if with_disk else [])
        wait_for_ticks(a)
        assert finish(a, save(a, "web", file))["outcome"] == "completed"
        options = {"storage": "", "bandwidth_limit": limit} if with_disk else {}
        begun = time.monotonic()
        ended = a.move("web", b, cold=True, **options)
        took = time.monotonic() - begun
        assert (ended["outcome"], ended["error"]) == ("completed", ""), ended
        size = file.stat().st_blocks * 512
        assert 3 * limit < size < ended["wire_bytes"] + 2 * MIB, (size, ended)
        assert took > 0.9 * ended["wire_bytes"] / limit, (took, ended["wire_bytes"])
        copy = pathlib.Path(b.vm("web")["suspended"]["file"])
        assert copy.parent == b.state_dir and copy.read_bytes() == file.read_bytes()
        for record in agreed_records(a, b, ended["id"]):
            assert record["disks"]["bytes"] == record["disks"]["total_bytes"] > 0.9 * size
            assert {"source": str(file), "destination": str(copy)} in record["disks"]["files"]
        assert a.has_left("web", b)
        assert resume(b, copy)["state"] == "RUNNING"
        wait_for_ticks(b)
        numbers = ticks(b)
        assert numbers == list(range(numbers[0], numbers[-1] + 1))


@pytest.mark.parametrize("what", ["cut", "cancel", "cancel there", "kill the source", "kill the destination"])
def test_copying_that_breaks_off_leaves_nothing_there_and_the_vm_suspended(what):
    with Hosts() as hosts:
        a, b, place = apart(hosts)
        file = suspended(a, "web", place / "web.ckpt", kernel="/etc/hostname")
        assert file.stat().st_blocks * 512 > 20000
        if what == "cut":
            with Way(a.address, b"/file?to=b", 20000, once=True) as way:
                b.delete("/v1/hosts/a")
                b.post("/v1/hosts", {"name": "a", "address": way.address})
                migration = a.migrate("web", b, cold=True)
                assert way.cut.wait(60)
                outcomes = {record["outcome"] for record in agreed_records(a, b, migration)}
                b.delete("/v1/hosts/a")
            b.post("/v1/hosts", {"name": "a", "address": a.address})
        else:
            migration = begin_slowly(a, b)
            assert b.vm("web")["state"] == "SETUP(MIGR)" and left_at(b)
            if what.startswith("cancel"):
                assert ferry(b if what == "cancel there" else a, "cancel", migration[:8]).returncode == 0
            else:
                (a if what == "kill the source" else b).restart(signal.SIGKILL)
            outcomes = {record["outcome"] for record in agreed_records(a, b, migration)}
        assert outcomes == {"cancelled" if what.startswith("cancel") else "failed"}
        wait_until(lambda: b.vm("web") is None, "b to have nothing of it")
        assert left_at(b) == []
        assert a.vm("web")["state"] == "SUSPENDED"
        assert a.move("web", b, cold=True)["outcome"] == "completed"
        copy, = left_at(b)
        assert (b.state_dir / copy).read_bytes() == file.read_bytes()
        assert resume(b, b.state_dir / copy)["state"] == "RUNNING"


def test_file_goes_encrypted_between_hosts_with_certificates(tmp_path):
    authority = Authority(tmp_path)
    with Hosts() as hosts:
        a, b, place = apart(hosts, authority=authority)
        suspended(a, "web", place / "web.ckpt", kernel="/etc/hostname", cmdline="only-in-the-file")
        with Recorder(a.address, b"only-in-the-file", b"HTTP/1.1") as recorder:
            b.delete("/v1/hosts/a")
            b.post("/v1/hosts", {"name": "a", "address": recorder.address})
            ended = a.move("web", b, cold=True, tls=True)
            assert (ended["outcome"], ended["error"]) == ("completed", ""), ended
            assert recorder.first and set(recorder.first) == {0x16}
            assert set(recorder.count.values()) == {0}


def test_only_the_destination_of_that_migration_gets_the_file():
    with Hosts() as hosts:
        a, b, place = apart(hosts)
        suspended(a, "web", place / "web.ckpt", kernel="/etc/hostname")
        migration = begin_slowly(a, b)

        def status(path):
            return a.request("GET", f"/v1/migrations/{path}")[0]

        assert status(f"{migration}/file?to=c") == 409 and status(f"{migration}/file") == 400
        assert status(f"{migration}/disks/0?to=b") == 404
        a.post(f"/v1/migrations/{migration}/cancel")
        a.finish(migration)
        assert status(f"{migration}/file?to=b") == 409
