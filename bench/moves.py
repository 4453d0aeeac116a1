"""Cases of whole moves of a bare-metal guest that writes its memory: what they reach on a link, and beside QEMU."""

import contextlib
import mmap
import os
import re
import statistics
import threading

import ferry
import link
import qemu
from cases import absolute, guest, row

GIB = 1 << 30
# What QEMU is told, besides its defaults: its best counts.
TUNED = {"bandwidth unlimited": ({"max-bandwidth": 100 << 30}, None)}
TUNED |= {f"multifd, {channels} channels": ({"max-bandwidth": 100 << 30, "multifd-channels": channels}, {"multifd": True})
          for channels in (2, 4)}


def _cpu_seconds(pid):
    """What the process has used so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _LastCpu:
    """What a process that ends meanwhile has used, looked at now and then."""

    def __init__(self, pid):
        self.pid, self.first = pid, _cpu_seconds(pid)
        self.last = self.first
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        self.used = self.last - self.first

    def _look(self):
        while not self.ended.wait(0.02):
            try:
                self.last = _cpu_seconds(self.pid)
            except (OSError, IndexError):
                return


def _back_free_memory(mib):
    """Has so much of the free memory be there, when this machine is a virtual one whose own host takes free memory back."""
    with contextlib.closing(mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1


class _FerryStress:
    """A stress guest under Ferry, that goes back and forth."""

    def __init__(self, build, memory, cmdline):
        self.pair = ferry.Pair(build)
        self.here, self.there = self.pair.a, self.pair.b
        _stress(build, self.here, memory, cmdline, "work 2 ")

    def move(self, **options):
        report = self.here.migrate("bench", self.there.name, **options)
        self.here, self.there = self.there, self.here
        return report

    def measure(self):
        """(GB/s, CPU seconds per GiB) of one move."""
        with _LastCpu(self.here.call("GET", "/v1/vms/bench")["pid"]) as source:
            report = self.move()
        used = source.used + _cpu_seconds(self.here.call("GET", "/v1/vms/bench")["pid"])
        return report["wire_bytes"] / report["total_ns"], used / (report["wire_bytes"] / GIB)

    def close(self):
        self.pair.__exit__()


class _QemuStress:
    """The same guest under QEMU, that goes from process to process."""

    def __init__(self, build, memory, cmdline, parameters, capabilities):
        self.start = (guest(build, "stress-riscv64.elf"), None, cmdline, f"{memory}M")
        self.parameters, self.capabilities = parameters, capabilities
        self.machine = qemu.Qemu(*self.start)
        self.machine.console.wait_for("work 2 ", 300)

    def measure(self):
        source, target = self.machine, qemu.Qemu(*self.start, incoming="defer")
        self.machine = target
        try:
            target.set_up(self.parameters, self.capabilities)
            target.qmp("migrate-incoming", uri="tcp:127.0.0.1:0")
            port = next(address["port"] for address in target.qmp("query-migrate")["socket-address"])
            before = _cpu_seconds(source.process.pid)
            report = source.migrate(f"tcp:127.0.0.1:{port}", self.parameters, self.capabilities)
            assert report["status"] == "completed", report
            used = _cpu_seconds(source.process.pid) - before + _cpu_seconds(target.process.pid)
            sent = report["ram"]["transferred"]
            return sent / (report["total-time"] / 1e3) / 1e9, used / (sent / GIB)
        finally:
            source.close()

    def close(self):
        self.machine.close()


def _stress(build, host, memory, cmdline, words="pass=1"):
    """A bare-metal guest that has filled its memory, goes on writing it, and has said so."""
    host.run(name="bench", machine="riscv64", memory=memory << 20, vcpus=1, kernel=guest(build, "stress-riscv64.elf"),
             cmdline=cmdline)
    host.wait_console("bench", words, 600)


def _assert_whole(host):
    """It goes on at HOST, and finds all of its memory as it was written."""
    passes = int(re.findall(r"pass=(\d+)", host.console("bench"))[-1])
    text = host.wait_console("bench", f"pass={passes + 2}", 600)
    assert not re.search(r"errors=[1-9]|WORK ERROR", text), text[-400:]


def table(build, quick):
    """The reference calculation: 2 GiB, not compressed, over 1 Gbit/s, a quarter of what is sent is changed meanwhile (needs root)"""
    with link.Link(10**9) as shaped:
        rate = shaped.tcp_rate()
        with ferry.Pair(build, shaped) as pair:
            _stress(build, pair.a, 2048, f"rate={int(rate / 4)} order=seq interval=1000")
            report = pair.a.migrate("bench", "b", compress="off")
            if not quick:
                _assert_whole(pair.b)
    sent = [entry["pages"] * 4096 for entry in report["rounds"]]
    # Down to what is there within a tenth of a second, each round is a quarter of the one before.
    quarters = [after / before for before, after in zip(sent, sent[1:]) if before > rate / 10]
    ideal = report["wire_bytes"] / rate
    name = "bytes / iperf3's rate"
    rows = [{**row("reference table, rounds", "of the one before", statistics.mean(quarters), 0.25, "a quarter", len(quarters),
                   "0.2 to 0.3 each", "<=", 1.2), "holds": all(0.2 <= each <= 0.3 for each in quarters)},
            row("reference table, copying", "s", (report["total_ns"] - report["setup_ns"]) / 1e9, ideal, name, 1, "<= 1.05 x",
                "<=", 1.05),
            row("reference table, total", "s", report["total_ns"] / 1e9, ideal, name, 1, "<= 1.05 x", "<=", 1.05),
            absolute("reference table, downtime", "ms", report["downtime_ns"] / 1e6, 1, "<= 60 ms", 60)]
    return rows


def _qemu_outrun(build, shaped, cmdline, seconds):
    """Whether QEMU with its defaults has moved the guest within so many seconds."""
    kernel = guest(build, "stress-riscv64.elf")
    with qemu.Qemu(kernel, append=cmdline, memory="256M", prefix=shaped.ends[0]) as machine:
        machine.console.wait_for("pass=1", 300)
        with qemu.Qemu(kernel, append=cmdline, memory="256M", prefix=shaped.ends[1],
                       incoming=f"tcp:{shaped.addresses[1]}:0") as target:
            port = next(address["port"] for address in target.qmp("query-migrate")["socket-address"])
            try:
                return machine.migrate(f"tcp:{shaped.addresses[1]}:{port}", timeout=seconds)["status"] == "completed"
            except TimeoutError:
                return False


def outrun(build, quick):
    """A guest that writes 1.5 times what the link carries: whether it is moved at all, and its downtime (needs root)"""
    seconds = 60 if quick else 180
    with link.Link(2 * 10**8) as shaped:
        rate = shaped.tcp_rate()
        cmdline = f"mem=128M rate={int(rate * 1.5)} order=seq interval=1000"
        with ferry.Pair(build, shaped) as pair:
            _stress(build, pair.a, 256, cmdline)
            report = pair.a.migrate("bench", "b", compress="off")
            _assert_whole(pair.b)
        peer = _qemu_outrun(build, shaped, cmdline, seconds)
    return [{**absolute("writing 1.5 x the link, total", "s", report["total_ns"] / 1e9, 1, f"QEMU: not in {seconds} s", seconds),
             "peer_name": f"{qemu.version()}, defaults: {'it does' if peer else 'it does not'}",
             "holds": not peer and report["total_ns"] / 1e9 <= seconds},
            absolute("writing 1.5 x the link, downtime", "ms", report["downtime_ns"] / 1e6, 1, "<= 60 ms", 60),
            absolute("writing 1.5 x the link, slowed by up to", "%", report["throttle_most"], 1, "<= 99 %", 99)]


def throughput(build, quick):
    """2 GiB of random memory, idle, over loopback: against QEMU with the settings that are best for it"""
    count = 2 if quick else 9
    cmdline = "rate=4096 interval=1000"
    with contextlib.ExitStack() as stack:
        movers = {"Ferry": _FerryStress(build, 2048, cmdline)}
        stack.callback(movers["Ferry"].close)
        for name, settings in TUNED.items():
            movers[name] = _QemuStress(build, 2048, cmdline, *settings)
            stack.callback(movers[name].close)
        runs = {name: [] for name in movers}
        for mover in movers.values():  # not counted: the host's own first touch of the memory
            mover.measure()
        for _ in range(count):  # in turns, so that all meet the same disturbances
            for name, mover in movers.items():
                _back_free_memory(6144)
                runs[name].append(mover.measure())
    medians = {name: [statistics.median(column) for column in zip(*values)] for name, values in runs.items()}
    speed, cpu = medians.pop("Ferry")
    fastest = max(medians, key=lambda name: medians[name][0])
    frugal = min(medians, key=lambda name: medians[name][1])
    return [row("throughput", "GB/s", speed, medians[fastest][0], f"{qemu.version()}, {fastest}", count, ">= 1.5 x", ">=", 1.5),
            row("CPU, both sides", "s/GiB", cpu, medians[frugal][1], f"{qemu.version()}, {frugal}", count, "<= 1 x", "<=", 1.0)]


def sparse(build, quick):
    """A guest of 4 GiB of which 256 MiB are in use: bytes on the wire"""
    with contextlib.closing(_FerryStress(build, 4096, "mem=256M rate=4096 interval=1000")) as mover:
        sent = [mover.move()["wire_bytes"] / 2**20 for _ in range(1 if quick else 3)]
    return [row("4 GiB, 256 MiB in use", "MiB", statistics.median(sent), 256, "what is in use", len(sent), "<= 1.02 x", "<=", 1.02)]


def downtime(build, quick):
    """A guest of 1 GiB that writes 50 MiB/s over loopback: downtimes of 100 moves"""
    count = 10 if quick else 100
    with contextlib.closing(_FerryStress(build, 1024, "rate=50M interval=100")) as mover:
        times = sorted(mover.move()["downtime_ns"] / 1e6 for _ in range(count))
        _assert_whole(mover.here)
    return [absolute("downtime while writing, median", "ms", statistics.median(times), count, "<= 10 ms", 10),
            absolute("downtime while writing, 99 of 100", "ms", times[int(count * 0.99) - 1], count, "<= 30 ms", 30)]


CASES = {
    "downtime": downtime,
    "outrun": outrun,
    "sparse": sparse,
    "table": table,
    "throughput": throughput,
}
