/* SPDX-License-Identifier: GPL-2.0-only */
/* ------------------------------------------------------------------ all tests */

enum { KSFT_PASS = 0, KSFT_FAIL = 1, KSFT_SKIP = 4, MAX_JOBS = 64 };

/* Shared by the parent, which prints, and its children, which run the tests. */
static struct shared {
	int next;
	struct result results[NR_TESTS];
} *shared;

static int chosen[NR_TESTS], nr_chosen, children;
static int deadline = 60;
static int wake[2];

/* Run tests until none is left. A child that dies takes only its running test with it. */
static void run_tests(void)
{
	int i;

	open_log();
	while ((i = __sync_fetch_and_add(&shared->next, 1)) < nr_chosen) {
		struct result *result = &shared->results[i];

		result->child = getpid();
		result->since = time(NULL);
		result->verdict = RUNNING;
		judge(&tests[chosen[i]], result);
		if (write(wake[1], "", 1) < 0)
			break;
	}
	_exit(0);
}

static void start_child(void)
{
	pid_t child;

	fflush(stdout);
	child = fork();
	if (child == 0)
		run_tests();
	children += child > 0;
}

/* A child is dead: its test, if it ran one, is not ok. The others need a child. */
static void bury(pid_t child, int status)
{
	int i;

	children--;
	for (i = 0; i < nr_chosen; i++) {
		struct result *result = &shared->results[i];

		if (result->verdict != RUNNING || result->child != child)
			continue;
		if (result->timed_out)
			sprintf(result->text, "timed out after %d s", deadline);
		else
			sprintf(result->text, "the process died: signal %d, exit code %d",
				WTERMSIG(status), WEXITSTATUS(status));
		result->verdict = FAILED;
		if (shared->next < nr_chosen)
			start_child();
	}
}

static void kill_late(void)
{
	int i;

	for (i = 0; i < nr_chosen; i++) {
		struct result *result = &shared->results[i];

		if (result->verdict == RUNNING && time(NULL) - result->since > deadline) {
			result->timed_out = 1;
			kill(result->child, SIGKILL);
		}
	}
}

static void print_result(int number, const struct test *test, const struct result *result)
{
	switch (result->verdict) {
	case PASSED:
		printf("ok %d %s\n", number, test->name);
		break;
	case SKIPPED:
		printf("ok %d %s # SKIP %s\n", number, test->name, result->text);
		break;
	case XFAILED:
		printf("ok %d %s # XFAIL known deviation %s\n", number, test->name, result->text);
		break;
	default:
		printf("# %s\n# clause %s\n", result->text, test->clause);
		printf("not ok %d %s\n", number, test->name);
		break;
	}
}

static int run_chosen(int jobs)
{
	int printed = 0, counts[XFAILED + 1] = { 0 };

	printf("KTAP version 1\n1..%d\n", nr_chosen);
	while (jobs--)
		start_child();
	while (printed < nr_chosen) {
		struct result *result = &shared->results[printed];
		struct pollfd ready = { .fd = wake[0], .events = POLLIN };
		char bytes[256];
		int status;
		pid_t child;

		if (result->verdict > RUNNING || (!children && shared->next > printed)) {
			if (result->verdict <= RUNNING)
				result->verdict = FAILED;
			print_result(printed + 1, &tests[chosen[printed]], result);
			counts[result->verdict]++;
			printed++;
			continue;
		}
		fflush(stdout);
		if (poll(&ready, 1, 1000) > 0 && read(wake[0], bytes, sizeof(bytes)) < 0)
			break;
		while ((child = waitpid(-1, &status, WNOHANG)) > 0)
			bury(child, status);
		kill_late();
	}
	printf("# Totals: pass:%d fail:%d xfail:%d xpass:0 skip:%d error:0\n", counts[PASSED],
	       counts[FAILED], counts[XFAILED], counts[SKIPPED]);
	return counts[FAILED] ? KSFT_FAIL : KSFT_PASS;
}

static void choose(const char *name)
{
	int i, before = nr_chosen;

	for (i = 0; i < NR_TESTS; i++)
		if (!name || !strcmp(tests[i].name, name))
			chosen[nr_chosen++] = i;
	if (nr_chosen == before) {
		fprintf(stderr, "%s: no such test; -l lists them\n", name ? name : "-");
		exit(KSFT_FAIL);
	}
}

static void list(void)
{
	size_t i;

	for (i = 0; i < NR_TESTS; i++)
		puts(tests[i].name);
	for (i = 0; i < sizeof(left_out) / sizeof(left_out[0]) - 1; i++)
		printf("# left out: %s: %s\n", left_out[i].name, left_out[i].reason);
}
