"""ferryd processes for tests: hosts with directories and ports of their own that are gone afterwards.

    @pytest.fixture
    def hosts(tmp_path):
        with Hosts(tmp_path) as hosts:
            yield hosts

    a, b = hosts.pair()                 # two ferryd that know each other
    a.post("/v1/vms", {"definition": {...}})
"""
import contextlib
import http.client
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("FERRY_BUILD", ROOT / "build"))
FAKE_VM = ROOT / "tests" / "host" / "fake_ferry_vm.py"
DEADLINE = 60
KVM = platform.machine() == "x86_64" and os.access("/dev/kvm", os.R_OK | os.W_OK)


class Refused(Exception):
    """An error answer: status, class and message."""

    def __init__(self, status, error):
        super().__init__(f"{status} {error}")
        self.status = status
        self.error_class = error.get("class")
        self.message = error.get("message", "")


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def wait_until(condition, what, deadline=DEADLINE):
    """Asks CONDITION until it is true, for things that nobody announces."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def threads_stand(pid):
    states = [path.read_text().rpartition(")")[2].split()[0] for path in pathlib.Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state == "T" for state in states)


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        # A thread that is not asked to take the signal runs on for a moment.
        wait_until(lambda: threads_stand(pid), "all threads to stop")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class TlsConnection(http.client.HTTPSConnection):
    """A client that trusts anybody, and shows the certificate in BUNDLE, if any."""

    def __init__(self, address, timeout, bundle=None, newest=ssl.TLSVersion.TLSv1_3, source="127.0.0.1"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = newest
        if bundle:
            context.load_cert_chain(bundle)
        super().__init__(address, timeout=timeout, context=context, source_address=(source, 0))


class Host:
    """One ferryd."""

    def __init__(self, directory, name, vm_program, options=()):
        self.name = name
        self.state_dir = directory / name
        self.socket = self.state_dir / "ferryd.sock"
        self.program = BUILD / "ferryd"
        self.vm_program = vm_program
        self.options = list(options)
        self.environment = {}
        self.prefix = []  # what starts it, like "ip netns exec NAME"
        self.address = None
        self.process = None
        self.last_words = ""

    def start(self, listen=True):
        command = [*self.prefix, str(self.program), "--state-dir", str(self.state_dir), "--name", self.name]
        if listen:
            command += ["--listen", self.address or "127.0.0.1:0"]
        command += self.options
        environment = dict(os.environ, **self.environment)
        if self.vm_program:
            environment["FERRY_VM"] = str(self.vm_program)
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        assert "is ready" in line, line + self.process.stderr.read()
        self.address = self.get("/v1/host")["address"] or None
        return self

    def stop(self, number=signal.SIGTERM):
        """Ends ferryd; returns its exit status."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            self.last_words = process.communicate(timeout=DEADLINE)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return process.returncode

    def restart(self, number=signal.SIGTERM):
        self.stop(number)
        return self.start()

    def license(self, bundle):
        """Puts a certificate where ferryd will find it when it starts."""
        self.state_dir.mkdir(exist_ok=True)
        file = self.state_dir / "certificate.pem"
        file.touch(0o600)
        file.write_text(bundle.read_text())

    def install(self, bundle):
        """Gives the running ferryd a certificate."""
        self.post("/v1/host/certificate", {"bundle": bundle.read_text()})

    def request(self, method, path, body=None, headers=None, tcp=False, tls=None, timeout=DEADLINE):
        """(status, bytes); the body is sent as JSON unless it is bytes already. TLS: what TlsConnection takes."""
        if tls is not None:
            connection = TlsConnection(self.address, timeout, **tls)
        elif tcp:
            connection = http.client.HTTPConnection(self.address, timeout=timeout)
        else:
            connection = UnixConnection(self.socket, timeout)
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def call(self, method, path, body=None, **more):
        status, data = self.request(method, path, body, **more)
        answer = json.loads(data) if data else None
        if status >= 300:
            raise Refused(status, answer["error"])
        return answer

    def get(self, path, **more):
        return self.call("GET", path, **more)

    def post(self, path, body=None, **more):
        return self.call("POST", path, {} if body is None else body, **more)

    def delete(self, path, **more):
        return self.call("DELETE", path, **more)

    def lines(self, path, **more):
        status, data = self.request("GET", path, **more)
        assert status == 200, data
        return [json.loads(line) for line in data.splitlines()]

    # --- VMs and migrations ---

    def run(self, name, **definition):
        kernel = self.state_dir / "kernel"
        if "kernel" not in definition:
            kernel.touch()
            definition["kernel"] = str(kernel)
        return self.post("/v1/vms", {"definition": {"name": name, **definition}})

    def vm(self, name):
        """The VM object, or None."""
        try:
            return self.get(f"/v1/vms/{name}")
        except Refused as refused:
            assert refused.status == 404
            return None

    def has_left(self, name, destination=None):
        """Whether the VM is known here only as one that has migrated away."""
        vm = self.vm(name)
        why = vm["not_runnable"]
        assert (vm["state"], vm["pid"], why["set_by"]) == ("NOT_RUNNABLE", None, "Migrate"), vm
        return destination is None or why["reason"] == f"the guest has migrated to {destination.name}"

    def migrate(self, name, destination, **options):
        """Starts a migration; returns its id."""
        return self.post(f"/v1/vms/{name}/migrate", {"destination": destination.name, **options})["id"]

    def finish(self, migration):
        """Waits for the end of a migration; returns its object."""
        return self.lines(f"/v1/migrations/{migration}/watch")[-1]

    def upgrade(self, name):
        """Starts an upgrade; returns its migration's id."""
        return self.post(f"/v1/vms/{name}/upgrade")["id"]

    def move(self, name, destination, **options):
        return self.finish(self.migrate(name, destination, **options))

    def event_codes(self, migration):
        return [event["code"] for event in self.lines("/v1/events") if event["migration"] == migration]

    def log(self):
        return (self.state_dir / "ferryd.log").read_text()


class Hosts:
    """The hosts of one test. Leaves no process and no directory."""

    def __init__(self, directory=None, vm_program=FAKE_VM):
        # Sockets need short paths, which pytest's own directories are not.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="ferry-", dir="/tmp"))
        self.vm_program = vm_program
        self.hosts = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        complaints = []
        for host in self.hosts:
            try:
                status = host.stop()
            except subprocess.TimeoutExpired:
                status = "it hangs"
            if status not in (0, None):
                complaints.append(f"ferryd {host.name} ended badly ({status}): {host.last_words}")
        self.end_vms()
        shutil.rmtree(self.directory, ignore_errors=True)
        assert not complaints, "\n".join(complaints)

    def new(self, name, *options):
        """A host that is not started yet."""
        host = Host(self.directory, name, self.vm_program, options)
        self.hosts.append(host)
        return host

    def start(self, name, *options):
        return self.new(name, *options).start()

    def pair(self, *options):
        a, b = self.start("a", *options), self.start("b", *options)
        introduce(a, b)
        return a, b

    def vm_processes(self):
        """Numbers of all VM processes that run in this test's directory."""
        found = []
        for record in [*self.directory.glob("*/vms/*/process.json"), *self.directory.glob("*/new/*/process.json"),
                       *self.directory.glob("*/old/*/process.json")]:
            try:
                pid = json.loads(record.read_text())["pid"]
            except OSError:
                continue  # it is just being removed
            try:
                command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if str(self.directory).encode() in command and pid not in found:
                found.append(pid)
        return found

    def end_vms(self):
        for pid in self.vm_processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def introduce(a, b):
    """Each learns of the other."""
    a.post("/v1/hosts", {"name": b.name, "address": b.address})
    b.post("/v1/hosts", {"name": a.name, "address": a.address})


def record_of(host, migration):
    """What HOST alone has on record of a migration."""
    return host.get(f"/v1/migrations/{migration}?local=1")


def agreed_records(a, b, migration):
    """Both hosts' records, once each is known to say what the other says; they must have the same outcome."""
    def agreed():
        records = [record_of(host, migration) for host in (a, b)]
        return records if all(record["agreed"] for record in records) else None

    records = wait_until(agreed, f"{a.name} and {b.name} to agree about {migration}")
    assert records[0]["outcome"] == records[1]["outcome"], records
    return records


def assert_refused(call, status, error_class, *words):
    """CALL must be answered with this error, its sentence holding all WORDS."""
    try:
        answer = call()
    except Refused as refused:
        assert (refused.status, refused.error_class) == (status, error_class), refused
        for word in words:
            assert word in refused.message, refused.message
        return refused
    raise AssertionError(f"not refused: {answer}")
