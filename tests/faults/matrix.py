"""The fault matrix: at every step of a migration, on either side, every kind of fault. See scripts/run-faults.

What must hold after each: the guest's memory and its disk are as the guest left them, one copy runs, and never two did.
A fault that kills the only process with the guest's memory loses that memory, as a host's failure would: then the VM
boots anew from its disk. must_live() says for which faults the guest must live through it without anybody's help.
"""
import pathlib
import random
import re
import time

from world import NAME, Refused, World, Wrong, wait

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
KINDS = ["crash", "hang", "error", "drop"]


# Only where memory is passed, and only where it is copied.
PASSED = ["source-before-memory", "source-after-memory", "destination-before-memory", "destination-after-memory"]
COPIED = ["source-before-round", "source-after-round", "source-before-last-pages", "source-after-last-pages"]


def points(upgrade=False):
    """Names of the fault points, in the order of the protocol, from the one place that has them."""
    text = (ROOT / "src" / "engine" / "fault.h").read_text()
    found = re.findall(r'X\(FAULT_\w+,\s*"((?:source|destination)-[a-z-]+)"\)', text)
    return [point for point in found if point not in (COPIED if upgrade else PASSED)]


def cases(upgrade=False):
    for point in points(upgrade):
        for kind in KINDS:
            yield point, kind


# A thread of a test that hangs stands for a process that never goes on: nobody waits for it for ever.
HANG_S = 12
# The hosts ask each other again every second at first, and seldom later.
AGREED_S = 20

# Once GO has left, the source's memory is not needed any more.
AFTER_GO = ["source-after-go", "source-before-running", "source-after-running"]
# The destination has written `started`: from here on its memory is the VM.
STARTED = ["destination-after-started", "destination-after-acquire", "destination-before-resume",
           "destination-after-resume", "destination-before-announce", "destination-after-announce",
           "destination-before-running", "destination-after-running"]
# The destination has the lock, and a thread that hangs keeps it.
LOCKED = ["destination-before-acquired", "destination-after-acquired", "destination-before-started"]
# The source has the VM back, but a hung thread cannot let it run, and without the step nobody is sure that it has.
RETAKE = ["source-before-retake", "source-after-retake"]


def must_live(point, kind):
    """Must the guest live through it without anybody's help?"""
    if point in AFTER_GO:
        return True
    if point.startswith("source-"):
        if point in RETAKE:
            return kind == "drop" or (kind == "error" and point == "source-after-retake")
        return kind in ("error", "drop")
    if kind in ("error", "drop"):
        return True
    return point not in STARTED and not (kind == "hang" and point in LOCKED)


def retake_trigger(kind):
    """A retake comes only when the destination does not take the guest over: it dies, or it says so and is there still."""
    return "destination-before-acquire:" + ("error" if kind == "drop" else "crash")


def allowed(commands, point, kind, hanging):
    """May a person have had to do this? What hangs must be killed by one, but nothing else must."""
    if any(command.startswith("kill") and (kind != "hang" or command != f"kill {hanging}") for command in commands):
        return False
    if not must_live(point, kind):
        return True
    return all(kind == "hang" and not command.startswith("run") for command in commands)


def allowed_upgrade(commands, point, kind, hanging):
    """The same, when the two are processes of one host: its ferryd ends by itself what hangs and is in the way."""
    if must_live(point, kind) or (kind == "hang" and point in LOCKED):
        return not commands
    return allowed(commands, point, kind, hanging)


class Case:
    """One fault and what came of it."""

    def __init__(self, point, kind):
        self.point = point
        self.kind = kind
        self.cell = "-"
        self.told = "-"
        self.wrong = None
        self.logs = ""
        self.seconds = 0.0
        self.commands = []

    @property
    def name(self):
        return f"{self.point}:{self.kind}"


def record_of(host, migration):
    try:
        return host.get(f"/v1/migrations/{migration}?local=1")
    except Refused:
        return None  # a migration that did not get that far


def story(world, migration):
    """The outcome, as both hosts' records come to tell it by themselves: it must be one."""
    def told():
        records = [record_of(host, migration) for host in world.pair]
        return records if all(record is None or record["agreed"] for record in records) else None

    try:
        outcomes = {record["outcome"] for record in wait(told, "the hosts to agree", AGREED_S) if record}
    except Wrong as wrong:
        words = [record and record["outcome"] for record in map(lambda h: record_of(h, migration), world.pair)]
        raise Wrong(f"{wrong}: a says {words[0]}, b says {words[1]}") from None
    if len(outcomes) != 1:
        raise Wrong(f"the hosts' records of one migration say {outcomes}")
    return outcomes.pop()


def run_case(world, case, source):
    """Returns the host on which the VM runs afterwards."""
    destination = world.other(source)
    side = source if case.point.startswith("source-") else destination
    plans = {source: [], destination: []}
    plans[side].append(case.name)
    if case.point in RETAKE:
        plans[destination].append(retake_trigger(case.kind))
    for host, plan in plans.items():
        world.fault(host, ",".join(plan))
    hangs = case.kind == "hang"
    with world.watching():
        migration = world.migrate(source, destination)
        if migration is None:
            raise Wrong("the migration was refused")
        world.settle(HANG_S if hangs else 30)
        for host in world.pair:
            world.fault(host, "")
        if case.point not in world.reached(side):
            raise Wrong("the migration never came to this step")
        host, commands = world.resolve(source, 1)
        if not allowed(commands, case.point, case.kind, side.name):
            raise Wrong(f"the guest did not live through it without help: {', '.join(commands)}")
        world.verify(host)
    world.check_leaks(host)
    case.told = story(world, migration)
    where = "source" if host is source else "dest"
    case.cell = where if not commands else f"{where}*" if any(c.startswith("run") for c in commands) else f"{where}+"
    case.commands = commands
    return host


def run_upgrade(world, case, host):
    """The fault in an upgrade on HOST, whose two processes read one plan."""
    plan = [case.name]
    if case.point in RETAKE:
        plan.append(retake_trigger(case.kind))
    world.fault(host, ",".join(plan))
    with world.watching():
        upgrade = world.upgrade(host)
        if upgrade is None:
            raise Wrong("the upgrade was refused")
        world.settle(HANG_S if case.kind == "hang" else 30)
        world.fault(host, "")
        if case.point not in world.reached(host):
            raise Wrong("the upgrade never came to this step")
        where, commands = world.resolve(host, 1)
        if where is not host or not allowed_upgrade(commands, case.point, case.kind, host.name):
            raise Wrong(f"the guest did not live through it without help: {', '.join(commands)}")
        world.verify(host)
    world.check_leaks(host)
    record = wait(lambda: record_of(host, upgrade), "the upgrade's record", 10)
    case.told = record["outcome"]
    where = "new" if record["outcome"] == "completed" else "old"
    told, pid = record["upgrade"][f"{where}_pid"], host.vm(NAME)["pid"]
    if pid != told and not any(c.startswith("run") for c in commands):
        raise Wrong(f"the guest runs in process {pid}, and the record says {told}")
    if case.kind == "hang" and not commands:
        world.renew(host)  # it may have become the VM's process with a thread that hangs for ever: no more upgrades
    case.cell = where if not commands else f"{where}*" if any(c.startswith("run") for c in commands) else f"{where}+"
    case.commands = commands
    return host


def table(done, upgrade=False):
    """One row a step, one column a kind."""
    cells = {(case.point, case.kind): case for case in done}
    width = max(len(point) for point in points(upgrade))
    lines = [f"{'step':<{width}}  " + "  ".join(f"{kind:<8}" for kind in KINDS)]
    for point in points(upgrade):
        row = [cells.get((point, kind)) for kind in KINDS]
        if any(row):
            texts = ["" if case is None else "FAILED" if case.wrong else case.cell for case in row]
            lines.append(f"{point:<{width}}  " + "  ".join(f"{text:<8}" for text in texts).rstrip())
    lines += ["", "old, new: the process that had the guest at the end of the upgrade, its memory unharmed" if upgrade else
              "source, dest: where the guest runs afterwards, its memory unharmed",
              "+  after a command (kill of what hangs, recover); its memory unharmed",
              "*  booted anew from its disk: the only process with its memory was gone"]
    return "\n".join(lines)


def run(sample=None, seed=1, only=None, say=print, upgrade=False):
    """All cases, or SAMPLE of them, of a migration or of an upgrade; returns those that were run."""
    chosen = list(cases(upgrade))
    run_one = run_upgrade if upgrade else run_case
    if only:
        chosen = [case for case in chosen if only in ":".join(case)]
    if sample is not None and sample < len(chosen):
        chosen = sorted(random.Random(seed).sample(chosen, sample), key=chosen.index)
    done = []
    begin = time.monotonic()
    world = source = None
    try:
        for point, kind in chosen:
            case = Case(point, kind)
            done.append(case)
            started = time.monotonic()
            try:
                if world is None:
                    world = World().__enter__()
                    source = world.a
                    world.boot(source)
                source = run_one(world, case, source)
            except Exception as wrong:  # noqa: BLE001 - it is told, and the next case begins in a new world
                case.wrong = f"{type(wrong).__name__}: {wrong}"
                keep_logs(world, case)
                broken, world = world, None
                leave(broken, case)
            case.seconds = time.monotonic() - started
            verdict = f"FAILED {case.wrong.splitlines()[0][:300]}" if case.wrong else case.cell
            helped = f"; {', '.join(case.commands)}" if case.commands else ""
            say(f"{case.name:<44} {verdict} ({case.seconds:.1f} s; {case.told}{helped})", flush=True)
    finally:
        if world:
            world.__exit__(None, None, None)
    say(f"{len(done)} faults in {time.monotonic() - begin:.0f} s, seed {seed}")
    return done


def leave(world, case):
    try:
        world.__exit__(None, None, None)
    except Exception as wrong:  # noqa: BLE001
        case.wrong += f"; and {wrong}"


def keep_logs(world, case):
    """The last lines of both hosts, into the case."""
    case.logs = world.last_lines() if world and world.b else ""
