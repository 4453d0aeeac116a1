"""A guest whose memory is of huge pages that were set aside: started, refused where there are too few, moved, upgraded."""
import fcntl
import pathlib
import subprocess

import pytest

from hosts import BUILD, KVM, Hosts, assert_refused, wait_until
from moving import STRESS, goes_on, needs_guests, passes, run

POOL = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
MIB = 1 << 20
PAGE = 2 * MIB
GUEST = 16  # pages of 32 MiB

MACHINES = [pytest.param("riscv64", marks=needs_guests),
            pytest.param("x86_64", marks=pytest.mark.skipif(not KVM, reason="needs an x86-64 host with /dev/kvm"))]


def number(name):
    return int((POOL / name).read_text())


class Pool:
    """The machine's huge pages of 2 MiB, which nobody else uses meanwhile; as they were when it is closed."""

    def __init__(self):
        self.mine = False
        if not POOL.is_dir():
            pytest.skip("this kernel has no huge pages of 2 MiB")
        self.former = number("nr_hugepages")

    def take(self):
        if not self.unused() or number("nr_overcommit_hugepages"):
            pytest.skip("the huge pages of this machine are in use")
        self.mine = True
        self.set(2 * GUEST)

    def set(self, pages):
        try:
            (POOL / "nr_hugepages").write_text(str(pages))
        except OSError as error:
            self.mine = False
            pytest.skip(f"huge pages cannot be set aside here: {error}")
        if number("nr_hugepages") != pages:
            pytest.skip(f"this machine has no {pages} huge pages to set aside")

    @staticmethod
    def unused():
        return number("free_hugepages") == number("nr_hugepages") and not number("resv_hugepages")

    def close(self):
        if self.mine:
            # What is still used then would be counted on top, by the next test for good.
            wait_until(self.unused, "the huge pages of VMs that were killed")
            (POOL / "nr_hugepages").write_text(str(self.former))


@pytest.fixture
def pool():
    with open("/tmp/ferry-test-hugepages.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = Pool()
        try:
            made.take()
            yield made
        finally:
            made.close()


@pytest.fixture
def hosts(pool):
    with Hosts(vm_program=BUILD / "ferry-vm") as made:
        yield made


def start(hosts, host, machine):
    kernel = STRESS.with_name(f"stress-{machine}.elf")
    run(hosts, host, machine=machine, kernel=str(kernel), memory=GUEST * PAGE, hugepages=PAGE)
    wait_until(lambda: passes(host) >= 1, "the guest's work")


def available(host):
    """Huge pages that a VM may have on HOST. The machine's are those of every host on it."""
    (pages,) = [pages for pages in host.get("/v1/host")["hugepages"] if pages["size"] == PAGE]
    return pages["available"]


@pytest.mark.parametrize("machine", MACHINES)
def test_guest_of_huge_pages_moves_where_there_are_enough(machine, hosts, pool):
    a, b = hosts.pair()
    start(hosts, a, machine)
    assert number("free_hugepages") < 2 * GUEST, "it has none of them"
    assert available(a) == GUEST, "not all of its memory is reserved"
    pool.set(2 * GUEST - 1)
    assert_refused(lambda: a.migrate("web", b), 422, "refused", "VM web cannot move: it needs 16 huge pages of 2 MiB",
                   "host b has 15 free", "echo 32 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    pool.set(2 * GUEST)
    assert_refused(lambda: a.migrate("web", b, quick_resume="now"), 422, "refused", "web", "host b",
                   "huge pages of 2 MiB")
    goes_on(a, booted=1)
    record = a.move("web", b, quick_resume="allowed")
    assert record["outcome"] == "completed" and not record["quick_resume"], record
    assert record["pages_skipped"] >= PAGE // 4096, "pages it never touched were sent"
    goes_on(b, booted=1)
    wait_until(lambda: available(b) == GUEST, "the source's pages to be given back")
    b.post("/v1/vms/web/pause")  # so that it touches nothing in its new process before it moves on
    assert b.finish(b.upgrade("web"))["outcome"] == "completed"
    assert available(b) == GUEST, "the upgrade has taken or given back pages"
    assert b.move("web", a)["outcome"] == "completed"
    a.post("/v1/vms/web/unpause")
    goes_on(a, booted=1)
    a.post("/v1/vms/web/kill")
    wait_until(lambda: available(a) == 2 * GUEST, "its pages to be given back")


@needs_guests
def test_process_alone_refuses_to_fetch_huge_pages(pool, vms):
    definition = {"name": "web", "kernel": str(STRESS), "cmdline": "mem=2M rate=4M interval=20",
                  "memory": GUEST * PAGE, "hugepages": PAGE}
    vm = vms.start("a", definition)
    vm.wait_for_console(r"^work 2 ")
    end = vms.migrate(vm, vms.start_incoming("b", vm.definition), quick_resume="now")
    assert end["outcome"] == "failed" and "quick resume is not possible with huge pages" in end["error"], end
    before = len(vm.console())
    vm.wait_for_console(r"^work .* errors=0 .* pass=", after=before)
    vm.end()


@needs_guests
def test_guest_of_more_huge_pages_than_there_are_does_not_start(hosts, pool):
    host = hosts.start("a")
    ferry = [BUILD / "ferry", "--host", host.state_dir, "run", "web", "--kernel", STRESS]
    done = subprocess.run([*ferry, "--memory", "66M,hugepages"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "VM web" in done.stderr and "needs 33 huge pages of 2 MiB, host a has 32 free" in done.stderr
    assert "echo 33 > " in done.stderr
    assert host.get("/v1/vms") == [] and available(host) == 2 * GUEST
    subprocess.run([*ferry, "--memory", "64M,hugepages=2M"], check=True, capture_output=True)
    wait_until(lambda: passes(host) >= 1, "the guest's work")
    shown = subprocess.run([BUILD / "ferry", "--host", host.state_dir, "show", "web"], check=True, capture_output=True,
                           text=True)
    assert "64 MiB in huge pages of 2 MiB" in shown.stdout
    shown = subprocess.run([BUILD / "ferry", "--host", host.state_dir, "host", "show"], check=True, capture_output=True,
                           text=True)
    assert "32 of 2 MiB, 0 of them available" in shown.stdout
    assert available(host) == 0
