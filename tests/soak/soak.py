"""The soak: very many migrations of a small guest to and fro, with random faults. See scripts/run-soak.

After each, the guest must run once, its memory unharmed unless the fault killed the only process that had it, and both
hosts tell the same. Every so many migrations, and at the end, nothing may have been left: processes, files, ports, locks,
descriptors, threads, memory of the two ferryd.

ferryd are killed in the first half only: in the second they live, and what they hold must not grow.
"""
import collections
import contextlib
import pathlib
import random
import re
import signal
import sys
import time

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "faults"))

import leaks  # noqa: E402
import matrix  # noqa: E402
from world import BUILD, NAME, World, Wrong, wait  # noqa: E402

STRESS = BUILD / "guest" / "stress-riscv64.elf"
LOOK_EVERY = 50
CANCELS = 0.05
AGENT_KILLS = 0.04  # in the first half
WARM_UP = 100  # migrations, at most, until a young ferryd has filled what it keeps
QUIET = 0.4  # of the migrations have no fault at all
ENDINGS = ["at the destination", "at the source", "after a command", "booted anew"]
WRONG_MAX = 10
# Longer than the patience with a silent peer and with the lock, and then with the other host's ferryd.
HANG_S = 8
# A hang takes as long as the patience with a silent peer, which is 1 s here: rarely.
WEIGHTS = {"crash": 5, "error": 6, "drop": 6, "hang": 1}


class SmallWorld(World):
    """As World, with a bare-metal guest, which boots in no time. Its disk carries the ownership lock only."""

    def __init__(self):
        super().__init__(memory=32 << 20)
        locks = self.directory / "locks"  # for VMs without a disk: nothing may ever be in it
        locks.mkdir()
        self.options = ("--peer-timeout", "1", "--lock-wait", "2", "--lock-dir", str(locks))

    def boot(self, host):
        known = host.vm(NAME)
        before = len(self.console(host)) if known else 0
        if known:
            host.post(f"/v1/vms/{NAME}/start")
        else:
            host.post("/v1/vms", {"definition": {
                "name": NAME, "kernel": str(STRESS), "memory": self.memory,
                "cmdline": "mem=2M rate=8M interval=20", "disks": [{"path": str(self.disk)}]}})
        wait(lambda: re.search(r"^work \d+ .*\n", self.console(host)[before:], re.MULTILINE),
             f"the guest to boot on {host.name}", 60)

    def verify(self, host):
        """All of the memory twice more, without an error."""
        text = self.console(host)
        passes = [int(number) for number in re.findall(r"^work .* pass=(\d+)", text, re.MULTILINE)]

        def ahead():
            news = re.findall(r"^work .* pass=(\d+)", self.console(host), re.MULTILINE)
            return news and len(news) > len(passes) and int(news[-1]) >= passes[-1] + 2

        wait(ahead, f"the guest on {host.name} to go on", 60)
        bad = re.search(r"^.*(?:ERROR|errors=[1-9]).*$", self.console(host)[-20000:], re.MULTILINE)
        if bad:
            raise Wrong(f"the guest on {host.name} says: {bad[0]}")

    def look(self):
        """Bare metal has no boot line to tell lives apart by: only the lists."""
        if all(self.state(host) == "RUNNING" for host in (self.a, self.b, self.a)):
            raise Wrong("both hosts list the VM as RUNNING")


class Soak:
    def __init__(self, count, seed, say):
        self.count = count
        self.random = random.Random(seed)
        self.say = say
        self.done = 0
        self.outcomes = collections.Counter()  # (outcome, ending)
        self.faults = collections.Counter()  # (kind, ending)
        self.besides = collections.Counter()
        self.held = []  # by the two ferryd, in the end
        self.wrong = []
        self.cases = collections.defaultdict(list)
        for point, kind in matrix.cases():
            if point not in matrix.RETAKE:
                self.cases[kind].append(point)

    def choose(self):
        """(point, kind), or None for no fault."""
        if self.random.random() < QUIET:
            return None
        kind = self.random.choices(list(WEIGHTS), WEIGHTS.values())[0]
        return self.random.choice(self.cases[kind]), kind

    def meanwhile(self, world, migration):
        """What else happens to some: cancelled from either side, a ferryd killed."""
        if self.random.random() < CANCELS:
            host = self.random.choice(world.pair)
            status, data = host.request("POST", f"/v1/migrations/{migration}/cancel", {})
            if status not in (200, 404, 409):
                raise Wrong(f"cancelling was answered with {status} {data}")
            self.besides["cancel asked for"] += 1
        if self.random.random() < AGENT_KILLS and self.done < self.count // 2:
            self.random.choice(world.pair).restart(signal.SIGKILL)
            self.besides["a ferryd killed"] += 1

    def one(self, world, source, fault):
        """Returns the host on which the VM runs afterwards."""
        destination = world.other(source)
        side = source if fault and fault[0].startswith("source-") else destination
        if fault:
            world.fault(side, ":".join(fault))
        with world.watching():
            migration = world.migrate(source, destination)
            if migration is None:
                raise Wrong("the migration was refused")
            self.meanwhile(world, migration)
            world.settle(HANG_S if fault and fault[1] == "hang" else 30)
            for host in world.pair:
                world.fault(host, "")
            host, commands = world.resolve(source, 1)
            if commands and not (fault and matrix.allowed(commands, *fault, side.name)):
                raise Wrong(f"the guest did not live through it without help: {commands}")
            world.verify(host)
        ending = ("booted anew" if any(word.startswith("run") for word in commands) else
                  "after a command" if commands else
                  "at the destination" if host is destination else "at the source")
        self.outcomes[matrix.story(world, migration), ending] += 1
        self.faults[fault[1] if fault else "none", ending] += 1
        return host

    def check(self, world, host, base, begin):
        held = leaks.check_quiet(world, host, base)
        self.held = held.describe(base)
        self.say(f"{self.done} migrations in {time.monotonic() - begin:.0f} s; "
                 f"the two ferryd have grown by {held.grown_kib(base)} KiB", flush=True)

    def life(self, begin):
        """Migrations in one world, until all are made or something is wrong."""
        world = SmallWorld()
        fault = None
        warm = self.count // 2 + min(WARM_UP, self.count // 8)
        with contextlib.ExitStack() as stack:
            stack.enter_context(world)
            host = world.a
            world.boot(host)
            base = leaks.Held(world)
            try:
                while self.done < self.count:
                    fault = self.choose()
                    host = self.one(world, host, fault)
                    self.done += 1
                    if self.done % LOOK_EVERY == 0 or self.done in (warm, self.count):
                        self.check(world, host, base, begin)
                    if self.done == warm or self.done % LOOK_EVERY == 0 and self.done < warm:
                        base = leaks.Held(world)
                fault = None
                remove(world)
                leaks.check_gone(world, base)
            except Exception as wrong:  # noqa: BLE001 - told, and the next begins in a new world
                name = ":".join(fault) if fault else "no fault"
                self.done = min(self.done + 1, self.count)
                raise Wrong(f"migration {self.done}, {name}: {type(wrong).__name__}: {wrong}\n{world.last_lines(25)}") from wrong
        if processes(world.directory):
            raise Wrong(f"processes are left: {processes(world.directory)}")

    def run(self):
        begin = time.monotonic()
        while self.done < self.count and len(self.wrong) < WRONG_MAX:
            try:
                self.life(begin)
            except Exception as wrong:  # noqa: BLE001
                self.wrong.append(str(wrong))
                self.say("FAILED " + self.wrong[-1][:15000], flush=True)
        self.report(time.monotonic() - begin)
        return self.done == self.count and not self.wrong

    def report(self, seconds):
        self.say(f"\n{self.done} migrations in {seconds:.0f} s\n")
        self.say(table("outcome", self.outcomes) + "\n")
        self.say(table("fault", self.faults) + "\n")
        for name, count in self.besides.most_common():
            self.say(f"{name}: {count}")
        for line in self.held:
            self.say(line)
        self.say(f"wrong: {len(self.wrong)}")


def remove(world):
    """The VM, from both hosts."""
    for host in world.pair:
        vm = host.vm(NAME)
        if vm and vm["pid"]:
            host.post(f"/v1/vms/{NAME}/kill")
        if vm:
            host.delete(f"/v1/vms/{NAME}")


def processes(directory):
    """All that have it among their arguments."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(directory).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def table(head, counts):
    """One row a value, one column an ending, and sums."""
    rows = sorted({row for row, _ in counts}, key=lambda row: -sum(counts[row, ending] for ending in ENDINGS))
    lines = [f"{head:<12}" + "".join(f"{ending:>20}" for ending in [*ENDINGS, "all"])]
    for row in [*rows, "all"]:
        cells = [sum(count for (name, where), count in counts.items() if where == ending and row in (name, "all"))
                 for ending in ENDINGS]
        lines.append(f"{row:<12}" + "".join(f"{cell:>20}" for cell in [*cells, sum(cells)]))
    return "\n".join(lines)


def run(count, seed, say=print):
    say(f"soak of {count} migrations, seed {seed}", flush=True)
    return Soak(count, seed, say).run()
