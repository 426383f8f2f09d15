/* SPDX-License-Identifier: GPL-2.0-only */
int main(int argc, char *argv[])
{
	int option, jobs = 1;

	while ((option = getopt(argc, argv, "lt:j:d:")) != -1) {
		if (option == 'l') {
			list();
			return KSFT_PASS;
		} else if (option == 't' && nr_chosen < NR_TESTS) {
			choose(optarg);
		} else if (option == 'j' && atoi(optarg) > 0 && atoi(optarg) <= MAX_JOBS) {
			jobs = atoi(optarg);
		} else if (option == 'd' && atoi(optarg) > 0) {
			deadline = atoi(optarg);
		} else {
			fprintf(stderr, "usage: %s [-l] [-t TEST]... [-j JOBS] [-d SECONDS]\n"
				"  -l  list the tests, and those that this program leaves out\n"
				"  -t  run this test\n"
				"  -j  run several tests at a time, up to %d\n"
				"  -d  seconds that a test may take (60)\n", argv[0], MAX_JOBS);
			return KSFT_FAIL;
		}
	}
	if (getpid() != 1 && !nr_chosen)
		choose(NULL);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (shared == MAP_FAILED || pipe2(wake, O_CLOEXEC)) {
		perror("shared memory");
		return KSFT_SKIP;
	}
	if (getpid() == 1)
		be_init();
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0) {
		printf("KTAP version 1\n1..0 # SKIP /dev/kvm: %s\n", strerror(errno));
		return KSFT_SKIP;
	}
	find_kernel();
	return run_chosen(jobs);
}
