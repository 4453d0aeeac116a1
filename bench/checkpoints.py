"""Cases of checkpoints in files: ferry-vm by itself, beside fio on the same file system and QEMU's migration to a file."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
import uuid

import qemu
from cases import absolute, definition, guest, row

MIB = 1 << 20
# Of all that QEMU can be told for this, its best counts.
TUNED = {f"mapped-ram, multifd, {channels} channels, {'direct' if direct else 'buffered'}":
         ({"max-bandwidth": 100 << 30, "multifd-channels": channels, **({"direct-io": True} if direct else {})},
          {"mapped-ram": True, "multifd": True})
         for channels in (2, 4) for direct in (True, False)}


class Vm:
    """One ferry-vm in a directory of its own, talked to by its control socket."""

    def __init__(self, build, words, *arguments):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="ferry-bench-vm-"))
        (self.directory / "definition.json").write_text(json.dumps(words))
        reader, writer = os.pipe()
        self.started = time.monotonic()
        self.process = subprocess.Popen([build / "ferry-vm", "--dir", self.directory, "--ready-fd", str(writer), *arguments],
                                        pass_fds=[writer], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            ready = json.loads(pipe.readline() or "{}")
        self.ready_ms = (time.monotonic() - self.started) * 1e3
        if not ready.get("ok"):
            raise RuntimeError(f"ferry-vm: {ready.get('error')}")
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(300)
        self.socket.connect(str(self.directory / "control.sock"))
        self.lines = self.socket.makefile("r")
        self.call("subscribe")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.socket.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def call(self, method, **params):
        self.socket.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n")
        while True:
            answer = json.loads(self.lines.readline())
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            if "id" in answer:
                return answer["result"]

    def save(self, path, **more):
        """The last word about a snapshot."""
        self.call("checkpoint-save", id=str(uuid.uuid4()), path=str(path), kind="snapshot", definition={}, **more)
        while True:
            note = json.loads(self.lines.readline())
            if note.get("method") == "checkpoint" and note["params"]["outcome"] != "none":
                if note["params"]["outcome"] != "completed":
                    raise RuntimeError(note["params"]["error"])
                return note["params"]

    def wait_console(self, words, timeout=300):
        deadline = time.monotonic() + timeout
        log = self.directory / "console.log"
        while not (log.exists() and words in log.read_text(errors="replace")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the guest did not say {words!r}")
            time.sleep(0.02)

    def log(self, pattern):
        return re.search(pattern, (self.directory / "vm.log").read_text())


@contextlib.contextmanager
def place(build):
    """A directory on the file system that is measured: that of the build, unless FERRY_BENCH_DIR says another."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="checkpoints-", dir=os.environ.get("FERRY_BENCH_DIR", build)))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _fio(directory, way, size):
    """Bytes a second of sequential direct I/O; a file that is written is a new one, and synchronised, as a checkpoint is."""
    name = directory / "fio"
    if way == "write":
        name.unlink(missing_ok=True)
    output = subprocess.run(
        ["fio", "--name=sequential", f"--filename={name}", f"--rw={way}", f"--size={size}M", "--bs=1M", "--direct=1",
         "--ioengine=libaio", "--iodepth=4", "--end_fsync=1", "--output-format=json"], capture_output=True, text=True,
        check=True, timeout=600).stdout
    return json.loads(output[output.index("{"):])["jobs"][0][way]["bw_bytes"]


def _qemu(build, directory, size, words, parameters, capabilities):
    """Bytes a second of QEMU's migration of the same guest to a file, until that is synchronised."""
    name = directory / "qemu"
    with qemu.Qemu(guest(build, "stress-riscv64.elf"), None, words, f"{size}M") as machine:
        machine.console.wait_for("work 1 ", 600)
        start = time.monotonic()
        report = machine.migrate(f"file:{name}", parameters, capabilities, timeout=600)
        if report["status"] != "completed":
            raise RuntimeError(f"QEMU: {report}")
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        took = time.monotonic() - start
    name.unlink()
    return report["ram"]["transferred"] / took


def _best_of_qemu(build, directory, size, words):
    """(bytes a second, name) of the fastest way of QEMU's that works here."""
    found = {}
    for name, told in TUNED.items():
        with contextlib.suppress(RuntimeError, TimeoutError, OSError, EOFError):
            found[name] = _qemu(build, directory, size, words, *told)
    if not found:
        return None, "QEMU without mapped-ram"
    best = max(found, key=found.get)
    return found[best], f"{qemu.version()}, {best}"


def _stopped(build, directory, count):
    """Milliseconds that an idle 2 GiB Linux stands still for a snapshot."""
    times = []
    with Vm(build, definition(build, memory=2048)) as vm:
        vm.wait_console("FERRY-GUEST READY")
        for _ in range(count):
            times.append(vm.save(directory / "idle", overwrite=True)["stopped_ns"] / 1e6)
    (directory / "idle").unlink()
    return times


def _restoring(build, directory, words, count):
    """Of starts from the file: (milliseconds until it runs and of that restoring, with memory to come; bytes a second, with all
    of it there)."""
    ready, going, rates = [], [], []
    for _ in range(count):
        with Vm(build, words, "--resume", str(directory / "full")) as vm:
            ready.append(vm.ready_ms)
            going.append(float(vm.log(r"goes on after ([0-9.]+) ms").group(1)))
        with Vm(build, words, "--resume", str(directory / "full"), "--eager") as vm:
            size, took = vm.log(r"checkpoint: (\d+) MiB of memory were read from .* in ([0-9.]+) ms").groups()
            rates.append(int(size) * MIB / float(took) * 1e3)
    return ready, going, rates


def checkpoint(build, quick):
    """Checkpoints of 2 GiB guests: how long one stands still, and writing and reading beside fio, and writing beside QEMU"""
    size, count = (512, 2) if quick else (2048, 5)
    # Nearly all of it written, hardly any again.
    words = f"mem={size - 64}M rate=64K interval=1000 harts=1"
    stress = {"name": "bench", "machine": "riscv64", "memory": size << 20, "vcpus": 1,
              "kernel": guest(build, "stress-riscv64.elf"), "cmdline": words}
    mine, disk, reads, peers = [], [], [], []
    with place(build) as directory:
        stopped = _stopped(build, directory, count)
        with Vm(build, stress) as vm:
            vm.wait_console("work 1 ", 600)
            for _ in range(count):  # in turns, so that all meet the same disk
                (directory / "full").unlink(missing_ok=True)
                report = vm.save(directory / "full")
                mine.append(report["bytes"] / report["total_ns"] * 1e9)
                disk.append(_fio(directory, "write", size))
                reads.append(_fio(directory, "read", size))
        ready, going, rates = _restoring(build, directory, stress, count)
        (directory / "full").unlink()
        for _ in range(1 if quick else 3):
            peers.append(_best_of_qemu(build, directory, size, words) if qemu.available() else (None, "no QEMU"))
    speed = {name: statistics.median(values) / 1e9
             for name, values in (("write", mine), ("disk", disk), ("read", rates), ("disk read", reads))}
    peer = max(peers, key=lambda pair: pair[0] or 0)
    return [
        absolute("snapshot of 2 GiB, idle: stopped", "ms", statistics.median(stopped), count, "< 20 ms", 20),
        row("checkpoint, writing", "GB/s", speed["write"], speed["disk"], "fio, direct", count, ">= 0.9 x", ">=", 0.9),
        row("checkpoint, writing", "GB/s", speed["write"], peer[0] and peer[0] / 1e9, peer[1], count, ">= 1 x", ">=", 1),
        absolute("lazy resume, from the process's start", "ms", statistics.median(ready), count, "< 50 ms", 50),
        absolute("lazy resume, restoring", "ms", statistics.median(going), count, "< 50 ms", 50),
        row("eager resume, reading", "GB/s", speed["read"], speed["disk read"], "fio, direct", count, ">= 0.8 x", ">=", 0.8),
    ]


CASES = {"checkpoint": checkpoint}
