"""CPU baselines: what of a host's CPU a VM is given, and where it may run then. Hosts take themselves for CPUs of
which there are recorded CPUID tables."""
import json
import subprocess

import pytest

from hosts import BUILD, KVM, ROOT, Hosts, assert_refused, introduce, stopped, wait_until
from moving import passes

TABLES = ROOT / "tests" / "unit" / "cpu" / "tables"
STRESS = BUILD / "guest" / "stress-x86_64.elf"

pytestmark = pytest.mark.skipif(not KVM, reason="needs an x86-64 host with /dev/kvm")


@pytest.fixture
def hosts():
    with Hosts() as made:
        yield made


def host_of(hosts, name, cpu):
    return hosts.start(name, "--cpu-table", str(TABLES / f"{cpu}.txt"))


def pair_of(hosts, cpu_a, cpu_b):
    a, b = host_of(hosts, "a", cpu_a), host_of(hosts, "b", cpu_b)
    introduce(a, b)
    return a, b


def run(host, name="web", **more):
    return host.run(name, machine="x86_64", **more)


def given(host, name="web"):
    """What the VM was given; the pretended ferry-vm says what it was told to give."""
    process = host.vm(name)["pid"]
    words = open(f"/proc/{process}/cmdline", encoding="utf-8").read().split("\0")
    return set(words[words.index("--cpu-features") + 1].split(",")) if "--cpu-features" in words else None


def set_baseline(host, name):
    return host.post("/v1/cluster/baseline", {"name": name})


def rows(host, destination, name="web"):
    return host.post(f"/v1/vms/{name}/check", {"destination": destination.name})["checks"]


def test_cpu_of_another_vendor_is_refused(hosts):
    a, b = pair_of(hosts, "amd-milan", "intel-icelake")
    run(a, cpu="host")
    assert_refused(lambda: a.migrate("web", b), 422, "refused", "VM web", "AuthenticAMD", "host b", "GenuineIntel")
    assert_refused(lambda: a.get("/v1/cluster/baseline/compute"), 422, "refused", "host a", "host b", "GenuineIntel")


def test_baseline_is_what_all_hosts_have_and_cuts_what_vms_get(hosts):
    a, b = pair_of(hosts, "amd-milan", "amd-rome")
    common = a.get("/v1/cluster/baseline/compute")
    assert common["generation"] == "amd-rome"
    beyond = {row["name"]: row["beyond"] for row in common["hosts"]}
    assert "pku" in beyond["a"] and "pku" not in common["features"] and "avx2" in common["features"]
    assert a.get("/v1/host")["cpu_baseline"] is None
    shown = set_baseline(a, "amd-rome")
    assert [row["baseline"] for row in shown["hosts"]] == ["amd-rome", "amd-rome"]
    run(a)
    assert "avx2" in given(a) and not {"pku", "vaes"} & given(a)
    assert a.move("web", b)["outcome"] == "completed"
    # It is on record: a ferryd that comes back knows it.
    b.restart()
    assert b.get("/v1/cluster/baseline")["name"] == "amd-rome"
    set_baseline(a, None)
    b.restart()
    assert b.get("/v1/cluster/baseline")["name"] is None


def test_host_below_the_baseline_cannot_join(hosts):
    a, b = host_of(hosts, "a", "amd-milan"), host_of(hosts, "b", "amd-rome")
    set_baseline(a, "amd-milan")
    assert_refused(lambda: a.post("/v1/hosts", {"name": "b", "address": b.address}), 422, "refused", "host b", "pku",
                   "amd-milan")
    assert [row["name"] for row in a.get("/v1/hosts")] == ["a"]
    other = host_of(hosts, "c", "intel-icelake")
    set_baseline(a, "x86-64-v2")
    assert_refused(lambda: a.post("/v1/hosts", {"name": "c", "address": other.address}), 422, "refused", "host c",
                   "GenuineIntel", "AuthenticAMD")
    # Of what is not the generation's the baseline loses what b lacks, unless a VM has it.
    set_baseline(a, "amd-rome")
    run(a)
    assert_refused(lambda: a.post("/v1/hosts", {"name": "b", "address": b.address}), 422, "refused", "web", "amd_psfd")
    a.post("/v1/vms/web/kill")
    wait_until(lambda: a.vm("web")["pid"] is None, "the VM to end")
    introduce(a, b)
    assert b.get("/v1/host")["cpu_baseline"] == a.get("/v1/host")["cpu_baseline"]
    assert b.get("/v1/host")["cpu_baseline"]["name"] == "amd-rome"
    assert_refused(lambda: set_baseline(a, "amd-milan"), 422, "refused", "host b", "pku")
    assert_refused(lambda: set_baseline(a, "intel-icelake"), 422, "refused", "intel-icelake", "AuthenticAMD")
    assert_refused(lambda: set_baseline(a, "amd-paris"), 400, "usage", "amd-paris", "amd-rome")


def test_mask_of_a_vm_takes_features_away_and_is_redundant_below_a_baseline(hosts):
    a, b = pair_of(hosts, "amd-milan", "amd-rome")
    run(a, cpu="host,-pku,-avx2")
    assert "avx" in given(a) and not {"pku", "avx2"} & given(a)
    run(a, "old", cpu="x86-64-v2,-popcnt")
    assert "sse4_2" in given(a, "old") and not {"popcnt", "avx"} & given(a, "old")
    a.post("/v1/vms/web/kill")
    a.post("/v1/vms/old/kill")
    set_baseline(a, "amd-rome")
    run(a, "new", cpu="-pku,-avx2")
    warnings = [row["message"] for row in rows(a, b, "new") if row["check"] == "cpu-mask"]
    assert len(warnings) == 1 and "pku" in warnings[0] and "avx2" not in warnings[0] and "amd-rome" in warnings[0]
    assert_refused(lambda: run(a, "bad", cpu="host,-avx3"), 400, "usage", "avx3")
    assert_refused(lambda: run(a, "bad", cpu="amd-milan-"), 400, "usage", "amd-milan-")
    assert_refused(lambda: run(b, "bad", cpu="amd-milan"), 422, "refused", "VM bad", "host b", "pku")
    assert_refused(lambda: a.run("bad", machine="riscv64", cpu="host"), 400, "usage", "VM bad", "riscv64")


def test_baseline_is_raised_under_running_vms_and_not_lowered(hosts):
    a, b = pair_of(hosts, "amd-milan", "amd-milan")
    set_baseline(a, "x86-64-v2")
    run(a)
    low = given(a)
    set_baseline(a, "amd-milan")
    assert given(a) == low
    a.post("/v1/vms/web/kill")
    wait_until(lambda: a.vm("web")["pid"] is None, "the VM to end")
    a.post("/v1/vms/web/start")
    assert low < given(a)
    assert_refused(lambda: set_baseline(b, "amd-rome"), 422, "refused", "web", "host a", "pku")
    assert_refused(lambda: set_baseline(b, "x86-64-v2"), 422, "refused", "web", "host a", "pku")
    assert b.get("/v1/cluster/baseline")["name"] == "amd-milan"
    assert a.move("web", b)["outcome"] == "completed"


def test_vm_never_goes_where_a_feature_it_was_given_is_missing(hosts):
    a, b = pair_of(hosts, "amd-milan", "amd-rome")
    run(a, cpu="host")
    assert_refused(lambda: a.migrate("web", b), 422, "refused", "VM web", "host b lacks CPU features", "pku",
                   "set baseline amd-rome and power-cycle web")
    assert any(row["check"] == "cpu" and row["severity"] == "error" for row in rows(a, b))
    assert a.vm("web")["state"] == "RUNNING"


def test_baseline_is_not_lowered_while_a_vm_does_not_say_what_it_was_given(hosts):
    a = hosts.start("a", "--cpu-table", str(TABLES / "amd-milan.txt"), "--vm-timeout", "1")
    pid = run(a, cpu="amd-milan")["pid"]
    a.stop()
    with stopped(pid):
        a.start()
        assert_refused(lambda: set_baseline(a, "amd-rome"), 422, "refused", "the processes of web do not say")
    wait_until(lambda: a.vm("web")["cpu"], "word of web")
    assert_refused(lambda: set_baseline(a, "amd-rome"), 422, "refused", "were given more: web", "pku")
    set_baseline(a, "amd-milan")


def test_unreachable_host_keeps_the_baseline_as_it_is(hosts):
    a, b = pair_of(hosts, "amd-milan", "amd-rome")
    b.stop()
    assert_refused(lambda: set_baseline(a, "amd-rome"), 502, "unreachable", "host b")
    assert a.get("/v1/host")["cpu_baseline"] is None


@pytest.mark.skipif(not STRESS.exists(), reason="needs the guests (make guests)")
def test_real_guest_is_given_no_more_than_the_baseline_and_moves():
    with Hosts(vm_program=BUILD / "ferry-vm") as made:
        a, b = made.pair()
        ferry = [BUILD / "ferry", "--host", a.state_dir]
        subprocess.run([*ferry, "cluster", "baseline", "set", "x86-64-v1"], check=True, capture_output=True)
        a.run("web", machine="x86_64", kernel=str(STRESS), memory=64 << 20, cmdline="mem=16M rate=20M interval=20",
              cpu="host,-mmx")
        wait_until(lambda: passes(a) >= 2, "the guest to verify its memory")
        baseline = set(a.get("/v1/cluster/baseline")["features"])
        def told(host):
            return set(host.vm("web")["cpu"]["features"])

        assert "mmx" in baseline and told(a) <= given(a) == baseline - {"mmx"}
        assert a.move("web", b)["outcome"] == "completed"
        wait_until(lambda: passes(b) >= 4, "the guest to verify its memory at the destination")
        # What arrived is what the guest was given, not what that host would give.
        assert told(b) <= baseline - {"mmx"}
        subprocess.run([*ferry, "cluster", "baseline", "set", "none"], check=True, capture_output=True)
        assert b.move("web", a)["outcome"] == "completed" and told(a) <= baseline - {"mmx"}
        shown = subprocess.run([*ferry, "cluster", "baseline", "show", "--json"], check=True, capture_output=True)
        assert json.loads(shown.stdout)["name"] is None
