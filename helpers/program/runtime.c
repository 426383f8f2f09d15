/* SPDX-License-Identifier: GPL-2.0-only */
/* ------------------------------------------------------------------ machines */

enum { MAX_MACHINES = 64, MAX_VCPUS = 1024, MAX_TEXT = 512, MAX_TAKEN = 512 };

struct snapshot {
	struct kvm_lapic_state lapic;
	__u8 nmi_pending, smi_pending, latched_init, nmi_masked, shadow, smm;
	__u32 mp_state;
};

/*
 * The latest answer of each KVM_GET_*, from which the next KVM_SET_* starts;
 * the two latest snapshots; what the guest took, and its EOIs that exited.
 */
struct vcpu {
	struct machine *machine;
	int fd, index;
	struct kvm_run *run;
	struct control *control;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp_state;
	struct snapshot old, new;
	struct vcpu *pristine;	/* a copy as of power-on; NULL in a machine of one test */
	int nr_taken, nr_exits;
	struct record taken[MAX_TAKEN];
	int exits[MAX_TAKEN];
};

struct machine {
	struct machine *(*made_by)(void);
	int fd, nr_vcpus;
	unsigned char *memory;
	size_t size;
	int result, error;
	struct kvm_irqchip ioapic;
	struct vcpu *vcpus[MAX_VCPUS];
};

static int kvm = -1;

/* The machines of the running test. */
static struct machine *machines[MAX_MACHINES];
static int nr_machines;

/* -------------------------------------------------------- what the kernel owes */

/* A difference ends the test: its subject, what is owed, and what happened. */
struct mismatch {
	char subject[MAX_TEXT], expected[MAX_TEXT], actual[MAX_TEXT];
};

static struct mismatch mismatch;
static jmp_buf end_of_test;

__attribute__((noreturn, format(printf, 3, 4)))
static void fail(const char *subject, const char *expected, const char *format, ...)
{
	va_list arguments;

	snprintf(mismatch.subject, MAX_TEXT, "%s", subject);
	snprintf(mismatch.expected, MAX_TEXT, "%s", expected);
	va_start(arguments, format);
	vsnprintf(mismatch.actual, MAX_TEXT, format, arguments);
	va_end(arguments);
	longjmp(end_of_test, 1);
}

static void check_text(const char *subject, const char *expected, const char *actual)
{
	if (strcmp(expected, actual))
		fail(subject, expected, "%s", actual);
}

static const char *errno_name(int error)
{
	static const struct { int error; const char *name; } names[] = {
#define NAME(name) { name, #name }
		NAME(EPERM), NAME(ENOENT), NAME(EINTR), NAME(EIO), NAME(ENXIO), NAME(E2BIG),
		NAME(EBADF), NAME(EAGAIN), NAME(ENOMEM), NAME(EACCES), NAME(EFAULT), NAME(EBUSY),
		NAME(EEXIST), NAME(ENODEV), NAME(EINVAL), NAME(EMFILE), NAME(ENOTTY), NAME(ENOSPC),
		NAME(ERANGE), NAME(ENOSYS), NAME(EOPNOTSUPP),
#undef NAME
	};
	static char number[16];
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].error == error)
			return names[i].name;
	snprintf(number, sizeof(number), "%d", error);
	return number;
}

static const char *mp_state_name(__u64 state)
{
	static const char *const names[] = { MP_STATES };
	static char number[4][24];
	static int next;

	if (state < sizeof(names) / sizeof(names[0]) && names[state])
		return names[state];
	next = (next + 1) % 4;
	snprintf(number[next], sizeof(number[next]), "%llu", state);
	return number[next];
}

/* Check a value that a failure shows in decimal. */
static void check(const char *subject, const char *expected, __s64 actual)
{
	char text[32];

	snprintf(text, sizeof(text), "%lld", actual);
	check_text(subject, expected, text);
}

static void check_hex(const char *subject, const char *expected, __u64 actual)
{
	char text[32];

	snprintf(text, sizeof(text), "%#llx", actual);
	check_text(subject, expected, actual ? text : "0x0");
}

static void check_bool(const char *subject, const char *expected, __u64 actual)
{
	check_text(subject, expected, actual ? "True" : "False");
}

static void check_mp_state(const char *subject, const char *expected, __u64 actual)
{
	check_text(subject, expected, mp_state_name(actual));
}

/* Write the vectors whose bit is set in ``words``, every ``stride`` bytes, that ``without`` lacks. */
static void show_vectors(char *text, const void *words, const void *without, int stride)
{
	const char *separator = "";
	int vector;

	text += sprintf(text, "{");
	for (vector = 0; vector < 256; vector++) {
		size_t place = vector / 32 * stride + vector % 32 / 8;
		int has = ((const __u8 *)words)[place] >> vector % 8 & 1;

		if (!has || (without && ((const __u8 *)without)[place] >> vector % 8 & 1))
			continue;
		text += sprintf(text, "%s0x%02x", separator, vector);
		separator = " ";
	}
	sprintf(text, "}");
}

static void check_vectors(const char *subject, const char *expected, const void *words, int stride)
{
	char text[256 * 5 + 3];

	show_vectors(text, words, NULL, stride);
	check_text(subject, expected, text);
}

/* -------------------------------------------------------------------- ioctls */

/*
 * Check the outcome of an ioctl: "accepted", "refused", "any" of the two, an
 * errno's name or a return value.
 */
static int check_outcome(const char *subject, const char *expected, int result)
{
	char text[16];

	if (!strcmp(expected, "any"))
		return result;
	if (!strcmp(expected, "refused")) {
		if (result >= 0)
			fail(subject, expected, "accepted");
		return result;
	}
	if (result < 0 || !isdigit(expected[0])) {
		check_text(subject, expected, result < 0 ? errno_name(errno) : "accepted");
		return result;
	}
	snprintf(text, sizeof(text), "%d", result);
	check_text(subject, expected, text);
	return result;
}

#define owe(fd, request, argument, subject, outcome) \
	check_outcome(subject, outcome, ioctl(fd, request, argument))
#define must(fd, request, argument) owe(fd, request, argument, #request, "accepted")

static int capability(int fd, int number)
{
	int value = ioctl(fd, KVM_CHECK_EXTENSION, number);

	return value < 0 ? 0 : value;
}

static struct machine *create_vm(void)
{
	struct machine *m = calloc(1, sizeof(*m));

	machines[nr_machines++] = m;
	m->fd = must(kvm, KVM_CREATE_VM, 0);
	return m;
}

static struct vcpu *create_vcpu(struct machine *m, unsigned long id)
{
	struct vcpu *v = calloc(1, sizeof(*v));
	int size = must(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	v->machine = m;
	v->index = m->nr_vcpus;
	v->fd = must(m->fd, KVM_CREATE_VCPU, id);
	v->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED)
		fail("mmap of a vCPU", "accepted", "%s", errno_name(errno));
	if (m->memory)
		v->control = (struct control *)(m->memory + AREA(v));
	m->vcpus[m->nr_vcpus++] = v;
	return v;
}

/* Give the VM memory, in SMM, too: api.rst, KVM_SET_USER_MEMORY_REGION. */
static void add_memory(struct machine *m, size_t size)
{
	struct kvm_userspace_memory_region region = { .memory_size = size };
	int space, spaces = capability(m->fd, KVM_CAP_MULTI_ADDRESS_SPACE);

	m->size = size;
	m->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	region.userspace_addr = (__u64)(unsigned long)m->memory;
	for (space = 0; space < (spaces > 1 ? spaces : 1); space++) {
		region.slot = space << 16;
		must(m->fd, KVM_SET_USER_MEMORY_REGION, &region);
	}
}

/* The probe, its descriptor tables, page tables and SMI handler. */
static void load_guest(struct machine *m, size_t size)
{
	static const __u64 gdt[] = { 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF };
	__u64 *table;
	int i;

	add_memory(m, size);
	memcpy(m->memory + PROBE, probe, sizeof(probe));
	memcpy(m->memory + SMBASE + 0x8000, probe + SMI_HANDLER, SMI_HANDLER_SIZE);
	memcpy(m->memory + GDT, gdt, sizeof(gdt));
	for (i = 0, table = (__u64 *)(m->memory + IDT); i < 256; i++) {
		__u64 gate = PROBE + GATES + i * GATE_SIZE;

		table[2 * i] = (gate & 0xFFFF) | CODE64 << 16 | 0x8E00ull << 32 | gate >> 16 << 48;
	}
	*(__u64 *)(m->memory + PML4) = PDPT | 7;
	for (i = 0, table = (__u64 *)(m->memory + PDPT); i < 4; i++)
		table[i] = (PAGE_DIRECTORIES + i * 0x1000) | 7;
	for (i = 0, table = (__u64 *)(m->memory + PAGE_DIRECTORIES); i < 2048; i++)
		table[i] = (__u64)i << 21 | 0x87;
}

/* All CPUID features that KVM supports. */
static void set_cpuid(struct vcpu *v)
{
	static struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } table;

	if (!table.head.nent) {
		table.head.nent = 256;
		must(kvm, KVM_GET_SUPPORTED_CPUID, &table);
	}
	must(v->fd, KVM_SET_CPUID2, &table);
}

static int set_msr(struct vcpu *v, __u32 index, __u64 value)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } msrs = {
		.head.nmsrs = 1, .entry = { .index = index, .data = value },
	};

	return ioctl(v->fd, KVM_SET_MSRS, &msrs);
}

static int set_routes(struct machine *m, __u32 flags, __u32 nr,
		      const struct kvm_irq_routing_entry *routes)
{
	struct kvm_irq_routing *table = calloc(1, sizeof(*table) + nr * sizeof(*routes));
	int result;

	table->nr = nr;
	table->flags = flags;
	if (nr)
		memcpy(table->entries, routes, nr * sizeof(*routes));
	result = ioctl(m->fd, KVM_SET_GSI_ROUTING, table);
	free(table);
	return result;
}

/* Set the line of a GSI; return the status. */
static int irq_line(struct machine *m, __u32 gsi, __u32 level)
{
	struct kvm_irq_level line = { .irq = gsi, .level = level };

	must(m->fd, KVM_IRQ_LINE_STATUS, &line);
	return line.status;
}

/* The state of a vCPU that a host saves to restore it into another vCPU. */
struct state {
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp_state;
};

enum { MAX_SAVED = 64 };

static struct state saved[MAX_SAVED];

/* Keep what KVM_GET_* has just returned. */
static void save(struct state *state, const struct vcpu *v)
{
	state->sregs = v->sregs;
	state->regs = v->regs;
	state->lapic = v->lapic;
	state->events = v->events;
	state->mp_state = v->mp_state;
}

/* ------------------------------------------------------ running the guest */

static int next_exit(struct vcpu *v)
{
	while (ioctl(v->fd, KVM_RUN, 0)) {
		if (errno != EINTR && errno != EAGAIN)
			fail("KVM_RUN", "an exit", "%s", errno_name(errno));
	}
	return v->run->exit_reason;
}

static void expect_exit(struct vcpu *v, int reason, int port)
{
	int got = v->run->exit_reason, got_port = got == KVM_EXIT_IO ? v->run->io.port : -1;
	char expected[48];

	if (got == reason && (port < 0 || got_port == port))
		return;
	snprintf(expected, sizeof(expected), "exit %d port %#x", reason, port);
	fail("guest", expected, "vCPU %d: exit %d port %#x", v->index, got, got_port);
}

/* Enter the guest until an exit; any other than this is a failure. */
static void run_to_exit(struct vcpu *v, int reason)
{
	next_exit(v);
	expect_exit(v, reason, -1);
}

static void run_to(struct vcpu *v, int port)
{
	next_exit(v);
	expect_exit(v, KVM_EXIT_IO, port);
}

/* Enter the guest until it can take an interrupt by KVM_INTERRUPT. */
static void run_to_window(struct vcpu *v, int reason)
{
	v->run->request_interrupt_window = 1;
	run_to_exit(v, reason);
	v->run->request_interrupt_window = 0;
}

/* Complete a pending I/O instruction, and execute no other. */
static void enter_at_once(struct vcpu *v)
{
	v->run->immediate_exit = 1;
	if (ioctl(v->fd, KVM_RUN, 0) && errno != EINTR && errno != EAGAIN)
		fail("KVM_RUN", "an exit", "%s", errno_name(errno));
	v->run->immediate_exit = 0;
}

/* Read the log of the guest, and empty it. */
static int read_log(struct vcpu *v)
{
	int i, count = v->control->taken;

	if (count > LOG_RECORDS || v->nr_taken + count > MAX_TAKEN)
		fail("guest", "few interrupts", "vCPU %d: %d interrupts", v->index, count);
	for (i = 0; i < count; i++)
		memcpy(&v->taken[v->nr_taken++],
		       v->machine->memory + AREA(v) + LOG + i * sizeof(struct record), sizeof(struct record));
	v->control->taken = 0;
	return count;
}

/* Step until the guest takes no further interrupt. ``eois``: KVM_EXIT_IOAPIC_EOI is expected. */
static void take(struct vcpu *v, int eois)
{
	v->nr_taken = v->nr_exits = 0;
	do {
		while (next_exit(v) == KVM_EXIT_IOAPIC_EOI && eois && v->nr_exits < MAX_TAKEN)
			v->exits[v->nr_exits++] = v->run->eoi.vector;
		expect_exit(v, KVM_EXIT_IO, PORT_IDLE);
	} while (read_log(v));
}

static void read_taken(struct vcpu *v)
{
	v->nr_taken = 0;
	read_log(v);
}

static void check_taken(const char *subject, const char *expected, struct vcpu *v)
{
	char text[MAX_TAKEN * 5 + 3], *end = text + sprintf(text, "[");
	int i;

	for (i = 0; i < v->nr_taken; i++)
		end += sprintf(end, "%s0x%02x", i ? " " : "", v->taken[i].vector);
	sprintf(end, "]");
	check_text(subject, expected, text);
}

/* The vectors of the EOIs that exited. */
static void check_exits(const char *subject, const char *expected, struct vcpu *v)
{
	char text[MAX_TAKEN * 5 + 3], *end = text + sprintf(text, "[");
	int i;

	for (i = 0; i < v->nr_exits; i++)
		end += sprintf(end, "%s%d", i ? ", " : "", v->exits[i]);
	sprintf(end, "]");
	check_text(subject, expected, text);
}

/* The vector of the last EOI that exited. */
static void check_last_exit(const char *subject, const char *expected, struct vcpu *v)
{
	char text[16] = "None";

	if (v->nr_exits)
		snprintf(text, sizeof(text), "%d", v->exits[v->nr_exits - 1]);
	check_text(subject, expected, text);
}

static const struct record *taken(struct vcpu *v, int number)
{
	if (number >= v->nr_taken)
		fail("guest", "more interrupts", "vCPU %d: %d interrupts", v->index, v->nr_taken);
	return &v->taken[number];
}

/* ------------------------------------------- messages and their effects */

/* Read the state of all vCPUs. KVM_GET_MP_STATE, which processes INIT and SIPI, comes last. */
static void read_all(struct machine *m)
{
	struct kvm_vcpu_events events;
	struct kvm_mp_state state;
	int i;

	for (i = 0; i < m->nr_vcpus; i++) {
		struct vcpu *v = m->vcpus[i];

		v->old = v->new;
		must(v->fd, KVM_GET_LAPIC, &v->new.lapic);
		must(v->fd, KVM_GET_VCPU_EVENTS, &events);
		must(v->fd, KVM_GET_MP_STATE, &state);
		v->new.nmi_pending = events.nmi.pending;
		v->new.nmi_masked = events.nmi.masked;
		v->new.smi_pending = events.smi.pending;
		v->new.latched_init = events.smi.latched_init;
		v->new.smm = events.smi.smm;
		v->new.shadow = events.interrupt.shadow > 0;
		v->new.mp_state = state.mp_state;
	}
}

static void signal_msi_with(struct machine *m, struct kvm_msi msi)
{
	m->result = ioctl(m->fd, KVM_SIGNAL_MSI, &msi);
	m->error = m->result < 0 ? errno : 0;
}

#define signal_msi(m, ...) signal_msi_with(m, (struct kvm_msi){ __VA_ARGS__ })

/*
 * Send the message with each combination of the bits of ``mask`` or-ed into a
 * word, except ``skipped`` combinations at either end. Stop after the first
 * result that is not ``expected``, a return value or a negative errno.
 */
static void send_combinations_with(struct machine *m, size_t word, __u32 mask, __u64 skipped,
				   int expected, struct kvm_msi msi)
{
	__u64 number, count = 1ull << __builtin_popcount(mask);

	for (number = skipped; number < count - skipped; number++) {
		struct kvm_msi sent = msi;
		__u32 bits = mask, value = 0;
		__u64 rest;

		for (rest = number; bits; bits &= bits - 1, rest >>= 1)
			if (rest & 1)
				value |= bits & -bits;
		*(__u32 *)((char *)&sent + word) |= value;
		signal_msi_with(m, sent);
		if (expected >= 0 ? m->result != expected : m->error != -expected)
			break;
	}
}

#define send_combinations(m, word, mask, skipped, expected, ...) \
	send_combinations_with(m, word, mask, skipped, expected, (struct kvm_msi){ __VA_ARGS__ })

static void raise_line(struct machine *m, __u32 gsi)
{
	m->error = 0;
	m->result = irq_line(m, gsi, 1);
}

/* Signal an irqfd of the GSI. The second KVM_IRQFD waits for the injection. */
static void raise_irqfd(struct machine *m, __u32 gsi)
{
	struct kvm_irqfd irqfd = { .fd = eventfd(0, EFD_CLOEXEC), .gsi = gsi };

	must(m->fd, KVM_IRQFD, &irqfd);
	eventfd_write(irqfd.fd, 1);
	irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
	must(m->fd, KVM_IRQFD, &irqfd);
	close(irqfd.fd);
	m->result = m->error = 0;
}

/* Check the return value of a message: "1", "> 0", "-1 EINVAL", "-1", "0 or -1 EPERM". */
static void check_return(struct machine *m, const char *expected)
{
	int eperm = m->result == -1 && m->error == EPERM;
	char actual[32];

	if (!strcmp(expected, "> 0") && m->result > 0)
		return;
	if (!strcmp(expected, "0 or -1 EPERM") && (!m->result || eperm))
		return;
	if (!strcmp(expected, "-1") && m->result == -1)
		return;
	if (m->result < 0)
		snprintf(actual, sizeof(actual), "-1 %s", errno_name(m->error));
	else
		snprintf(actual, sizeof(actual), "%d", m->result);
	check_text("return value", expected, actual);
}

static const char *register_name(int offset)
{
	static const struct { int offset, end; const char *name; } names[] = { REGISTERS };
	static char number[8];
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (offset >= names[i].offset && offset < names[i].end)
			return names[i].name;
	snprintf(number, sizeof(number), "%#x", offset);
	return number;
}

static char *join(char *text, char *end, const char *format, ...)
{
	va_list arguments;

	if (end != text)
		end += sprintf(end, ", ");
	va_start(arguments, format);
	end += vsprintf(end, format, arguments);
	va_end(arguments);
	return end;
}

/* Check what differs in two states; KVM computes PPR when it is read. */
static void check_same(const char *subject, const char *expected, const struct state *a,
		       const struct state *b)
{
	struct kvm_lapic_state lapic = a->lapic;
	char text[64] = "[", *start = text + 1, *end = start;

	memcpy(lapic.regs + APIC_PPR, b->lapic.regs + APIC_PPR, 4);
#define COMPARE(part, of_a) do { \
		if (memcmp(&(of_a), &b->part, sizeof(of_a))) \
			end = join(start, end, "'%s'", #part); \
	} while (0)
	COMPARE(sregs, a->sregs);
	COMPARE(regs, a->regs);
	COMPARE(lapic, lapic);
	COMPARE(events, a->events);
	COMPARE(mp_state, a->mp_state);
#undef COMPARE
	sprintf(end, "]");
	check_text(subject, expected, text);
}

static char *show_set(char *text, char *end, const char *name, const __u8 *now, const __u8 *then)
{
	char vectors[256 * 5 + 3];

	show_vectors(vectors, now, then, 16);
	return strcmp(vectors, "{}") ? join(text, end, "%s %s", name, vectors) : end;
}

static char *show_count(char *text, char *end, const char *name, int change)
{
	if (change == 1)
		return join(text, end, "%s pending", name);
	return change ? join(text, end, "%s %+d", name, change) : end;
}

/* Every register of the LAPIC is compared, and each event that the host can read. */
static void show_effect(char *text, const struct snapshot *old, const struct snapshot *new)
{
	const __u8 *was = (const __u8 *)old->lapic.regs, *is = (const __u8 *)new->lapic.regs;
	char *end = text, *changed = NULL;
	int offset;

	end = show_set(text, end, "IRR SET", is + APIC_IRR, was + APIC_IRR);
	end = show_set(text, end, "IRR CLEARED", was + APIC_IRR, is + APIC_IRR);
	end = show_set(text, end, "TMR SET", is + APIC_TMR, was + APIC_TMR);
	end = show_set(text, end, "TMR CLEARED", was + APIC_TMR, is + APIC_TMR);
	end = show_count(text, end, "NMI", new->nmi_pending - old->nmi_pending);
	end = show_count(text, end, "SMI", new->smi_pending - old->smi_pending);
	end = show_count(text, end, "INIT", new->latched_init - old->latched_init);
	if (old->mp_state != new->mp_state)
		end = join(text, end, "mp_state %s->%s", mp_state_name(old->mp_state),
			   mp_state_name(new->mp_state));
#define CHANGED(name) do { \
		end = changed ? end + sprintf(end, " %s", name) : join(text, end, "changed %s", name); \
		changed = end; \
	} while (0)
	for (offset = 0; offset < 0x400; offset += 4) {
		if (offset >= APIC_TMR && offset < APIC_ESR)
			continue;
		if (memcmp(was + offset, is + offset, 4))
			CHANGED(register_name(offset));
	}
	if (old->nmi_masked != new->nmi_masked)
		CHANGED("nmi_masked");
	if (old->shadow != new->shadow)
		CHANGED("shadow");
	if (old->smm != new->smm)
		CHANGED("smm");
#undef CHANGED
	if (end == text)
		sprintf(text, "nothing");
}

/* Check what changed on the vCPUs ``first`` to ``last``, each. */
static void check_effects(struct machine *m, int first, int last, const char *expected)
{
	char text[8192], subject[32];

	for (; first <= last; first++) {
		show_effect(text, &m->vcpus[first]->old, &m->vcpus[first]->new);
		snprintf(subject, sizeof(subject), "effect on vCPU %d", first);
		check_text(subject, expected, text);
	}
}

/* Check that each vCPU changed as the same vCPU of another machine did. */
static void check_same_effects(struct machine *m, struct machine *other)
{
	char text[8192];
	int i;

	for (i = 0; i < m->nr_vcpus; i++) {
		show_effect(text, &other->vcpus[i]->old, &other->vcpus[i]->new);
		check_effects(m, i, i, text);
	}
}

/* Check which vCPUs changed, or how many. */
static void check_acceptors(const char *subject, const char *expected, struct machine *m, int count)
{
	char list[MAX_VCPUS * 6 + 3], text[8192], *end = list + sprintf(list, "[");
	int i, nr = 0;

	for (i = 0; i < m->nr_vcpus; i++) {
		show_effect(text, &m->vcpus[i]->old, &m->vcpus[i]->new);
		if (strcmp(text, "nothing"))
			end += sprintf(end, "%s%d", nr++ ? ", " : "", i);
	}
	sprintf(end, "]");
	if (count)
		check(subject, expected, nr);
	else
		check_text(subject, expected, list);
}
