"""What the processes and directories of a world hold, and whether anything of it is left over.

    base = leaks.Held(world)              # when all is warm
    leaks.check_quiet(world, host, base)  # the VM runs on HOST: nothing is left of any migration
    leaks.check_gone(world)               # the VM was removed: nothing of it is left at all
"""
import fcntl
import os
import pathlib
import re
import struct

from world import NAME, Wrong, open_files, wait

# Of both ferryd together. What a young one fills once (SQLite's pages, the latest events) is most of it; a
# leak of 4 KiB a migration is seen within 1500.
GROWTH_MAX_KIB = 12 << 10
# Connections and threads that are just coming or going.
FILES_SLACK = 4
THREADS_SLACK = 3
QUIET_S = 20

VM_FILES = {"definition.json", "process.json", "exit.json", "console.log", "control.sock", "console.sock", "vm.log",
            "handover", "not-runnable.json", *(f"vm.log.{number}" for number in range(1, 6))}
WORLD_FILES = {"a", "b", "a.fault", "b.fault", "disk", "disk.ferry-lock", "locks"}


def status_of(pid, field):
    return int(re.search(rf"^{field}:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1])


class Held:
    """Sums of both ferryd, and what each has."""

    def __init__(self, world):
        pids = {host.name: host.process.pid for host in world.pair}
        self.resident = {name: status_of(pid, "VmRSS") for name, pid in pids.items()}
        self.files = {name: len(open_files(pid)) for name, pid in pids.items()}
        self.threads = {name: status_of(pid, "Threads") for name, pid in pids.items()}
        self.names = {host.name: set(os.listdir(host.state_dir)) for host in world.pair}

    def grown_kib(self, base):
        return sum(self.resident.values()) - sum(base.resident.values())

    def describe(self, base):
        """A line for each ferryd."""
        return [f"ferryd {name}: {self.resident[name]} KiB resident ({self.resident[name] - base.resident[name]:+}), "
                f"{self.files[name]} files ({self.files[name] - base.files[name]:+}), {self.threads[name]} threads "
                f"({self.threads[name] - base.threads[name]:+})" for name in sorted(self.resident)]


def listeners(pid):
    """How many TCP ports the process listens on."""
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening.add(f"socket:[{fields[9]}]")
    return len(listening & set(open_files(pid)))


def children(pid):
    """Its child processes, those too that have ended and were not waited for."""
    found = set()
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.add(int(entry.name))
    return found


def is_locked(path):
    """Whether a process has an open-file-description lock on any of it."""
    with path.open("rb+") as file:
        answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK


def check_files(world, base):
    strange = set(os.listdir(world.directory)) - WORLD_FILES | set(os.listdir(world.directory / "locks"))
    strange = {name for name in strange if not name.endswith(".fault.reached")}  # the faults' own, for who looks
    if strange:
        raise Wrong(f"files were left beside the disk or in the lock directory: {strange}")
    for host in world.pair:
        strange = set(os.listdir(host.state_dir)) - base.names[host.name]
        if strange:
            raise Wrong(f"files were left in the state directory of {host.name}: {strange}")
        for directory in (host.state_dir / "vms").iterdir():
            strange = set(os.listdir(directory)) - VM_FILES
            if directory.name != NAME or strange:
                raise Wrong(f"files were left in {directory}: {strange}")


def check_processes(world, running):
    """RUNNING: the VM processes that may be there."""
    wait(lambda: set(world.vm_pids()) <= running, f"VM processes other than {running} to be gone", QUIET_S)
    for host in world.pair:
        wait(lambda: children(host.process.pid) <= running, f"ferryd {host.name} to wait for its processes", QUIET_S)
        if listeners(host.process.pid) != 1:
            raise Wrong(f"ferryd {host.name} listens on {listeners(host.process.pid)} ports")


def check_quiet(world, host, base):
    """Returns what is held."""
    world.check_leaks(host)
    check_processes(world, {host.vm(NAME)["pid"]})
    check_files(world, base)

    def closed():
        now = Held(world)
        return now if (sum(now.files.values()) <= sum(base.files.values()) + FILES_SLACK
                       and sum(now.threads.values()) <= sum(base.threads.values()) + THREADS_SLACK) else None

    try:
        held = wait(closed, "files to be closed and threads to end", QUIET_S)
    except Wrong as wrong:
        raise Wrong(f"{wrong}: {'; '.join(Held(world).describe(base))}") from None
    if held.grown_kib(base) > GROWTH_MAX_KIB:
        raise Wrong(f"memory was not given back: {'; '.join(held.describe(base))}")
    return held


def check_gone(world, base):
    """After the VM was removed from both hosts."""
    check_processes(world, set())
    check_files(world, base)
    for host in world.pair:
        left = os.listdir(host.state_dir / "vms")
        if left or host.get("/v1/vms") or host.get("/v1/migrations?view=active"):
            raise Wrong(f"{host.name} still knows {left or host.get('/v1/vms')}")
    for path in (world.disk, pathlib.Path(f"{world.disk}.ferry-lock")):
        if is_locked(path):
            raise Wrong(f"{path} is still locked")
