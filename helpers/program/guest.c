/* SPDX-License-Identifier: GPL-2.0-only */
/* ---------------------------------------------- process 1 of a booted kernel */

/*
 * The host sends commands by line, and this process answers, one or more lines
 * each; fields are separated by FS. helpers/program/booted.py is the other end.
 *
 *	stop				close the VMs that wait for a next test
 *	load DIRECTORY NAME PARAMETERS	"error REASON" if the module is refused
 *	unload NAME			"error REASON" if the module stays
 *	facts CAPABILITY...		"facts" and what the host asks of the kernel
 *	run TEST			"begin TEST", "ended TEST VERDICT ..."
 *	end				"done"
 */
#define FS "\037"

static int channel = -1;

static void say(const char *format, ...)
{
	char text[16384], *rest = text;
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(text, sizeof(text) - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof(text) - 2)
		length = sizeof(text) - 2;
	text[length++] = '\n';
	while (length > 0) {
		int written = write(channel, rest, length);

		if (written < 0)
			return;
		rest += written;
		length -= written;
	}
}

/* Return the next command; NULL at the end of the channel. */
static char *next_command(void)
{
	static char buffer[65536], command[65536];
	static int filled;
	char *end;
	int count;

	while (!(end = memchr(buffer, '\n', filled))) {
		count = read(channel, buffer + filled, sizeof(buffer) - filled);
		if (count <= 0)
			return NULL;
		filled += count;
	}
	count = end - buffer;
	memcpy(command, buffer, count);
	command[count] = '\0';
	filled -= count + 1;
	memmove(buffer, end + 1, filled);
	return command;
}

/* Open QEMU's virtio port, or Bochs's serial line. */
static void open_channel(void)
{
	struct termios raw;
	char path[64], name[32];
	int i, j;

	for (i = 0; i < 4; i++) {
		for (j = 0; j < 8; j++) {
			snprintf(path, sizeof(path), "/sys/class/virtio-ports/vport%dp%d/name", i, j);
			if (read_text(path, name, sizeof(name)) <= 0 || strncmp(name, "worker", 6))
				continue;
			snprintf(path, sizeof(path), "/dev/vport%dp%d", i, j);
			channel = open(path, O_RDWR | O_CLOEXEC);
			return;
		}
	}
	channel = open("/dev/ttyS1", O_RDWR | O_CLOEXEC | O_NOCTTY);
	if (!tcgetattr(channel, &raw)) {
		cfmakeraw(&raw);
		tcsetattr(channel, TCSANOW, &raw);
	}
}

static int load_module(const char *path, const char *parameters)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), result;

	if (fd < 0)
		return -1;
	result = syscall(SYS_finit_module, fd, parameters, 0);
	close(fd);
	return result;
}

static void load_all_modules(void)
{
	struct dirent **found;
	char path[512];
	int i, count = scandir("/modules", &found, NULL, alphasort);

	for (i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "/modules/%s", found[i]->d_name);
		if (found[i]->d_type == DT_REG && load_module(path, ""))
			printf("%s: %s\n", path, strerror(errno));
	}
}

static void load(char *command)
{
	char directory[32], name[64], path[256], *parameters;
	int used = 0;

	sscanf(command, "%31s %63s %n", directory, name, &used);
	parameters = command + used;
	snprintf(path, sizeof(path), "/modules/%s/%s", directory, name);
	if (load_module(path, parameters))
		say("error %s with \"%s\" cannot be loaded: %s", name, parameters, strerror(errno));
}

static void tell_parameters(const char *module)
{
	char path[512], value[128];
	struct dirent **found;
	int i, count;

	snprintf(path, sizeof(path), "/sys/module/%s/parameters", module);
	count = scandir(path, &found, NULL, alphasort);
	for (i = 0; i < count; i++) {
		if (found[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/module/%s/parameters/%s", module,
			 found[i]->d_name);
		if (read_text(path, value, sizeof(value)) < 0)
			continue;
		value[strcspn(value, "\n")] = '\0';
		say("parameter %s.%s" FS "%s", module, found[i]->d_name, value);
	}
}

static void tell_facts(char *command)
{
	static const char *const modules[] = { "kvm", "kvm_intel", "kvm_amd" };
	char cpuinfo[8192] = "", *model, *number;
	struct utsname name;
	size_t i;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0) {
		say("error /dev/kvm: %s", strerror(errno));
		return;
	}
	find_kernel();
	uname(&name);
	for (i = 0; i < sizeof(modules) / sizeof(modules[0]); i++)
		tell_parameters(modules[i]);
	for (number = strtok(command, " "); number; number = strtok(NULL, " "))
		say("capability %s" FS "%d", number, capability(kvm, atoi(number)));
	read_text("/proc/cpuinfo", cpuinfo, sizeof(cpuinfo));
	model = strstr(cpuinfo, "model name");
	model = model ? strchr(model, ':') + 2 : "unknown";
	say("facts %s" FS "%s" FS "%.*s", name.release, vendor, (int)strcspn(model, "\n"), model);
	close(kvm);
	if (kmsg >= 0)
		close(kmsg);
	open_log();
}

/* The child that runs the tests, so that its death is a verdict; 0 if there is none. */
static pid_t runner;
static int to_runner, from_runner;

static void start_runner(void)
{
	int down[2], up[2], number;

	if (pipe2(down, O_CLOEXEC) || pipe2(up, O_CLOEXEC))
		return;
	runner = fork();
	if (runner == 0) {
		close(down[1]);
		close(up[0]);
		kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
		while (read(down[0], &number, sizeof(number)) == sizeof(number)) {
			alarm(deadline);
			judge(&tests[number], shared->results);
			alarm(0);
			if (write(up[1], "", 1) < 0)
				break;
		}
		_exit(0);
	}
	close(down[0]);
	close(up[1]);
	to_runner = down[1];
	from_runner = up[0];
}

static int stop_runner(void)
{
	int status = 0;

	if (!runner)
		return 0;
	close(to_runner);
	close(from_runner);
	waitpid(runner, &status, 0);
	runner = 0;
	return status;
}

static void run_one(int number)
{
	struct result *result = shared->results;
	int status;
	char byte;

	memset(result, 0, sizeof(*result));
	say("begin %d", number);
	if (!runner)
		start_runner();
	if (write(to_runner, &number, sizeof(number)) < 0 || read(from_runner, &byte, 1) != 1) {
		status = stop_runner();
		result->verdict = FAILED;
		if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
			sprintf(result->text, "timed out after %d s", deadline);
		else
			sprintf(result->text, "the process died: signal %d", WTERMSIG(status));
	}
	say("ended %d" FS "%d" FS "%s" FS "%s" FS "%s" FS "%s", number, result->verdict,
	    result->text, result->mismatch.subject, result->mismatch.expected,
	    result->mismatch.actual);
}

static void be_init(void)
{
	char *command;

	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	load_all_modules();
	open_channel();
	say("ready");
	while ((command = next_command())) {
		char *argument = strchr(command, ' ');

		argument = argument ? argument + 1 : command + strlen(command);
		if (!strncmp(command, "load ", 5))
			load(argument);
		else if (!strncmp(command, "unload ", 7) &&
			 syscall(SYS_delete_module, argument, O_NONBLOCK))
			say("error %s cannot be unloaded: %s", argument, strerror(errno));
		else if (!strncmp(command, "facts ", 6))
			tell_facts(argument);
		else if (!strncmp(command, "run ", 4) && atoi(argument) < NR_TESTS)
			run_one(atoi(argument));
		else if (!strcmp(command, "stop"))
			stop_runner();
		else if (!strcmp(command, "end")) {
			stop_runner();
			say("done");
		}
	}
	sync();
	reboot(RB_POWER_OFF);
}
