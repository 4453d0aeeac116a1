"""x86-64 guests on KVM: the bare-metal guest runs, ends in every way, and moves while it writes."""
import json
import pathlib
import re
import struct
import subprocess

import pytest

from hosts import BUILD, KVM, Hosts, assert_refused, wait_until
from moving import console, goes_on, passes

STRESS = BUILD / "guest" / "stress-x86_64.elf"
MIB = 1 << 20

pytestmark = [pytest.mark.skipif(not KVM, reason="needs an x86-64 host with /dev/kvm"),
              pytest.mark.skipif(not STRESS.exists(), reason="needs the guests (make guests)")]


@pytest.fixture
def hosts():
    with Hosts(vm_program=BUILD / "ferry-vm") as made:
        yield made


def definition(words, memory=64 * MIB, **more):
    return {"name": "web", "machine": "x86_64", "kernel": str(STRESS), "cmdline": words, "memory": memory, **more}


def verifies_all(vm):
    """The guest goes on and verifies all of its memory anew."""
    vm.wait_for_console(r"^work .* pass=")

    def done():
        return int(re.findall(r"^work .* pass=(\d+) ", vm.console(), re.MULTILINE)[-1])
    begin = done()
    wait_until(lambda: done() >= begin + 2, "the guest to verify its memory")
    assert not re.search(r"WORK ERROR|errors=[1-9]", vm.console())


def registers(text):
    """How often the guest found its XMM registers as it had left them."""
    return [int(times) for times in re.findall(r"^work .* fp=(\d+)\n", text, re.MULTILINE)]


def test_guest_started_from_the_command_line_ticks(hosts):
    host = hosts.start("a")
    ferry = [BUILD / "ferry", "--host", host.state_dir]
    subprocess.run([*ferry, "run", "web", "--machine", "x86_64", "--kernel", STRESS, "--memory", "64M",
                    "--cmdline", "mem=16M rate=20M"], check=True, capture_output=True)
    wait_until(lambda: passes(host) >= 2, "the guest to verify its memory")
    assert "work begins harts=1 mem=16M" in console(host)
    shown = json.loads(subprocess.run([*ferry, "host", "show", "--json"], check=True, capture_output=True).stdout)
    assert {"machine": "x86_64", "accel": "kvm", "available": True, "why": ""} in shown["machines"]


def test_guest_moves_under_full_write_load(hosts):
    a, b = hosts.pair()
    a.run(**definition("mem=48M rate=0 interval=20"))
    wait_until(lambda: passes(a) >= 2, "the guest to verify its memory")
    for source, destination in ((a, b), (b, a), (a, b), (b, a)):
        record = source.move("web", destination)
        assert record["outcome"] == "completed", record
        goes_on(destination, booted=1)
    times = registers(console(a))
    assert times == sorted(times) and times[-1] >= len(times) - 1
    shown = subprocess.run([BUILD / "ferry", "--host", b.state_dir, "migrations", "show", record["id"]], check=True,
                           capture_output=True, text=True).stdout
    assert re.search(r"^dirty tracking +KVM dirty (ring|log), ", shown, re.MULTILINE), shown
    sent, arrived = a.event_codes(record["id"]), b.event_codes(record["id"])
    assert "VMS6020" in sent + arrived and "VMS6021" in sent + arrived


@pytest.mark.parametrize("how, words", [("ring", r"KVM dirty ring, \d+ entries a vCPU"), ("log", "KVM dirty log, .*")])
def test_guest_that_writes_moves_with_either_way_of_tracking(vms, how, words):
    vm = vms.make("a", definition("mem=32M rate=0 interval=20"), "--dirty-tracking", how)
    if "error" in vm.ready and how == "ring":
        pytest.skip(vm.ready["error"])
    vm.wait_for_console(r"^work 2 ")
    moved = vms.start("b", vm.definition, "--incoming", "--dirty-tracking", how)
    end = vms.migrate(vm, moved)
    assert end["outcome"] == "completed" and re.fullmatch(words, end["dirty_tracking"]), end
    assert moved.control.call("migrate.status")["dirty_tracking"] == ""
    verifies_all(moved)


def test_guest_that_writes_from_all_vcpus_moves(vms):
    """The guest starts the others itself, from real mode."""
    vm = vms.start("a", definition("mem=24M rate=0 interval=20 cpus=2", vcpus=2))
    assert vm.wait_for_console(r"^work begins harts=(\d)").group(1) == "2"
    vm.wait_for_console(r"^work 2 ")
    moved = vms.start_incoming("b", vm.definition)
    assert vms.migrate(vm, moved)["outcome"] == "completed"
    verifies_all(moved)
    said = len(moved.console())
    moved.type("r")
    moved.wait_for_console(r"work begins harts=2[\s\S]*^work 2 ", said)


def test_tracking_that_is_not_there_is_refused(vms):
    vm = vms.make("a", {**definition(""), "machine": "riscv64"}, "--dirty-tracking", "ring")
    assert "built-in CPU" in vm.ready["error"]


def test_guest_moves_by_quick_resume_and_goes_on_after_an_upgrade(vms):
    vm = vms.start("a", definition("mem=32M rate=0 interval=20"))
    vm.wait_for_console(r"^work 2 ")
    upgraded, end = vms.upgrade(vm, "u")
    assert end["outcome"] == "completed", end
    verifies_all(upgraded)
    moved = vms.start_incoming("b", upgraded.definition)
    end = vms.migrate(upgraded, moved, quick_resume="now")
    assert end["outcome"] == "completed" and end["quick_resume"], end
    verifies_all(moved)


def test_disk_and_network_of_a_guest_move_too(vms, tmp_path):
    """Their state is saved and loaded, even though this guest does not use them."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    vm = vms.start("a", definition("mem=4M", disks=[{"path": str(disk)}], nets=[{"backend": "user"}]))
    vm.wait_for_console(r"^work 2 ")
    moved = vms.start_incoming("b", vm.definition)
    assert vms.migrate(vm, moved)["outcome"] == "completed"
    moved.wait_for_console(r"^work \d+ .*errors=0", len(vm.console()))


@pytest.mark.skipif(not re.search(r"^flags.*\b(svm|vmx)\b", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE),
                    reason="a para-virtualised KVM shows guests the host's TSC, which does not stand still")
def test_clock_stands_still_in_a_pause(vms):
    vm = vms.start("a", definition("mem=4M rate=1M interval=20"))
    vm.wait_for_console(r"^work 5 ")
    vm.control.call("pause")
    before = float(re.findall(r" t=([\d.]+)", vm.console())[-1])
    with pytest.raises(subprocess.TimeoutExpired):
        vm.process.wait(1.5)
    vm.control.call("resume")
    after = float(vm.wait_for_console(r"^work \d+ .* t=([\d.]+)", len(vm.console())).group(1))
    assert after - before < 1, "the pause of 1.5 s is in the guest's time"


def test_downtime_is_in_the_guests_time(vms):
    vm = vms.start("a", definition("mem=4M rate=1M interval=20"))
    vm.wait_for_console(r"^work 5 ")
    downtimes = []
    # On a busy machine the source hears late that the guest runs, and takes the downtime for longer: not each time.
    for name in ("b", "c", "d", "e"):
        moved = vms.start_incoming(name, vm.definition)
        downtimes.append(vms.migrate(vm, moved)["downtime_ns"])
        moved.wait_for_console(r"^work \d+ .*\n[\s\S]*^work \d+ .*\n", len(vm.console()))
        vm = moved
    gap = max(float(gap) for gap in re.findall(r" gap_max=([\d.]+)ms", vm.console()))
    assert gap * 1e6 > min(downtimes) / 2, "the guest's clock stood still while it was down"


def test_guest_that_writes_faster_than_the_link_is_slowed(vms):
    vm = vms.start("a", definition("mem=12M rate=100M interval=20"))
    vm.wait_for_console(r"^work .* pass=1 ")
    moved = vms.start_incoming("b", vm.definition)
    # Over a Unix socket nothing tells how fast the path is beyond the limit: the guest outruns it.
    vms.begin(vm, moved, listen=str(moved.directory / "move.sock"), bandwidth_limit=12 * MIB, known={"state_bytes": 20000})
    end = vm.control.wait_for("migration.finished")
    assert end["outcome"] == "completed" and 0 < end["throttle_most"] <= 99, end
    verifies_all(moved)


@pytest.mark.parametrize("key, reason, word", [("o", "powered-off", "powered off"), ("c", "crashed", "triple fault")])
def test_guest_ends_as_it_says(vms, key, reason, word):
    vm = vms.start("a", definition("mem=4M interval=20"))
    vm.wait_for_console(r"^work 2 ")
    vm.type(key)
    end = vm.wait()
    assert end["reason"] == reason and word in end["why"]


def test_reboot_is_a_new_start(vms):
    vm = vms.start("a", definition("mem=4M interval=20"))
    for boots in range(1, 4):
        vm.wait_for_console(r"work begins[\s\S]*" * boots + r"^work 2 ")
        vm.type("r" if boots < 3 else "o")
    assert vm.wait()["reason"] == "powered-off"
    assert vm.console().count("work begins") == 3


# Says its command line and its initrd on COM1 and switches off, from the 64-bit entry, RSI: boot_params.
SPEAKER = bytes.fromhex("""
    8b be 28 02 00 00   66 ba f8 03   8a 07   84 c0   74 06   ee   48 ff c7   eb f4
    8b be 18 02 00 00   8b 8e 1c 02 00 00   8a 07   ee   48 ff c7   ff c9   75 f6   b0 0a   ee
    66 ba 04 06   66 b8 00 20   66 ef   f4""")


def bzimage(code, preferred=0x200000):
    """A kernel with one sector of set-up and the header of the boot protocol 2.15."""
    head = bytearray(1024)
    head[0x1f1] = 1
    struct.pack_into("<H", head, 0x1fe, 0xaa55)
    struct.pack_into("<BB4sH", head, 0x200, 0xeb, 0x66, b"HdrS", 0x20f)
    head[0x211] = 1
    struct.pack_into("<I", head, 0x22c, 0x7fffffff)
    struct.pack_into("<H", head, 0x236, 1)
    struct.pack_into("<I", head, 0x238, 2047)
    struct.pack_into("<QI", head, 0x258, preferred, 1 << 20)
    return bytes(head) + bytes(512) + code


def test_bzimage_starts_at_its_64_bit_entry(vms, tmp_path):
    (tmp_path / "kernel").write_bytes(bzimage(SPEAKER))
    (tmp_path / "initrd").write_bytes(b" and an initrd")
    vm = vms.start("a", definition("told this", kernel=str(tmp_path / "kernel"), initrd=str(tmp_path / "initrd")),
                   "--paused")
    vm.control.call("resume")
    assert vm.wait()["reason"] == "powered-off"
    assert vm.console() == "told this and an initrd\n"


def test_kernel_without_a_pvh_entry_is_refused(vms):
    vm = vms.make("a", definition("", kernel=str(BUILD / "ferry-vm")))
    assert "ferry-vm" in vm.ready["error"] and "\n" not in vm.ready["error"]
    assert vm.wait()["reason"] == "failed"


def test_guest_with_many_vcpus_moves(hosts):
    a, b = hosts.pair()
    a.run(**definition("mem=16M rate=10M", vcpus=64))
    wait_until(lambda: passes(a) >= 1, "the guest to verify its memory")
    assert a.move("web", b)["outcome"] == "completed"
    seen = passes(b)
    wait_until(lambda: passes(b) >= seen + 2, "the guest to verify its memory at the destination")


def test_kernel_says_what_machine_it_is_for(hosts):
    host = hosts.start("a")
    words = definition("mem=16M rate=10M")
    del words["machine"]
    assert host.run(**words)["definition"]["machine"] == "x86_64"
    wait_until(lambda: passes(host) >= 1, "the guest to verify its memory")


def test_linux_is_refused_at_once_where_kvm_cannot_run_it(hosts):
    host = hosts.start("a")
    kvm = host.get("/v1/host")["kvm"]
    assert kvm["kind"] in ("hardware-assisted", "para-virtualised")
    if kvm["kind"] == "hardware-assisted":
        pytest.skip("this host's KVM runs any guest")
    kernel = host.state_dir / "bzImage"
    kernel.write_bytes(b"MZ".ljust(0x202, b"\0") + b"HdrS".ljust(4096, b"\0"))
    assert_refused(lambda: host.run("lin", kernel=str(kernel)), 422, "refused", "lin", "host a", "para-virtualised")
    assert host.vm("lin") is None
