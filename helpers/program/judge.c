/* SPDX-License-Identifier: GPL-2.0-only */
/* ------------------------------------------------- the kernel under test */

static int kernel_major, kernel_minor;
static const char *vendor = "";

static int read_text(const char *path, char *text, int size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), count;

	if (fd < 0)
		return -1;
	count = read(fd, text, size - 1);
	close(fd);
	if (count < 0)
		return -1;
	text[count] = '\0';
	return count;
}

/* Return whether a parameter of KVM's modules, such as "kvm.vector_hashing", has the value. */
static int parameter_is(const char *name, const char *value)
{
	const char *dot = strchr(name, '.');
	char path[128], text[32];

	snprintf(path, sizeof(path), "/sys/module/%.*s/parameters/%s", (int)(dot - name), name,
		 dot + 1);
	if (read_text(path, text, sizeof(text)) < 0)
		return 0;
	text[strcspn(text, "\n")] = '\0';
	return !strcmp(text, value);
}

static int vendor_is(const char *name)
{
	return !strcmp(vendor, name);
}

static int has_flag(const char *flag)
{
	static char text[16384];

	if (!text[0] && read_text("/proc/cpuinfo", text, sizeof(text)) < 0)
		return 0;
	return strstr(text, flag) != NULL;
}

static void find_kernel(void)
{
	struct utsname name;

	uname(&name);
	sscanf(name.release, "%d.%d", &kernel_major, &kernel_minor);
	if (!access("/sys/module/kvm_pvm", F_OK))
		vendor = "kvm_pvm";
	else if (!access("/sys/module/kvm_intel", F_OK) && has_flag(" vmx "))
		vendor = "kvm_intel";
	else if (!access("/sys/module/kvm_amd", F_OK) && has_flag(" svm "))
		vendor = "kvm_amd";
}

/* ---------------------------------------------------------- known deviations */

struct deviation {
	const char *id;
	int since, before;	/* 6.12 is 612; 0: none */
	const char *vendor, *parameter, *value;
	int of_host;	/* the host decides, not the version of the kernel */
	struct { const char *subject, *expected, *actual; } shows[MAX_SHOWS];
};

static int applies(const struct deviation *d)
{
	int version = kernel_major * 100 + kernel_minor;

	if (d->since && version < d->since)
		return 0;
	if (d->before && version >= d->before)
		return 0;
	if (d->vendor && !vendor_is(d->vendor))
		return 0;
	return !d->parameter || parameter_is(d->parameter, d->value);
}

/* A "?" of the pattern is any character. */
static int matches(const char *pattern, const char *text)
{
	for (; *pattern && *text; pattern++, text++)
		if (*pattern != '?' && *pattern != *text)
			return 0;
	return *pattern == *text;
}

static int explains(const struct deviation *d)
{
	int i;

	if (!applies(d))
		return 0;
	for (i = 0; i < MAX_SHOWS && d->shows[i].subject; i++)
		if (matches(d->shows[i].subject, mismatch.subject) &&
		    matches(d->shows[i].expected, mismatch.expected) &&
		    matches(d->shows[i].actual, mismatch.actual))
			return 1;
	return 0;
}

/* ------------------------------------------------------------ the kernel log */

static int kmsg = -1;
static unsigned long taint;
static regex_t complaints;

static unsigned long read_taint(void)
{
	char text[32];

	return read_text("/proc/sys/kernel/tainted", text, sizeof(text)) < 0 ? 0 : atol(text);
}

/* Have each WARN_ON_ONCE log again: Documentation/admin-guide/clearing-warn-once.rst. */
static void rearm_warnings(void)
{
	int fd = open("/sys/kernel/debug/clear_warn_once", O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, "1", 1) < 0)
		perror("clear_warn_once");
	if (fd >= 0)
		close(fd);
}

static void open_log(void)
{
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (kmsg >= 0)
		lseek(kmsg, 0, SEEK_END);
	taint = read_taint();
	if (regcomp(&complaints, COMPLAINT, REG_EXTENDED | REG_NOSUB))
		abort();
	if (taint & 1 << 9)
		rearm_warnings();
}

/* Write "WARNING in FUNCTION" for a line that names the function as FUNCTION+0x1/0x2. */
static void normalize(const char *line, char *text, int size)
{
	const char *start = strstr(line, "WARNING: "), *plus = start;

	while (plus && (plus = strstr(plus + 1, "+0x"))) {
		const char *name = plus;

		while (name > start && (isalnum(name[-1]) || name[-1] == '_'))
			name--;
		if (name == plus)
			continue;
		snprintf(text, size, "WARNING in %.*s", (int)(plus - name), name);
		return;
	}
	snprintf(text, size, "%s", line);
}

/* Return whether the kernel complained since the last call, and why in ``text``. */
static int complained(char *text, int size)
{
	unsigned long now = read_taint();
	char record[8192];
	int found = 0;

	while (kmsg >= 0) {
		int count = read(kmsg, record, sizeof(record) - 1);
		char *line;

		if (count < 0 && errno == EPIPE)
			continue;
		if (count <= 0)
			break;
		record[count] = '\0';
		line = strchr(record, ';');
		if (!line || found)
			continue;
		line[strcspn(line, "\n")] = '\0';
		found = !regexec(&complaints, line, 0, NULL, 0);
		if (found)
			normalize(line + 1, text, size);
	}
	if (!found && now & ~taint) {
		snprintf(text, size, "new taint flags of the kernel: %lu", now & ~taint);
		found = 1;
	}
	taint = now;
	if (found)
		rearm_warnings();
	return found;
}

/* ------------------------------------------------------------------ one test */

enum verdict { PENDING, RUNNING, PASSED, FAILED, SKIPPED, XFAILED };

struct test {
	const char *name, *clause;
	void (*run)(void);
	const char *(*skip)(void);
	const struct deviation *const *deviations;
	int reusable;	/* the next test can use the machines */
};

struct result {
	volatile enum verdict verdict;
	pid_t child;
	time_t since;
	int timed_out;
	char text[3 * MAX_TEXT + 64];
	struct mismatch mismatch;
};

static void close_machine(struct machine *m)
{
	while (m->nr_vcpus) {
		struct vcpu *v = m->vcpus[--m->nr_vcpus];

		if (v->run)
			munmap(v->run, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
		close(v->fd);
		free(v->pristine);
		free(v);
	}
	close(m->fd);
	if (m->memory)
		munmap(m->memory, m->size);
	free(m);
}

/* Machines in their power-on state, which wait for the next test. */
enum { MAX_POOL = 24 };

static struct machine *pool[MAX_POOL];
static int nr_pooled;

/* Return a machine in its power-on state: one from the pool, or a new one. */
static struct machine *obtain(struct machine *(*make)(void))
{
	struct machine *m;
	int i;

	for (i = 0; i < nr_pooled && pool[i]->made_by != make; i++)
		;
	if (i < nr_pooled) {
		m = pool[i];
		pool[i] = pool[--nr_pooled];
		machines[nr_machines++] = m;
		return m;
	}
	m = make();
	m->made_by = make;
	for (i = 0; i < m->nr_vcpus; i++) {
		struct vcpu *v = m->vcpus[i];

		v->pristine = malloc(sizeof(*v));
		memcpy(v->pristine, v, offsetof(struct vcpu, nr_taken));
	}
	return m;
}

/* Return all vCPUs to the power-on state. Return 0 if something stays changed. */
static int reset(struct machine *m)
{
	int i;

	for (i = 0; i < m->nr_vcpus; i++) {
		struct vcpu *v = m->vcpus[i], *was = v->pristine;

		if (!was || was->index != v->index)
			return 0;
		if (v->run->exit_reason != KVM_EXIT_UNKNOWN && v->run->exit_reason != KVM_EXIT_INTR)
			enter_at_once(v);
		memset(v->control, 0, sizeof(*v->control));
		v->control->self_address = AREA(v);
		v->control->flags = FLAG_EOI;
		must(v->fd, KVM_SET_REGS, &was->regs);
		must(v->fd, KVM_SET_VCPU_EVENTS, &was->events);
		must(v->fd, KVM_SET_MP_STATE, &was->mp_state);
		must(v->fd, KVM_SET_LAPIC, &was->new.lapic);
	}
	read_all(m);
	for (i = 0; i < m->nr_vcpus; i++) {
		struct vcpu *v = m->vcpus[i], *was = v->pristine;

		if (memcmp(&v->new, &was->new, sizeof(v->new)))
			return 0;
		memcpy(v, was, offsetof(struct vcpu, pristine));
	}
	return 1;
}

/* Keep the machines of a test for the next one, or close them. */
static void release_machines(int reusable)
{
	volatile int usable = reusable;

	while (nr_machines) {
		struct machine *m = machines[--nr_machines];

		if (usable && setjmp(end_of_test))
			usable = 0;
		if (!usable || !m->made_by || !m->nr_vcpus || !reset(m)) {
			close_machine(m);
			continue;
		}
		if (nr_pooled == MAX_POOL) {
			close_machine(pool[0]);
			memmove(pool, pool + 1, --nr_pooled * sizeof(pool[0]));
		}
		pool[nr_pooled++] = m;
	}
}

static void judge(const struct test *test, struct result *result)
{
	const struct deviation *const *d = test->deviations;
	const char *reason = test->skip ? test->skip() : NULL;
	volatile int failed = 0;
	char text[MAX_TEXT];

	if (reason) {
		snprintf(result->text, sizeof(result->text), "%s", reason);
		result->verdict = SKIPPED;
		return;
	}
	if (setjmp(end_of_test))
		failed = 1;
	else
		test->run();
	release_machines(test->reusable && !failed);
	if (complained(text, sizeof(text)) && !failed) {
		failed = 1;
		strcpy(mismatch.subject, "kernel log");
		strcpy(mismatch.expected, "no complaint");
		strcpy(mismatch.actual, text);
	}
	if (failed)
		result->mismatch = mismatch;
	for (; failed && d && *d; d++) {
		if (explains(*d)) {
			snprintf(result->text, sizeof(result->text), "%s", (*d)->id);
			result->verdict = XFAILED;
			return;
		}
	}
	for (; !failed && d && *d; d++) {
		if ((*d)->of_host && applies(*d)) {
			snprintf(result->text, sizeof(result->text),
				 "the known deviation %s did not occur", (*d)->id);
			failed = 1;
		}
	}
	if (failed && !result->text[0])
		snprintf(result->text, sizeof(result->text), "%s: expected %s, got %s",
			 mismatch.subject, mismatch.expected, mismatch.actual);
	result->verdict = failed ? FAILED : PASSED;
}
