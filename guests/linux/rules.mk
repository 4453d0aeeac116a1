# The Linux guests: OUT/ARCH/kernel and OUT/ARCH/initrd, ARCH being riscv64 or x86_64.
LINUX := linux

# ext4 is big and seldom wanted, so it stays packed until init loads it; the rest is plain, as unpacking the
# initramfs is slow on an emulated CPU.
MODULES_EXT4 := crc32c_generic crc16 mbcache jbd2 ext4

# The names under which init and tests call busybox.
APPLETS := sh ash mount umount insmod lsmod mkdir rm ls cat echo cut ifconfig ip ping uname setsid cttyhack sync \
	poweroff reboot sleep gunzip dmesg ps kill df free grep head tail sed awk dd cp mv ln md5sum sha256sum hexdump \
	date nc wget env id stat touch true false test top tty stty vi less wc sort seq printf usleep

LINUX_CFLAGS := -std=gnu17 -D_GNU_SOURCE -O2 -g0 -pthread $(WARNINGS) -MMD -MP
LINUX_SOURCES := $(filter-out $(wildcard $(LINUX)/registers_*.c),$(wildcard $(LINUX)/*.c))

# $(call linux_rules,ARCH,FETCHED,CROSS,CFLAGS): the rules of one architecture. FETCHED is its folder of
# guests/fetch, CROSS begins the names of its tools.
define linux_rules
$(1)_OUT := $(OUT)/$(1)
$(1)_OBJ := $(OUT)/.obj/linux/$(1)
$(1)_ROOT := $$($(1)_OBJ)/root
$(1)_OBJECTS := $$(LINUX_SOURCES:$(LINUX)/%.c=$$($(1)_OBJ)/%.o) $$($(1)_OBJ)/registers_$(1).o $$($(1)_OBJ)/loops.o

linux-$(1): $$($(1)_OUT)/kernel $$($(1)_OUT)/initrd

$$($(1)_OUT)/kernel: $(2)/manifest
	mkdir -p $$(@D)
	ln -sfn $(2)/kernel $$@

$$($(1)_OBJ)/%.o: $(LINUX)/%.c $(LINUX)/rules.mk
	mkdir -p $$(@D)
	$(3)gcc $(LINUX_CFLAGS) $(4) -c -o $$@ $$<

$$($(1)_OBJ)/loops.o: common/loops.c $(LINUX)/rules.mk
	mkdir -p $$(@D)
	$(3)gcc $(LINUX_CFLAGS) $(4) -c -o $$@ $$<

$$($(1)_OBJ)/ferry-work: $$($(1)_OBJECTS)
	$(3)gcc -static -pthread -s -Wl,--gc-sections -o $$@ $$^

$$($(1)_OUT)/initrd: $$($(1)_OBJ)/ferry-work $(LINUX)/init $(LINUX)/rules.mk $(2)/manifest
	mkdir -p $$(@D)
	rm -rf $$($(1)_ROOT)
	mkdir -p $$(addprefix $$($(1)_ROOT)/,bin modules proc sys dev tmp etc mnt)
	install -m 755 $(LINUX)/init $$($(1)_ROOT)/init
	install -m 755 $$($(1)_OBJ)/ferry-work $(2)/busybox $$($(1)_ROOT)/bin
	for applet in $(APPLETS); do ln -s busybox $$($(1)_ROOT)/bin/$$$$applet; done
	grep -vxF $(MODULES_EXT4:%=-e %) $(2)/modules.order >$$($(1)_ROOT)/modules/boot
	while read -r module; do \
	    $(3)strip --strip-unneeded -R .BTF -R .BTF.base -R .comment \
	        -o $$($(1)_ROOT)/modules/$$$$module.ko $(2)/modules/$$$$module.ko || exit 1; \
	done <$(2)/modules.order
	for module in $(MODULES_EXT4); do \
	    test ! -e $$($(1)_ROOT)/modules/$$$$module.ko || gzip -9n $$($(1)_ROOT)/modules/$$$$module.ko || exit 1; \
	done
	find $$($(1)_ROOT) -exec touch -h -d @0 {} +
	cd $$($(1)_ROOT) && find . -mindepth 1 -printf '%P\n' | LC_ALL=C sort | \
	    cpio --quiet -o -H newc -R 0:0 --reproducible >$$(abspath $$@).new
	mv $$@.new $$@

-include $$($(1)_OBJECTS:.o=.d)
endef

.PHONY: linux-riscv64 linux-x86_64
$(eval $(call linux_rules,riscv64,$(FETCHED_riscv64),$(CROSS),-march=rv64gc -mabi=lp64d))
ifneq ($(FETCHED_x86_64),)
$(eval $(call linux_rules,x86_64,$(FETCHED_x86_64),,-march=x86-64))
endif
