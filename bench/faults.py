"""Cases about page faults in quick resume."""

import pathlib
import re
import statistics
import subprocess
import tempfile
import time

import qemu
from cases import CMDLINE, FerryMover, linux, row


def _fault_times(build, count, *options):
    """Medians in us of each run of fault_bench: [(local, exchange, fetched)]."""
    command = [pathlib.Path(build) / "bench" / "fault_bench", "-n", count, *options]
    output = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600, check=True)
    return [tuple(map(float, re.findall(r"median ([0-9.]+) us", line))) for line in output.stdout.splitlines()]


def _qemu_faults(guest):
    """One move of GUEST by post-copy; from its trace the us that each page took from its request until it was placed."""
    with tempfile.TemporaryDirectory(prefix="ferry-bench-trace-") as directory, qemu.Qemu(*guest) as source:
        trace = pathlib.Path(directory) / "trace"
        points = ("postcopy_ram_fault_thread_request", "postcopy_place_page", "postcopy_place_page_zero")
        source.console.wait_for("work 20 ", 120)
        with qemu.Qemu(*guest, incoming="tcp:127.0.0.1:0",
                       extra=("-msg", "timestamp=on", "-D", str(trace),
                              *(word for point in points for word in ("-trace", point)))) as target:
            target.set_up(capabilities={"postcopy-ram": True})
            port = next(address["port"] for address in target.qmp("query-migrate")["socket-address"])
            report = source.migrate(f"tcp:127.0.0.1:{port}", capabilities={"postcopy-ram": True}, postcopy=True)
            assert report["status"] == "completed", report
        return _trace_times(trace.read_text())


def _trace_times(text):
    asked, took = {}, []
    for moment, point, address in re.findall(r"^\d+@([0-9.]+):(postcopy_\w+) .*?(0x[0-9a-f]+)", text, re.M):
        page = int(address, 16) & ~4095
        if point == "postcopy_ram_fault_thread_request":
            asked.setdefault(page, float(moment))
        elif page in asked:
            took.append((float(moment) - asked.pop(page)) * 1e6)
    return took


def quick_resume(build, quick):
    """How long a page fault waits in quick resume: against one that is served locally, and against QEMU's post-copy"""
    count = 3 if quick else 15
    alone, pushed = (_fault_times(build, count, *options) for options in ((), ("-p",)))
    local, exchange, fetched = (statistics.median(column) for column in zip(*alone))
    busy_local, _, busy = (statistics.median(column) for column in zip(*pushed))
    rows = [row("page fault, median", "us", fetched, local, "a local userfaultfd fault", count, "<= 2.5 x", "<=", 2.5),
            row("page fault, median", "us", fetched, local + exchange, "a local fault and a bare TCP round trip", count,
                "<= 2 x", "<=", 2.0),
            row("page fault while all is pushed, median", "us", busy, busy_local, "a local userfaultfd fault", count,
                "<= 10 x", "<=", 10.0)]
    work = CMDLINE + " ferry.work=threads=1,mem=64M,rate=20M"
    reports, peer = [], []
    mover = FerryMover(build, cmdline=work)
    try:
        time.sleep(2)
        for _ in range(2 if quick else 9):
            reports.append(mover.move(quick_resume="now")["quick_resume"])
            peer.append(_qemu_faults((*linux(build), work)))
            time.sleep(1)
    finally:
        mover.close()
    mine = statistics.median(report["fault_median_ns"] / 1e3 for report in reports)
    theirs = statistics.median(statistics.median(times) for times in peer if times)
    rows.append(row("a guest's page faults, median of medians", "us", mine, theirs, f"{qemu.version()}, post-copy",
                    len(reports), "<= 1 x", "<=", 1.0))
    return rows


CASES = {
    "quick-resume": quick_resume,
}
