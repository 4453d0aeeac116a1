# The Linux guest: OUT/riscv64/kernel and OUT/riscv64/initrd.
LINUX := linux-riscv64
LINUX_OUT := $(OUT)/riscv64
LINUX_OBJ := $(OUT)/.obj/linux-riscv64
ROOT := $(LINUX_OBJ)/root

LINUX_CFLAGS := -std=gnu17 -D_GNU_SOURCE -O2 -g0 -march=rv64gc -mabi=lp64d -pthread $(WARNINGS) -MMD -MP
LINUX_SOURCES := $(wildcard $(LINUX)/*.c)
LINUX_OBJECTS := $(LINUX_SOURCES:$(LINUX)/%.c=$(LINUX_OBJ)/%.o) $(LINUX_OBJ)/loops.o

linux: $(LINUX_OUT)/kernel $(LINUX_OUT)/initrd

$(LINUX_OUT)/kernel: $(FETCHED)/manifest
	mkdir -p $(@D)
	ln -sfn $(FETCHED)/kernel $@

$(LINUX_OBJ)/%.o: $(LINUX)/%.c $(LINUX)/rules.mk
	mkdir -p $(@D)
	$(CC) $(LINUX_CFLAGS) -c -o $@ $<

$(LINUX_OBJ)/loops.o: common/loops.c $(LINUX)/rules.mk
	mkdir -p $(@D)
	$(CC) $(LINUX_CFLAGS) -c -o $@ $<

$(LINUX_OBJ)/ferry-work: $(LINUX_OBJECTS)
	$(CC) -static -pthread -s -Wl,--gc-sections -o $@ $^

# ext4 is big and seldom wanted, so it stays packed until init loads it; the rest is plain, as unpacking the
# initramfs is slow on an emulated CPU.
MODULES_BOOT := virtio_mmio virtio_blk failover net_failover virtio_net virtio-rng virtio_balloon
MODULES_EXT4 := crc32c_generic crc16 mbcache jbd2 ext4

# The names under which init and tests call busybox.
APPLETS := sh ash mount umount insmod lsmod mkdir rm ls cat echo cut ifconfig ip ping uname setsid cttyhack sync \
	poweroff reboot sleep gunzip dmesg ps kill df free grep head tail sed awk dd cp mv ln md5sum sha256sum hexdump \
	date nc wget env id stat touch true false test top tty stty vi less wc sort seq printf usleep

$(LINUX_OUT)/initrd: $(LINUX_OBJ)/ferry-work $(LINUX)/init $(LINUX)/rules.mk $(FETCHED)/manifest
	mkdir -p $(@D)
	rm -rf $(ROOT)
	mkdir -p $(ROOT)/bin $(ROOT)/modules $(ROOT)/proc $(ROOT)/sys $(ROOT)/dev $(ROOT)/tmp $(ROOT)/etc $(ROOT)/mnt
	install -m 755 $(LINUX)/init $(ROOT)/init
	install -m 755 $(LINUX_OBJ)/ferry-work $(FETCHED)/busybox $(ROOT)/bin
	for applet in $(APPLETS); do ln -s busybox $(ROOT)/bin/$$applet; done
	for module in $(MODULES_BOOT) $(MODULES_EXT4); do \
	    test ! -e $(FETCHED)/modules/$$module.ko || $(CROSS)strip --strip-unneeded -R .BTF -R .BTF.base -R .comment \
	        -o $(ROOT)/modules/$$module.ko $(FETCHED)/modules/$$module.ko || exit 1; \
	done
	for module in $(MODULES_EXT4); do gzip -9n $(ROOT)/modules/$$module.ko || exit 1; done
	find $(ROOT) -exec touch -h -d @0 {} +
	cd $(ROOT) && find . -mindepth 1 -printf '%P\n' | LC_ALL=C sort | \
	    cpio --quiet -o -H newc -R 0:0 --reproducible >$(abspath $@).new
	mv $@.new $@

-include $(LINUX_OBJECTS:.o=.d)
