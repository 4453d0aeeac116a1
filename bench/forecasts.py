"""What `ferry check` foretells of a migration against what comes of it.

Predictions and moves take turns, a move following its prediction at once, so that both meet the same machine; what
counts is the middle one of the ratios of such pairs.
"""

import contextlib
import statistics

import ferry
import link
from cases import CMDLINE, FerryMover, guest

SLACK = 0.2
GBIT = 10**9
# Pairs before those that count: first a host's memory is new to it, and nothing is known of the VM's earlier moves. They are
# as far apart as those that count, as how long memory was free decides what its first touch costs.
WARM_UP = 6


class _Stress(FerryMover):
    """A bare-metal guest that writes its memory, goes back and forth between two hosts; SHAPED: the link between them (link.py)."""

    def __init__(self, build, memory, cmdline, shaped=None):
        self.pair = ferry.Pair(build, shaped)
        self.here, self.there = self.pair.a, self.pair.b
        try:
            self.here.run(name="bench", machine="riscv64", memory=memory << 20, vcpus=1,
                          kernel=guest(build, "stress-riscv64.elf"), cmdline=cmdline + " interval=1000")
            self.here.wait_console("bench", "work 2 ", 600)
        except BaseException:
            self.close()
            raise


def _pairs(mover, count, **options):
    """(what was foretold, what came) of so many moves."""
    pairs = []
    for _ in range(WARM_UP + count):
        check = mover.here.call("POST", "/v1/vms/bench/check", {"destination": mover.there.name, "forecast": True, **options})
        pairs.append((check["forecast"], mover.move(**options)))
    return pairs[WARM_UP:]


def _compare(name, pairs):
    rows = []
    for what, key in (("total", "total_ns"), ("downtime", "downtime_ns")):
        foretold, came = (statistics.median(pair[side][key] for pair in pairs) / 1e6 for side in (0, 1))
        ratio = statistics.median(before[key] / after[key] for before, after in pairs)
        rows.append({"case": f"forecast {what}, {name}", "unit": "ms", "ferry": foretold, "peer": came,
                     "peer_name": "what came of it", "runs": len(pairs), "ratio": ratio, "target": f"within {SLACK:.0%}",
                     "holds": abs(ratio - 1) <= SLACK})
    return rows


def forecast(build, quick):
    """What `ferry check` foretells of a migration against what comes of it (two of its cases need root)"""
    count = 2 if quick else 9
    with contextlib.closing(FerryMover(build, cmdline=CMDLINE)) as mover:
        rows = _compare("idle", _pairs(mover, count))
    # Pages go as they are: what the changes of changed pages save is not foretold.
    with contextlib.closing(_Stress(build, 512, "mem=256M rate=4M order=seq")) as mover:
        rows += _compare("4 MiB/s, limited to 500 Mbit/s", _pairs(mover, count, bandwidth_limit=GBIT // 16, compress="off"))
    with link.Link(GBIT) as shaped:
        with contextlib.closing(_Stress(build, 1024, "mem=256M rate=20M order=seq", shaped)) as mover:
            rows += _compare("20 MiB/s, link of 1 Gbit/s", _pairs(mover, count, compress="off"))
        with contextlib.closing(_Stress(build, 256, "mem=128M rate=200M order=seq", shaped)) as mover:
            pairs = _pairs(mover, max(2, count // 2), compress="off", throttle_max=0)
    rows += _compare("200 MiB/s, link of 1 Gbit/s", pairs)
    # Neither did the migrations: they were stopped for longer than the limit.
    right = [not before["converges"] and after["downtime_ns"] > 50e6 for before, after in pairs]
    rows.append({"case": "forecast: does not converge", "unit": "of moves", "ferry": sum(right), "peer": len(right),
                 "peer_name": "what came of it", "runs": len(right), "ratio": sum(right) / len(right), "target": "all",
                 "holds": all(right)})
    return rows


CASES = {"forecast": forecast}
