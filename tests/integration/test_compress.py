"""A guest that moves with its pages encoded: it lives on with all of its memory, and the report says what was saved."""
import pytest

from vms import MIB, RpcError

# Boots, then changes 12 MiB slowly enough to converge over the link below.
WORK = "ferry.work=threads=2,mem=12M,rate=4M"
LINK = 40 * MIB


def move(vms, vm, name, link=LINK, **options):
    """By a Unix socket, of which nothing is known beyond the limit; returns where it is now and the report."""
    moved = vms.start_incoming(name, vm.definition)
    vms.begin(vm, moved, listen=str(moved.directory / "move.sock"), bandwidth_limit=link, verify_memory=True,
              downtime_limit=20_000_000, **options)
    report = vm.control.wait_for("migration.finished")
    assert report["outcome"] == "completed", report
    moved.wait_for_state("RUNNING")
    moved.wait_for_work(2, passes=1)
    return moved, report


def saved(report):
    """Bytes by encoding."""
    return {name: row["saved_bytes"] for name, row in report["encodings"].items()}


@pytest.fixture
def working(vms, guest):
    vm = vms.start("a", guest.definition("web", WORK, memory=96 * MIB))
    vm.wait_for_work(2, passes=1)
    return vm


def test_guest_moves_with_every_encoding_and_keeps_its_memory(vms, working):
    vm, raw = move(vms, working, "b", compress="off")
    assert not any(row["pages"] for name, row in raw["encodings"].items() if name != "zero"), raw["encodings"]
    assert raw["encodings"]["zero"]["pages"] == raw["pages_zero"]
    for name, compress, other in (("c", "lz4", "zstd"), ("d", "zstd", "lz4")):
        vm, report = move(vms, vm, name, compress=compress)
        assert report["wire_bytes"] < 0.8 * raw["wire_bytes"], (compress, report["encodings"], raw["wire_bytes"])
        assert saved(report)[compress] > MIB and report["encodings"][other]["pages"] == 0, report["encodings"]
        assert report["encodings"]["delta"]["pages"] + report["encodings"]["unchanged"]["pages"] > 0
    # long enough to try again what seemed not worth it at first, because the cores had other things to do
    vm, report = move(vms, vm, "e", link=LINK // 2)
    assert report["wire_bytes"] < 0.95 * raw["wire_bytes"], (report["encodings"], raw["wire_bytes"])
    assert saved(report)["lz4"] + saved(report)["zstd"] > MIB, report["encodings"]
    vm, report = move(vms, vm, "f", compress="lz4", delta_cache=0)
    assert report["encodings"]["delta"]["pages"] == 0 and saved(report)["lz4"] > MIB, report["encodings"]
    with pytest.raises(RpcError, match="auto, off, lz4 or zstd"):
        vms.begin(vm, vms.start_incoming("g", vm.definition), compress="gzip")
    vm.wait_for_work(1)
