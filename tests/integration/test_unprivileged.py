"""Ferry needs no root: two hosts of an ordinary user run VMs, move and upgrade them. KVM is had by group."""
import os
import pathlib
import shutil

import pytest

from hosts import BUILD, KVM, Hosts, introduce, wait_until
from moving import console, goes_on, passes

USER = 65533   # nobody's
GROUP = 65533  # has /dev/kvm
MIB = 1 << 20

# In a mount namespace of its own, so that only what is started here sees another group on /dev/kvm.
AS_USER = """
set -e
if [ -e /dev/kvm ]; then
    mount -t tmpfs -o mode=755 ferry-test "$1"
    mknod -m 660 "$1/kvm" c 10 232
    chgrp "$2" "$1/kvm"
    mount --bind "$1/kvm" /dev/kvm
fi
user=$3 group=$2
shift 3
exec setpriv --reuid "$user" --regid "$user" --groups "$group" --no-new-privs "$@"
"""

pytestmark = pytest.mark.skipif(not (BUILD / "guest" / "stress-riscv64.elf").exists(),
                                reason="needs the guests (make guests)")


@pytest.fixture
def hosts():
    with Hosts(vm_program=BUILD / "ferry-vm") as made:
        # Programs and guests where any user may read them.
        for name in ("ferryd", "ferry-vm", "guest/stress-riscv64.elf", "guest/stress-x86_64.elf"):
            shutil.copy(BUILD / name, made.directory)
        made.vm_program = made.directory / "ferry-vm"
        (made.directory / "disk").write_bytes(bytes(MIB))
        if os.geteuid() == 0:
            (made.directory / "dev").mkdir()
            for path in (made.directory, made.directory / "disk"):
                os.chown(path, USER, USER)
        yield made


def start(hosts, name):
    host = hosts.new(name)
    if os.geteuid() == 0:
        host.prefix = ["unshare", "--mount", "sh", "-c", AS_USER, "sh", str(hosts.directory / "dev"), str(GROUP),
                       str(USER)]
    host.program = hosts.directory / "ferryd"
    return host.start()


def assert_without_rights(pid):
    """Neither the process nor any of its threads has any of root's rights, or can get any."""
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
        assert set(status["Uid"].split()) == {str(USER if os.geteuid() == 0 else os.getuid())}, status
        for kept in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            assert int(status[kept], 16) == 0, status
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), status


def replace_program(hosts):
    """As an update does: another file of that name."""
    fresh = hosts.directory / "ferry-vm.new"
    shutil.copy(BUILD / "ferry-vm", fresh)
    fresh.rename(hosts.vm_program)


@pytest.mark.parametrize("machine", ["riscv64", pytest.param("x86_64", marks=pytest.mark.skipif(
    not KVM, reason="needs an x86-64 host with /dev/kvm"))])
def test_ordinary_user_runs_moves_and_upgrades(hosts, machine):
    a, b = start(hosts, "a"), start(hosts, "b")
    introduce(a, b)
    a.run("web", machine=machine, kernel=str(hosts.directory / f"stress-{machine}.elf"), memory=32 * MIB,
          cmdline="mem=8M rate=4M interval=20", disks=[{"path": str(hosts.directory / "disk")}], nets=[{"backend": "user"}])
    wait_until(lambda: passes(a) >= 1, "the guest to verify its memory")
    assert_without_rights(a.vm("web")["pid"])
    for source, destination in ((a, b), (b, a)):
        record = source.move("web", destination)
        assert record["outcome"] == "completed", record
        goes_on(destination, booted=1)
    replace_program(hosts)
    assert a.vm("web")["outdated"] is True
    record = a.finish(a.upgrade("web"))
    assert record["outcome"] == "completed", record
    assert a.vm("web")["outdated"] is False and a.vm("web")["seccomp"] == "on"
    goes_on(a, booted=1)
    assert_without_rights(a.vm("web")["pid"])
