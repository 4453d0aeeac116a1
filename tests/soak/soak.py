"""The soak: very many migrations of a small guest to and fro, with random faults. See scripts/run-soak.

After each, the guest must run once, its memory unharmed unless the fault killed the only process that had it. Every so many
migrations, and at the end, nothing may have been left: processes, files, ports, locks, memory of the two ferryd.
"""
import collections
import pathlib
import random
import re
import signal
import sys
import time

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "faults"))

import matrix  # noqa: E402
from world import BUILD, NAME, World, Wrong, open_files, wait  # noqa: E402

STRESS = BUILD / "guest" / "stress-riscv64.elf"
LOOK_EVERY = 100
QUIET = 0.4  # of the migrations have no fault at all
# A hang takes as long as the patience with a silent peer, which is 1 s here: rarely.
WEIGHTS = {"crash": 5, "error": 6, "drop": 6, "hang": 1}


class SmallWorld(World):
    """As World, with a bare-metal guest, which boots in no time. Its disk carries the ownership lock only."""

    def __init__(self):
        super().__init__(options=("--peer-timeout", "1", "--lock-wait", "2"), memory=32 << 20)

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

    def resident(self):
        """KiB of both ferryd."""
        total = 0
        for host in self.pair:
            status = pathlib.Path(f"/proc/{host.process.pid}/status").read_text()
            total += int(re.search(r"VmRSS:\s+(\d+)", status)[1])
        return total

    def files(self):
        return sum(len(open_files(host.process.pid)) for host in self.pair)


class Soak:
    def __init__(self, count, seed, say):
        self.count = count
        self.random = random.Random(seed)
        self.say = say
        self.outcomes = collections.Counter()
        self.endings = collections.Counter()
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

    def one(self, world, source, fault):
        """Returns the host on which the VM runs afterwards."""
        destination = world.other(source)
        if fault:
            world.fault(source if fault[0].startswith("source-") else destination, ":".join(fault))
        cancel = self.random.random() < 0.05
        kill_agent = self.random.choice([source, destination]) if self.random.random() < 0.02 else None
        with world.watching():
            migration = world.migrate(source, destination)
            if migration is None:
                raise Wrong("the migration was refused")
            if cancel:
                self.cancel(self.random.choice([source, destination]), migration)
            if kill_agent:
                kill_agent.restart(signal.SIGKILL)
            world.settle(4 if fault and fault[1] == "hang" else 30)
            for host in world.pair:
                world.fault(host, "")
            host, commands = world.resolve(source, 1)
            if commands and not (fault and matrix.allowed(commands, *fault)):
                raise Wrong(f"the guest did not live through it without help: {commands}")
            world.verify(host)
        self.outcomes[matrix.story(world, migration)] += 1
        self.endings["booted anew" if any(word.startswith("run") for word in commands) else
                     "after a command" if commands else
                     "at the destination" if host is destination else "at the source"] += 1
        return host

    @staticmethod
    def cancel(host, migration):
        status, data = host.request("POST", f"/v1/migrations/{migration}/cancel", {})
        if status not in (200, 404, 409):
            raise Wrong(f"cancelling was answered with {status} {data}")

    def check(self, world, host, base):
        """Nothing is left over."""
        world.check_leaks(host)
        wait(lambda: world.files() <= base["files"] + 16, f"files to be closed: {base['files']} at first, "
             f"{world.files()} now", 20)
        grown = world.resident() - base["resident"]
        if grown > 64 << 10:
            raise Wrong(f"the two ferryd have grown by {grown} KiB")
        return grown

    def run(self):
        begin = time.monotonic()
        done = 0
        world = host = None
        base = {}
        grown = 0
        try:
            while done < self.count and len(self.wrong) < 10:
                fault = self.choose()
                try:
                    if world is None:
                        world = SmallWorld().__enter__()
                        host = world.a
                        world.boot(host)
                        base = {}
                    host = self.one(world, host, fault)
                    done += 1
                    if not base and done > 20:
                        base = {"files": world.files(), "resident": world.resident()}
                    if base and (done % LOOK_EVERY == 0 or done == self.count):
                        grown = self.check(world, host, base)
                        self.say(f"{done} migrations in {time.monotonic() - begin:.0f} s; ferryd grew by {grown} KiB; "
                                 f"{dict(self.endings)}", flush=True)
                except Exception as wrong:  # noqa: BLE001 - told, and the next begins in a new world
                    done += 1
                    name = ":".join(fault) if fault else "no fault"
                    self.wrong.append(f"migration {done}, {name}: {type(wrong).__name__}: {wrong}")
                    self.say("FAILED " + self.wrong[-1][:1500], flush=True)
                    broken, world = world, None
                    self.leave(broken)
        finally:
            self.leave(world)
        self.report(done, time.monotonic() - begin)
        return done == self.count and not self.wrong

    def leave(self, world):
        if world is None:
            return
        try:
            world.__exit__(None, None, None)
        except Exception as wrong:  # noqa: BLE001
            self.wrong.append(f"at the end of a world: {wrong}")

    def report(self, done, seconds):
        self.say(f"\n{done} migrations in {seconds:.0f} s")
        for what, counts in (("outcome", self.outcomes), ("the guest runs", self.endings)):
            for name, count in counts.most_common():
                self.say(f"  {what + ':':<16}{name:<24}{count:6}")
        self.say(f"  {'wrong:':<16}{'':<24}{len(self.wrong):6}")


def run(count, seed, say=print):
    say(f"soak of {count} migrations, seed {seed}", flush=True)
    return Soak(count, seed, say).run()


