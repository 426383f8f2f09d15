// SPDX-License-Identifier: GPL-2.0-only
/*
 * Send KVM_SIGNAL_MSI with many values of one word of the message.
 */
#include <errno.h>
#include <stdint.h>
#include <sys/ioctl.h>

/*
 * Or each of count values into *word and send *message. Stop after the first
 * result, the return value or the negative errno, that differs from expected.
 * Restore *word, store the last result in *got, and return the number of
 * messages with the expected result.
 */
int send_values(int fd, unsigned long request, void *message, uint32_t *word,
		const uint32_t *values, int count, const int16_t *expected, int *got)
{
	const uint32_t base = *word;
	int sent;

	for (sent = 0; sent < count; sent++) {
		*word = base | values[sent];
		*got = ioctl(fd, request, message);
		if (*got < 0)
			*got = -errno;
		if (*got != expected[sent])
			break;
	}
	*word = base;
	return sent;
}
