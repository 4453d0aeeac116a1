"""What `ferry` prints, asks of ferryd and returns, against a ferryd that only pretends (fake_ferryd.py)."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import threading
import time

import pytest

from fake_ferryd import COMPLETED, ID, MIB, ApiError, FakeFerryd, make_migration, make_vm

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FERRY = os.path.join(os.environ.get("FERRY_BUILD", os.path.join(ROOT, "build")), "ferry")
DEADLINE = 30

# Every command, with operands that make it do something on the `fake` below.
COMMANDS = {
    "host show": [],
    "host list": [],
    "host add": ["c", "127.0.0.1:7003"],
    "host remove": ["b"],
    "host enable": [],
    "host disable": [],
    "run": ["off"],
    "list": [],
    "show": ["web"],
    "logs": ["web"],
    "pause": ["web"],
    "unpause": ["web"],
    "stop": ["web"],
    "kill": ["web"],
    "rm": ["off"],
    "runnable": ["off", "on"],
    "check": ["web", "b"],
    "migrate": ["web", "b"],
    "migrations": [],
    "migrations show": [ID[:8]],
    "cancel": [ID[:8]],
    "cluster baseline compute": [], "cluster baseline set": ["none"], "cluster baseline show": [],
    "recover": ["web"],
    "snapshot": ["web", "web.ckpt"],
    "suspend": ["web", "web.ckpt"],
    "resume": ["web.ckpt", "web2"],
    "events": [],
}


def environment(**changes):
    kept = {key: value for key, value in os.environ.items() if key not in ("FERRY_HOST", "NO_COLOR", "LANG")}
    return {**kept, "TZ": "UTC", "LC_ALL": "C.UTF-8", "TERM": "xterm", **changes}


def ferry(*arguments, host=None, env=None, data=None):
    words = [FERRY, *(["--host", host] if host else []), *arguments]
    return subprocess.run(
        words, input=data, capture_output=True, timeout=DEADLINE, env=environment(**(env or {})), text=True
    )


@pytest.fixture
def fake(tmp_path):
    host = FakeFerryd(tmp_path / "a").start()
    host.vms = {"web": make_vm("web", "a"), "off": make_vm("off", "a", state="STOPPED", why="the guest powered off")}
    host.hosts = {"b": "127.0.0.1:7002"}
    host.migrations = [make_migration(**COMPLETED)]
    host.console_history = {"web": b"Linux version 6.12\r\ntick 1\r\n"}
    host.add_event("web", "migration started", migration=ID)
    yield host
    host.close()


@pytest.fixture
def run(fake):
    return lambda *arguments, **options: ferry(*arguments, host=fake.state_dir, **options)


class Terminal:
    """`ferry` on a pseudo terminal of 100 columns."""

    def __init__(self, *arguments, host):
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, 100))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.text = b""
        self.process = subprocess.Popen(
            [FERRY, "--host", host, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment()
        )

    def read_until(self, wanted, times=1):
        deadline = time.monotonic() + DEADLINE
        while self.text.count(wanted) < times:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.master], [], [], left)[0]:
                raise AssertionError("no %r in %r" % (wanted, self.text))
            self.text += os.read(self.master, 4096)
        return self.text

    def type(self, data):
        os.write(self.master, data)

    def is_raw(self):
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def wait(self):
        status = self.process.wait(DEADLINE)
        while select.select([self.master], [], [], 0)[0]:
            self.text += os.read(self.master, 4096)
        return status

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.slave)
        os.close(self.master)


def assert_heard(fake, data):
    """What was typed has come: ferry may be gone before it is read."""
    with fake.console_heard:
        assert fake.console_heard.wait_for(lambda: fake.console_input == data, 30), fake.console_input


@pytest.fixture
def terminal(fake):
    opened = []

    def open_terminal(*arguments):
        opened.append(Terminal(*arguments, host=fake.state_dir))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


# All commands alike


# test_certs.py has the rest of them
CERTS = ["host certs init", "host certs issue", "host certs install"]


@pytest.mark.parametrize("name", [*COMMANDS, *CERTS])
def test_every_command_explains_itself_with_examples(name):
    done = ferry(*name.split(), "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ferry " + name)
    assert "Examples:\n  " in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_text_for_people(name, run):
    done = run(*name.split(), *COMMANDS[name])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not done.stdout.startswith(("{", "["))
    assert "\033" not in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json(name, run):
    done = run(*name.split(), *COMMANDS[name], "--json")
    assert done.returncode == 0, done.stderr
    if name in ("events", "logs"):
        for line in done.stdout.splitlines():
            json.loads(line)
    else:
        json.loads(done.stdout)


@pytest.mark.parametrize("name", [*COMMANDS, "console"])
def test_every_command_refuses_unknown_options_and_one_operand_too_many(name, run, fake):
    operands = COMMANDS.get(name, ["web"])
    unknown = run(*name.split(), *operands, "--nonsense")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("ferry: %s: there is no option --nonsense" % name)
    extra = run(*name.split(), *operands, *(["all"] if name == "migrations" else []), "extra")
    assert extra.returncode == 2
    assert fake.requests == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if COMMANDS[name] and name != "migrations"])
def test_every_command_says_what_is_missing(name, run):
    done = run(*name.split())
    assert done.returncode == 2
    assert re.match(r"ferry: %s: [A-Z:|]+ is missing \(see: ferry %s --help\)\n$" % (name, name), done.stderr)


@pytest.mark.parametrize(
    "kind, status",
    [("usage", 2), ("not_found", 1), ("conflict", 1), ("refused", 3), ("failed", 1), ("unreachable", 1)],
)
def test_exit_status_follows_the_error_class(kind, status, run, fake):
    fake.fail_next = ApiError(kind, "b has 10 MiB left and web needs 256 MiB")
    done = run("migrate", "web", "b")
    assert done.returncode == status
    assert done.stderr == "ferry: b has 10 MiB left and web needs 256 MiB\n"


def test_unknown_command_names_the_closest():
    done = ferry("migrat")
    assert done.returncode == 2
    assert done.stderr == "ferry: there is no command 'migrat'; did you mean 'migrate'?\n"
    done = ferry("host", "certs", "isue")
    assert done.stderr == "ferry: there is no command 'host certs isue'; did you mean 'host certs issue'?\n"
    assert ferry("host", "certs").stderr.startswith("ferry: after 'host certs' comes init, issue or install")
    assert ferry("host", "lits").stderr == "ferry: there is no command 'host lits'; did you mean 'host list'?\n"


def test_no_command_prints_the_overview_as_an_error():
    done = ferry()
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Virtual machines:" in done.stderr


# Finding ferryd


def test_host_is_found_by_directory_socket_address_url_and_environment(fake, tmp_path):
    for where in (fake.state_dir, fake.socket_path, fake.address, "http://" + fake.address + "/"):
        assert "name             a\n" in ferry("host", "show", "--host", where).stdout
        assert "name             a\n" in ferry("--host=" + where, "host", "show").stdout
        assert "name             a\n" in ferry("host", "show", env={"FERRY_HOST": where}).stdout
    both = ferry("host", "show", "--host", fake.state_dir, env={"FERRY_HOST": str(tmp_path / "none")})
    assert both.returncode == 0


def test_nobody_there_says_how_to_start_it(tmp_path):
    done = ferry("list", host=str(tmp_path / "none"))
    assert done.returncode == 1
    assert done.stderr == (
        "ferry: cannot reach ferryd at {0}/none/ferryd.sock: no such socket; is it running? "
        "start it with: ferryd --state-dir {0}/none\n".format(tmp_path)
    )


def test_a_socket_without_a_ferryd_says_so(fake):
    fake.close()
    done = ferry("list", host=fake.state_dir)
    assert done.returncode == 1
    assert "nobody answers there" in done.stderr


def test_a_proxy_in_the_environment_is_not_used(fake):
    done = ferry("list", host=fake.address, env={"http_proxy": "http://127.0.0.1:1", "all_proxy": "http://127.0.0.1:1"})
    assert done.returncode == 0


def test_names_are_escaped_in_paths(run, fake):
    done = run("show", "../host?x=1 é")
    assert done.returncode == 1
    assert fake.requests[-1][1] == "/v1/vms/..%2Fhost%3Fx%3D1%20%C3%A9"
    run("show", "..")
    assert fake.requests[-1][1] == "/v1/vms/.."


def test_control_characters_from_elsewhere_do_not_reach_the_terminal(run, fake):
    fake.vms["web"]["why"] = "\033[2Jgone\x9b1m"
    fake.fail_next = ApiError("failed", "\033]0;title\a")
    assert "\033" not in run("show", "web").stdout
    assert "\x9b" not in run("list").stdout
    assert "\033" not in run("pause", "web").stderr


# Virtual machines


def test_vm_that_is_not_runnable_is_listed_last_and_shown_with_the_reason(run, fake):
    reason = "the guest has migrated to b"
    fake.vms["all"] = make_vm("all", "a", state="NOT_RUNNABLE", why=reason, pid=None,
                              not_runnable={"set_by": "Migrate", "reason": reason})
    fake.vms = dict(sorted(fake.vms.items()))
    rows = run("list").stdout.splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["off", "web", "all"]
    assert "Not Runnable" in rows[-1] and rows[-1].endswith(reason)
    shown = run("show", "all").stdout
    assert "Not Runnable Set By  Migrate\n" in shown and "Not Runnable Reason  " + reason in shown
    assert "Not Runnable Set By" not in run("show", "web").stdout


def test_runnable_sends_the_reason(run, fake):
    assert "off is not runnable on a" in run("runnable", "off", "off", "--reason", "being restored").stdout
    assert fake.requests[-1] == ("POST", "/v1/vms/off/runnable", {"runnable": False, "reason": "being restored"})
    assert run("runnable", "off", "on").returncode == 0
    assert run("runnable", "off", "on", "--reason", "x").returncode == 2


@pytest.mark.parametrize("options, force", [([], None), (["--force-here"], "here"), (["--force-there"], "there")])
def test_recover_sends_whose_word_counts(run, fake, options, force):
    assert run("recover", "web", *options).returncode == 0
    assert fake.requests[-1] == ("POST", "/v1/vms/web/recover", {"force": force})
    assert run("recover", "web", "--force-here", "--force-there").returncode == 2


def test_run_sends_the_definition_with_absolute_paths(run, fake, tmp_path):
    for name in ("Image", "initrd", "disk.img", "a,b.img"):
        (tmp_path / name).write_bytes(b"x")
    done = subprocess.run(
        [FERRY, "run", "new", "--kernel", "Image", "--initrd=initrd", "--cmdline", "console=ttyS0 quiet",
         "--memory", "512M", "--cpus", "2", "--machine", "riscv64", "--disk", "disk.img,readonly,direct",
         "--disk", "a,b.img", "--net", "user,hostfwd=tcp:127.0.0.1:2222-:22", "--net", "user,mac=52:54:00:00:00:01",
         "--console-marks"],
        cwd=tmp_path, env=environment(FERRY_HOST=fake.state_dir), capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "new is running on a (riscv64, 512 MiB, 2 vCPUs)\n"
    assert fake.bodies("POST", "/v1/vms") == [
        {
            "paused": False,
            "definition": {
                "name": "new",
                "machine": "riscv64",
                "memory": 512 * MIB,
                "vcpus": 2,
                "kernel": str(tmp_path / "Image"),
                "initrd": str(tmp_path / "initrd"),
                "cmdline": "console=ttyS0 quiet",
                "disks": [
                    {"path": str(tmp_path / "disk.img"), "readonly": True, "direct": True},
                    {"path": str(tmp_path / "a,b.img"), "readonly": False, "direct": False},
                ],
                "nets": [
                    {"backend": "user,hostfwd=tcp:127.0.0.1:2222-:22"},
                    {"backend": "user", "mac": "52:54:00:00:00:01"},
                ],
                "console_marks": True,
            },
        }
    ]


@pytest.mark.parametrize(
    "options, status, sentence",
    [
        (["--kernel", "{0}/none"], 1, "kernel {0}/none does not exist"),
        (["--kernel", "{0}"], 1, "kernel {0} is a directory"),
        (["--kernel", "{0}/k", "--initrd", "{0}/none"], 1, "initrd {0}/none does not exist"),
        (["--kernel", "{0}/k", "--disk", "{0}/none"], 1, "disk {0}/none does not exist"),
        (["--kernel", "{0}/k", "--disk", "{0}/k,rw"], 2, "there is no disk option 'rw'"),
        (["--kernel", "{0}/k", "--memory", "256"], 2, "did you mean 256M?"),
        (["--kernel", "{0}/k", "--memory", "0"], 2, "memory of 0 is too little"),
        (["--kernel", "{0}/k", "--memory", "lots"], 2, "'lots' is not a size"),
        (["--kernel", "{0}/k", "--memory", "99999999999G"], 2, "too large"),
        (["--kernel", "{0}/k", "--memory", "64M,hugepage"], 2, "no memory option 'hugepage'; there are hugepages"),
        (["--kernel", "{0}/k", "--memory", "64M,hugepages=4M"], 2, "no huge pages of '4M'"),
        (["--kernel", "{0}/k", "--memory", "33M,hugepages"], 2, "VM new: memory of 33 MiB is not a whole number"),
        (["--kernel", "{0}/k", "--memory", "64,hugepages"], 2, "did you mean 64M?"),
        (["--kernel", "{0}/k", "--cpus", "0"], 2, "--cpus 0 makes no sense"),
        (["--kernel", "{0}/k", "--machine", "vax"], 2, "riscv64 or x86_64, not 'vax'"),
        (["--memory", "1G"], 2, "--memory is for a new VM"),
    ],
)
def test_run_refuses_nonsense_before_asking_the_host(options, status, sentence, run, fake, tmp_path):
    (tmp_path / "k").write_bytes(b"x")
    done = run("run", "new", *(option.format(tmp_path) for option in options))
    assert done.returncode == status
    assert sentence.format(tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1
    assert fake.requests == []


@pytest.mark.parametrize("words, size", [("64M", None), ("64M,hugepages", 2 * MIB), ("1G,hugepages=1G", 1024 * MIB)])
def test_run_asks_for_huge_pages_only_when_told_to(words, size, run, fake, tmp_path):
    (tmp_path / "k").write_bytes(b"x")
    assert run("run", "new", "--kernel", str(tmp_path / "k"), "--memory", words).returncode == 0
    assert fake.bodies("POST", "/v1/vms")[0]["definition"].get("hugepages") == size


def test_run_on_a_host_over_tcp_leaves_files_to_the_host(fake):
    assert ferry("run", "new", "--kernel", "/elsewhere/Image", host=fake.address).returncode == 0
    done = ferry("run", "new", "--kernel", "Image", host=fake.address)
    assert done.returncode == 2
    assert "must begin with /" in done.stderr


def test_run_without_kernel_starts_a_defined_vm(run, fake):
    assert run("run", "off", "--paused").returncode == 0
    assert fake.bodies("POST", "/v1/vms/off/start") == [{"paused": True}]
    done = run("run", "none")
    assert done.returncode == 1
    assert "a new one needs --kernel FILE" in done.stderr


def test_stop_waits_until_the_guest_is_off(run, fake):
    done = run("stop", "web")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("web is stopped on a")
    assert "the guest powered off" in done.stdout


def test_stop_of_a_deaf_guest_fails_after_its_timeout(run, fake):
    fake.stop_takes_effect = False
    done = run("stop", "web", "--timeout", "300ms")
    assert done.returncode == 1
    assert done.stderr == (
        "ferry: web did not power off within 300 ms, it is still RUNNING; ferry kill web ends it at once\n"
    )
    assert run("stop", "web", "--no-wait").returncode == 0


def test_table_columns_are_aligned(run, fake):
    fake.vms = {"wäb": make_vm("wäb", "a"), "日本": make_vm("日本", "a"), "x": make_vm("x", "a")}
    lines = run("list").stdout.splitlines()
    assert lines[0].startswith("NAME  STATE")
    assert lines[1].startswith("wäb   RUNNING")
    assert lines[2].startswith("日本  RUNNING")
    assert lines[3].startswith("x     RUNNING")


# Moving


def test_migrate_off_a_terminal_prints_a_line_a_phase_and_a_round(run):
    done = run("migrate", "web", "b", "-v")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Init",
        "Copy",
        "  round 1: 65536 pages, 44 MiB in 200 ms (220 MiB/s), 312 pages changed meanwhile",
        "  round 2: 312 pages, 1.2 MiB in 4 ms (299 MiB/s), 7 pages changed meanwhile",
        "I/O Quiesce",
        "Frozen",
        ID + ": web moved from a to b: total 312 ms, downtime 2.1 ms, 44.1 MiB in 2 rounds",
        "downtime 2.1 ms = pause 100 us + quiesce 0 s + last pages 1 ms + wire 1 ms",
    ]


def test_migrate_sends_its_options_in_bytes_and_nanoseconds(run, fake):
    assert run("migrate", "web", "b", "--downtime", "1.5s", "--bandwidth", "1G", "--streams=3").returncode == 0
    assert run("migrate", "web", "b", "--bandwidth", "1Gbit").returncode == 0
    assert run("migrate", "web", "b", "--throttle-max", "30", "--copy-time-limit", "2min").returncode == 0
    assert run("migrate", "web", "b", "--no-throttle", "--compress", "zstd").returncode == 0
    assert fake.bodies("POST", "/v1/vms/web/migrate") == [
        {"destination": "b", "downtime_limit": 1_500_000_000, "bandwidth_limit": 1 << 30, "streams": 3},
        {"destination": "b", "bandwidth_limit": 125_000_000},
        {"destination": "b", "throttle_max": 30, "copy_time_limit": 120_000_000_000},
        {"destination": "b", "throttle_max": 0, "compress": "zstd"},
    ]


@pytest.mark.parametrize("options, word", [(["--throttle-max", "100"], "0 to 99"),
                                           (["--throttle-max", "9", "--no-throttle"], "exclude"),
                                           (["--compress", "gzip"], "lz4")])
def test_migrate_refuses_nonsense_in_its_options(run, fake, options, word):
    done = run("migrate", "web", "b", *options)
    assert done.returncode == 2 and word in done.stderr
    assert fake.bodies("POST", "/v1/vms/web/migrate") == []


def test_migrate_json_prints_the_final_object_only(run):
    done = run("migrate", "web", "b", "--json")
    assert json.loads(done.stdout)["outcome"] == "completed"


def test_migrate_detached_prints_the_id(run, fake):
    assert run("migrate", "web", "b", "--detach").stdout == ID + "\n"
    assert json.loads(run("migrate", "web", "b", "--detach", "--json").stdout) == {"id": ID}
    assert not any(path.endswith("watch") for _, path, _ in fake.requests)


@pytest.mark.parametrize(
    "outcome, sentence",
    [
        ("failed", "web was not moved to b: the network is gone; it is on a as before"),
        ("cancelled", "the migration of web to b was cancelled; web is on a as before"),
        ("unknown", "nobody can say whether web runs on b"),
        ("lost", "web belongs to b now"),
        ("completed", "web moved to b and did not live on there: the network is gone"),
    ],
)
def test_migrate_that_does_not_complete_fails_with_the_reason(outcome, sentence, run, fake):
    fake.story[-1] = make_migration(
        phase="Copy", percent=50, outcome=outcome, ended="2026-11-21T03:31:41+01:00", error="the network is gone"
    )
    done = run("migrate", "web", "b")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "moved from" not in done.stdout


def test_check_lists_the_reasons_and_tells_by_its_status(run):
    done = run("check", "web", "b")
    assert done.returncode == 0
    assert done.stdout == "web can move from a to b\nwarning  connections  they end\n"
    done = run("check", "off", "b")
    assert done.returncode == 3
    assert done.stdout.splitlines()[0] == "off cannot move from a to b" and "it is off" in done.stdout
    done = run("check", "off", "b", "--json")
    assert done.returncode == 3 and json.loads(done.stdout)["possible"] is False


def test_migrate_outlives_a_restart_of_ferryd(run, fake):
    fake.break_watch_once = True
    done = run("migrate", "web", "b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("round 1:") == 1


def test_interrupted_migrate_says_that_it_goes_on(fake):
    fake.story_gate = threading.Event()
    process = subprocess.Popen(
        [FERRY, "--host", fake.state_dir, "migrate", "web", "b"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        while "I/O Quiesce" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "the migration goes on" in errors
    assert "ferry cancel 1b4e28ba" in errors


def test_migrate_on_a_terminal_redraws_four_phases(terminal):
    on = terminal("migrate", "web", "b")
    assert on.wait() == 0
    text = on.text.decode()
    assert "Moving web from a to b" in text
    assert "\033[4A" in text
    assert "42 %  150 MiB left  400 MiB/s  about 250 ms  changing 3 MiB/s" in text
    assert "█" in text
    assert text.rstrip().endswith("total 312 ms, downtime 2.1 ms, 44.1 MiB in 2 rounds")


def test_migrations_show_has_numbers_rounds_parts_and_log(run):
    text = run("migrations", "show", ID[:8]).stdout
    for wanted in ("completed", "2.1 ms", "last pages", "65536", "312 pages", "(last = -1)", "VM continued",
                   "208 MiB   53248 pages are zero", "3 MiB     1000 pages compressed by lz4", "12 pages written in every"):
        assert wanted in text
    assert "2026-11-21 02:31:40.500 +00:00  a  Another" in text


def test_migrations_show_has_each_host_s_events_in_its_own_column(run):
    lines = run("migrations", "show", ID[:8]).stdout.splitlines()
    head = next(line for line in lines if "EVENT AT" in line)
    left, right = head.index("a (source)"), head.index("b (destination)")
    assert next(line for line in lines if "web leaves" in line).index("VMS2450") == left
    assert next(line for line in lines if "web arrives" in line).index("VMS2430") == right
    assert "2026-11-21 02:31:40.200 +00:00" in next(line for line in lines if "VMS2430" in line)


def test_migrations_show_charts_rounds_in_ascii_when_it_is_no_terminal(run):
    text = run("migrations", "show", ID[:8]).stdout
    assert re.search(r"^round 1 +#{30,}  256 MiB\n +={15,}  1.2 MiB changed meanwhile$", text, re.M), text
    assert re.search(r"^round 2 +#{15,25}  1.2 MiB\n +=+  28 KiB changed meanwhile$", text, re.M)
    assert re.search(r"^last pages  #+  1 ms$", text, re.M) and re.search(r"^quiesce +0", text, re.M)
    assert text.isascii() and "\033" not in text


def test_migrations_show_on_a_terminal_draws_blocks_no_wider_than_it(terminal):
    on = terminal("migrations", "show", ID[:8])
    assert on.wait() == 0
    text = re.sub("\033[^m]*m", "", on.text.decode()).replace("\r", "")
    bars = [line for line in text.splitlines() if "█" in line or "▒" in line]
    assert len(bars) >= 4 + 3
    assert 80 < max(len(line) for line in bars) <= 100


def test_migrations_show_draws_no_blocks_where_the_locale_has_none(fake):
    text = ferry("migrations", "show", ID[:8], host=fake.state_dir, env={"LC_ALL": "C"}).stdout
    assert text.isascii() and "####" in text


def test_migrations_show_says_what_a_cause_means_and_what_can_be_done(run, fake):
    fake.migrations[0].update(outcome="failed", error="no answer of b", cause="network", rounds=[], downtime_ns=0)
    text = run("migrations", "show", ID[:8]).stdout
    assert re.search(r"^reason +no answer of b$", text, re.M)
    assert re.search(r"^cause +network: the network between the hosts was slow or gone", text, re.M)
    assert "ferry check measures the way there" in text
    assert "Downtime" not in text and "meanwhile" not in text


STATISTICS = {"active": 1, "kinds": {
    "hot": {"count": 5, "completed": 3, "failed": 1, "cancelled": 1, "lost": 0, "unknown": 0, "success_permille": 750,
            "total_ns": {"median": 312_000_000, "p99": 900_000_000, "most": 900_000_000},
            "downtime_ns": {"median": 2_100_000, "p99": 12_000_000, "most": 12_000_000},
            "wire_bytes": 3 << 30, "causes": {"network": 1}},
    "upgrade": {"count": 1, "completed": 0, "failed": 1, "cancelled": 0, "lost": 0, "unknown": 0,
                "success_permille": 0, "total_ns": None, "downtime_ns": None, "wire_bytes": 0,
                "causes": {"network": 1}}}}  # fmt: skip


def test_migrations_end_with_statistics_by_kind(run, fake):
    fake.statistics = STATISTICS
    for view in ([], ["history"]):
        text = run("migrations", *view).stdout
        assert re.search(r"^hot +5 +3 +1 +1 +75\.0 % +312 ms +900 ms +2\.1 ms +12 ms +3 GiB$", text, re.M), text
        assert re.search(r"^upgrade +1 +0 +1 +0\.0 % +- +- +- +- +0 B$", text, re.M), text
    assert "SUCCESS" not in run("migrations", "active").stdout
    assert json.loads(run("migrations", "--json").stdout) == fake.migrations


def test_migrations_statistics_alone_have_causes(run, fake):
    fake.statistics = STATISTICS
    text = run("migrations", "statistics").stdout
    assert text.startswith("1 in progress or queued\n")
    assert re.search(r"^network +2 +the network between the hosts", text, re.M)
    assert json.loads(run("migrations", "statistics", "--json").stdout) == STATISTICS


def test_migrations_failed_ends_with_the_causes(run, fake):
    fake.statistics = STATISTICS
    fake.migrations.append(make_migration(id="2" + ID[1:], outcome="failed", ended="x", cause="network"))
    assert re.search(r"^network +2 +the network", run("migrations", "failed").stdout, re.M)


def test_migrations_failed_shows_the_reason(run, fake):
    fake.migrations.append(make_migration(id="2" + ID[1:], outcome="failed", ended="x", error="b is out of memory"))
    text = run("migrations", "failed").stdout
    assert "b is out of memory" in text
    assert len(text.splitlines()) == 2
    assert run("migrations", "nonsense").returncode == 2


# Events, logs, console


def test_events_followed_come_as_they_happen_and_end_quietly_with_the_reader(fake):
    fake.hosts = {}
    process = subprocess.Popen(
        [FERRY, "--host", fake.state_dir, "events", "-f", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert json.loads(process.stdout.readline())["number"] == 1
        fake.add_event("web", "second")
        assert json.loads(process.stdout.readline())["text"] == "second"
        process.stdout.close()
        fake.add_event("web", "third")
        assert process.wait(DEADLINE) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()


def test_a_full_disk_is_an_error(fake):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [FERRY, "--host", fake.state_dir, "list"], stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=DEADLINE, env=environment(),
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "ferry: cannot write the output: No space left on device\n"


@pytest.fixture
def other(fake, tmp_path):
    """A second host, b, known to the first."""
    host = FakeFerryd(tmp_path / "b", "b").start()
    fake.hosts = {"b": host.address}
    yield host
    host.close()


def move(fake, other):
    """web is on the other host now."""
    other.vms["web"] = make_vm("web", "b")
    del fake.vms["web"]
    fake.console_history.pop("web")
    fake.console_end.set()


def test_logs_prints_the_history(run):
    assert run("logs", "web").stdout == "Linux version 6.12\ntick 1\n"  # text mode makes \n of \r\n
    assert json.loads(run("logs", "web", "--json").stdout) == {
        "vm": "web",
        "host": "a",
        "text": "Linux version 6.12\r\ntick 1\r\n",
    }
    assert run("logs", "none").returncode == 1


def test_logs_json_replaces_what_is_not_utf8(run, fake):
    fake.console_history["web"] = b"caf\xc3\xa9 \xff\xc3 \x00end"
    assert json.loads(run("logs", "web", "--json").stdout)["text"] == "café \ufffd\ufffd \0end"


def test_logs_followed_reads_on_after_a_move_without_a_gap_or_repetition(fake, other):
    other.console_history["web"] = fake.console_history["web"] + b"tick 2\r\n"
    other.vms["web"] = make_vm("web", "b", state="STOPPED", why="the guest powered off")
    process = subprocess.Popen(
        [FERRY, "--host", fake.state_dir, "logs", "web", "-f"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    try:
        assert process.stdout.readline() == b"Linux version 6.12\r\n"
        assert process.stdout.readline() == b"tick 1\r\n"
        move(fake, other)
        assert process.stdout.readline() == b"tick 2\r\n"
        other.vms["web"].update(state="STOPPED", why="the guest powered off")
        other.console_end.set()
        rest, errors = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert rest == b""
    assert process.returncode == 0, errors
    assert errors == b"ferry: web moved to b\nferry: web: the guest powered off\n"


def restart(fake):
    """Another ferryd with the same VMs, in the place of the first."""
    fake.migrations = []
    again = FakeFerryd(fake.state_dir)
    again.vms = fake.vms
    again.console_history = {"web": fake.console_history["web"] + b"tick 2\r\n"}
    fake.close()
    os.unlink(fake.socket_path)
    return again.start()


def test_logs_followed_outlive_a_restart_of_ferryd(fake):
    process = subprocess.Popen(
        [FERRY, "--host", fake.state_dir, "logs", "web", "-f"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    again = None
    try:
        assert process.stdout.readline() == b"Linux version 6.12\r\n"
        assert process.stdout.readline() == b"tick 1\r\n"
        again = restart(fake)
        assert process.stdout.readline() == b"tick 2\r\n"
        again.power_off("web")
        again.console_end.set()
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.communicate()
        if again:
            again.close()


def test_console_outlives_a_restart_of_ferryd(terminal, fake):
    on = terminal("console", "web")
    on.read_until(b"login on a: ")
    again = restart(fake)
    try:
        on.read_until(b"login on a: ", times=2)
        on.type(b"again")
        on.read_until(b"<again>")
        on.type(b"\x1d")
        assert on.wait() == 0
        assert again.console_input == b"again"
    finally:
        again.close()


def test_a_host_that_ends_every_connection_is_given_up(run, fake):
    fake.migrations = []
    fake.console_end.set()
    done = run("logs", "web", "-f")
    assert done.returncode == 1
    assert "again and again; web is still there" in done.stderr


def test_console_is_raw_and_detaches_on_its_escape(terminal, fake):
    on = terminal("console", "web")
    on.read_until(b"login on a: ")
    assert b"attached to web on a; Ctrl-] detaches" in on.text
    assert on.is_raw()
    on.type(b"ls\r\x03")
    on.read_until(b"<ls\r")
    on.read_until(b"\x03")
    on.type(b"x\x1dnot sent")
    assert on.wait() == 0
    assert b"detached; web goes on" in on.text
    assert termios.tcgetattr(on.slave) == on.before
    assert_heard(fake, b"ls\r\x03x")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_console_restores_the_terminal_on_signals(number, terminal):
    on = terminal("console", "web")
    on.read_until(b"login on a: ")
    on.process.send_signal(number)
    assert on.wait() == 128 + number
    assert termios.tcgetattr(on.slave) == on.before


def test_console_gives_the_terminal_back_while_stopped(terminal):
    on = terminal("console", "web")
    on.read_until(b"login on a: ")
    on.process.send_signal(signal.SIGTSTP)
    os.waitid(os.P_PID, on.process.pid, os.WSTOPPED | os.WNOWAIT)
    assert termios.tcgetattr(on.slave) == on.before
    on.process.send_signal(signal.SIGCONT)
    on.type(b"x")
    on.read_until(b"<x>")
    assert on.is_raw()
    on.type(b"\x1d")
    assert on.wait() == 0


def test_console_says_why_it_ended(terminal, fake):
    fake.migrations = []
    on = terminal("console", "web")
    on.read_until(b"login on a: ")
    fake.vms["web"].update(state="STOPPED", why="the guest powered off")
    fake.console_end.set()
    assert on.wait() == 0
    assert b"web: the guest powered off" in on.text
    assert termios.tcgetattr(on.slave) == on.before


def test_console_follows_the_vm_to_another_host(terminal, fake, other):
    on = terminal("console", "web")
    on.read_until(b"login on a: ")
    move(fake, other)
    on.read_until(b"web moved to b")
    on.read_until(b"login on b: ")
    on.type(b"here\x1d")
    assert on.wait() == 0
    assert_heard(other, b"here")


def test_a_vm_that_has_just_left_is_followed_though_it_looks_stopped(terminal, fake, other):
    on = terminal("console", "web")
    on.read_until(b"login on a: ")
    other.vms["web"] = make_vm("web", "b")
    fake.vms["web"].update(state="STOPPED", why="it has moved to host b")
    fake.console_end.set()
    on.read_until(b"login on b: ")


def test_a_departure_from_an_earlier_life_is_not_followed(terminal, fake, other):
    on = terminal("console", "web")
    on.read_until(b"login on a: ")
    fake.vms["web"].update(state="STOPPED", why="the guest powered off", started="2026-11-22T00:00:00+01:00")
    fake.console_end.set()
    on.read_until(b"web: the guest powered off")
    assert on.wait() == 0


def test_console_of_a_vm_that_is_not_there_is_an_error(run):
    done = run("console", "none", data="")
    assert done.returncode == 1
    assert "there is no VM none" in done.stderr


def test_console_without_a_terminal_copies(fake):
    fake.migrations = []
    process = subprocess.Popen(
        [FERRY, "--host", fake.state_dir, "console", "web"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    try:
        process.stdin.write(b"a\x1db\n")
        process.stdin.close()
        wanted = b"login on a: <a\x1db\n>"
        assert process.stdout.read(len(wanted)) == wanted
        fake.vms["web"].update(state="STOPPED", why="the guest powered off")
        fake.console_end.set()
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


# Completion


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["mig"], ["migrate", "migrations"]),
        (["host", ""], ["show", "list", "add", "remove", "enable", "disable", "certs"]),
        (["host", "certs", "i"], ["init", "issue", "install"]),
        (["host", "certs", "issue", "b", "--p"], ["--person"]),
        (["migrate", "w"], ["web"]),
        (["migrate", "web", ""], ["a", "b"]),
        (["migrate", "web", "b", "--d"], ["--detach", "--downtime"]),
        (["migrations", "s"], ["statistics", "show"]),
        (["migrations", "a"], ["active"]),
        (["cancel", ""], [ID]),
        (["run", "x", "--kernel", ""], [":files"]),
        (["run", "x", "--machine", ""], ["riscv64", "x86_64"]),
        (["run", "x", "--memory", "4G"], ["4G,hugepages", "4G,hugepages=1G"]),
        (["run", "x", "--memory", "4G,hugepages="], ["4G,hugepages=1G"]),
        (["run", "x", "--memory", "h"], []),
        (["nonsense", ""], []),
    ],
)
def test_completion(words, wanted, run, fake):
    done = ferry("__complete", *words, env={"FERRY_HOST": fake.state_dir})
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == wanted
    assert done.stderr == ""


def test_completion_is_quiet_when_nobody_answers(tmp_path):
    done = ferry("__complete", "--host", str(tmp_path), "show", "")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_bash_completion_offers_what_ferry_knows(fake):
    script = os.path.join(ROOT, "completions", "ferry.bash")
    program = (
        "source %s; COMP_WORDS=(%s migrate w); COMP_CWORD=2; _ferry; printf '%%s\\n' \"${COMPREPLY[@]}\""
        % (script, FERRY)
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program], capture_output=True, text=True, timeout=DEADLINE,
        env=environment(FERRY_HOST=fake.state_dir),
    )  # fmt: skip
    assert done.stdout == "web\n"
