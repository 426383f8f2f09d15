/* SPDX-License-Identifier: GPL-2.0-only */
/* ------------------------------------------------------------------- the test */

/* Exit code: 0 as owed, 1 not, 4 cannot run here. */
int main(void)
{
	char complaint[MAX_TEXT];

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0) {
		perror("/dev/kvm");
		return 4;
	}
	open_log();
	if (setjmp(end_of_test)) {
		printf("not ok: %s: expected %s, got %s\n", mismatch.subject, mismatch.expected,
		       mismatch.actual);
		return 1;
	}
	test();
	if (complained(complaint, sizeof(complaint))) {
		printf("not ok: kernel log: expected no complaint, got %s\n", complaint);
		return 1;
	}
	printf("ok\n");
	return 0;
}
