// SPDX-License-Identifier: GPL-2.0-only
// A message without KVM_MSI_VALID_DEVID is delivered once its translation is cached.
// aarch64-linux-gnu-gcc -static -o reproducer arm-devid-flag-cached.c; run on an arm64 kernel.
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define RAM 0x40000000UL
#define ITS 0x08080000UL
#define VALID (1UL << 63)

static long call(int fd, unsigned long request, void *argument)
{
	long result = ioctl(fd, request, argument);

	if (result < 0) {
		perror("ioctl");
		exit(1);
	}
	return result;
}

static int device(int vm, int type)
{
	struct kvm_create_device create = { .type = type };

	call(vm, KVM_CREATE_DEVICE, &create);
	return create.fd;
}

static void set(int fd, int group, uint64_t attribute, uint64_t value)
{
	struct kvm_device_attr attr = { .group = group, .attr = attribute, .addr = (uintptr_t)&value };

	call(fd, KVM_SET_DEVICE_ATTR, &attr);
}

static void message(int vm, uint32_t flags)
{
	struct kvm_msi msi = { .address_lo = ITS + 0x10040, .data = 0, .devid = 1, .flags = flags };
	int result = ioctl(vm, KVM_SIGNAL_MSI, &msi);

	printf("flags %u: %d %s\n", flags, result, result < 0 ? strerror(errno) : "");
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
	uint8_t *ram = mmap(0, 1 << 20, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = { 0, 0, RAM, 1 << 20, (uintptr_t)ram };
	int vgic, its, vcpu;
	struct kvm_vcpu_init init;
	uint64_t commands[3][4] = {
		{ 9, 0, VALID },				// MAPC: collection 0 to vCPU 0
		{ 8 | 1UL << 32, 4, VALID | (RAM + 0x60000) },	// MAPD: device 1, 32 events
		{ 10 | 1UL << 32, 8192UL << 32, 0 },		// MAPTI: event 0 to LPI 8192
	};

	call(vm, KVM_SET_USER_MEMORY_REGION, &region);
	vgic = device(vm, KVM_DEV_TYPE_ARM_VGIC_V3);
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	call(vm, KVM_ARM_PREFERRED_TARGET, &init);
	call(vcpu, KVM_ARM_VCPU_INIT, &init);
	its = device(vm, KVM_DEV_TYPE_ARM_VGIC_ITS);
	set(vgic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, 0x08000000);
	set(vgic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, 0x08100000);
	set(its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, ITS);
	set(vgic, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0);
	set(its, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0);
	set(vgic, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, 0x70, RAM | 15);		// PROPBASER
	set(vgic, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, 0x78, RAM + 0x10000);	// PENDBASER
	set(vgic, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, 0, 1);			// EnableLPIs
	set(its, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 0x100, VALID | (RAM + 0x20000) | 0x200);
	set(its, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 0x108, VALID | (RAM + 0x30000) | 0x200);
	set(its, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 0x80, VALID | (RAM + 0x40000));	// CBASER
	set(its, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 0, 1);				// Enabled
	memcpy(ram + 0x40000, commands, sizeof(commands));
	set(its, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 0x88, sizeof(commands));	// CWRITER

	message(vm, 0);				// EINVAL, as documented
	message(vm, KVM_MSI_VALID_DEVID);	// 1
	message(vm, 0);				// 1: EINVAL is owed
	return 0;
}
