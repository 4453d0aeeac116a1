"""ferry-vm processes for tests: each in a directory of its own, all gone afterwards.

    def test_something(vms, guest):
        vm = vms.start("web", guest.definition("web", "ferry.work=threads=2"))
        vm.wait_for_console("FERRY-GUEST READY")
        moved = vms.start_incoming("b", vm.definition)
        assert vms.migrate(vm, moved)["outcome"] == "completed"
"""
import json
import os
import pathlib
import queue
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("FERRY_BUILD", ROOT / "build"))
GUESTS = pathlib.Path(os.environ.get("FERRY_GUEST", BUILD / "guest"))
FERRY_VM = BUILD / "ferry-vm"
# ferry-vm outlives whoever started it, but not a test run that was killed.
MORTAL = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
DEADLINE = 120
MIB = 1 << 20

WORK_LINE = re.compile(r"^work (\d+) verified=(\d+)M errors=(\d+) .*pass=(\d+) .*tcp_errors=(\d+)\s*$", re.M)


class Guest:
    """The Linux guest that guests/build makes."""

    def __init__(self, directory):
        self.kernel = directory / "riscv64" / "kernel"
        self.initrd = directory / "riscv64" / "initrd"

    def built(self):
        return self.kernel.exists() and self.initrd.exists()

    def definition(self, name, words="", memory=256 * MIB, vcpus=1, **more):
        return {"name": name, "memory": memory, "vcpus": vcpus, "kernel": str(self.kernel.resolve()),
                "initrd": str(self.initrd.resolve()), "cmdline": f"console=ttyS0 quiet {words}".strip(), **more}


class RpcError(Exception):
    def __init__(self, error):
        super().__init__(error.get("message"))
        self.code = error.get("code")
        self.message = error.get("message", "")
        self.errno = (error.get("data") or {}).get("errno")


class Control:
    """A client of control.sock; notifications wait in .notes."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(str(path))
        self.number = 0
        self.answers = queue.Queue()
        self.notes = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        try:
            for line in self.socket.makefile("r", encoding="utf-8"):
                message = json.loads(line)
                (self.answers if "id" in message else self.notes).put(message)
        except (OSError, ValueError):
            pass
        self.answers.put(None)
        self.notes.put(None)

    def send(self, data):
        self.socket.sendall(data)

    def call(self, method, **params):
        self.number += 1
        self.send(json.dumps({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params}).encode() + b"\n")
        answer = self.answers.get(timeout=DEADLINE)
        if answer is None:
            raise ConnectionError(f"no answer to {method}: the connection ended")
        if "error" in answer:
            raise RpcError(answer["error"])
        return answer["result"]

    def wait_for(self, method, condition=lambda params: True):
        """The params of the first notification of that kind for which CONDITION holds; earlier ones are dropped."""
        end = time.monotonic() + DEADLINE
        while True:
            note = self.notes.get(timeout=max(0.01, end - time.monotonic()))
            assert note is not None, f"the connection ended before {method}"
            if note["method"] == method and condition(note["params"]):
                return note["params"]

    def close(self):
        # shutdown, so that the reader lets go of it, too
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.reader.join(DEADLINE)
        self.socket.close()


class Vm:
    """One ferry-vm. `ready` is what it wrote to --ready-fd."""

    def __init__(self, directory, definition, *arguments, program=FERRY_VM, **popen):
        self.directory = directory
        self.definition = definition
        self.controls = []
        directory.mkdir(exist_ok=True)
        if definition is not None:
            (directory / "definition.json").write_text(json.dumps(definition))
        reader, writer = os.pipe()
        try:
            self.process = subprocess.Popen(
                [*MORTAL, str(program), "--dir", str(directory), "--ready-fd", str(writer), *arguments],
                pass_fds=[writer], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                **popen)
        finally:
            os.close(writer)
        with os.fdopen(reader) as pipe:
            line = pipe.readline()
        self.ready = json.loads(line) if line else None
        self.control = None
        if self.ready and self.ready.get("ok"):
            self.control = self.connect()
            # as ferry-vm completed it: with the cards' addresses
            self.definition = self.control.call("status")["definition"]

    def connect(self):
        control = Control(self.directory / "control.sock")
        self.controls.append(control)
        return control

    @property
    def pid(self):
        return self.process.pid

    def state(self):
        return self.control.call("status")["state"]

    def wait_for_state(self, state):
        """A destination is done with the migration a moment after the source heard that it runs."""
        end = time.monotonic() + DEADLINE
        while self.state() != state:
            assert time.monotonic() < end, f"waited in vain for {state}, it is {self.state()}"
            time.sleep(0.01)

    def console(self):
        try:
            return (self.directory / "console.log").read_text(errors="replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def log(self):
        return (self.directory / "vm.log").read_text()

    def wait_for_console(self, pattern, after=0):
        """Waits until console output from character AFTER on matches; returns the match."""
        end = time.monotonic() + DEADLINE
        while True:
            match = re.compile(pattern, re.M).search(self.console(), after)
            if match:
                return match
            assert self.process.poll() is None, f"ferry-vm ended before {pattern!r}:\n{self.console()[-1000:]}"
            assert time.monotonic() < end, f"no {pattern!r} on the console:\n{self.console()[-1000:]}"
            time.sleep(0.02)

    def work(self):
        """Numbers of the workload's lines so far; it must not have found an error."""
        found = WORK_LINE.findall(self.console())
        assert "WORK ERROR" not in self.console()
        assert all(errors == "0" and tcp_errors == "0" for _, _, errors, _, tcp_errors in found)
        return [(int(number), int(passes)) for number, _, _, passes, _ in found]

    def wait_for_work(self, lines=1, passes=0):
        """Waits for so many more lines of the workload, and rounds of verification of all its memory."""
        done = self.work()
        number, at_pass = done[-1] if done else (0, 0)
        end = time.monotonic() + DEADLINE
        while True:
            done = self.work()
            if done and done[-1][0] >= number + lines and done[-1][1] >= at_pass + passes:
                return
            assert self.process.poll() is None, "ferry-vm ended while the workload was watched"
            assert time.monotonic() < end, f"the workload does not go on:\n{self.console()[-1000:]}"
            time.sleep(0.05)

    def wait(self):
        """Waits for the process to end; returns its exit.json."""
        self.process.wait(DEADLINE)
        return json.loads((self.directory / "exit.json").read_text())

    def stop(self):
        """Asks the guest to power off, as soon as its agent listens; returns exit.json."""
        end = time.monotonic() + DEADLINE
        while True:
            try:
                self.control.call("stop")
                return self.wait()
            except RpcError as error:
                assert "control port" in error.message and time.monotonic() < end, error.message
            time.sleep(0.05)

    def type(self, text):
        """Types at the console."""
        with socket.socket(socket.AF_UNIX) as console:
            console.settimeout(DEADLINE)
            console.connect(str(self.directory / "console.sock"))
            console.sendall(text.encode())

    def memory_of_process(self):
        """Bytes beside guest memory."""
        text = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * sum(int(re.search(rf"^{key}:\s+(\d+) kB", text, re.M).group(1)) for key in ("RssAnon", "RssFile"))

    def is_small(self):
        """Under 24 MiB beside guest memory; a sanitizer's shadow does not count."""
        maps = pathlib.Path(f"/proc/{self.pid}/maps").read_text()
        return self.memory_of_process() < 24 * MIB or "libasan" in maps or "libtsan" in maps

    def end(self):
        for control in self.controls:
            control.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE)


class Vms:
    """Makes and ends VM processes. Directories are short: a Unix socket's path has 108 characters at most."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="ferry-vm-", dir="/tmp"))
        self.made = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for vm in self.made:
            vm.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def make(self, name, definition, *arguments, **more):
        """Started, successfully or not."""
        vm = Vm(self.directory / name, definition, *arguments, **more)
        self.made.append(vm)
        return vm

    def start(self, name, definition, *arguments, **more):
        vm = self.make(name, definition, *arguments, **more)
        assert vm.ready == {"ok": True}, vm.ready
        return vm

    def start_incoming(self, name, definition):
        return self.start(name, definition, "--incoming")

    def prepare(self, source, destination, token=None, listen="127.0.0.1:0", certificates=(None, None)):
        """Up to the word to start; returns the parameters of migrate.send. CERTIFICATES are files, the source's first."""
        name = {"source": source.directory.name, "destination": destination.directory.name}
        identity = {"id": str(uuid.uuid4()), "token": token or secrets.token_hex(32)}
        source.control.call("subscribe")
        source.control.call("migrate.prepare", id=identity["id"], **name)
        ours, theirs = ({"certificate": str(file)} if file else {} for file in certificates)
        address = destination.control.call("migrate.receive", listen=listen, **identity, **name, **theirs)["address"]
        return {**identity, "address": address, "destination_pid": destination.pid, **ours}

    def start_upgrade(self, name, source, **more):
        """A new process of the same host, to which SOURCE's VM is to go."""
        return self.start(name, source.definition, "--upgrade", str(source.directory), **more)

    def begin_upgrade(self, source, destination, **options):
        """Starts to pass the VM on; returns the migration's id."""
        host = {"source": "a", "destination": "a"}
        identity = {"id": str(uuid.uuid4()), "token": secrets.token_hex(32)}
        source.control.call("subscribe")
        source.control.call("migrate.prepare", id=identity["id"], **host)
        destination.control.call("migrate.receive", listen="./migrate.sock", **identity, **host)
        source.control.call("migrate.send", address=f"../{destination.directory.name}/migrate.sock", pass_memory=True,
                            destination_pid=destination.pid, **identity, **options)
        return identity["id"]

    def upgrade(self, source, name, **options):
        """Moves the VM to a new process; returns that and the source's last word."""
        moved = self.start_upgrade(name, source)
        self.begin_upgrade(source, moved, **options)
        return moved, source.control.wait_for("migration.finished")

    def begin(self, source, destination, listen="127.0.0.1:0", **options):
        """Starts to move; returns the migration's id."""
        send = self.prepare(source, destination, listen=listen)
        source.control.call("migrate.send", **send, **options)
        return send["id"]

    def migrate(self, source, destination, **options):
        """Moves and waits; returns the source's last word about it."""
        self.begin(source, destination, **options)
        return source.control.wait_for("migration.finished")
