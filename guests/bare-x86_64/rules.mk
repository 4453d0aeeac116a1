# Bare-metal programs for x86-64: OUT/NAME-x86_64.elf, started by the PVH boot protocol.
BARE64 := bare-x86_64
BARE64_OBJ := $(OUT)/.obj/bare-x86_64
CC_X86_64 ?= gcc

# Without vector registers: the programs keep values of their own in them.
BARE64_CFLAGS := -std=gnu17 -O2 -g0 -m64 -march=x86-64 -mgeneral-regs-only -mno-red-zone -mcmodel=small -ffreestanding \
	-fno-pic -fno-pie -fcf-protection=none -fno-strict-aliasing -fno-stack-protector -fno-asynchronous-unwind-tables \
	-fno-tree-loop-distribute-patterns $(WARNINGS) -MMD -MP
BARE64_LDFLAGS := -nostdlib -static -no-pie -Wl,--build-id=none -Wl,--no-warn-rwx-segments -Wl,-z,max-page-size=4096

BARE64_RUNTIME := start console smp common-args common-console common-memory
BARE64_PROGRAMS := stress
BARE64_ELFS := $(BARE64_PROGRAMS:%=$(OUT)/%-x86_64.elf)

bare64: $(BARE64_ELFS)

$(BARE64_OBJ)/%.o: $(BARE64)/%.c $(BARE64)/rules.mk
	mkdir -p $(@D)
	$(CC_X86_64) $(BARE64_CFLAGS) -c -o $@ $<

$(BARE64_OBJ)/%.o: $(BARE64)/%.S $(BARE64)/rules.mk
	mkdir -p $(@D)
	$(CC_X86_64) $(BARE64_CFLAGS) -c -o $@ $<

$(BARE64_OBJ)/common-%.o: common/%.c $(BARE64)/rules.mk
	mkdir -p $(@D)
	$(CC_X86_64) $(BARE64_CFLAGS) -c -o $@ $<

$(BARE64_ELFS): $(OUT)/%-x86_64.elf: $(BARE64_OBJ)/%.o $(BARE64_RUNTIME:%=$(BARE64_OBJ)/%.o) $(BARE64)/link.ld
	$(CC_X86_64) $(BARE64_CFLAGS) $(BARE64_LDFLAGS) -T $(BARE64)/link.ld -o $@ $(filter %.o,$^)

$(OUT)/stress-x86_64.elf: $(BARE64_OBJ)/common-stress.o

-include $(wildcard $(BARE64_OBJ)/*.d)
