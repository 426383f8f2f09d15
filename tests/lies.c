/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The lies of tests/liar.py for programs without Python: LD_PRELOAD this library
 * and name the lie in the environment variable LIE. Only KVM_SIGNAL_MSI is lied
 * about.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <linux/kvm.h>

static const char *lie;

static int is(const char *name)
{
	return !strcmp(lie, name);
}

int ioctl(int fd, unsigned long request, ...)
{
	static int (*kernel)(int, unsigned long, ...);
	struct kvm_msi msi;
	va_list arguments;
	void *argument;

	if (!kernel) {
		kernel = dlsym(RTLD_NEXT, "ioctl");
		lie = getenv("LIE");
	}
	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (request != KVM_SIGNAL_MSI || !argument)
		return kernel(fd, request, argument);
	memcpy(&msi, argument, sizeof(msi));
	if (is("always-einval")) {
		errno = EINVAL;
		return -1;
	}
	if (is("never-delivers"))
		return 1;
	if (is("flags-not-checked"))
		msi.flags = 0;
	if (is("delivers-to-all"))
		msi.address_lo |= 0xff << 12;
	if (is("next-vector"))
		msi.data ^= 1;
	if (is("wrong-vcpu"))
		msi.address_lo ^= 1 << 12;
	if (is("tmr-wrong"))
		msi.data ^= 1 << 15;
	if (is("always-1") || is("always-0")) {
		kernel(fd, request, &msi);
		return is("always-1");
	}
	return kernel(fd, request, &msi);
}
