"""Checkpoints of x86-64 guests on KVM: the bare-metal guest goes into files and out of them, and moves cold."""
import json
import re

import pytest

from hosts import assert_refused, wait_until
from moving import WORK, goes_on, passes
from test_checkpoint import resume, save
from test_checkpoint_hosts import ferry, finish, resume as resume_on, save as save_on
from test_kvm import MIB, definition, hosts, pytestmark, registers, verifies_all  # noqa: F401 (a fixture, and what the tests need)

CLOCK = re.compile(r"^work .* t=([\d.]+) .*\n", re.MULTILINE)


def is_whole(vm):
    """Every line the guest ever said is there once, its registers were right at each, and its clock never went back."""
    text = vm.console()
    numbers = [int(number) for number, *_ in WORK.findall(text)]
    times, clock = registers(text), [float(shown) for shown in CLOCK.findall(text)]
    assert numbers == list(range(1, len(numbers) + 1)) and text.count("work begins") == 1, numbers
    assert times == sorted(times) and times[-1] >= len(times) - 1
    assert clock == sorted(clock), clock


def start_working(vms):
    vm = vms.start("a", definition("mem=32M rate=0 interval=20 cpus=2", vcpus=2))
    vm.wait_for_console(r"^work 2 ")
    vm.control.call("subscribe")
    return vm


@pytest.mark.parametrize("how", [(), ("--eager",)], ids=["lazily", "eagerly"])
def test_suspended_guest_goes_on_in_another_process(vms, how):
    vm = start_working(vms)
    path = vms.directory / "file"
    word = save(vm, path, "suspend", compress="zstd" if how else "off")
    assert (word["outcome"], word["error"]) == ("completed", "")
    assert vm.wait()["reason"] == "suspended"
    again = resume(vms, "b", vm, path, *how)
    verifies_all(again)
    is_whole(again)
    # The other CPU works on, too: the guest starts it itself when it boots anew.
    said = len(again.console())
    again.type("r")
    again.wait_for_console(r"work begins harts=2[\s\S]*^work 2 ", said)


def test_snapshot_of_a_writing_guest_is_a_guest_of_its_own(vms):
    vm = start_working(vms)
    path = vms.directory / "file"
    word = save(vm, path, "snapshot")
    assert (word["outcome"], word["error"]) == ("completed", "")
    assert word["stopped_ns"] < word["total_ns"] and word["rounds"] > 0
    verifies_all(vm)
    first = resume(vms, "b", vm, path)
    second = resume(vms, "c", vm, path, "--eager")
    for one in (first, second, vm):
        verifies_all(one)
        is_whole(one)


def test_suspended_guest_goes_on_on_another_host_and_moves_cold(hosts):  # noqa: F811 (the fixture)
    a, b = hosts.pair()
    file = hosts.directory / "web.ckpt"
    a.run(**definition("mem=16M rate=0 interval=20"))
    wait_until(lambda: passes(a) >= 2, "the guest to verify its memory")
    ended = finish(a, save_on(a, "web", file))
    assert (ended["outcome"], ended["error"]) == ("completed", ""), ended
    shown = json.loads(ferry(a, "checkpoint", "show", str(file), "--json").stdout)
    sections = {section["name"]: section["fields"] for section in shown["sections"]}
    assert int(sections["vcpu0"]["regs.rip"], 16) and sections["cpuid"]["entries"] and shown["damage"] == "", shown
    assert resume_on(b, file)["state"] == "RUNNING"
    goes_on(b, booted=1)
    assert_refused(lambda: resume_on(a, file), 409, "conflict", "still runs on host b")
    ended = b.move("web", a, cold=True)
    assert (ended["outcome"], ended["kind"], ended["error"]) == ("completed", "cold", ""), ended
    goes_on(a, booted=1)
    assert b.has_left("web", a)
    assert a.move("web", b)["outcome"] == "completed", "hot, after it was in a file"
    goes_on(b, booted=1)
