"""A ferryd that only pretends: the REST API of docs/API.md over a Unix socket and TCP, answering from scripts.

For testing `ferry` without virtual machines. Two of them can know each other, so that a VM "moves".
"""

import copy
import json
import os
import socketserver
import ssl
import threading
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

STATUS = {"usage": 400, "not_found": 404, "conflict": 409, "refused": 422, "failed": 500, "unreachable": 502}
ID = "1b4e28ba-2fa1-41d2-883f-0016d3cca427"
MIB = 1 << 20
PARTS = ["pause", "quiesce", "last pages", "state save", "wire", "state load", "lock", "resume", "announce"]


class ApiError(Exception):
    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def make_vm(name, host, **changes):
    vm = {
        "name": name,
        "state": "RUNNING",
        "why": "",
        "host": host,
        "pid": 4711,
        "started": "2026-11-21T03:31:36.123+01:00",
        "definition": {
            "name": name,
            "machine": "riscv64",
            "memory": 256 * MIB,
            "vcpus": 1,
            "kernel": "/boot/Image",
            "cmdline": "console=ttyS0",
            "disks": [{"path": "/images/web.img", "readonly": True, "direct": False}],
            "nets": [{"backend": "user", "mac": "52:54:00:12:34:56"}],
        },
        "memory_resident": 40 * MIB,
        "migration": None,
    }
    vm.update(changes)
    return vm


def make_migration(**changes):
    migration = {
        "id": ID,
        "vm": "web",
        "source": "a",
        "destination": "b",
        "side": "source",
        "kind": "hot",
        "state": "MIGRATE_TO_VMX_READY",
        "state_number": 1,
        "phase": "Init",
        "percent": 0,
        "outcome": "none",
        "cause": "",
        "error": "",
        "started": "2026-11-21T03:31:40+01:00",
        "ended": None,
        "memory_bytes": 256 * MIB,
        "remaining_bytes": 0,
        "wire_bytes": 0,
        "pages_raw": 0,
        "pages_zero": 0,
        "pages_skipped": 0,
        "pages_postponed": 0,
        "encodings": {name: {"pages": 0, "saved_bytes": 0} for name in ("zero", "unchanged", "delta", "lz4", "zstd")},
        "bandwidth": 0, "copy_rate": 0,
        "dirty_rate": 0,
        "total_ns": 0,
        "setup_ns": 0,
        "downtime_ns": 0,
        "downtime_parts": {part: 0 for part in PARTS},
        "round": 0,
        "rounds": [],
        "events": [],
        "log": [],
    }
    migration.update(changes)
    return migration


ROUNDS = [
    {"pages": 65536, "bytes": 44 * MIB, "duration_ns": 200_000_000, "dirtied_pages": 312},
    {"pages": 312, "bytes": 1253376, "duration_ns": 4_000_000, "dirtied_pages": 7},
]
COMPLETED = {
    "state": "MIGRATE_TO_VMX_FINISHED",
    "state_number": 5,
    "phase": "Frozen",
    "percent": 100,
    "outcome": "completed",
    "ended": "2026-11-21T03:31:41+01:00",
    "total_ns": 312_000_000,
    "downtime_ns": 2_100_000,
    "wire_bytes": 46_200_000,
    "pages_raw": 11000,
    "pages_postponed": 12,
    "encodings": {"zero": {"pages": 53248, "saved_bytes": 208 * MIB}, "unchanged": {"pages": 0, "saved_bytes": 0},
                  "delta": {"pages": 0, "saved_bytes": 0}, "lz4": {"pages": 1000, "saved_bytes": 3 * MIB},
                  "zstd": {"pages": 0, "saved_bytes": 0}},
    "bandwidth": 400 * MIB, "copy_rate": 400 * MIB,
    "dirty_rate": 3 * MIB,
    "downtime_parts": {"pause": 100_000, "quiesce": 0, "last pages": 1_000_000, "wire": 1_000_000},
    "round": 2,
    "rounds": ROUNDS,
    "events": [
        {"time": "2026-11-21T03:31:40.1+01:00", "host": "a", "code": "VMS2450", "text": "web leaves"},
        {"time": "2026-11-21T02:31:40.2+00:00", "host": "b", "code": "VMS2430", "text": "web arrives"},
    ],
    "log": [
        {
            "time": "2026-11-21T03:31:40.5+01:00",
            "level": "info",
            "host": "a",
            "text": "Another pre-copy iteration needed with 312 modified pages (last = -1)",
        },
        {"time": "2026-11-21T03:31:41+01:00", "level": "info", "host": "b", "text": "VM continued"},
    ],
}


def migration_story():
    """What `watch` tells of a migration that goes well."""
    rates = {"bandwidth": 400 * MIB, "copy_rate": 600 * MIB, "dirty_rate": 3 * MIB}
    return [
        make_migration(),
        make_migration(phase="Copy", percent=42, remaining_bytes=150 * MIB, **rates),
        make_migration(phase="Copy", percent=90, remaining_bytes=MIB, round=1, rounds=ROUNDS[:1], **rates),
        make_migration(phase="I/O Quiesce", percent=100, round=2, rounds=ROUNDS),
        make_migration(**COMPLETED),
    ]


class FakeFerryd:
    """Change its attributes before and between requests; `requests` has what was asked."""

    def __init__(self, state_dir, name="a"):
        self.name = name
        self.state_dir = str(state_dir)
        self.socket_path = os.path.join(self.state_dir, "ferryd.sock")
        os.makedirs(self.state_dir, exist_ok=True)
        self.requests = []
        self.vms = {}
        self.hosts = {}
        self.migrations = []
        self.statistics = None  # as of a ferryd that has none
        self.events = []
        self.story = migration_story()
        self.story_gate = None  # an Event that watch waits for before the last object
        self.break_watch_once = False
        self.stop_takes_effect = True
        self.fail_next = None  # an ApiError for the next request that is not a GET
        self.console_history = {}
        self.console_end = threading.Event()  # ends consoles and followed logs
        self.console_input = b""
        self.console_heard = threading.Condition()
        self.changed = threading.Event()
        self.closing = threading.Event()
        self.servers = []
        self.address = None
        self.protocol = 1
        self.certificate = None

    def start(self, address="127.0.0.1:0", tls=None):
        """TLS: the file of the certificate to show on TCP."""
        fake = self
        place, port = address.rsplit(":", 1)

        class Handler(FakeHandler):
            owner = fake

        class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        class TcpServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.servers = [UnixServer(self.socket_path, Handler), TcpServer((place, int(port)), Handler)]
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self.servers[1].socket = context.wrap_socket(self.servers[1].socket, server_side=True)
        self.address = "127.0.0.1:%d" % self.servers[1].server_address[1]
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def close(self):
        self.closing.set()
        self.console_end.set()
        self.changed.set()
        if self.story_gate:
            self.story_gate.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def add_event(self, vm, text, code="VMS2450", level="info", migration=None):
        self.events.append(
            {
                "number": len(self.events) + 1,
                "time": "2026-11-21T03:31:36.123+01:00",
                "host": self.name,
                "code": code,
                "level": level,
                "vm": vm,
                "migration": migration,
                "text": text,
            }
        )
        self.changed.set()

    def bodies(self, method, path):
        return [body for m, p, body in self.requests if (m, p) == (method, path)]

    # What the API does

    def vm(self, name):
        if name not in self.vms:
            raise ApiError("not_found", "there is no VM %s on host %s" % (name, self.name))
        return self.vms[name]

    def host(self):
        return {
            "name": self.name,
            "version": "0.1.0",
            "protocol": self.protocol,
            "certificate": self.certificate,
            "address": self.address,
            "migrate_address": "127.0.0.1",
            "memory_total": 8 << 30,
            "memory_available": 6 << 30,
            "machines": [
                {"machine": "riscv64", "accel": "soft", "available": True, "why": ""},
                {"machine": "x86_64", "accel": "kvm", "available": False, "why": "no /dev/kvm"},
            ],
            "vms": len(self.vms),
            "migration": "enabled",
            "pid": 1234,
            "started": "2026-11-21T03:30:00+01:00",
            "state_dir": self.state_dir,
        }

    def host_list(self):
        itself = {"name": self.name, "address": self.address, "reachable": True, "version": "0.1.0", "why": ""}
        others = [
            {"name": name, "address": address, "reachable": False, "version": "", "why": "connection refused"}
            for name, address in self.hosts.items()
        ]
        return [itself, *others]

    def change_vm(self, name, verb, body):
        vm = self.vm(name)
        if verb == "runnable":
            why = None if body["runnable"] else {"set_by": "Admin", "reason": body["reason"]}
            vm.update(state="NOT_RUNNABLE" if why else "STOPPED", not_runnable=why, why=why["reason"] if why else "")
            return vm
        if verb == "recover":
            return vm
        if verb == "stop":
            if self.stop_takes_effect:
                threading.Timer(0.2, self.power_off, [name]).start()
            return vm
        vm["state"] = {"pause": "PAUSED", "unpause": "RUNNING", "kill": "STOPPED", "start": "RUNNING"}[verb]
        vm["why"] = "killed" if verb == "kill" else ""
        return vm

    def power_off(self, name):
        self.vms[name].update(state="STOPPED", why="the guest powered off", pid=0)
        self.add_event(name, "powered off", code="")

    def migration(self, prefix):
        for migration in self.migrations:
            if migration["id"].startswith(prefix):
                return migration
        raise ApiError("not_found", "there is no migration %s" % prefix)

    def migration_list(self, view):
        wanted = {
            "active": lambda m: not m["ended"],
            "history": lambda m: bool(m["ended"]),
            "failed": lambda m: m["outcome"] not in ("none", "completed"),
        }.get(view, lambda m: True)
        return [m for m in self.migrations if wanted(m)]

    def post_vm(self, body):
        definition = body["definition"]
        if definition["name"] in self.vms:
            raise ApiError("conflict", "the name %s is taken" % definition["name"])
        vm = make_vm(definition["name"], self.name)
        vm["definition"] = {"machine": "riscv64", "memory": 256 * MIB, "vcpus": 1, **definition}
        vm["state"] = "PAUSED" if body["paused"] else "RUNNING"
        self.vms[definition["name"]] = vm
        return 201, vm

    def offer(self, body):
        if body["check_only"]:
            return {"checks": [], "disks": [], "lock": {"place": "none"}, "boot_id": ""}
        return {"address": "127.0.0.1:9", "token": "0" * 64, "pid": 1, "tls": False}

    def answer_host(self, method, words, body):
        if words == ["host"]:
            return 200, self.host()
        if words == ["host", "migration"]:
            return 200, {**self.host(), "migration": "enabled" if body["enabled"] else "disabled"}
        if words == ["hosts"] and method == "GET":
            return 200, self.host_list()
        if words == ["hosts"]:
            self.hosts[body["name"]] = body["address"]
            return 201, {"name": body["name"], "address": body["address"]}
        if not self.hosts.pop(words[1], None):
            raise ApiError("not_found", "there is no host %s" % words[1])
        return 204, None

    def answer_vms(self, method, words, body):
        if len(words) == 1:
            return (200, list(self.vms.values())) if method == "GET" else self.post_vm(body)
        vm = self.vm(words[1])
        if len(words) == 2 and method == "DELETE":
            if vm["state"] == "RUNNING":
                raise ApiError("conflict", "%s is running; stop it first" % words[1])
            del self.vms[words[1]]
            return 204, None
        if len(words) == 2:
            return 200, vm
        if words[2] == "check":
            errors = [] if words[1] == "web" else [{"check": "state", "severity": "error", "message": "it is off"}]
            return 200, {"vm": words[1], "source": "a", "destination": body["destination"], "possible": not errors,
                         "checks": [{"check": "connections", "severity": "warning", "message": "they end"}] + errors}
        if words[2] == "checkpoint":
            self.checkpoint = {"id": ID, "vm": words[1], "host": self.name, "kind": body["kind"], "file": body["file"],
                               "outcome": "completed", "error": "", "bytes": 44 * MIB, "stopped_ns": 4200000,
                               "total_ns": 312000000, "started": "2026-11-21T03:31:40+01:00",
                               "ended": "2026-11-21T03:31:41+01:00"}
            return 202, {"id": ID}
        if words[2] == "migrate":
            self.migrations.insert(0, copy.deepcopy(self.story[0]))
            return 202, {"id": self.story[0]["id"]}
        return 200, self.change_vm(words[1], words[2], body)

    def cluster_baseline(self, words):
        cpu = {"name": self.name, "generation": "x86-64-v2"}
        if words == ["compute"]:
            return {"generation": "x86-64-v2", "vendor": "AuthenticAMD", "features": ["pni", "ssse3"],
                    "hosts": [{**cpu, "vendor": "AuthenticAMD", "model": "EPYC", "beyond": ["avx"]}]}
        return {"name": None, "features": [], "hosts": [{**cpu, "baseline": None, "why": ""}]}

    def answer(self, method, path, query, body):
        """The status and object for a request that has one object for an answer."""
        words = [unquote(word) for word in path.split("/")[2:]]
        if method != "GET" and self.fail_next:
            error, self.fail_next = self.fail_next, None
            raise error
        if words[:2] == ["cluster", "baseline"]:
            return 200, self.cluster_baseline(words[2:])
        if words[0] in ("host", "hosts"):
            return self.answer_host(method, words, body)
        if words[0] == "vms":
            return self.answer_vms(method, words, body)
        if words == ["resume"]:
            return 201, make_vm("web", self.name)
        if words[0] == "incoming":
            return (204, None) if method == "DELETE" else (201, self.offer(body))
        if words == ["migrations", "statistics"] and self.statistics is None:
            raise ApiError("not_found", "there is no migration statistics")
        if words == ["migrations", "statistics"]:
            return 200, self.statistics
        if words == ["migrations"]:
            return 200, self.migration_list(query.get("view", [""])[0])
        if words[0] == "migrations":
            return 200, self.migration(words[1])
        raise ApiError("not_found", "no such path")


class FakeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner = None

    def log_message(self, *arguments):
        pass

    def send_object(self, status, value):
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin_chunks(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def chunk(self, data):
        if data:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

    def end_chunks(self):
        self.wfile.write(b"0\r\n\r\n")

    def handle_request(self):
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        length = int(self.headers.get("Content-Length", 0))
        raw = self.rfile.read(length) if length else b""
        body = json.loads(raw) if raw else None
        self.owner.requests.append((self.command, self.path, body))
        try:
            if url.path == f"/v1/checkpoints/{ID}/watch":
                self.begin_chunks()
                self.chunk(json.dumps(self.owner.checkpoint).encode() + b"\n")
                self.end_chunks()
            elif url.path.endswith("/watch"):
                self.watch(self.owner.migration(url.path.split("/")[3]))
            elif url.path == "/v1/events":
                self.follow_events(query)
            elif url.path.endswith("/console/log"):
                self.follow_log(unquote(url.path.split("/")[3]), query["follow"] == ["1"])
            elif url.path.endswith("/console"):
                self.console(unquote(url.path.split("/")[3]))
            else:
                self.send_object(*self.owner.answer(self.command, url.path, query, body))
        except ApiError as error:
            self.send_object(STATUS[error.kind], {"error": {"class": error.kind, "message": str(error)}})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_DELETE = handle_request

    def watch(self, migration):
        fake = self.owner
        self.begin_chunks()
        for step in fake.story:
            is_last = step is fake.story[-1]
            if is_last and fake.break_watch_once:
                fake.break_watch_once = False
                self.close_connection = True
                return
            if is_last and fake.story_gate:
                fake.story_gate.wait(30)
            migration.update(step)
            self.chunk(json.dumps(step).encode() + b"\n")
        self.end_chunks()

    def follow_events(self, query):
        fake = self.owner
        sent = int(query.get("since", ["0"])[0])
        self.begin_chunks()
        while not fake.closing.is_set():
            fake.changed.clear()
            for event in fake.events[sent:]:
                self.chunk(json.dumps(event).encode() + b"\n")
                sent = event["number"]
            if query["follow"] != ["1"]:
                break
            fake.changed.wait(10)
        self.end_chunks()

    def follow_log(self, name, follow):
        fake = self.owner
        if name not in fake.console_history:
            raise ApiError("not_found", "there is no VM %s on host %s" % (name, fake.name))
        self.begin_chunks()
        self.chunk(fake.console_history[name])
        if follow:
            fake.console_end.wait(30)
        self.end_chunks()

    def console(self, name):
        fake = self.owner
        fake.vm(name)
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "ferry-console")
        self.end_headers()
        self.wfile.write(b"login on " + fake.name.encode() + b": ")
        self.wfile.flush()
        self.close_connection = True
        threading.Thread(target=self.end_console, daemon=True).start()
        while True:
            try:
                data = self.connection.recv(4096)
            except OSError:
                break
            if not data:
                break
            with fake.console_heard:
                fake.console_input += data
                fake.console_heard.notify_all()
            self.wfile.write(b"<" + data + b">")
            self.wfile.flush()

    def end_console(self):
        self.owner.console_end.wait(60)
        try:
            self.connection.shutdown(2)
        except OSError:
            pass
