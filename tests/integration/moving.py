"""What tests of a VM in the middle of a migration share: its guests, and what must hold of them afterwards."""
import fcntl
import re
import socket
import struct
import termios

import pytest

from fault_points import FaultyHosts
from hosts import BUILD, wait_until

STRESS = BUILD / "guest" / "stress-riscv64.elf"
LINUX = BUILD / "guest" / "riscv64"
BEGIN = "work begins"
WORK = re.compile(r"^work (\d+) .*errors=(\d+) .*pass=(\d+).*\n", re.MULTILINE)

needs_guests = pytest.mark.skipif(not STRESS.exists() or not (LINUX / "kernel").exists(),
                                  reason="needs the guests (make guests)")


@pytest.fixture
def hosts():
    with FaultyHosts() as made:
        yield made


def run(hosts, host, words="", **definition):
    """The bare-metal guest, which keeps a pattern in its memory and obeys type_at()."""
    disk = hosts.directory / "disk"
    disk.touch()
    if disk.stat().st_size == 0:
        disk.write_bytes(bytes(1 << 20))
    return host.run("web", **{"kernel": str(STRESS), "cmdline": f"mem=2M rate=4M interval=20 {words}".strip(),
                              "memory": 32 << 20, "disks": [{"path": str(disk)}], **definition})


def boot_linux(hosts, host):
    run(hosts, host, kernel=str(LINUX / "kernel"), initrd=str(LINUX / "initrd"), memory=128 << 20,
        cmdline="console=ttyS0 quiet ferry.shell ferry.work=threads=1,mem=1M,rate=4M,interval=50")
    wait_until(lambda: "FERRY-GUEST READY" in console(host), "the guest to boot")
    wait_until(lambda: "work 3 " in console(host), "the guest's work")


def unread(terminal):
    """Bytes, and what the kernel needs for them, that the other end has not taken."""
    return struct.unpack("i", fcntl.ioctl(terminal, termios.TIOCOUTQ, bytes(4)))[0]


def type_at(host, text):
    """Returns when the VM's process has taken it."""
    with socket.socket(socket.AF_UNIX) as terminal:
        terminal.connect(str(host.state_dir / "vms" / "web" / "console.sock"))
        terminal.sendall(text.encode())
        wait_until(lambda: unread(terminal) == 0, "what was typed to be taken")


def console(host):
    return host.request("GET", "/v1/vms/web/console/log")[1].decode(errors="replace").replace("\r", "")


def lives(host):
    """How often the guest has booted."""
    return console(host).count(BEGIN)


def life(host):
    """What the guest said since it booted last."""
    return console(host).rpartition(BEGIN)[2]


def passes(host):
    """How often the guest has verified all of its memory. Its lines must tell of no error, and none be missing or double."""
    text = life(host)
    found = WORK.findall(text)
    assert "WORK ERROR" not in text and all(errors == "0" for _, errors, _ in found), text[-2000:]
    numbers = [int(number) for number, _, _ in found]
    if "FERRY-GUEST" not in console(host):  # what is typed at a Linux shell is echoed in the middle of lines
        assert not numbers or numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
    return int(found[-1][2]) if found else 0


def goes_on(host, booted=None):
    """The guest on HOST verifies all of its memory anew; it has booted so often (None: not looked at)."""
    begin = passes(host)
    wait_until(lambda: passes(host) >= begin + 2, f"the guest on {host.name} to verify its memory")
    assert booted is None or lives(host) == booted


def pid_of(host):
    vm = host.vm("web")
    return vm["pid"] if vm else None


def assert_gone(host):
    """No process of the VM is left there; it may still be known, as not runnable."""
    assert pid_of(host) is None
    assert host.vm("web") is None or host.vm("web")["state"] == "NOT_RUNNABLE"


def assert_here(hosts, host, other, booted=1):
    """The VM runs on HOST alone, and so far has booted so often."""
    wait_until(lambda: host.vm("web")["state"] == "RUNNING", f"the VM to run on {host.name}")
    assert_gone(other)
    goes_on(host, booted)
    assert hosts.vm_processes() == [pid_of(host)]


def stays(hosts, a, b, pid, booted=1):
    """The VM is where it was, by the same process, and nothing is left of the attempt."""
    assert (a.vm("web")["state"], pid_of(a)) == ("RUNNING", pid)
    assert b.vm("web") is None
    goes_on(a, booted)
    assert hosts.vm_processes() == [pid]
