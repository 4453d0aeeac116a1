#!/usr/bin/python3
"""Measures Ferry against its peers, as ratios taken in one run on one machine.

    bench/run.py [--build DIR] [--case NAME]... [--quick] [--list]

Prints a table and writes DIR/bench.json: a list of {"case", "unit", "ferry", "peer", "peer_name", "runs", "ratio",
"target", "holds"}. Figures are medians. A case that could not be measured has "holds": null and a "reason".
"""

import argparse
import json
import pathlib
import sys
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import cases  # noqa: E402
import checkpoints  # noqa: E402
import faults  # noqa: E402
import forecasts  # noqa: E402
import kvm  # noqa: E402
import moves  # noqa: E402

CASES = dict(sorted({**cases.CASES, **checkpoints.CASES, **faults.CASES, **forecasts.CASES, **kvm.CASES, **moves.CASES}.items()))


def render(rows):
    header = ["case", "ferry", "peer", "unit", "ratio", "target", "holds", "peer is"]
    table = [header]
    for row in rows:
        number = lambda value: "-" if value is None else f"{value:.4g}"  # noqa: E731
        holds = {True: "yes", False: "NO", None: "not measured"}[row["holds"]]
        table.append([row["case"], number(row["ferry"]), number(row["peer"]), row["unit"], number(row["ratio"]),
                      row["target"], holds, row["peer_name"]])
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    for row in rows:
        if row.get("reason"):
            print(f"{row['case']}: {row['reason']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build", type=pathlib.Path)
    parser.add_argument("--case", action="append", help="only this case (or cases whose name begins so)")
    parser.add_argument("--quick", action="store_true", help="fewer runs: to see that it works, not to quote")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list:
        for name, function in CASES.items():
            print(f"{name:20} {function.__doc__.splitlines()[0]}")
        return 0
    wanted = {name: function for name, function in CASES.items()
              if not arguments.case or any(name.startswith(prefix) for prefix in arguments.case)}
    if not wanted:
        parser.error(f"no such case; there are: {', '.join(CASES)}")
    rows = []
    for name, function in wanted.items():
        print(f"bench: {name}", file=sys.stderr, flush=True)
        try:
            rows += function(arguments.build.resolve(), arguments.quick)
        except Exception as error:  # a case that cannot run must not hide the others
            traceback.print_exc()
            rows.append(cases.unmeasured(name, f"{type(error).__name__}: {error}"))
    (arguments.build / "bench.json").write_text(json.dumps(rows, indent=2) + "\n")
    render(rows)
    return 0 if all(row["holds"] is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
