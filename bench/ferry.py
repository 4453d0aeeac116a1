"""Ferry as the benches drive it: two ferryd on this machine, their REST API, and their VMs' consoles."""

import http.client
import json
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Host:
    """One ferryd with a state directory of its own."""

    def __init__(self, build, name, prefix=(), address=None):
        """PREFIX starts it elsewhere (a network namespace), where ADDRESS is its own."""
        self.name = name
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=f"ferry-bench-{name}-"))
        more = ["--insecure"] if address else []
        if address:
            self.address = f"{address}:7411"
        else:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.process = subprocess.Popen(
            [*prefix, build / "ferryd", "--state-dir", self.directory, "--name", name, "--listen", self.address, *more],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not (self.directory / "ferryd.sock").exists():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"ferryd {name} did not start")
            time.sleep(0.01)

    def call(self, method, path, body=None, timeout=120):
        connection = Connection(self.directory / "ferryd.sock", timeout)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None,
                               {"Content-Type": "application/json"} if body is not None else {})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {text.decode(errors='replace').strip()}")
            return json.loads(text) if text.strip() else None
        finally:
            connection.close()

    def run(self, **definition):
        return self.call("POST", "/v1/vms", {"definition": definition, "paused": False})

    def remove(self, vm):
        """Whatever it is doing."""
        if self.call("GET", f"/v1/vms/{vm}")["state"] not in ("STOPPED", "CRASHED", "NOT_RUNNABLE"):
            try:
                self.call("POST", f"/v1/vms/{vm}/kill", {})
            except RuntimeError:
                pass  # it has just ended by itself
        self.call("DELETE", f"/v1/vms/{vm}")

    def console(self, vm):
        connection = Connection(self.directory / "ferryd.sock", 60)
        try:
            connection.request("GET", f"/v1/vms/{vm}/console/log")
            return connection.getresponse().read().decode(errors="replace")
        finally:
            connection.close()

    def wait_console(self, vm, words, timeout=120):
        """Follows the console until it says the words, or until a function of all that was said is content; returns what
        was said up to then."""
        content = words if callable(words) else lambda text: words in text
        connection = Connection(self.directory / "ferryd.sock", timeout)
        try:
            connection.request("GET", f"/v1/vms/{vm}/console/log?follow=1")
            answer = connection.getresponse()
            text = ""
            while not content(text):
                chunk = answer.read1(65536)
                if not chunk:
                    raise EOFError(f"{vm}'s console ended without {words!r}: {text[-400:]!r}")
                text += chunk.decode(errors="replace")
            return text
        finally:
            connection.close()

    def migrate(self, vm, destination, **options):
        """Moves a VM and returns the source's final migration object."""
        return self._finish(self.call("POST", f"/v1/vms/{vm}/migrate", {"destination": destination, **options})["id"])

    def upgrade(self, vm):
        """Has a VM go on in a new process; returns the final migration object."""
        return self._finish(self.call("POST", f"/v1/vms/{vm}/upgrade", {})["id"])

    def await_former(self):
        """Until no process that was replaced is left."""
        deadline = time.monotonic() + 60
        while any((self.directory / "old").glob("*")):
            if time.monotonic() > deadline:
                raise RuntimeError("a process that was replaced does not end")
            time.sleep(0.01)

    def _finish(self, migration):
        connection = Connection(self.directory / "ferryd.sock", 300)
        try:
            connection.request("GET", f"/v1/migrations/{migration}/watch")
            lines = connection.getresponse().read().splitlines()
        finally:
            connection.close()
        report = json.loads(lines[-1])
        if report["outcome"] != "completed":
            raise RuntimeError(f"the move of {report['vm']} to {report['destination']}: {report['outcome']}, "
                               f"{report['error']}")
        return report

    def close(self):
        for vm in self.call("GET", "/v1/vms"):
            self.remove(vm["name"])
        self.process.terminate()
        self.process.wait(20)
        shutil.rmtree(self.directory, ignore_errors=True)


class Pair:
    """Hosts a and b that know each other; with LINK (link.py) one at each end of it."""

    def __init__(self, build, link=None):
        places = list(zip(link.ends, link.addresses)) if link else [((), None)] * 2
        self.a, self.b = (Host(build, name, *place) for name, place in zip("ab", places))
        self.a.call("POST", "/v1/hosts", {"name": "b", "address": self.b.address})
        self.b.call("POST", "/v1/hosts", {"name": "a", "address": self.a.address})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.a.close()
        self.b.close()
