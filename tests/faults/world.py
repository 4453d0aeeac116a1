"""Two hosts, a disk that both see, and one Linux guest that keeps a pattern in memory and a journal on the disk.

    with World() as world:
        world.boot(world.a)
        world.fault(world.b, "destination-before-acquire:crash")
        with world.watching():                  # looks all the time whether two copies run
            world.migrate(world.a, world.b)
        host, how = world.resolve()             # where it runs in the end, and what a person had to do for it
        world.verify(host)                      # by the guest itself: memory, TCP, journal
        world.check_leaks(host)

Fault points come from a file a host, which its VM processes read at every point (engine/fault.h).
"""
import contextlib
import fcntl
import itertools
import os
import pathlib
import re
import struct
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))

from hosts import BUILD, Hosts, Refused, introduce  # noqa: E402

GUEST = BUILD / "guest" / "riscv64"
NAME = "web"
MEMORY = 128 << 20
PEER_TIMEOUT_S = 2
LOCK_WAIT_S = 3
# When all of that, and ferryd's own patience, must be over.
SETTLED_S = 30
CMDLINE = ("console=ttyS0 quiet ferry.work=threads=1,mem=1M,rate=4M,interval=20,tcp=64K "
           "ferry.disk=/dev/vda,rate=100K,size=1M")

WORK = re.compile(r"^work (\d+) .*$", re.MULTILINE)
DISK = re.compile(r"^disk (\d+) written=.*errors=(\d+)", re.MULTILINE)
JOURNAL = re.compile(r"^disk journal slots=\d+ last=(\d+) bad=(\d+)", re.MULTILINE)
BOOTED = "FERRY-GUEST READY"


class Wrong(Exception):
    """Something that must never be."""


def wait(condition, what, seconds):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Wrong(f"waited {seconds} s in vain for {what}")
        time.sleep(0.02)


def last_life(text):
    """The whole lines since the last boot."""
    return text[text.rfind(BOOTED):text.rfind("\n") + 1] if BOOTED in text else ""


def work_lines(text):
    return {int(match[1]): match[0].strip() for match in WORK.finditer(last_life(text))}


def open_files(pid):
    found = []
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except OSError:
            pass
    return found


class World:
    def __init__(self, options=("--peer-timeout", str(PEER_TIMEOUT_S), "--lock-wait", str(LOCK_WAIT_S)),
                 memory=MEMORY):
        self.hosts = Hosts(vm_program=BUILD / "ferry-vm")
        self.options = options
        self.memory = memory
        self.a = self.b = None
        self.journal = 0  # the newest record that a guest has called surely on the disk
        self.seen = {}  # the last look at each host's console
        self.baseline = {}

    @property
    def directory(self):
        return self.hosts.directory

    def __enter__(self):
        self.hosts.__enter__()
        try:
            self.disk = self.directory / "disk"
            self.disk.write_bytes(bytes(8 << 20))
            self.a, self.b = (self.new_host(name) for name in "ab")
            introduce(self.a, self.b)
        except BaseException:
            self.hosts.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *problem):
        self.hosts.__exit__(*problem)

    def new_host(self, name):
        host = self.hosts.new(name, *self.options)
        host.fault_file = self.directory / f"{name}.fault"
        host.environment["FERRY_FAULT"] = f"@{host.fault_file}"
        return host.start()

    @property
    def pair(self):
        return self.a, self.b

    def other(self, host):
        return self.b if host is self.a else self.a

    # --- the guest ---

    def console(self, host):
        try:
            return (host.state_dir / "vms" / NAME / "console.log").read_text(errors="replace").replace("\r", "")
        except OSError:
            return ""

    def note_journal(self):
        for host in self.pair:
            for match in DISK.finditer(self.console(host)):
                self.journal = max(self.journal, int(match[1]))

    def boot(self, host):
        """Anew, by the documented command: `ferry run`."""
        self.note_journal()
        known = host.vm(NAME)
        boots = self.console(host).count(BOOTED)
        if known:
            host.post(f"/v1/vms/{NAME}/start")
        else:
            boots = 0
            host.post("/v1/vms", {"definition": {
                "name": NAME, "kernel": str(GUEST / "kernel"), "initrd": str(GUEST / "initrd"),
                "memory": self.memory, "cmdline": CMDLINE, "disks": [{"path": str(self.disk)}]}})
        wait(lambda: self.console(host).count(BOOTED) > boots and JOURNAL.search(last_life(self.console(host))),
             f"the guest to boot on {host.name}", 60)
        last, bad = map(int, JOURNAL.search(last_life(self.console(host))).groups())
        if bad or last < self.journal:
            raise Wrong(f"the journal ends at {last} with {bad} bad records; {self.journal} were surely on the disk")
        wait(lambda: work_lines(self.console(host)), "the guest's first lines", 60)

    def renew(self, host):
        """The same VM in a process that knows nothing of what was before."""
        host.post(f"/v1/vms/{NAME}/kill")
        self.boot(host)

    def verify(self, host):
        """The guest verifies all of its memory, its connections and its journal once more."""
        # One that has just arrived brings its console's history along, which is written a moment later.
        wait(lambda: work_lines(self.console(host)), f"the guest's lines on {host.name}", 60)
        text = self.console(host)
        lines = work_lines(text)
        first = max(lines)
        passes = int(re.search(r"pass=(\d+)", lines[first])[1])
        disks = len(DISK.findall(text))

        def ahead():
            text = self.console(host)
            newest = max(work_lines(text).items())[1]
            return int(re.search(r"pass=(\d+)", newest)[1]) >= passes + 2 and len(DISK.findall(text)) > disks

        wait(ahead, f"the guest on {host.name} to go on", 60)
        text = last_life(self.console(host))
        bad = re.search(r"^.*(?:WORK ERROR|DISK ERROR|errors=[1-9]|bad=[1-9]|panic|JOB ENDED).*$", text, re.MULTILINE)
        if bad:
            raise Wrong(f"the guest on {host.name} says: {bad[0]}")
        numbers = sorted(work_lines(text))
        if numbers != list(range(numbers[0], numbers[-1] + 1)):
            raise Wrong("lines of the guest are missing or double")
        self.note_journal()

    # --- looking ---

    def last_lines(self, count=12):
        """Of both hosts' logs, and the VM's state there."""
        lines = []
        for host in self.pair:
            try:
                lines += [f"    {host.name}: {line}" for line in host.log().splitlines()[-count:]]
                lines.append(f"    {host.name}: {host.vm(NAME) and host.vm(NAME)['state']}")
            except Exception:  # noqa: BLE001
                pass
        return "\n".join(lines)

    def state(self, host):
        vm = host.vm(NAME)
        return vm["state"] if vm else None

    def running(self):
        return [host for host in self.pair if self.state(host) == "RUNNING"]

    def consoles(self, host):
        """What the console says that every process of the VM on HOST has; there are two while it is upgraded."""
        found = {}
        for room in ("vms", "new"):
            try:
                text = (host.state_dir / room / NAME / "console.log").read_text(errors="replace").replace("\r", "")
            except OSError:
                continue
            if text:
                found[f"{host.name} ({room})" if room == "new" else host.name] = text
        return found

    def look(self):
        """One look for two running copies."""
        first = self.state(self.a)
        if first == "RUNNING" and self.state(self.b) == "RUNNING" and self.state(self.a) == "RUNNING":
            raise Wrong("both hosts list the VM as RUNNING")
        for host in self.pair:
            self.seen.update(self.consoles(host))
        for one, other in itertools.combinations(sorted(self.seen), 2):
            self.compare(one, other)

    def compare(self, one, other):
        here, there = work_lines(self.seen[one]), work_lines(self.seen[other])
        if here.get(1) != there.get(1):
            return  # not the same life: one was booted anew
        for number in here.keys() & there.keys():
            if here[number] != there[number]:
                raise Wrong(f"two copies ran: line {number} of the guest is '{here[number]}' on {one} "
                            f"and '{there[number]}' on {other}")

    @contextlib.contextmanager
    def watching(self):
        """Looks every few milliseconds, meanwhile; raises what was seen."""
        stop = threading.Event()
        trouble = []
        self.seen = {}

        def work():
            while not stop.is_set():
                try:
                    self.look()
                except Wrong as wrong:
                    trouble.append(wrong)
                    return
                except OSError:
                    pass  # a ferryd that is just restarting
                stop.wait(0.01)

        thread = threading.Thread(target=work, name="watch")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if trouble:
            raise trouble[0]

    def lock_holder(self):
        """The pid of nobody in particular: whether some process has the lock."""
        path = pathlib.Path(f"{self.disk}.ferry-lock")
        with path.open("rb+") as file:
            query = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, query)
        return struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK

    def vm_pids(self):
        """Every VM process of this world, whatever ferryd thinks of it."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if command[0].endswith(b"ferry-vm") and any(str(self.directory).encode() in word for word in command):
                    found.append(int(entry.name))
        return found

    def check_leaks(self, host):
        """The VM runs on HOST and nothing is left of any other copy, or of a migration."""
        pid = host.vm(NAME)["pid"]
        wait(lambda: self.vm_pids() == [pid], f"VM processes other than {pid} to be gone: {self.vm_pids()}", 10)
        listening = set()
        for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening.add(f"socket:[{fields[9]}]")
        if listening & set(open_files(pid)):
            raise Wrong(f"the VM's process {pid} still listens for a migration")
        if not self.lock_holder():
            raise Wrong("the VM runs, and nobody has its ownership lock")
        for each in self.pair:
            count = len(open_files(each.process.pid))
            if count > self.baseline.setdefault(each.name, count) + 12:
                raise Wrong(f"ferryd {each.name} has {count} files open, {self.baseline[each.name]} at first")
        state = self.state(self.other(host))
        if state not in (None, "NOT_RUNNABLE"):
            raise Wrong(f"the VM runs on {host.name}; {self.other(host).name} has it as {state}")

    # --- doing ---

    def fault(self, host, text):
        """From now on; "" for none. Begins anew to note what was reached, when there is one."""
        if text:
            host.fault_file.with_name(host.fault_file.name + ".reached").unlink(missing_ok=True)
        new = host.fault_file.with_suffix(".new")
        new.write_text(text)
        new.rename(host.fault_file)

    def reached(self, host):
        """The points on HOST at which something was done since the last fault(), in their order."""
        try:
            return host.fault_file.with_name(host.fault_file.name + ".reached").read_text().split()
        except OSError:
            return []

    def migrate(self, source, destination, **options):
        """Begins a migration; its id, or None when it ended before it began."""
        try:
            return source.migrate(NAME, destination, **options)
        except Refused:
            return None

    def upgrade(self, host):
        """Begins an upgrade; its id, or None when it ended before it began."""
        try:
            return host.upgrade(NAME)
        except Refused:
            return None

    def settled(self):
        """No migration is under way, and every VM in a state that lasts."""
        for host in self.pair:
            state = self.state(host)
            if state and "MIGR" in state:
                return False
            if host.get("/v1/migrations?view=active"):
                return False
        return True

    def settle(self, seconds=SETTLED_S):
        end = time.monotonic() + seconds
        while not self.settled():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def ferry(self, host, *words):
        """The command line, as a person would use it. (status, what it said)"""
        done = subprocess.run([str(BUILD / "ferry"), "--host", str(host.state_dir), *words], capture_output=True,
                              text=True, timeout=120, stdin=subprocess.DEVNULL)
        return done.returncode, (done.stdout + done.stderr).strip()

    def resolve(self, source, settle_s=SETTLED_S):
        """(host, commands): sees to it that one copy runs, by the commands of docs/SWITCHOVER.md alone."""
        commands = []
        said = []
        tried = set()
        self.settle(settle_s)
        for _ in range(8):
            states = {host: self.state(host) for host in self.pair}
            running = [host for host, state in states.items() if state == "RUNNING"]
            if len(running) == 1 and self.settled():
                return running[0], commands
            done = self.next_command(states, source)
            host, word = done
            if word == "start":
                try:
                    self.boot(host)
                    commands.append(f"run {host.name}")
                except Refused as refused:
                    said.append(refused.message)
                    word = "recover" if "ferry recover" in refused.message and host.vm(NAME) else "rm"
                    if (word, host) in tried:
                        word = "rm"
                    tried.add((word, host))
                    commands.append(f"{word} {host.name}")
                    said.append(self.ferry(host, word, NAME)[1])
            else:
                commands.append(f"{word} {host.name}")
                status, text = self.ferry(host, word, NAME)
                said.append(f"{word} {host.name}: {status} {text}")
            self.settle(10)
        raise Wrong(f"no copy could be made to run: {commands}, {said}, {[self.state(h) for h in self.pair]}")

    def next_command(self, states, source):
        for host in (source, self.other(source)):
            if states[host] and "MIGR" in states[host]:
                return host, "kill"  # it hangs
        for host, state in states.items():
            if state == "NOT_RUNNABLE" and host.vm(NAME)["pid"]:
                return host, "recover"
        for host, state in states.items():
            if state == "NOT_RUNNABLE" and "ferry recover" in host.vm(NAME)["why"]:
                return host, "recover"
        for wanted in ("CRASHED", "STOPPED"):
            for host in (source, self.other(source)):
                if states[host] == wanted:
                    return host, "start"
        for host in (source, self.other(source)):
            if states[host] == "NOT_RUNNABLE":
                return host, "rm"
        return source, "start"
