"""An unmodified Debian kernel for clouds under Ferry on genuine KVM: it boots, and moves hot between two hosts.

The guest's own lines are what counts: its workload verifies memory, vector registers and TCP, its journal the disk, and
its clocks are compared with the host's over the guest's network. FERRY_LAB=long adds what takes many minutes.
"""
import os
import pathlib
import platform
import re
import shutil
import time

import pytest

from lab import ROOT, Lab, LabError, LabHost, fetched, qemu_command

BUILD = pathlib.Path(os.environ.get("FERRY_BUILD", ROOT / "build"))
TIME_PORT = 7777
# A CPU that is stopped most likely has values in its vector registers that nothing else has: else a move may lose them unseen.
QUIET = "threads=1,mem=256K,rate=128K,tcp=16K,interval=500,tick=20000,spins=10M"
BUSY = "procs=2,mem=2M,rate=0,interval=500,tick=5000,spins=2M"
WORK = re.compile(r"^work (\d+) .*errors=(\d+) .* pass=(\d+) fp=(\d+) tcp=(\d+) tcp_errors=(\d+)$", re.MULTILINE)
DISK = re.compile(r"^disk (\d+) .*errors=(\d+) ", re.MULTILINE)
CLOCK = re.compile(r"^clock (\d+) wall=([+-]\d+)us monotonic=([+-]\d+)us rtt=(\d+)us$", re.MULTILINE)
ABOUT = re.compile(r"^about rtc=(.+) seconds=(\d+) flags= (.+)$", re.MULTILINE)
STATES = {"source": ["MIGRATE_TO_VMX_READY (1)", "MIGRATE_TO_VMX_PRECOPY (2)", "MIGRATE_TO_VMX_CHECKPT (3)",
                     "MIGRATE_TO_VMX_WAIT_HANDSHAKE (4)", "MIGRATE_TO_VMX_FINISHED (5)"],
          "destination": ["MIGRATE_FROM_VMX_INIT (7)", "MIGRATE_FROM_VMX_WAITING (8)", "MIGRATE_FROM_VMX_PRECOPY (9)",
                          "MIGRATE_FROM_VMX_CHECKPT (10)", "MIGRATE_FROM_VMX_FINISHED (11)"]}
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="Ferry's own programs run in the lab: they must be x86-64's")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("lab"), BUILD, qemu=qemu_command()) as lab:
        made = [LabHost(lab, "a", "10.9.0.1"), LabHost(lab, "b", "10.9.0.2")]
        for host in made:
            host.start()
            lab.run(host.inside(f"ferry-work time {TIME_PORT}") + " >/dev/null 2>&1 &")
        for host, other in (made, made[::-1]):
            host.ferry(f"host add {other.name} {other.address}")
        yield made


def run(host, name, cpus, work, words="", options="", disk=True):
    if disk:
        host.lab.run(f"truncate -s 8M /tmp/{name}.img")
        options += f" --disk /tmp/{name}.img"
        words += " ferry.disk=/dev/vda,size=1M,rate=16K"
    host.ferry(f"run {name} --machine x86_64 --cpus {cpus} --memory 192M --kernel /guest/kernel --initrd /guest/initrd "
               f"{options} --net user --cmdline 'console=ttyS0 quiet ferry.work={work} ferry.clock=10.0.2.2:{TIME_PORT} {words}'")


def about(host, vm, after=0):
    """(driver of the real-time clock, what that shows, flags of the CPU) as the guest says after AFTER characters of its console; the
    second is compared with the host's time, and left out."""
    end = time.monotonic() + 240
    while not (said := ABOUT.findall(host.console(vm)[after:])):
        assert time.monotonic() < end, "the guest does not say what it is like:\n" + host.console(vm)[-4000:]
        time.sleep(2)
    driver, shown, flags = said[-1]
    assert abs(int(shown) - int(host.lab.run("date +%s"))) < 60, said[-1]
    return driver, set(flags.split())


class Seen:
    """What the guest has counted, by its last lines. All its lines must be free of errors, and none missing or double."""

    def __init__(self, host, vm):
        self.text = host.console(vm)
        work, disk, self.clock = WORK.findall(self.text), DISK.findall(self.text), CLOCK.findall(self.text)
        for words in ("WORK ERROR", "Call Trace", "ACPI Error", "rcu: INFO"):
            assert words not in self.text, self.text[-6000:]
        assert all(errors == "0" == tcp_errors for _, errors, _, _, _, tcp_errors in work), self.text[-3000:]
        assert all(errors == "0" for _, errors in disk), self.text[-3000:]
        numbers = [int(line[0]) for line in work]
        assert numbers == list(range(1, len(numbers) + 1)), numbers
        self.passes, self.registers, self.tcp = (int(count) for count in work[-1][2:5]) if work else (0, 0, 0)
        self.disk = int(disk[-1][0]) if disk else None
        self.answers = len(self.clock)

    def is_past(self, other):
        """All of the memory was verified since, and everything else went on."""
        return (self.passes >= other.passes + 2 and self.registers > other.registers and self.tcp > other.tcp and
                (other.disk is None or (self.disk or 0) > other.disk) and self.answers >= other.answers + 3)

    def offsets(self):
        """(wall, monotonic, error) in microseconds: the guest's clocks less the host's, by the quickest answer."""
        _, wall, monotonic, rtt = min(self.clock, key=lambda line: int(line[3]))
        return int(wall), int(monotonic), int(rtt)


def goes_on(host, vm, since, timeout=240):
    """Waits until the guest is past SINCE; what is returned has only the clock's answers of that time."""
    end = time.monotonic() + timeout
    while True:
        seen = Seen(host, vm)
        if seen.is_past(since):
            seen.clock = seen.clock[since.answers:]
            return seen
        assert time.monotonic() < end, "the guest does not go on:\n" + seen.text[-4000:]
        time.sleep(2)


def boots(host, vm, disk=True, timeout=300):
    end = time.monotonic() + timeout
    while "FERRY-GUEST READY" not in host.console(vm):
        assert time.monotonic() < end, "the guest does not boot:\n" + host.console(vm)[-4000:]
        time.sleep(2)
    nothing = Seen(host, vm)
    nothing.passes = nothing.registers = nothing.tcp = nothing.answers = 0
    nothing.disk = 0 if disk else None
    return goes_on(host, vm, nothing)


def check_log(source, record, hot):
    texts = [line["text"] for line in source.ask(f"migrations show {record['id']}")["log"]]
    text = "\n".join(texts)
    assert re.search(r"set up.*source ip .*destination ip .*destination VM process id", text), text
    assert not hot or re.search(r"^Another pre-copy iteration needed with \d+ modified pages \(last = -1\)$", text, re.MULTILINE), text
    assert not hot or re.search(r"^Stopping pre-copy: only \d+ pages were modified", text, re.MULTILINE), text
    assert f"{record['destination']} said Restore-OK" in texts, text
    for side in STATES.values():
        places = [text.find(state) for state in side]
        assert -1 not in places and places == sorted(places), text


def check_clocks(before, after, downtime_ns):
    """They may be late by the downtime, and beside that be off by no more than a millisecond."""
    was, now = before.offsets(), after.offsets()
    allowed = 1000 + int(downtime_ns) // 1000 + (was[2] + now[2]) // 2
    for clock, then, later in (("wall", was[0], now[0]), ("monotonic", was[1], now[1])):
        print(f"{clock} clock {later - then:+d} us, downtime {int(downtime_ns) // 1000} us, allowed {allowed} us")
        assert abs(later - then) <= allowed, f"the guest's {clock} clock is off by {later - then} us, {allowed} us allowed"


def move(source, destination, vm, before, options="--downtime 500ms"):
    """Moves the guest and sees it go on."""
    source.ferry(f"migrate {vm} {destination.name} {options}", 600)
    record = source.ask("migrations history")[0]
    assert record["outcome"] == "completed" and record["vm"] == vm, record
    assert record["dirty_tracking"].startswith("KVM dirty ring, "), record
    check_log(source, record, hot="--quick-resume" not in options)
    at_arrival = Seen(destination, vm)
    assert at_arrival.text.startswith(before.text.rpartition("\n")[0]), "the console does not read on"
    after = goes_on(destination, vm, at_arrival)
    check_clocks(before, after, record["downtime_ns"])
    return after


def stop(host, vm):
    """The guest is asked to, and switches its machine off."""
    host.ferry(f"stop {vm}")
    end = time.monotonic() + 120
    while (shown := host.ask(f"show {vm}"))["state"] != "STOPPED":
        assert time.monotonic() < end, shown
        time.sleep(1)
    assert "reboot: Power down" in host.console(vm)


def cpu_ticks(lab, cpu):
    """What the thread of a vCPU of the VM that runs has used, in ticks."""
    return int(lab.run(f"grep -l '^vcpu{cpu}$' /proc/[0-9]*/task/*/comm | while read file; do set -- $(cat ${{file%comm}}stat); "
                       "shift 13; echo $(($1 + $2)); done | tail -n 1"))


def test_kvm_is_told_to_be_genuine(hosts):
    assert [host.ask("host show")["kvm"] for host in hosts] == [{"kind": "hardware-assisted", "why": ""}] * 2


def test_units_of_the_machine_pass_on_genuine_kvm(hosts):
    """Its vCPUs have state that a para-virtualised KVM's have not, and its dirty rings are never overrun."""
    said = hosts[0].lab.run("test_machine_kvm", 300, check=False)
    assert "[  PASSED  ]" in said and "[  FAILED  ]" not in said and "[  SKIPPED ]" not in said, said


def test_linux_boots_and_moves_there_and_back(hosts):
    a, b = hosts
    run(a, "one", 1, QUIET, "ferry.about")
    seen = boots(a, "one")
    assert about(a, "one")[0].startswith("rtc_cmos")
    assert "kernel=6." in seen.text
    assert f" uuid={a.ask('show one')['definition']['uuid']}" in seen.text
    seen = move(a, b, "one", seen)
    move(b, a, "one", seen)
    stop(a, "one")


@pytest.mark.long
def test_guest_keeps_the_cpu_it_was_given(hosts):
    """What it was not given is not there, though the hosts have it, and does not come by a move."""
    a, b = hosts
    run(a, "cut", 1, QUIET, "ferry.about", "--cpu host,-popcnt,-avx2,-fma")
    seen = boots(a, "cut")
    _, first = about(a, "cut")
    assert {"sse4_2", "avx", "cx16"} <= first and not first & {"popcnt", "avx2", "fma"}, first
    move(a, b, "cut", seen)
    assert about(b, "cut", len(seen.text))[1] == first
    stop(b, "cut")


# A CPU of x86-64-v1, as ferryd's --cpu-table has it: leaves 0, 1, 0x80000001.
OLD_CPU = """\
0 0 1 68747541 444d4163 69746e65
1 0 0 0 0 078bfbff
80000001 0 0 0 0 20100800
"""


@pytest.fixture
def old(hosts):
    """A host that takes its CPU for an old one."""
    lab = hosts[0].lab
    (lab.share / "old-cpu").write_text(OLD_CPU)
    host = LabHost(lab, "old", "10.9.0.2", network="b", port=7301)
    host.start("--cpu-table /share/old-cpu")
    return host


@pytest.mark.long
def test_guest_of_a_named_baseline_goes_where_that_is_and_nowhere_else(hosts, old):
    a, b = hosts
    with pytest.raises(LabError, match="lacks CPU features avx512f.* of it"):
        run(a, "no", 1, QUIET, options="--cpu x86-64-v4")
    run(a, "named", 1, QUIET, "ferry.about", "--cpu x86-64-v2")
    seen = boots(a, "named")
    _, first = about(a, "named")
    assert {"sse4_2", "popcnt", "cx16", "lahf_lm"} <= first, first
    assert not first & {"xsave", "avx", "avx2", "fma", "bmi1", "movbe", "abm", "vme", "pse36", "rdrand", "aes"}, first
    a.ferry(f"host add old {old.address}")
    with pytest.raises(LabError, match="host old lacks CPU features .*ssse3"):
        a.ferry("migrate named old")
    seen = move(a, b, "named", seen)
    assert about(b, "named", len(seen.text))[1] == first
    stop(b, "named")
    a.ferry("host remove old")
    # The same for all VMs, and for hosts that are to join.
    a.ferry("cluster baseline set x86-64-v2")
    with pytest.raises(LabError, match="host old .*ssse3"):
        a.ferry(f"host add old {old.address}")
    run(b, "cluster", 1, QUIET, "ferry.about")
    seen = boots(b, "cluster")
    assert about(b, "cluster")[1] == first
    move(b, a, "cluster", seen)
    stop(a, "cluster")
    a.ferry("cluster baseline set none")


def says(host, vm, words, timeout=240):
    end = time.monotonic() + timeout
    while words not in host.console(vm):
        assert time.monotonic() < end, f"the guest does not say {words}:\n" + host.console(vm)[-4000:]
        time.sleep(2)


@pytest.mark.long
def test_clone_learns_that_it_is_one(hosts):
    """By ACPI's event device; then Linux seeds its random numbers anew. Debian's kernel for clouds has no driver for that."""
    a, forked = hosts[0], "crng reseeded due to virtual machine fork"
    shutil.copy(fetched("lab") / "kernel", a.lab.share / "kernel")
    a.ferry("run web --machine x86_64 --memory 192M --kernel /share/kernel --initrd /guest/initrd "
            f"--cmdline 'console=ttyS0 quiet ferry.printk=6 ferry.work={QUIET}'")
    says(a, "web", "\nwork 3 ")
    a.ferry("snapshot web /tmp/web.ckpt")
    a.ferry("resume /tmp/web.ckpt clone")
    says(a, "clone", forked)
    identities = [a.ask(f"show {vm}")["definition"]["uuid"] for vm in ("web", "clone")]
    assert identities[0] != identities[1]
    assert forked not in a.console("web")
    for vm in ("clone", "web"):
        a.ferry(f"kill {vm}")
        a.ferry(f"rm {vm}")


# How long a guest's clocks may stand still, on a CPU as slow as this one, before the time is noted in the file and after it
# is read there.
STOPS_NS = 100_000_000


@pytest.mark.long
def test_linux_goes_on_from_a_file(hosts):
    """Of the other host, which reads its memory while it runs."""
    a, b = hosts
    run(a, "file", 2, BUSY, "ferry.about")
    seen = boots(a, "file")
    a.ferry("suspend file /tmp/file.ckpt", 600)
    time.sleep(2)  # a clock that stood still in the file would be wrong by as much
    b.ferry("resume /tmp/file.ckpt")
    at_arrival = Seen(b, "file")
    assert at_arrival.text.startswith(seen.text.rpartition("\n")[0]), "the console does not read on"
    after = goes_on(b, "file", at_arrival)
    check_clocks(seen, after, STOPS_NS)
    about(b, "file", len(at_arrival.text))
    stop(b, "file")


@pytest.mark.long
def test_linux_goes_on_from_a_snapshot_beside_itself(hosts):
    """And then itself moves cold."""
    a, b = hosts
    run(a, "first", 1, QUIET, disk=False)
    seen = boots(a, "first", disk=False)
    told = a.ferry("snapshot first /tmp/first.ckpt", 600)
    stopped, unit = re.search(r"stopped for ([\d.]+) (us|ms|s)\b", told).groups()
    b.ferry("resume /tmp/first.ckpt second")
    check_clocks(seen, goes_on(b, "second", Seen(b, "second")), STOPS_NS)
    check_clocks(seen, goes_on(a, "first", Seen(a, "first")), float(stopped) * {"us": 1e3, "ms": 1e6, "s": 1e9}[unit])
    stop(b, "second")
    a.ferry("migrate first b --cold", 600)
    goes_on(b, "first", Seen(b, "first"))
    stop(b, "first")


@pytest.mark.long
def test_two_cpus_move_five_times(hosts):
    """While they write as fast as they can."""
    a, b = hosts
    run(a, "two", 2, BUSY)
    seen = boots(a, "two")
    for source, destination in ((a, b), (b, a), (a, b), (b, a), (a, b)):
        seen = move(source, destination, "two", seen)
    stop(b, "two")


@pytest.mark.long
def test_cpu_that_halts_moves_beside_one_that_is_busy(hosts):
    a, b = hosts
    run(a, "halts", 2, BUSY, "isolcpus=1 irqaffinity=0")
    seen = boots(a, "halts")
    for source, destination in ((a, b), (b, a)):
        begin = [cpu_ticks(a.lab, cpu) for cpu in (0, 1)]
        seen = goes_on(source, "halts", seen)
        busy, halted = (cpu_ticks(a.lab, cpu) - before for cpu, before in zip((0, 1), begin))
        assert busy > 4 * halted, f"vCPU 0 took {busy} ticks, vCPU 1 {halted}"
        seen = move(source, destination, "halts", seen)
    stop(a, "halts")


@pytest.mark.long
def test_linux_goes_on_after_quick_resume_and_an_upgrade(hosts):
    a, b = hosts
    run(a, "quick", 2, BUSY)
    seen = move(a, b, "quick", boots(a, "quick"), "--quick-resume=now")
    b.ferry("upgrade quick")
    after = goes_on(b, "quick", Seen(b, "quick"))
    check_clocks(seen, after, b.ask("migrations history")[0]["downtime_ns"])
    stop(b, "quick")
