# Bare-metal programs: OUT/NAME-riscv64.elf. The runtime (start, console, traps, device tree) is one archive, from which
# each program takes what it uses.
BARE := bare-riscv64
BARE_OBJ := $(OUT)/.obj/bare-riscv64

# rv64gc only: the peer the results are compared with has more extensions, which must not be used.
BARE_CFLAGS := -std=gnu17 -O2 -g0 -march=rv64gc -mabi=lp64d -mcmodel=medany -ffreestanding -fno-pic -fno-pie \
	-fno-strict-aliasing -fno-stack-protector -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns $(WARNINGS) -MMD -MP
BARE_LDFLAGS := -nostdlib -static -no-pie -Wl,--build-id=none -Wl,--no-warn-rwx-segments -Wl,-z,max-page-size=4096

BARE_RUNTIME := start sbi console trap fdt paging isa common-args common-console common-memory
BARE_PROGRAMS := stress loops isa-int isa-fp isa-fma isa-atomic isa-c isa-csr isa-trap isa-random
BARE_ELFS := $(BARE_PROGRAMS:%=$(OUT)/%-riscv64.elf)

# What the random instruction test is made from; the same values make the same program.
ISA_RANDOM_SEED ?= 20
ISA_RANDOM_BLOCKS ?= 4000

bare: $(BARE_ELFS)

$(BARE_OBJ)/%.o: $(BARE)/%.c $(BARE)/rules.mk
	mkdir -p $(@D)
	$(CC) $(BARE_CFLAGS) -c -o $@ $<

$(BARE_OBJ)/%.o: $(BARE)/%.S $(BARE)/rules.mk
	mkdir -p $(@D)
	$(CC) $(BARE_CFLAGS) -c -o $@ $<

$(BARE_ELFS): $(OUT)/%-riscv64.elf: $(BARE_OBJ)/%.o $(BARE_RUNTIME:%=$(BARE_OBJ)/%.o) $(BARE)/link.ld
	$(CC) $(BARE_CFLAGS) $(BARE_LDFLAGS) -T $(BARE)/link.ld -o $@ $(filter %.o,$^)

$(BARE_OBJ)/isa-random-blocks.S: $(BARE)/isa-random.py $(BARE)/rules.mk
	mkdir -p $(@D)
	/usr/bin/python3 $< $(ISA_RANDOM_SEED) $(ISA_RANDOM_BLOCKS) >$@

$(BARE_OBJ)/isa-random-blocks.o: $(BARE_OBJ)/isa-random-blocks.S
	$(CC) $(BARE_CFLAGS) -c -o $@ $<

# What every architecture shares.
$(BARE_OBJ)/common-%.o: common/%.c $(BARE)/rules.mk
	mkdir -p $(@D)
	$(CC) $(BARE_CFLAGS) -c -o $@ $<

$(OUT)/stress-riscv64.elf: $(BARE_OBJ)/common-stress.o
$(OUT)/loops-riscv64.elf: $(BARE_OBJ)/common-loops.o
$(OUT)/isa-random-riscv64.elf: $(BARE_OBJ)/isa-random-run.o $(BARE_OBJ)/isa-random-blocks.o

-include $(wildcard $(BARE_OBJ)/*.d)
