"""A guest that does what no driver does: random port and memory accesses of all widths, aligned and not, string I/O,
queues full of nonsense. Only that VM may be the worse for it, and what became of it is said."""
import random
import re
import struct

import pytest

from hosts import BUILD, KVM, Hosts, wait_until
from moving import goes_on, passes

STRESS = BUILD / "guest" / "stress-x86_64.elf"
MIB = 1 << 20
STEPS = 6000
ROUNDS = 4      # of queues set up with nonsense, each before a share of the steps
MEMORY = 32 * MIB
CODE = 0x100000
NOISE = 0x800000  # a MiB of random bytes: rings and descriptors, and what strings are put out of
SLOTS, SLOT, SLOT_COUNT = 0xd0000000, 0x1000, 18
DEVICE_PORTS = [0x3f8, 0x60, 0x70, 0x71, 0x20, 0x40, 0x61, 0xcf8, 0xcfc, 0x80, 0x4d0, 0x402, 0x500]
ENDING_PORTS = [0x64, *range(0x600, 0x608), 0xcf9]  # they would end it before its time

pytestmark = [pytest.mark.skipif(not KVM, reason="needs an x86-64 host with /dev/kvm"),
              pytest.mark.skipif(not STRESS.exists(), reason="needs the guests (make guests)")]


@pytest.fixture
def hosts():
    with Hosts(vm_program=BUILD / "ferry-vm") as made:
        yield made


# ---- the guest: straight-line code in 32-bit protected mode, where the PVH protocol starts it ----

def load(register, value):
    return bytes([0xb8 + register]) + struct.pack("<I", value)


EAX, ECX, EDX, ESI, EDI = 0, 1, 2, 6, 7
WIDTHS = {1: (b"", 0), 2: (b"\x66", 1), 4: (b"", 1)}  # prefix, and what is added to the opcode


def out(port, value, width):
    prefix, wide = WIDTHS[width]
    return load(EDX, port) + load(EAX, value) + prefix + bytes([0xee + wide])


def into(port, width):
    prefix, wide = WIDTHS[width]
    return load(EDX, port) + prefix + bytes([0xec + wide])


def store(address, value, width):
    prefix, wide = WIDTHS[width]
    return load(EAX, value) + prefix + bytes([0xa2 + wide]) + struct.pack("<I", address)


def fetch(address, width):
    prefix, wide = WIDTHS[width]
    return prefix + bytes([0xa0 + wide]) + struct.pack("<I", address)


def put_string(port, address, count, width):
    prefix, wide = WIDTHS[width]
    return load(ESI, address) + load(ECX, count) + load(EDX, port) + prefix + bytes([0xf3, 0x6e + wide])


def get_string(port, address, count, width):
    prefix, wide = WIDTHS[width]
    return load(EDI, address) + load(ECX, count) + load(EDX, port) + prefix + bytes([0xf3, 0x6c + wide])


def say(text):
    """By the UART, in whatever state it was left."""
    ready = out(0x3fb, 3, 1) + out(0x3fc, 0, 1) + out(0x3f9, 0, 1) + out(0x3fa, 0, 1)
    return ready + b"".join(out(0x3f8, byte, 1) for byte in text.encode())


POWER_OFF = out(0x604, 0x2000, 2) + b"\xeb\xfe"
# An empty table of interrupts, and a selector of no segment: lidt (%esp), mov %ax, %ds.
TRIPLE_FAULT = b"\x68\0\0\0\0" * 2 + b"\x0f\x01\x1c\x24" + load(EAX, 0xfff0) + b"\x8e\xd8\xeb\xfe"
STACK = load(4, NOISE + 2 * MIB)


def random_port(rng):
    while True:
        port = rng.choice(DEVICE_PORTS) + rng.randrange(8) if rng.random() < 0.6 else rng.randrange(0x10000)
        # Wide accesses reach the ports after it, too.
        if not any(near in ENDING_PORTS for near in range(port, port + 4)):
            return port


def random_address(rng):
    kind = rng.random()
    if kind < 0.6:  # a device's registers, and the next one's from there on
        return SLOTS + rng.randrange(SLOT_COUNT + 1) * SLOT + rng.choice([rng.randrange(0x120), rng.randrange(SLOT), SLOT - 1])
    if kind < 0.8:  # over an edge
        return rng.choice([MEMORY, 0xc0000000, SLOTS, SLOTS + SLOT_COUNT * SLOT, 0xfec00000, 0xfec01000]) - rng.randrange(1, 4)
    if kind < 0.9:
        return NOISE + rng.randrange(MIB)
    return rng.randrange(0xc0000000, 0xfee00000)  # below the local APIC, which could stop it for good


def set_up_nonsense(rng, slot):
    """A driver's steps (virtio 1.2 §3.1, §4.2.2), with queues anywhere and of any size."""
    base = SLOTS + slot * SLOT
    writes = [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, rng.getrandbits(32)), (0x70, 11)]
    for queue in range(3):
        writes += [(0x30, queue), (0x38, rng.choice([1, 2, 64, 128, 256, 3, 0, 0xffff]))]
        for register in (0x80, 0x90, 0xa0):
            where = rng.choice([NOISE, NOISE, NOISE, MEMORY - 8, SLOTS, 0xfffffff0]) + rng.randrange(0, 4096, 16)
            writes += [(register, where & 0xffffffff), (register + 4, rng.choice([0, 0, 0, 1, 0xffffffff]))]
        writes.append((0x44, 1))
    writes.append((0x70, 15))
    writes += [(0x50, queue) for queue in range(4)]
    return b"".join(store(base + register, value, 4) for register, value in writes)


def random_step(rng):
    width = rng.choice([1, 2, 4])
    kind = rng.random()
    if kind < 0.35:
        return out(random_port(rng), rng.getrandbits(32), width)
    if kind < 0.5:
        return into(random_port(rng), width)
    if kind < 0.55:
        return put_string(random_port(rng), NOISE + rng.randrange(MIB // 2), rng.randrange(1, 300), width)
    if kind < 0.6:
        return get_string(random_port(rng), NOISE + rng.randrange(MIB // 2), rng.randrange(1, 300), width)
    address = random_address(rng)
    return store(address, rng.getrandbits(32), width) if kind < 0.85 else fetch(address, width)


def hostile_elf(rng, end):
    code = STACK + b"\xfc"
    for _ in range(ROUNDS):
        code += b"".join(set_up_nonsense(rng, slot) for slot in range(SLOT_COUNT))
        code += b"".join(random_step(rng) for _ in range(STEPS // ROUNDS))
    code += say("\nhostile to the end\n") + end
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", CODE)  # XEN_ELFNOTE_PHYS32_ENTRY
    noise = rng.randbytes(MIB)
    start = 0x1000
    segments = [(1, start, CODE, code), (1, start + len(code), NOISE, noise), (4, start + len(code) + MIB, 0, note)]
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, CODE, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    for kind, offset, address, data in segments:
        header += struct.pack("<IIQQQQQQ", kind, 7, offset, address, address, len(data), len(data), 4)
    return header.ljust(start, b"\0") + code + noise + note


@pytest.mark.parametrize("seed, end, state, why", [
    (1, POWER_OFF, "STOPPED", "the guest powered off"),
    (2, TRIPLE_FAULT, "CRASHED", "triple fault"),
], ids=["to the end", "triple fault"])
def test_only_the_hostile_guest_suffers(hosts, seed, end, state, why):
    print("seed", seed)
    host = hosts.start("a")
    kernel, disk = hosts.directory / "hostile.elf", hosts.directory / "disk"
    kernel.write_bytes(hostile_elf(random.Random(seed), end))
    disk.write_bytes(bytes(MIB))
    host.run("web", machine="x86_64", kernel=str(STRESS), memory=MEMORY, cmdline="mem=8M rate=4M interval=20")
    wait_until(lambda: passes(host) >= 1, "the bystander to verify its memory")
    host.run("bad", machine="x86_64", kernel=str(kernel), memory=MEMORY, disks=[{"path": str(disk)}],
             nets=[{"backend": "user"}])
    wait_until(lambda: host.vm("bad")["state"] != "RUNNING", "the hostile guest to end")
    bad = host.vm("bad")
    log = (host.state_dir / "vms" / "bad" / "vm.log").read_text()
    assert bad["state"] == state and why in bad["why"], (bad["state"], bad["why"], log[-2000:])
    console = host.request("GET", "/v1/vms/bad/console/log")[1]
    assert b"hostile to the end" in console, console[-200:]
    # It is said which device its driver was at odds with, and not without end.
    assert re.search(r"WARN.*virtio", log) and len(log) < MIB, log[-2000:]
    goes_on(host, booted=1)
