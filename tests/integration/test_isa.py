"""The built-in CPU against qemu-system-riscv64: the same programs print the same results, line by line."""

import os
import shutil
import subprocess

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("FERRY_BUILD", os.path.join(ROOT, "build"))
GUESTS = os.environ.get("FERRY_GUEST", os.path.join(BUILD, "guest"))
RUN = os.path.join(BUILD, "tests", "unit", "machine", "riscv64_run")
QEMU = shutil.which("qemu-system-riscv64")
DEADLINE = 300

PROGRAMS = ["isa-int", "isa-c", "isa-csr", "isa-trap", "isa-atomic", "isa-fp", "isa-fma", "isa-random"]

# QEMU's default CPU has instructions that this one has not, and the tests see them trap or not.
QEMU_CPU = "rv64,zba=off,zbb=off,zbc=off,zbs=off,h=off"


def program(name):
    path = os.path.join(GUESTS, f"{name}-riscv64.elf")
    if not os.path.exists(path):
        pytest.skip(f"{path} is not built (make guests)")
    if not os.path.exists(RUN):
        pytest.skip(f"{RUN} is not built")
    return path


def results(output):
    """From `isa NAME begins` to `isa ends`, without the remarks."""
    lines = output.decode(errors="replace").replace("\r", "").split("\n")
    first = next((i for i, line in enumerate(lines) if line.startswith("isa ") and line.endswith("begins")), None)
    assert first is not None, "the program did not begin: " + "\n".join(lines[-20:])
    assert "isa ends" in lines[first:], "the program did not end: " + "\n".join(lines[-5:])
    return [line for line in lines[first:lines.index("isa ends", first)] if not line.startswith("#")]


def ferry(path, *options):
    done = subprocess.run([RUN, "--seconds", str(DEADLINE), *options, path], stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=2 * DEADLINE)
    assert done.returncode == 0, done.stderr.decode()
    return done


def qemu(path):
    if not QEMU:
        pytest.skip("qemu-system-riscv64 is not installed")
    done = subprocess.run([QEMU, "-M", "virt", "-cpu", QEMU_CPU, "-m", "128", "-nographic", "-bios", "default",
                           "-no-reboot", "-kernel", path],
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE)
    return done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_prints_what_qemu_prints(name):
    path = program(name)
    expected = results(qemu(path))
    found = results(ferry(path).stdout)
    for number, (left, right) in enumerate(zip(expected, found)):
        assert left == right, f"line {number} of {name}: QEMU, then Ferry"
    assert len(expected) == len(found)


def test_reports_every_page_a_program_writes():
    done = ferry(program("isa-random"), "--dirty-check")
    assert b" 0 pages were written without having been reported" in done.stderr


def test_loops_give_the_same_sums():
    path = program("loops")
    words = "int=1000000 mem=1000000 fp=1000000"

    def sums(output):
        lines = output.decode(errors="replace").split("\n")
        return [(line.split()[1], line.split()[-1]) for line in lines if line.startswith("loop ")]

    if not QEMU:
        pytest.skip("qemu-system-riscv64 is not installed")
    expected = subprocess.run([QEMU, "-M", "virt", "-m", "128", "-nographic", "-bios", "default", "-no-reboot", "-kernel",
                               path, "-append", words],
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE).stdout
    found = sums(ferry(path, "--cmdline", words).stdout)
    assert len(found) == 3
    assert found == sums(expected)
