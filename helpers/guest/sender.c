/*
 * KVM_SIGNAL_MSI of one message with many vectors. Python would spend four times as long between
 * the system calls as the kernel spends in them.
 */
#include <errno.h>
#include <stdint.h>
#include <sys/ioctl.h>

/*
 * Send *message with each of count vectors in the word *data, until the first whose return value, or
 * negative errno, is not the expected one; that goes to *got. How many were as expected.
 */
int send_vectors(int fd, unsigned long request, void *message, uint32_t *data,
		 const uint8_t *vectors, int count, const int16_t *expected, int *got)
{
	const uint32_t base = *data;
	int sent;

	for (sent = 0; sent < count; sent++) {
		*data = base | vectors[sent];
		*got = ioctl(fd, request, message);
		if (*got < 0)
			*got = -errno;
		if (*got != expected[sent])
			break;
	}
	*data = base;
	return sent;
}
