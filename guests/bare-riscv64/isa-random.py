#!/usr/bin/env python3
"""Writes the assembly source of a random instruction test.

    isa-random.py SEED BLOCKS > blocks.S

Every block is a function of some tens of instructions out of a safe set: integer arithmetic, multiplication and
division, floating point in both precisions with static and dynamic rounding, loads, stores and atomics within a
scratch page, forward branches and jumps, and compressed forms. isa-random.c gives each block its registers, runs it
and prints what it left. The same seed and count give the same program, whatever version of Python runs this: only
random.Random.getrandbits() is used, whose sequence is fixed.
"""

import random
import sys

# x2 points into the scratch page all the time; everything else is free.
ALL = [n for n in range(32) if n != 2]
COMPRESSED = range(8, 16)
GROUP = 1000
SCRATCH = 1024  # Bytes on either side of x2.

ALU = "add sub sll slt sltu xor srl sra or and addw subw sllw srlw sraw".split()
MULTIPLY = "mul mulh mulhsu mulhu div divu rem remu mulw divw divuw remw remuw".split()
IMMEDIATE = "addi slti sltiu xori ori andi addiw".split()
SHIFT = {"slli": 64, "srli": 64, "srai": 64, "slliw": 32, "srliw": 32, "sraiw": 32}
LOADS = {"lb": 1, "lbu": 1, "lh": 2, "lhu": 2, "lw": 4, "lwu": 4, "ld": 8}
STORES = {"sb": 1, "sh": 2, "sw": 4, "sd": 8}
BRANCHES = "beq bne blt bge bltu bgeu".split()
ATOMICS = "amoswap amoadd amoxor amoand amoor amomin amomax amominu amomaxu".split()
ROUNDING = "rne rtz rdn rup rmm dyn".split()


class Generator:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.label = 0

    def below(self, limit):
        return self.random.getrandbits(30) % limit

    def pick(self, sequence):
        return sequence[self.below(len(sequence))]

    def x(self):
        return f"x{self.pick(ALL)}"

    def source(self):
        """Any register to read: now and then the pointer too."""
        return "x2" if self.below(30) == 0 else self.x()

    def f(self):
        return f"f{self.below(32)}"

    def offset(self, size):
        return (self.below(2 * SCRATCH // size) * size) - SCRATCH

    def alu(self):
        return f"{self.pick(ALU)} {self.x()}, {self.source()}, {self.source()}"

    def multiply(self):
        return f"{self.pick(MULTIPLY)} {self.x()}, {self.x()}, {self.x()}"

    def immediate(self):
        return f"{self.pick(IMMEDIATE)} {self.x()}, {self.source()}, {self.below(4096) - 2048}"

    def shift(self):
        name = self.pick(sorted(SHIFT))
        return f"{name} {self.x()}, {self.x()}, {self.below(SHIFT[name])}"

    def upper(self):
        return f"{self.pick(['lui', 'auipc'])} {self.x()}, {self.below(1 << 20):#x}"

    def load(self):
        name = self.pick(sorted(LOADS))
        return f"{name} {self.x()}, {self.offset(LOADS[name])}(x2)"

    def store(self):
        name = self.pick(sorted(STORES))
        return f"{name} {self.x()}, {self.offset(STORES[name])}(x2)"

    def address(self, size):
        """A register other than x0 and x2 which is made to point into the scratch page."""
        register = f"x{self.pick([n for n in ALL if n != 0])}"
        return register, f"addi {register}, x2, {self.offset(size)}"

    def atomic(self):
        width, size = self.pick([("w", 4), ("d", 8)])
        register, setup = self.address(size)
        order = self.pick(["", ".aq", ".rl", ".aqrl"])
        return f"{setup}\n    {self.pick(ATOMICS)}.{width}{order} {self.x()}, {self.x()}, ({register})"

    def reservation(self):
        width, size = self.pick([("w", 4), ("d", 8)])
        register, setup = self.address(size)
        loaded = f"x{self.pick([n for n in ALL if n != 0 and f'x{n}' != register])}"
        status = f"x{self.pick([n for n in ALL if n != 0 and f'x{n}' not in (register, loaded)])}"
        self.label += 1
        return (
            f"{setup}\n.Lr{self.label}: lr.{width} {loaded}, ({register})\n"
            f"    sc.{width} {status}, {loaded}, ({register})\n    bnez {status}, .Lr{self.label}"
        )

    def float_arithmetic(self):
        name = self.pick("fadd fsub fmul fdiv".split())
        return f"{name}.{self.pick('sd')} {self.f()}, {self.f()}, {self.f()}, {self.pick(ROUNDING)}"

    def float_fused(self):
        name = self.pick("fmadd fmsub fnmadd fnmsub".split())
        return f"{name}.{self.pick('sd')} {self.f()}, {self.f()}, {self.f()}, {self.f()}, {self.pick(ROUNDING)}"

    def float_plain(self):
        name = self.pick("fmin fmax fsgnj fsgnjn fsgnjx".split())
        return f"{name}.{self.pick('sd')} {self.f()}, {self.f()}, {self.f()}"

    def float_root(self):
        return f"fsqrt.{self.pick('sd')} {self.f()}, {self.f()}, {self.pick(ROUNDING)}"

    def float_to_integer(self):
        kind = self.below(4)
        if kind == 0:
            return f"{self.pick('feq flt fle'.split())}.{self.pick('sd')} {self.x()}, {self.f()}, {self.f()}"
        if kind == 1:
            return f"fclass.{self.pick('sd')} {self.x()}, {self.f()}"
        if kind == 2:
            return f"{self.pick(['fmv.x.w', 'fmv.x.d'])} {self.x()}, {self.f()}"
        to = self.pick("w wu l lu".split())
        return f"fcvt.{to}.{self.pick('sd')} {self.x()}, {self.f()}, {self.pick(ROUNDING)}"

    def integer_to_float(self):
        kind = self.below(4)
        if kind == 0:
            return f"{self.pick(['fmv.w.x', 'fmv.d.x'])} {self.f()}, {self.x()}"
        if kind == 1:
            return f"fcvt.s.d {self.f()}, {self.f()}, {self.pick(ROUNDING)}"
        if kind == 2:
            return f"fcvt.d.s {self.f()}, {self.f()}"
        # A 32-bit integer always fits a double: the assembler takes no rounding mode there.
        of, to = self.pick("w wu l lu".split()), self.pick("sd")
        rounding = "" if to == "d" and of in ("w", "wu") else f", {self.pick(ROUNDING)}"
        return f"fcvt.{to}.{of} {self.f()}, {self.x()}{rounding}"

    def float_memory(self):
        name, size = self.pick([("flw", 4), ("fld", 8), ("fsw", 4), ("fsd", 8)])
        return f"{name} {self.f()}, {self.offset(size)}(x2)"

    def rounding(self):
        kind = self.below(3)
        if kind == 0:
            return f"fsrmi {self.x()}, {self.below(5)}"
        if kind == 1:
            return f"frflags {self.x()}"
        return f"fsflagsi {self.x()}, {self.below(32)}"

    def forward(self):
        """A branch or a jump over up to three further instructions."""
        self.label += 1
        here = f".Lf{self.label}"
        kind = self.below(8)
        if kind == 0:
            jump = f"jal {self.x()}, {here}"
        elif kind == 1:
            register = f"x{self.pick([n for n in ALL if n != 0])}"
            jump = f"la {register}, {here}\n    jalr {self.x()}, 0({register})"
        elif kind == 2:
            jump = f"c.{self.pick(['beqz', 'bnez'])} x{self.pick(COMPRESSED)}, {here}"
        else:
            jump = f"{self.pick(BRANCHES)} {self.x()}, {self.x()}, {here}"
        skipped = "".join(f"    {self.simple()}\n" for _ in range(self.below(4)))
        return f"{jump}\n{skipped}{here}:"

    def compressed(self):
        rd = f"x{self.pick([n for n in ALL if n != 0])}"
        other = f"x{self.pick([n for n in ALL if n != 0])}"
        a, b = f"x{self.pick(COMPRESSED)}", f"x{self.pick(COMPRESSED)}"
        nonzero = self.below(31) + 1
        forms = [
            f"c.li {rd}, {self.below(64) - 32}",
            f"c.lui {rd}, {nonzero}",
            f"c.addi {rd}, {nonzero}",
            f"c.addi {rd}, {-nonzero}",
            f"c.addiw {rd}, {self.below(64) - 32}",
            f"c.slli {rd}, {self.below(63) + 1}",
            f"c.srli {a}, {self.below(63) + 1}",
            f"c.srai {a}, {self.below(63) + 1}",
            f"c.andi {a}, {self.below(64) - 32}",
            f"c.mv {rd}, {other}",
            f"c.add {rd}, {other}",
            f"c.sub {a}, {b}",
            f"c.xor {a}, {b}",
            f"c.or {a}, {b}",
            f"c.and {a}, {b}",
            f"c.addw {a}, {b}",
            f"c.subw {a}, {b}",
            f"c.addi4spn {a}, x2, {(self.below(255) + 1) * 4}",
            f"c.lwsp {rd}, {self.below(64) * 4}(x2)",
            f"c.ldsp {rd}, {self.below(64) * 8}(x2)",
            f"c.fldsp {self.f()}, {self.below(64) * 8}(x2)",
            f"c.swsp {rd}, {self.below(64) * 4}(x2)",
            f"c.sdsp {rd}, {self.below(64) * 8}(x2)",
            f"c.fsdsp {self.f()}, {self.below(64) * 8}(x2)",
            f"c.addi4spn {a}, x2, 8\n    c.ld {b}, {self.below(32) * 8}({a})",
            f"c.addi4spn {a}, x2, 8\n    c.lw {b}, {self.below(32) * 4}({a})",
            f"c.addi4spn {a}, x2, 8\n    c.sd {b}, {self.below(32) * 8}({a})",
            f"c.addi4spn {a}, x2, 8\n    c.sw {b}, {self.below(32) * 4}({a})",
            f"c.addi4spn {a}, x2, 8\n    c.fld f{self.pick(COMPRESSED)}, {self.below(32) * 8}({a})",
            f"c.addi4spn {a}, x2, 8\n    c.fsd f{self.pick(COMPRESSED)}, {self.below(32) * 8}({a})",
        ]
        return self.pick(forms)

    def simple(self):
        """An instruction that goes straight on."""
        return self.pick(
            [self.alu] * 5
            + [self.immediate] * 3
            + [self.shift] * 3
            + [self.multiply] * 4
            + [self.upper]
            + [self.load] * 3
            + [self.store] * 3
            + [self.compressed] * 6
            + [self.float_arithmetic] * 5
            + [self.float_fused] * 3
            + [self.float_plain] * 2
            + [self.float_root]
            + [self.float_to_integer] * 4
            + [self.integer_to_float] * 4
            + [self.float_memory] * 2
            + [self.rounding]
        )()

    def instruction(self):
        kind = self.below(20)
        if kind < 2:
            return self.forward()
        if kind == 2:
            return self.atomic()
        if kind == 3 and self.below(3) == 0:
            return self.reservation()
        return self.simple()

    def block(self, index):
        # The assembler shortens what it can, so both lengths of many instructions are met.
        lines = ["    .option push", "    .option norelax", f"block_{index}:"]
        for _ in range(20 + self.below(40)):
            text = self.instruction()
            lines.append(f"    {text}")
        lines += [f"    j hop_{index // GROUP}", "    .option pop"]
        return "\n".join(lines)


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: isa-random.py SEED BLOCKS")
    seed, count = int(sys.argv[1], 0), int(sys.argv[2], 0)
    generator = Generator(seed)
    print(f"/* Made by isa-random.py {seed} {count}; not to be edited. */")
    print("    .text\n    .balign 4")
    for index in range(count):
        if index % GROUP == 0:
            # A jump reaches 1 MiB, and no register is free for more: each group goes back by way of the one before.
            group = index // GROUP
            print(f"hop_{group}:\n    j {f'hop_{group - 1}' if group else 'block_end'}")
        print(generator.block(index))
    print("    .section .rodata\n    .balign 8\n    .globl block_table, block_count, block_seed\nblock_table:")
    for index in range(count):
        print(f"    .dword block_{index}")
    print(f"block_count: .dword {count}\nblock_seed: .dword {seed}")


main()
