/*
 * KVM_SIGNAL_MSI of one message with many values of one of its words. Python would spend four times
 * as long between the system calls as the kernel spends in them.
 */
#include <errno.h>
#include <stdint.h>
#include <sys/ioctl.h>

/*
 * Send *message with each of count values put into *word on top of what is there, until the first
 * whose return value, or negative errno, is not the expected one; that goes to *got. How many were
 * as expected.
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
