"""Cases of the x86_64 machine on this host's KVM: its start, and moves of the bare-metal guest, beside QEMU's."""

import contextlib
import ctypes
import json
import os
import pathlib
import re
import statistics
import struct
import subprocess
import tempfile
import time

import ferry
import qemu
from cases import absolute, guest, row, unmeasured

GUEST = "stress-x86_64.elf"
# QEMU sets this feature's MSR to what the host has, which not every KVM takes.
QEMU_CPU = ["-cpu", "host,-arch-capabilities"]
PEER_MEMORY = "256M"
IN_MODIFY = 2
MARK = b"!"


# ---- from a process's start to the guest's first instruction ----

def _first_words(bits):
    """Code that writes MARK to COM1 and halts for ever; 16 or 32 bits."""
    code = b"\xba\xf8\x03" if bits == 16 else b"\x66\xba\xf8\x03"
    return code + b"\xb0" + MARK + b"\xee\xf4\xeb\xfd"


def _kernel():
    """A kernel of these few instructions, for the PVH boot protocol."""
    start, offset, code = 0x100000, 0x1000, _first_words(32)
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", start)
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, start, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 7, offset, start, start, len(code), len(code), 4096)
    head += struct.pack("<IIQQQQQQ", 4, 4, 0x100, 0, 0, len(note), len(note), 4)
    return (head.ljust(0x100, b"\0") + note).ljust(offset, b"\0") + code


def _firmware():
    """The same as a ROM: what QEMU's guests execute first."""
    return b"\x90" * (65536 - 16) + _first_words(16).ljust(16, b"\x90")


class _Appearing:
    """Tells when something is written to a file that need not be there yet."""

    def __init__(self, path):
        self.path = path
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_CLOEXEC)
        if self.fd < 0 or libc.inotify_add_watch(self.fd, os.fsencode(path.parent), IN_MODIFY) < 0:
            raise OSError(ctypes.get_errno(), "cannot watch a directory")

    def wait(self):
        while not (self.path.exists() and self.path.stat().st_size):
            os.read(self.fd, 4096)
        return time.monotonic()

    def close(self):
        os.close(self.fd)


def _start_ferry(build, memory):
    """Milliseconds until the guest's first byte is in its console's log."""
    with tempfile.TemporaryDirectory(prefix="ferry-bench-start-") as name:
        directory = pathlib.Path(name)
        (directory / "kernel").write_bytes(_kernel())
        (directory / "definition.json").write_text(json.dumps(
            {"name": "bench", "machine": "x86_64", "memory": memory << 20, "kernel": str(directory / "kernel")}))
        with contextlib.closing(_Appearing(directory / "console.log")) as log:
            begin = time.monotonic()
            process = subprocess.Popen([build / "ferry-vm", "--dir", directory], stdin=subprocess.DEVNULL)
            try:
                return (log.wait() - begin) * 1e3
            finally:
                process.terminate()
                process.wait(20)


def _start_qemu(memory):
    """The same until the ROM's first byte is on standard output, of a machine without anything that takes time."""
    with tempfile.NamedTemporaryFile(prefix="ferry-bench-rom-") as rom:
        rom.write(_firmware())
        rom.flush()
        line = [*qemu.command(qemu.X86_64), "-M", "microvm,accel=kvm", *QEMU_CPU, "-m", f"{memory}M", "-nodefaults",
                "-no-user-config", "-display", "none", "-monitor", "none", "-serial", "stdio", "-bios", rom.name]
        begin = time.monotonic()
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            said = os.read(process.stdout.fileno(), 256)
            if said != MARK:
                raise RuntimeError(f"QEMU does not start: {said.decode(errors='replace').strip()}")
            return (time.monotonic() - begin) * 1e3
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def start(build, quick):
    """From a process's start to the first guest instruction, as seen from outside, on KVM"""
    count, memory = 5 if quick else 50, 256
    mine, peer = [], []
    for _ in range(count):  # in turns
        mine.append(_start_ferry(build, memory))
        peer.append(_start_qemu(memory))
    return [absolute("start to first instruction", "ms", statistics.median(mine), count, "< 30 ms", 30),
            row("start to first instruction", "ms", statistics.median(mine), statistics.median(peer),
                f"{qemu.version(qemu.X86_64)}, microvm", count, "<= 1 x", "<=", 1.0)]


# ---- moves ----

def _passes(text):
    """How often the guest has verified all of its memory; a line may be the half of one."""
    found = re.findall(r"pass=(\d+) ", text[-2000:])
    return int(found[-1]) if found else 0


class _Mover:
    """The stress guest under Ferry on KVM, that goes back and forth."""

    def __init__(self, build, memory, cmdline, vcpus=1):
        self.pair = ferry.Pair(build)
        self.here, self.there = self.pair.a, self.pair.b
        try:
            self.here.run(name="bench", machine="x86_64", memory=memory << 20, vcpus=vcpus, kernel=guest(build, GUEST),
                          cmdline=f"{cmdline} cpus={vcpus}")
            self.here.wait_console("bench", lambda said: _passes(said) >= 1, 300)
        except BaseException:
            self.close()
            raise

    def move(self):
        report = self.here.migrate("bench", self.there.name)
        self.here, self.there = self.there, self.here
        return report

    def assert_whole(self):
        """It has verified all of its memory twice since it is here, the second time all of what it wrote here."""
        done = _passes(self.here.console("bench"))
        text = self.here.wait_console("bench", lambda said: _passes(said) >= done + 2, 300)
        assert not re.search(r"errors=[1-9]|WORK ERROR", text), text[-400:]
        assert text.count("work begins") == 1, "the guest was started anew"

    def close(self):
        self.pair.__exit__()


class _Peer:
    """The same guest under QEMU on the same KVM, that goes from process to process."""

    def __init__(self, build, cmdline, parameters):
        self.kernel, self.cmdline, self.parameters = guest(build, GUEST), cmdline, parameters
        self.missed = 0
        self.machine = self._start()
        try:
            self.machine.console.wait_for("pass=1", 300)
        except BaseException:
            self.close()
            raise

    def _start(self, **more):
        return qemu.Qemu(self.kernel, append=self.cmdline, memory=PEER_MEMORY, program=qemu.X86_64, machine="pc,accel=kvm",
                         extra=(*QEMU_CPU, "-nodefaults", "-no-user-config"), **more)

    def move(self):
        """The downtime in milliseconds, from the event STOP to the event RESUME; its vCPUs have stopped before STOP."""
        while True:
            try:
                return self._move_once()
            except TimeoutError:  # now and then a move ends without STOP; it cannot be measured
                self.missed += 1
                if self.missed > 5:
                    raise

    def _move_once(self):
        source, target = self.machine, self._start(incoming="tcp:127.0.0.1:0")
        self.machine = target
        try:
            port = next(address["port"] for address in target.qmp("query-migrate")["socket-address"])
            report = source.migrate(f"tcp:127.0.0.1:{port}", self.parameters)
            assert report["status"] == "completed", report
            target.await_event("RESUME")
            source.await_event("STOP")
            return (target.event_time("RESUME") - source.event_time("STOP")) * 1e3
        finally:
            source.close()

    def assert_whole(self):
        """Says so after every move: the console of this process begins with it."""
        text = self.machine.console.wait_for("pass=", 60)
        assert not re.search(r"errors=[1-9]|WORK ERROR", text), text[-400:]

    def close(self):
        self.machine.close()


def _full_load(build, quick, vcpus):
    count = 5 if quick else 100
    with contextlib.closing(_Mover(build, 128, "mem=96M rate=0 interval=20", vcpus)) as mover:
        reports = []
        for _ in range(count):
            reports.append(mover.move())
            mover.assert_whole()
    times = sorted(report["downtime_ns"] / 1e6 for report in reports)
    case, name = f"full write load by {vcpus} vCPU", f"moves asked for: {count}"
    return [row(f"{case}, moved and whole", "moves", len(reports), count, name, count, "all", ">=", 1.0),
            absolute(f"{case}, downtime, median", "ms", statistics.median(times), count, "<= 60 ms", 60),
            absolute(f"{case}, total, median", "s",
                     statistics.median(report["total_ns"] / 1e9 for report in reports), count, "<= 60 s", 60)]


def full_load(build, quick):
    """A guest that writes its memory as fast as it can: moves, after each of which all of it is verified, on KVM"""
    return _full_load(build, quick, 1) + _full_load(build, quick, 2)


def downtime(build, quick):
    """A guest that writes 40 MiB/s, at which QEMU's defaults converge: downtimes beside QEMU's, on KVM"""
    count, cmdline = 4 if quick else 100, "mem=96M rate=40M interval=100"
    peers = {"defaults": None, "bandwidth unlimited": {"max-bandwidth": 100 << 30}}
    with contextlib.ExitStack() as stack:
        mover = stack.enter_context(contextlib.closing(_Mover(build, 256, cmdline)))
        movers = {name: stack.enter_context(contextlib.closing(_Peer(build, cmdline, parameters)))
                  for name, parameters in peers.items()}
        mine, theirs = [], {name: [] for name in peers}
        for number in range(count):  # in turns, so that all meet the same disturbances
            mine.append(mover.move()["downtime_ns"] / 1e6)
            for name, peer in movers.items():
                if name == "defaults" or number % 5 == 0:
                    theirs[name].append(peer.move())
                    peer.assert_whole()
        mover.assert_whole()
    median = statistics.median(mine)
    version = qemu.version(qemu.X86_64)
    return [row("downtime, 40 MiB/s written", "ms", median, statistics.median(theirs["defaults"]), f"{version}, defaults",
                count, "<= 0.2 x", "<=", 0.2),
            row("downtime, 40 MiB/s written", "ms", median, statistics.median(theirs["bandwidth unlimited"]),
                f"{version}, bandwidth unlimited", count, "<= 1 x", "<=", 1.0),
            absolute("downtime, 40 MiB/s written, 99 of 100", "ms", sorted(mine)[max(int(count * 0.99) - 1, 0)], count,
                     "<= 30 ms", 30)]


def _on_kvm(case):
    """CASE, where there is a KVM."""
    def run(build, quick):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return [unmeasured(case.__name__, "this machine has no KVM")]
        return case(build, quick)
    run.__doc__ = case.__doc__
    return run


CASES = {
    "kvm-downtime": _on_kvm(downtime),
    "kvm-full-load": _on_kvm(full_load),
    "kvm-start": _on_kvm(start),
}
