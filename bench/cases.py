"""The benchmark cases. Each is a function (build, quick) -> rows; the first line of its docstring is its summary."""

import pathlib
import re
import statistics
import time

import ferry
import qemu

BOOT_WORDS = "FERRY-GUEST READY"
CMDLINE = "console=ttyS0 quiet"


def row(case, unit, mine, peer, peer_name, runs, target, better, limit):
    """One line of the table. RATIO is ferry / peer; it holds when it is on the BETTER side ('<=' or '>=') of LIMIT."""
    ratio = mine / peer if peer else None
    holds = None if ratio is None else (ratio <= limit if better == "<=" else ratio >= limit)
    return {"case": case, "unit": unit, "ferry": mine, "peer": peer, "peer_name": peer_name, "runs": runs,
            "ratio": ratio, "target": target, "holds": holds}


def absolute(case, unit, mine, runs, target, limit):
    """A figure with a fixed upper limit and no peer."""
    return {"case": case, "unit": unit, "ferry": mine, "peer": None, "peer_name": "-", "runs": runs, "ratio": None,
            "target": target, "holds": mine <= limit}


def unmeasured(case, reason):
    return {"case": case, "unit": "", "ferry": None, "peer": None, "peer_name": "", "runs": 0, "ratio": None,
            "target": "", "holds": None, "reason": reason}


def guest(build, name):
    path = pathlib.Path(build) / "guest" / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run make guests")
    return str(path)


def linux(build):
    return guest(build, "riscv64/kernel"), guest(build, "riscv64/initrd")


def definition(build, name="bench", memory=512, **more):
    kernel, initrd = linux(build)
    return {"name": name, "machine": "riscv64", "memory": memory << 20, "vcpus": 1, "kernel": kernel,
            "initrd": initrd, "cmdline": CMDLINE, **more}


def boot(build, quick):
    """Wall time from starting the VM until the Debian kernel has reached init and init says so"""
    kernel, initrd = linux(build)
    mine, peer = [], []
    with ferry.Pair(build) as pair:
        for _ in range(2 if quick else 5):
            start = time.monotonic()
            pair.a.run(**definition(build))
            pair.a.wait_console("bench", BOOT_WORDS)
            mine.append(time.monotonic() - start)
            pair.a.remove("bench")
            with qemu.Qemu(kernel, initrd, CMDLINE) as machine:
                machine.console.wait_for(BOOT_WORDS, 120)
                peer.append(time.monotonic() - machine.started)
    return [row("boot to init", "s", statistics.median(mine), statistics.median(peer), qemu.version(), len(mine),
                "<= 2 x", "<=", 2.0)]


def _loop_speeds(text):
    """`loop NAME rate=N …` lines: name -> iterations a second."""
    return {name: float(rate) for name, rate in re.findall(r"^loop (\S+) .*?rate=([0-9.e+]+)", text, re.M)}


def loops(build, quick):
    """Integer, memory and floating-point loops of the project's own, bare metal, and two harts against one"""
    elf = guest(build, "loops-riscv64.elf")
    mine, peer = [], []
    with ferry.Pair(build) as pair:
        for _ in range(1 if quick else 5):
            pair.a.run(name="loops", machine="riscv64", memory=64 << 20, vcpus=2, kernel=elf, cmdline="harts=2")
            mine.append(_loop_speeds(pair.a.wait_console("loops", "LOOPS DONE", 300)))
            pair.a.remove("loops")
            with qemu.Qemu(elf, append="harts=2", memory="64M", smp=2) as machine:
                peer.append(_loop_speeds(machine.console.wait_for("LOOPS DONE", 300)))
    rows = []
    for name in ("int", "mem", "fp"):
        rows.append(row(f"loop {name}", "iterations/s", statistics.median(run[name] for run in mine),
                        statistics.median(run[name] for run in peer), qemu.version(), len(mine), ">= 0.25 x", ">=", 0.25))
    rows.append(row("two harts", "iterations/s", statistics.median(run["int2"] for run in mine),
                    statistics.median(run["int"] for run in mine), "Ferry, one hart", len(mine), ">= 1.7 x", ">=", 1.7))
    return rows


def _qemu_moves(build, count, parameters):
    """COUNT moves of an idle guest between QEMU processes: [(real downtime s, total s, bytes)]."""
    kernel, initrd = linux(build)
    moves, missed = [], 0
    machine = qemu.Qemu(kernel, initrd, CMDLINE)
    try:
        machine.console.wait_for(BOOT_WORDS, 120)
        time.sleep(2)  # both guests are given the same time to come to rest
        while len(moves) < count:
            target = qemu.Qemu(kernel, initrd, CMDLINE, incoming="tcp:127.0.0.1:0")
            try:
                port = next(address["port"] for address in target.qmp("query-migrate")["socket-address"])
                report = machine.migrate(f"tcp:127.0.0.1:{port}", parameters)
                assert report["status"] == "completed", report
                target.await_event("RESUME")
                try:
                    machine.await_event("STOP")
                except TimeoutError:  # about one of 150 moves ends without; it cannot be measured
                    if (missed := missed + 1) > 5:
                        raise
                    continue
                moves.append((target.event_time("RESUME") - machine.event_time("STOP"),
                              report["total-time"] / 1e3, report["ram"]["transferred"]))
            finally:
                machine.close()
                machine = target
    finally:
        machine.close()
    return moves


def _ferry_moves(build, count, **more):
    with ferry.Pair(build) as pair:
        pair.a.run(**definition(build, **more))
        pair.a.wait_console("bench", BOOT_WORDS)
        time.sleep(2)
        reports = []
        source, destination = pair.a, pair.b
        for _ in range(count):
            reports.append(source.migrate("bench", destination.name))
            source, destination = destination, source
        return reports, source.console("bench")


def idle(build, quick):
    """An idle Linux guest with 512 MiB over loopback: downtime, total time, bytes"""
    count = 4 if quick else 20
    reports, _ = _ferry_moves(build, count)
    median = lambda values: statistics.median(values)  # noqa: E731
    downtime = median([report["downtime_ns"] / 1e6 for report in reports])
    total = median([report["total_ns"] / 1e6 for report in reports])
    sent = median([report["wire_bytes"] / 2**20 for report in reports])
    rows = [absolute("idle downtime", "ms", downtime, count, "< 5 ms", 5.0)]
    for name, parameters in (("default bandwidth", None), ("bandwidth unlimited", {"max-bandwidth": 100 << 30})):
        moves = _qemu_moves(build, count, parameters)
        peer = f"{qemu.version()}, {name}"
        rows += [row("idle downtime", "ms", downtime, median([move[0] * 1e3 for move in moves]), peer, count, "<= 1 x", "<=", 1.0),
                 row("idle total", "ms", total, median([move[1] * 1e3 for move in moves]), peer, count, "<= 1 x", "<=", 1.0),
                 row("idle bytes", "MiB", sent, median([move[2] / 2**20 for move in moves]), peer, count, "<= 1 x", "<=", 1.0)]
    return rows


def gap(build, quick):
    """The downtime Ferry reports against the largest gap the guest itself saw, over moves under a light load"""
    count = 4 if quick else 20
    reports, console = _ferry_moves(build, count, cmdline=CMDLINE + " ferry.work=threads=1,mem=16M,rate=1M")
    seen = max(float(value) for value in re.findall(r"gap_max=([0-9.]+)ms", console))
    worst = max(report["downtime_ns"] / 1e6 for report in reports)
    return [row("guest's largest gap", "ms", seen, worst, "largest downtime reported", count, ">= 0.9 x", ">=", 0.9)]


def memory(build, quick):
    """What ferry-vm costs beside guest memory: resident, without the guest's pages"""
    with ferry.Pair(build) as pair:
        pid = pair.a.run(**definition(build))["pid"]
        pair.a.wait_console("bench", BOOT_WORDS)
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    kib = {key: int(value) for key, value in re.findall(r"^(Rss\w+):\s+(\d+) kB", status, re.M)}
    return [absolute("ferry-vm memory", "MiB", (kib["RssAnon"] + kib["RssFile"]) / 1024, 1, "< 24 MiB", 24.0)]


CASES = {"boot": boot, "loops": loops, "idle": idle, "gap": gap, "memory": memory}
