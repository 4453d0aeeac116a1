"""Who a Linux guest is told that it is, and whether it learns that its past was used before."""
import re

from hosts import wait_until
from test_checkpoint_hosts import finish, resume, save
from test_ferryd_vm import console, hosts, pytestmark  # noqa: F401 (a fixture, and what the test needs)

FORK = "crng reseeded due to virtual machine fork"


def lines(host, name):
    found = re.findall(r"^work (\d+) .*errors=(\d+)", console(host, name), re.MULTILINE)
    assert all(errors == "0" for _, errors in found), found
    return [int(number) for number, _ in found]


def goes_on(host, name):
    last = lines(host, name)[-1]
    wait_until(lambda: lines(host, name)[-1] >= last + 3, f"more lines of {name}")


def saved(host, name, file, kind):
    ended = finish(host, save(host, name, file, kind))
    assert ended["outcome"] == "completed", ended
    return file


def test_guest_whose_past_is_used_again_draws_other_random_numbers(hosts, guest):
    a = hosts.start("a")
    web = a.post("/v1/vms", {"definition": guest.definition(
        "web", "ferry.printk=6 ferry.work=threads=1,mem=4M", memory=128 << 20, nets=[{"backend": "user"}])})["definition"]
    wait_until(lambda: lines(a, "web")[-1:] >= [3], "the guest's work")
    assert f" uuid={web['uuid']}" in console(a, "web")
    snapshot = saved(a, "web", hosts.directory / "web.ckpt", "snapshot")

    clone = resume(a, snapshot, name="clone")["definition"]
    wait_until(lambda: FORK in console(a, "clone"), "the clone to learn that it is one")
    assert clone["uuid"] != web["uuid"] and clone["nets"][0]["mac"] != web["nets"][0]["mac"]
    goes_on(a, "clone")

    goes_on(a, "web")
    suspended = saved(a, "web", hosts.directory / "suspended.ckpt", "suspend")
    assert resume(a, suspended)["definition"] == web
    goes_on(a, "web")
    assert FORK not in console(a, "web"), "nobody else has its past"

    a.post("/v1/vms/clone/kill")
    a.post("/v1/vms/web/kill")
    assert resume(a, snapshot)["definition"] == web
    wait_until(lambda: FORK in console(a, "web"), "the guest to learn that it has been there before")
    goes_on(a, "web")
