"""The peer: qemu-system-riscv64 with its software CPU (or another of its programs), started, watched on its console, and
moved through QMP.

It is the QEMU that bench/fetch-qemu has got from Debian's backports, else the installed one.
"""

import json
import os
import pathlib
import select
import shutil
import socket
import subprocess
import tempfile
import time

PROGRAM = "qemu-system-riscv64"
X86_64 = "qemu-system-x86_64"
CACHE = pathlib.Path(os.environ.get("FERRY_CACHE")
                     or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "ferry")


def command(program=PROGRAM):
    """What starts it, with its own firmware and modules; None when there is none."""
    fetched = CACHE / "qemu" / "current"
    if (fetched / "complete").exists():
        root = fetched.resolve()
        return ["env", f"QEMU_MODULE_DIR={next(root.glob('usr/lib/*/qemu'))}", str(root / "usr/bin" / program),
                "-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")]
    return [program] if shutil.which(program) else None


def available():
    return command() is not None


def version(program=PROGRAM):
    text = subprocess.run([*command(program), "--version"], capture_output=True, text=True, check=True).stdout
    return "QEMU " + text.split("version ")[1].split()[0]


class Console:
    """Collects a guest's console from a stream and waits for words in it."""

    def __init__(self, stream):
        self.stream = stream
        self.text = ""
        os.set_blocking(stream.fileno(), False)

    def wait_for(self, words, timeout):
        deadline = time.monotonic() + timeout
        while words not in self.text:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.stream], [], [], left)[0]:
                raise TimeoutError(f"the guest did not say {words!r}; last lines: {self.text[-400:]!r}")
            chunk = os.read(self.stream.fileno(), 65536)
            if not chunk:
                raise EOFError(f"the guest's console ended; last lines: {self.text[-400:]!r}")
            self.text += chunk.decode(errors="replace")
        return self.text


class Qemu:
    """One QEMU process with a QMP socket."""

    def __init__(self, kernel, initrd=None, append="", memory="512M", smp=1, incoming=None, extra=(), prefix=(),
                 program=PROGRAM, machine="virt"):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="ferry-bench-qemu-"))
        qmp = self.directory / "qmp"
        line = [*prefix, *command(program), "-M", machine, "-m", memory, "-smp", str(smp), "-display", "none",
                "-monitor", "none", "-serial", "stdio", "-kernel", str(kernel), "-append", append,
                "-qmp", f"unix:{qmp},server=on,wait=off", *extra]
        if program == PROGRAM:
            line += ["-bios", "default"]
        if initrd:
            line += ["-initrd", str(initrd)]
        if incoming:
            line += ["-incoming", incoming]
        self.started = time.monotonic()
        self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        self.console = Console(self.process.stdout)
        self.socket = self._connect(qmp)
        self.stream = self.socket.makefile("rw")
        self.events = []
        json.loads(self.stream.readline())
        self.qmp("qmp_capabilities")

    def _connect(self, path):
        deadline = time.monotonic() + 20
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                connection.settimeout(5)  # an answer or event that never comes is an error
                return connection
            except OSError:
                connection.close()
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.01)

    def qmp(self, command, **arguments):
        self.stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.stream.flush()
        while True:
            answer = json.loads(self.stream.readline())
            if "event" in answer:
                self.events.append(answer)
            elif "return" in answer:
                return answer["return"]
            elif "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")

    def await_event(self, name):
        """Reads events until one of that name has come."""
        while self.event_time(name) is None:
            answer = json.loads(self.stream.readline())
            if "event" in answer:
                self.events.append(answer)

    def event_time(self, name):
        """Seconds (wall clock, to the microsecond) of the last event of that name; None if there was none."""
        times = [event["timestamp"] for event in self.events if event["event"] == name]
        return times[-1]["seconds"] + times[-1]["microseconds"] / 1e6 if times else None

    def set_up(self, parameters=None, capabilities=None):
        """For a move: what both sides must be told."""
        if capabilities:
            self.qmp("migrate-set-capabilities", capabilities=[{"capability": name, "state": state}
                                                               for name, state in capabilities.items()])
        if parameters:
            self.qmp("migrate-set-parameters", **parameters)

    def migrate(self, uri, parameters=None, capabilities=None, timeout=120, postcopy=False):
        """Moves the guest away, by POSTCOPY at once; returns query-migrate's report (milliseconds and bytes)."""
        self.set_up(parameters, capabilities)
        self.qmp("migrate", uri=uri)
        if postcopy:
            self.qmp("migrate-start-postcopy")
        deadline = time.monotonic() + timeout
        while True:
            report = self.qmp("query-migrate")
            if report.get("status") in ("completed", "failed", "cancelled"):
                return report
            if time.monotonic() > deadline:
                raise TimeoutError(f"QEMU's migration did not end: {report}")
            time.sleep(0.005)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.socket.close()
        self.process.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
