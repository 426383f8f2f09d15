// SPDX-License-Identifier: GPL-2.0-only
/*
 * The least time that a sweep can take: the same ioctls and nothing else.
 */
#include <stdint.h>
#include <sys/ioctl.h>

int plain_loop(int fd, unsigned long request, void *message, uint32_t *data, int rounds)
{
	const uint32_t base = *data;
	int sum = 0;

	for (int round = 0; round < rounds; round++)
		for (int vector = 0; vector < 256; vector++) {
			*data = base | vector;
			sum += ioctl(fd, request, message);
		}
	*data = base;
	return sum;
}
