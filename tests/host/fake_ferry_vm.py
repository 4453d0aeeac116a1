#!/usr/bin/env python3
"""A stand-in for ferry-vm: the same command line, control socket and files (docs/API.md), no guest.

ferryd's tests use it to reach what a real VM does not do on demand. The VM's cmdline holds directives:
    fail-start=TEXT    do not get ready, say TEXT
    slow-start=N       get ready after N seconds
    slow-arrive=N      the same, for one that waits for a VM to arrive
    die-start          end without a word before getting ready
    slow-move          a move takes a second or two
    fail-move=TEXT     the source's move fails before GO
    die-move           the source dies in the middle of the move
    die-arrive         the destination dies in the middle of the move
    die-arrive-at-a    the same, when the destination is host a
    die-restored       the destination dies after Restore-OK, without having run
    lost-move          the destination runs, but its RUNNING does not reach the source
    hang-send          migrate.send is never answered by progress; only cancel ends it
    slow-save          a save into a checkpoint file takes a second or two
    gate-save          it goes on when there is a file of its name and .go
    fail-save=TEXT     it fails
    die-save           the process dies in the middle of it
    fail-resume=TEXT   it does not go on from a file; fail-resume-at-b: on host b
    die-saved          the process dies when the file is complete, without a word
"""
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime

BUILD = pathlib.Path(os.environ.get("FERRY_BUILD", pathlib.Path(__file__).parent.parent.parent / "build"))
PARTS = ["pause", "quiesce", "last pages", "state save", "wire", "state load", "lock", "resume", "announce"]


def now():
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


class FakeVm:
    def __init__(self, directory, incoming, paused):
        self.directory = directory
        with open(self.path("definition.json"), encoding="utf-8") as file:
            self.definition = json.load(file)
        words = self.definition.get("cmdline", "").split(" ")
        self.directives = dict((word.split("=", 1) + [""])[:2] for word in words)
        self.name = self.definition["name"]
        self.cpu = None
        self.incoming = incoming
        self.state = "SETUP" if incoming else "PAUSED" if paused else "RUNNING"
        self.started = now()
        self.migration = None
        self.checkpoint = None
        self.save_cancelled = threading.Event()
        self.cancelled = threading.Event()
        self.too_late = False
        self.lock = threading.RLock()
        self.subscribers = []
        self.consoles = []
        self.listener = None
        self.token = None

    def path(self, name):
        return os.path.join(self.directory, name)

    # --- what clients see ---

    def notify(self, method, params):
        line = json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode() + b"\n"
        with self.lock:
            for client in list(self.subscribers):
                try:
                    client.sendall(line)
                except OSError:
                    self.subscribers.remove(client)

    def set_state(self, state, why=""):
        self.state = state
        self.notify("vm.state", {"state": state, "why": why})

    def say(self, text):
        self.notify("migration.log", {"id": self.migration["id"], "time": now(), "level": "info", "text": text})

    def console_write(self, text):
        with self.lock:
            with open(self.path("console.log"), "ab") as file:
                file.write(text.encode())
            for client in list(self.consoles):
                try:
                    client.sendall(text.encode())
                except OSError:
                    self.consoles.remove(client)

    def end(self, reason, why, **more):
        word = {"reason": reason, "why": why, "migration": None, "destination": None, "report": None}
        word.update(more)
        with open(self.path("exit.json.new"), "w", encoding="utf-8") as file:
            json.dump(word, file)
        os.rename(self.path("exit.json.new"), self.path("exit.json"))
        os._exit(0)

    # --- migration ---

    def begin(self, params, state, number):
        self.migration = {
            "id": params["id"], "vm": self.name, "source": params.get("source"),
            "destination": params.get("destination"), "state": state, "state_number": number, "phase": "Init",
            "percent": 0, "outcome": "none", "cause": "", "error": "", "round": 0, "rounds": [],
            "memory_bytes": self.definition["memory"], "remaining_bytes": self.definition["memory"],
            "wire_bytes": 0, "pages_raw": 0, "pages_zero": 0, "pages_skipped": 0, "bandwidth": 0, "copy_rate": 0,
            "dirty_rate": 0, "throttle": 0, "throttle_most": 0, "state_bytes": 4321, "total_ns": 0, "setup_ns": 0, "downtime_ns": 0,
            "downtime_parts": {part: 0 for part in PARTS},
        }
        self.cancelled.clear()
        self.too_late = False

    def progress(self, **changes):
        self.migration.update(changes)
        self.notify("migration.progress", self.migration)

    def finish(self, outcome, cause="", error=""):
        side = 5 if not self.incoming else 11
        name = "MIGRATE_TO_VMX_FINISHED" if side == 5 else "MIGRATE_FROM_VMX_FINISHED"
        self.migration.update(state=name, state_number=side, outcome=outcome, cause=cause, error=error)
        self.notify("migration.finished", self.migration)

    def active(self):
        return self.migration is not None and self.migration["outcome"] == "none"

    def run_source(self, params):
        try:
            self.send(params)
            self.finish("lost" if "lost-move" in self.directives else "completed")
        except Exception as error:  # whatever goes wrong leaves the guest running here
            outcome = "cancelled" if self.cancelled.is_set() else "failed"
            self.set_state("RUNNING")
            self.finish(outcome, "cancelled" if outcome == "cancelled" else "network", str(error))
            return
        self.end("migrated", "", migration=self.migration["id"], destination=self.migration["destination"],
                 report=self.migration)

    def pause_for(self, seconds):
        if self.cancelled.wait(seconds):
            raise RuntimeError("cancelled")

    def send(self, params):
        self.progress(state="MIGRATE_TO_VMX_PRECOPY", state_number=2, phase="Copy")
        self.say(f"migration {params['id']} set up: destination {params['address']}, "
                 f"destination VM process id {params['destination_pid']}")
        self.say("told to send with " + json.dumps({key: value for key, value in params.items() if key != "token"}))
        if "hang-send" in self.directives:
            self.cancelled.wait()
        if "fail-move" in self.directives:
            raise RuntimeError(self.directives["fail-move"].replace("_", " "))
        address, port = params["address"].rsplit(":", 1)
        with socket.create_connection((address.strip("[]"), int(port)), timeout=10) as channel:
            stream = channel.makefile("rw")
            stream.write(params["token"] + "\n")
            stream.flush()
            rounds = []
            for number in range(10 if "slow-move" in self.directives else 2):
                self.pause_for(0.15 if "slow-move" in self.directives else 0.02)
                rounds.append({"pages": 100 >> number, "bytes": 409600 >> number, "duration_ns": 20000000,
                               "dirtied_pages": 50 >> number})
                self.progress(round=number + 1, rounds=list(rounds), percent=50 + number)
                self.say(f"Another pre-copy iteration needed with {50 >> number} modified pages (last = -1)")
                stream.write("round\n")
                stream.flush()
                if "die-move" in self.directives:
                    os.kill(os.getpid(), signal.SIGKILL)
            self.say("Stopping pre-copy: only 12 pages were modified")
            self.set_state("PAUSED")
            self.progress(state="MIGRATE_TO_VMX_CHECKPT", state_number=3, phase="Frozen")
            stream.write("checkpoint\n")
            stream.flush()
            if stream.readline().strip() != "Restore-OK":
                raise RuntimeError("the destination did not answer Restore-OK")
            self.too_late = True
            open(self.path("handover"), "w", encoding="utf-8").close()
            self.progress(state="MIGRATE_TO_VMX_WAIT_HANDSHAKE", state_number=4)
            stream.write("GO\n")
            stream.flush()
            if stream.readline().strip() != "RUNNING":
                raise RuntimeError("no RUNNING")
        self.migration["downtime_parts"].update(pause=1200000, lock=3000000)
        self.migration.update(downtime_ns=4200000, total_ns=40000000, wire_bytes=614400)

    def run_destination(self):
        try:
            self.receive()
            self.set_state("RUNNING")
            self.incoming = True
            self.finish("completed")
        except Exception as error:
            outcome = "cancelled" if self.cancelled.is_set() else "failed"
            self.finish(outcome, "network", str(error))
            self.end("failed", str(error), migration=self.migration["id"], report=self.migration)

    def receive(self):
        self.listener.settimeout(0.1)
        deadline = time.monotonic() + 20
        while True:
            if self.cancelled.is_set():
                raise RuntimeError("cancelled")
            if time.monotonic() > deadline:
                raise RuntimeError("the source did not connect")
            try:
                channel, _ = self.listener.accept()
                break
            except TimeoutError:
                continue
        channel.settimeout(20)
        stream = channel.makefile("rw")
        if stream.readline().strip() != self.token:
            raise RuntimeError("wrong token")
        self.progress(state="MIGRATE_FROM_VMX_PRECOPY", state_number=9, phase="Copy")
        while True:
            line = stream.readline().strip()
            if not line or self.cancelled.is_set():
                raise RuntimeError("the source closed the connection")
            if "die-arrive" in self.directives or ("die-arrive-at-a" in self.directives
                                                   and self.migration["destination"] == "a"):
                os.kill(os.getpid(), signal.SIGKILL)
            if line == "checkpoint":
                break
        self.progress(state="MIGRATE_FROM_VMX_CHECKPT", state_number=10, phase="Frozen")
        open(self.path("handover"), "w", encoding="utf-8").close()
        self.say("Restore-OK")
        stream.write("Restore-OK\n")
        stream.flush()
        if "die-restored" in self.directives:
            os.kill(os.getpid(), signal.SIGKILL)
        if stream.readline().strip() != "GO":
            raise RuntimeError("no GO")
        self.too_late = True
        stream.write("RUNNING\n")
        stream.flush()
        self.console_write("arrived\n")

    # --- checkpoints ---

    def save_progress(self, **changes):
        self.checkpoint.update(changes)
        self.notify("checkpoint", self.checkpoint)

    def save(self, params):
        try:
            self.write_checkpoint(params)
        except Exception as error:  # the guest runs on
            outcome = "cancelled" if self.save_cancelled.is_set() else "failed"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(params["path"] + ".partial")
            self.set_state("RUNNING")
            self.save_progress(outcome=outcome, error=str(error))
            return
        self.save_progress(outcome="completed", total_ns=40000000)
        if params["kind"] == "suspend":
            self.end("suspended", "", file=params["path"], checkpoint=params["id"])

    def write_checkpoint(self, params):
        if "fail-save" in self.directives:
            raise RuntimeError(self.directives["fail-save"].replace("_", " "))
        with open(params["path"] + ".partial", "w", encoding="utf-8") as file:
            json.dump(params, file)
        while "gate-save" in self.directives and not os.path.exists(params["path"] + ".go"):
            if self.save_cancelled.wait(0.02):
                raise RuntimeError("cancelled")
        steps = 10 if "slow-save" in self.directives else 2
        for step in range(steps):
            if self.save_cancelled.wait(0.15 if "slow-save" in self.directives else 0.02):
                raise RuntimeError("cancelled")
            size = self.definition["memory"]
            self.save_progress(percent=step * 100 // steps, bytes=size * step // steps, rounds=step,
                               remaining_bytes=size - size * step // steps)
            if "die-save" in self.directives:
                os.kill(os.getpid(), signal.SIGKILL)
        if params["kind"] == "suspend":
            self.set_state("PAUSED")
        os.unlink(params["path"] + ".partial")
        subprocess.run([BUILD / "tests" / "host" / "make_checkpoint", params["path"], params["kind"], params["id"], self.name,
                        json.dumps(params["definition"])], check=True)
        if "die-saved" in self.directives:
            os.kill(os.getpid(), signal.SIGKILL)
        self.checkpoint.update(percent=100, bytes=size, remaining_bytes=0, stopped_ns=4200000)

    # --- control socket ---

    def call(self, method, params, client):
        if method == "status":
            return {"name": self.name, "state": self.state, "why": "", "pid": os.getpid(),
                    "started": self.started, "definition": self.definition, "memory_resident": 4096000,
                    "migration": self.migration if self.active() else None, "cpu": self.cpu,
                    "checkpoint": self.checkpoint}
        if method == "subscribe":
            self.subscribers.append(client)
            return {}
        if method in ("pause", "resume"):
            self.set_state("PAUSED" if method == "pause" else "RUNNING")
            return {}
        if method == "stop":
            threading.Timer(0.05, self.end, ("powered-off", "the guest powered off")).start()
            return {}
        if method == "quit":
            threading.Timer(0.01, self.end, ("killed", "it was killed on request")).start()
            return {}
        if method == "checkpoint-save":
            if os.path.exists(params["path"]) and not params.get("overwrite"):
                raise OSError(17, f"{params['path']} exists already")
            self.checkpoint = {"id": params["id"], "kind": params["kind"], "path": params["path"], "outcome": "none",
                               "error": "", "memory_bytes": self.definition["memory"]}
            self.save_cancelled.clear()
            threading.Thread(target=self.save, args=(params,), daemon=True).start()
            return {"id": params["id"]}
        if method == "checkpoint-cancel":
            if not self.checkpoint or self.checkpoint["id"] != params["id"] or self.checkpoint["outcome"] != "none":
                raise OSError(114, "too late")
            self.save_cancelled.set()
            return {}
        if method == "migrate.prepare":
            if self.active():
                raise OSError(16, "a migration is in progress")
            self.begin(params, "MIGRATE_TO_VMX_READY", 1)
            return {}
        if method == "migrate.send":
            threading.Thread(target=self.run_source, args=(params,), daemon=True).start()
            return {}
        if method == "migrate.receive":
            self.begin(params, "MIGRATE_FROM_VMX_WAITING", 8)
            self.token = params["token"]
            address, port = params["listen"].rsplit(":", 1)
            self.listener = socket.create_server((address, int(port)))
            threading.Thread(target=self.run_destination, daemon=True).start()
            return {"address": "%s:%d" % self.listener.getsockname()[:2]}
        if method == "migrate.limit":
            if not self.active() or self.migration["id"] != params["id"]:
                raise OSError(2, "no such migration")
            self.say(f"limited to {params['bandwidth_limit']}")
            return {}
        if method == "migrate.cancel":
            if not self.active() or self.too_late or self.migration["id"] != params["id"]:
                raise OSError(114, "too late")
            if self.migration["state_number"] == 1:
                self.finish("cancelled", "cancelled", "cancelled")
            self.cancelled.set()
            return {}
        if method == "migrate.status":
            return self.migration
        raise OSError(38, f"there is no method {method}")

    def serve(self, client):
        for line in client.makefile("rb"):
            request = json.loads(line)
            answer = {"jsonrpc": "2.0", "id": request.get("id")}
            try:
                answer["result"] = self.call(request["method"], request.get("params", {}), client)
            except OSError as error:
                answer["error"] = {"code": 1, "message": error.strerror, "data": {"errno": error.errno}}
            with self.lock:
                client.sendall(json.dumps(answer).encode() + b"\n")

    def serve_console(self, client):
        self.consoles.append(client)
        while True:
            data = client.recv(4096)
            if not data:
                return
            self.console_write("echo " + data.decode())

    def listen(self, name, function):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path(name))
        listener.listen()

        def accept():
            while True:
                client, _ = listener.accept()
                threading.Thread(target=function, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()


def ready(fd, word):
    os.write(fd, json.dumps(word).encode() + b"\n")
    os.close(fd)


def main():
    arguments = sys.argv[1:]
    directory = arguments[arguments.index("--dir") + 1]
    fd = int(arguments[arguments.index("--ready-fd") + 1])
    vm = FakeVm(directory, "--incoming" in arguments, "--paused" in arguments)
    if "--cpu-features" in arguments:
        features = arguments[arguments.index("--cpu-features") + 1].split(",")
        vm.cpu = {"vendor": "AuthenticAMD", "features": features}
    if "fail-start" in vm.directives:
        ready(fd, {"error": vm.directives["fail-start"].replace("_", " "), "errno": 5})
        sys.exit(1)
    here = arguments[arguments.index("--host") + 1]
    for directive in ("fail-resume", f"fail-resume-at-{here}"):
        if "--resume" in arguments and directive in vm.directives:
            ready(fd, {"error": vm.directives[directive].replace("_", " "), "errno": 5})
            sys.exit(1)
    time.sleep(float(vm.directives.get("slow-arrive" if vm.incoming else "slow-start", 0)))
    if "die-start" in vm.directives:
        print("something went very wrong", flush=True)
        os._exit(3)
    if not vm.incoming and not os.path.exists(vm.definition["kernel"]):
        ready(fd, {"error": f"kernel {vm.definition['kernel']} does not exist", "errno": 2})
        sys.exit(1)
    vm.listen("control.sock", vm.serve)
    vm.listen("console.sock", vm.serve_console)
    if not vm.incoming:
        vm.console_write("resumed\n" if "--resume" in arguments else "booted\n")
    ready(fd, {"ok": True})
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
