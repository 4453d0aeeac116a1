"""Snapshots and suspends as ferryd's callers see them, with VM processes that only pretend (tests/host/fake_ferry_vm.py)."""
import json
import os
import pathlib
import signal
import subprocess

import pytest

from hosts import BUILD, DEADLINE, Hosts, agreed_records, assert_refused, introduce, wait_until


@pytest.fixture
def hosts():
    with Hosts() as made:
        yield made


@pytest.fixture
def host(hosts):
    return hosts.start("a")


def save(host, name, file, kind="suspend", **options):
    return host.post(f"/v1/vms/{name}/checkpoint", {"file": str(file), "kind": kind, **options})["id"]


def finish(host, saving):
    return host.lines(f"/v1/checkpoints/{saving}/watch")[-1]


def ferry(host, *arguments, **more):
    return subprocess.run([str(BUILD / "ferry"), "--host", str(host.state_dir), *arguments], capture_output=True, text=True,
                          timeout=DEADLINE, **more)


def codes(host):
    return [event["code"] for event in host.lines("/v1/events")]


def vm_process(host, name):
    return json.loads((host.state_dir / "vms" / name / "process.json").read_text())["pid"]


def test_snapshot_leaves_the_vm_running(hosts, host):
    host.run("web")
    told = ferry(host, "snapshot", "web", "web.ckpt", cwd=hosts.directory)
    assert told.returncode == 0, told.stderr
    last = told.stdout.splitlines()[-1]
    assert f"snapshot of web in {hosts.directory}/web.ckpt: 256 MiB, stopped for 4.2 ms" in last, told.stdout
    assert (hosts.directory / "web.ckpt").exists()
    vm = host.vm("web")
    assert (vm["state"], vm["saving"], vm["suspended"]) == ("RUNNING", None, None)
    assert codes(host)[-2:] == ["checkpoint-started", "checkpoint-completed"]
    assert not (host.state_dir / "vms" / "web" / "saving.json").exists()


def test_suspended_vm_is_listed_so_until_it_is_removed(hosts, host):
    host.run("web")
    told = ferry(host, "suspend", "web", "web.ckpt", cwd=hosts.directory)
    assert told.returncode == 0, told.stderr
    assert f"web is suspended in {hosts.directory}/web.ckpt" in told.stdout
    for _ in range(2):
        vm = host.vm("web")
        assert (vm["state"], vm["pid"]) == ("SUSPENDED", None)
        assert vm["suspended"]["file"] == str(hosts.directory / "web.ckpt")
        assert "SUSPENDED" in ferry(host, "list").stdout
        assert f"{hosts.directory}/web.ckpt" in ferry(host, "show", "web").stdout
        refused = ferry(host, "run", "web")
        assert refused.returncode == 1 and "ferry resume" in refused.stderr and "web.ckpt" in refused.stderr
        host.restart(signal.SIGKILL)
    assert "vm-suspended" in codes(host)
    assert ferry(host, "rm", "web").returncode == 0
    assert host.vm("web") is None and (hosts.directory / "web.ckpt").exists()


def test_save_that_fails_leaves_the_vm_running_and_nothing_else(hosts, host):
    host.run("web", cmdline="fail-save=the_disk_is_full")
    told = ferry(host, "suspend", "web", str(hosts.directory / "web.ckpt"))
    assert told.returncode == 1 and "the disk is full" in told.stderr
    assert host.vm("web")["state"] == "RUNNING"
    assert "checkpoint-failed" in codes(host)


def test_what_makes_no_sense_is_refused(hosts, host):
    host.run("web")
    (hosts.directory / "there").write_text("mine")
    assert_refused(lambda: save(host, "web", "relative"), 400, "usage", "absolute")
    assert_refused(lambda: save(host, "web", hosts.directory / "f", kind="backup"), 400, "usage", "snapshot")
    assert_refused(lambda: save(host, "nobody", hosts.directory / "f"), 404, "not_found", "nobody")
    told = ferry(host, "snapshot", "web", str(hosts.directory / "there"))
    assert told.returncode == 1 and "exists already" in told.stderr
    assert (hosts.directory / "there").read_text() == "mine" and host.vm("web")["saving"] is None
    host.post("/v1/vms/web/kill")
    assert_refused(lambda: save(host, "web", hosts.directory / "f"), 409, "conflict", "STOPPED")


def test_cancelled_save_leaves_the_vm_running(hosts, host):
    host.run("web", cmdline="gate-save")
    saving = save(host, "web", hosts.directory / "web.ckpt")
    assert host.vm("web")["saving"] == saving
    assert_refused(lambda: save(host, "web", hosts.directory / "other"), 409, "conflict", "ferry cancel web")
    told = ferry(host, "cancel", "web")
    assert told.returncode == 0 and "web runs on" in told.stdout, told.stderr
    assert finish(host, saving)["outcome"] == "cancelled"
    assert host.vm("web")["state"] == "RUNNING"
    assert os.listdir(hosts.directory) == ["a"]


@pytest.mark.parametrize("kind, state", [("snapshot", "RUNNING"), ("suspend", "SUSPENDED")])
def test_ferryd_killed_meanwhile_learns_how_it_ended(hosts, host, kind, state):
    host.run("web", cmdline="slow-save")
    saving = save(host, "web", hosts.directory / "web.ckpt", kind)
    wait_until(lambda: (hosts.directory / "web.ckpt.partial").exists(), "the save to begin")
    host.stop(signal.SIGKILL)
    wait_until(lambda: (hosts.directory / "web.ckpt").exists(), "the save to end")
    host.start()
    assert finish(host, saving)["outcome"] == "completed"
    wait_until(lambda: host.vm("web")["state"] == state, f"web to be {state}")


def test_process_that_dies_while_it_saves_ends_the_save(hosts, host):
    host.run("web", cmdline="die-save")
    ended = finish(host, save(host, "web", hosts.directory / "web.ckpt"))
    assert ended["outcome"] == "failed" and "signal 9" in ended["error"], ended
    assert host.vm("web")["state"] == "CRASHED"


def test_process_that_dies_when_the_file_is_complete_has_suspended_the_vm(hosts, host):
    host.run("web", cmdline="die-saved")
    assert finish(host, save(host, "web", hosts.directory / "web.ckpt"))["outcome"] == "completed"
    assert host.vm("web")["state"] == "SUSPENDED"
    assert resume(host, hosts.directory / "web.ckpt")["state"] == "RUNNING"


# --- resuming ---


def resume(host, file, **options):
    return host.post("/v1/resume", {"file": str(file), **options})


def suspended(host, name, file, **definition):
    host.run(name, **definition)
    assert finish(host, save(host, name, file))["outcome"] == "completed"
    return file


def test_suspended_vm_goes_on(hosts, host):
    file = suspended(host, "web", hosts.directory / "web.ckpt")
    told = ferry(host, "resume", "web.ckpt", cwd=hosts.directory)
    assert told.returncode == 0 and told.stdout.startswith("web is running on a"), told.stderr
    vm = host.vm("web")
    assert (vm["state"], vm["suspended"]) == ("RUNNING", None)
    assert codes(host)[-1] == "vm-resumed"
    told = ferry(host, "resume", str(file))
    assert told.returncode == 1 and "still runs on host a" in told.stderr, told.stderr
    host.restart(signal.SIGKILL)
    host.post("/v1/vms/web/kill")
    assert host.vm("web")["state"] == "STOPPED"


def test_resume_that_fails_leaves_the_vm_suspended(hosts, host):
    file = suspended(host, "web", hosts.directory / "web.ckpt", cmdline="fail-resume=the_disk_is_slow")
    assert_refused(lambda: resume(host, file), 500, "failed", "the disk is slow", str(file))
    for _ in range(2):
        assert host.vm("web")["state"] == "SUSPENDED"
        host.restart(signal.SIGKILL)


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint " * 1000])
def test_what_is_no_checkpoint_is_refused(hosts, host, content):
    file = hosts.directory / "web.ckpt"
    if content is not None:
        file.write_bytes(content)
    assert_refused(lambda: resume(host, file), 500, "failed", str(file))
    assert host.get("/v1/vms") == []


def test_vm_resumed_on_another_host_is_not_runnable_on_the_first(hosts):
    a, b = hosts.pair()
    file = suspended(a, "web", hosts.directory / "web.ckpt")
    assert resume(b, file)["state"] == "RUNNING"
    vm = a.vm("web")
    assert (vm["state"], vm["not_runnable"]["reason"]) == ("NOT_RUNNABLE", "the guest was resumed on host b")
    assert_refused(lambda: resume(a, file), 409, "conflict", "still runs on host b")
    b.post("/v1/vms/web/kill")


def test_original_that_nobody_can_ask_about_is_not_resumed(hosts):
    a, b = hosts.start("a"), hosts.start("b")
    file = suspended(a, "web", hosts.directory / "web.ckpt")
    assert_refused(lambda: resume(b, file), 422, "refused", "host a", "ferry host add")
    assert resume(b, file, name="web2")["name"] == "web2"


def test_snapshot_goes_on_beside_its_vm_under_another_name_only(hosts, host):
    host.run("web", nets=[{"backend": "user"}])
    file = hosts.directory / "web.ckpt"
    assert finish(host, save(host, "web", file, "snapshot"))["outcome"] == "completed"
    assert_refused(lambda: resume(host, file), 409, "conflict", "still runs on host a", "NEW_NAME")
    other = resume(host, file, name="web2")
    assert other["definition"]["nets"][0]["mac"] != host.vm("web")["definition"]["nets"][0]["mac"]
    assert other["definition"]["uuid"] != host.vm("web")["definition"]["uuid"]
    assert_refused(lambda: resume(host, file, name="web2"), 409, "conflict", "web2")


def test_memory_older_than_its_disk_does_not_go_on(hosts, host):
    disk = hosts.directory / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    definition = {"disks": [{"path": str(disk)}]}
    host.run("web", **definition)
    file = hosts.directory / "web.ckpt"
    assert finish(host, save(host, "web", file, "snapshot"))["outcome"] == "completed"
    host.post("/v1/vms/web/kill")
    told = ferry(host, "resume", str(file))
    assert told.returncode == 3 and "snapshot" in told.stderr and "--disks-restored" in told.stderr
    assert_refused(lambda: resume(host, file, name="web2"), 422, "refused", str(disk), "VM web's")
    assert host.vm("web")["state"] == "STOPPED"
    assert ferry(host, "resume", str(file), "--disks-restored").returncode == 0


# --- cold migrations ---


def both_records(a, b, migration):
    return [record["outcome"] for record in agreed_records(a, b, migration)]


def test_powered_off_vm_moves_and_comes_back(hosts):
    a, b = hosts.pair()
    a.run("web")
    a.post("/v1/vms/web/kill")
    assert_refused(lambda: a.move("web", b), 409, "conflict", "STOPPED", "--cold")
    told = ferry(a, "migrate", "web", "b", "--cold")
    assert told.returncode == 0 and "web moved cold from a to b" in told.stdout, told.stdout + told.stderr
    migration = told.stdout.splitlines()[-1].split(":")[0]
    assert both_records(a, b, migration) == ["completed", "completed"]
    assert a.event_codes(migration)[0] == "VMS2450" and "VMS4024" in a.event_codes(migration)
    assert [code for code in b.event_codes(migration) if code in ("VMS2430", "VMS3050", "VMS2431")] == [
        "VMS2430", "VMS3050", "VMS2431"]
    for host in (a, b):
        host.restart(signal.SIGKILL)
    assert a.has_left("web", b)
    assert_refused(lambda: a.post("/v1/vms/web/start"), 409, "conflict", "migrated to b")
    assert b.vm("web")["state"] == "STOPPED"
    assert b.post("/v1/vms/web/start")["state"] == "RUNNING"
    b.post("/v1/vms/web/kill")
    assert b.move("web", a, cold=True)["kind"] == "cold"
    assert a.post("/v1/vms/web/start")["state"] == "RUNNING"


def test_suspended_vm_moves_with_its_file(hosts):
    a, b = hosts.pair()
    file = suspended(a, "web", hosts.directory / "web.ckpt")
    assert a.move("web", b, cold=True)["outcome"] == "completed"
    assert a.has_left("web", b)
    assert (b.vm("web")["state"], b.vm("web")["suspended"]["file"]) == ("SUSPENDED", str(file))
    assert resume(b, file)["state"] == "RUNNING"
    assert a.has_left("web", b)


@pytest.mark.skipif(subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0,
                    reason="needs a mount namespace")
@pytest.mark.parametrize("runs", [False, True])
def test_file_that_the_destination_does_not_reach_is_copied(hosts, runs):
    place = hosts.directory / "a-only" if not runs else hosts.directory / "a"
    place.mkdir()
    a, b = hosts.new("a").start(), hosts.new("b")
    b.prefix = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {place} && exec "$0" "$@"']
    introduce(a, b.start())
    if runs:  # its own state directory is where the file is then
        a.run("web", kernel="/etc/hostname")
        assert a.move("web", b, cold=True)["outcome"] == "completed"
        assert b.vm("web")["state"] == "RUNNING" and not list(hosts.directory.glob("**/*.ckpt"))
        return
    file = suspended(a, "web", place / "web.ckpt", kernel="/etc/hostname")
    ended = a.move("web", b, cold=True)
    assert (ended["outcome"], ended["error"]) == ("completed", ""), ended
    copy = pathlib.Path(b.vm("web")["suspended"]["file"])
    assert copy.parent == b.state_dir and copy.read_bytes() == file.read_bytes()
    assert any("it is copied there" in line["text"] for line in a.get(f"/v1/migrations/{ended['id']}")["log"])
    assert resume(b, copy)["state"] == "RUNNING"


def test_cold_move_that_is_refused_changes_nothing(hosts):
    a, b = hosts.pair()
    file = suspended(a, "web", hosts.directory / "web.ckpt")
    file.rename(hosts.directory / "elsewhere")
    assert_refused(lambda: a.move("web", b, cold=True), 422, "refused", str(file), "neither on host a nor on host b")
    file.write_text("something else")
    ended = a.move("web", b, cold=True)
    assert ended["outcome"] == "failed" and "not what its guest was saved to" in ended["error"], ended
    assert both_records(a, b, ended["id"]) == ["failed", "failed"]
    assert a.vm("web")["state"] == "SUSPENDED" and b.vm("web") is None
    assert not list(hosts.directory.glob("**/*.partial"))
    assert_refused(lambda: a.move("web", b, cold=True, quick_resume="now"), 400, "usage", "exclude")


def test_running_vm_moves_cold(hosts):
    a, b = hosts.pair()
    a.run("web")
    ended = a.move("web", b, cold=True)
    assert (ended["outcome"], ended["error"]) == ("completed", ""), ended
    assert both_records(a, b, ended["id"]) == ["completed", "completed"]
    assert a.has_left("web", b) and b.vm("web")["state"] == "RUNNING"
    assert not list(hosts.directory.glob("**/*.ckpt"))


def test_running_vm_that_cannot_go_on_there_goes_on_here(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="fail-resume-at-b=no_luck")
    ended = a.move("web", b, cold=True)
    assert ended["outcome"] == "failed" and "no luck" in ended["error"], ended
    assert a.vm("web")["state"] == "RUNNING" and b.vm("web") is None
    a.run("db", cmdline="fail-save=the_disk_is_full")
    ended = a.move("db", b, cold=True)
    assert ended["outcome"] == "failed" and "the disk is full" in ended["error"], ended
    assert a.vm("db")["state"] == "RUNNING"
    assert not list(hosts.directory.glob("**/*.ckpt"))


def test_ferryd_killed_in_a_cold_move_leaves_the_vm_running_at_the_source(hosts):
    a, b = hosts.pair()
    a.run("web", cmdline="gate-save")
    migration = a.migrate("web", b, cold=True)
    partial = wait_until(lambda: list(hosts.directory.glob("**/*.partial")), "the save to begin")[0]
    a.restart(signal.SIGKILL)
    partial.with_suffix(".go").touch()
    ended = a.finish(migration)
    assert (ended["outcome"], ended["kind"]) == ("failed", "cold"), ended
    assert a.vm("web")["state"] == "RUNNING" and b.vm("web") is None
    assert not list(hosts.directory.glob("**/*.ckpt"))
