// SPDX-License-Identifier: GPL-2.0-only
/*
 * Messages to guests that run: a thread for each vCPU, and senders in threads
 * and processes. The guests count what they take: layout.Count.
 *
 * traffic.py has the same structures.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_TARGETS = 8, MAX_SENDERS = 16, MAX_VCPUS = 16 };
enum { EXIT_IO = 2, EXIT_IOAPIC_EOI = 26 };

struct count {
	_Atomic uint32_t sent, seen, taken;
	uint32_t unused;
};

/* One vector, with the counts of each vCPU that must take it. */
struct stream {
	struct count *counts[MAX_TARGETS];
	_Atomic uint32_t *eois;		/* counted by the exits of the first target, or NULL */
	void *message;			/* NULL: write to the eventfd */
	int32_t fd;
	int32_t targets;
	int32_t overlaps;		/* send again before the vector was taken */
	int32_t got;			/* the first result that was not the number of targets */
};

struct sender {
	struct stream *streams;
	int32_t count;
	int32_t is_process;
	/* Results. */
	int32_t wrong;			/* a stream with a wrong result, or -1 */
	int32_t late;			/* a stream with a message that was not taken, or -1 */
};

struct vcpu {
	uint32_t *operation, *stop;	/* in layout.Control */
	uint8_t *immediate_exit;	/* in struct kvm_run, as the next three */
	const uint32_t *exit_reason;
	const uint16_t *port;
	const uint8_t *eoi_vector;
	_Atomic uint32_t *eois;		/* by vector */
	int32_t fd;
	uint32_t does;			/* the operation of the guest after each exit */
	/* Results. */
	uint32_t exits;
	int32_t unexpected;		/* an exit reason, a negative errno, or 0 */
};

struct traffic {
	struct vcpu *vcpus;
	struct sender *senders;
	uint64_t run, signal_msi;	/* requests */
	int32_t vcpu_count, sender_count;
	uint32_t milliseconds;		/* that the senders send */
	uint32_t patience;		/* milliseconds until a message counts as lost */
	uint32_t idle_port;
	/* Results. */
	int32_t late;			/* a vCPU or, from MAX_VCPUS on, a sender that did not end; or -1 */
	_Atomic int32_t stop;
	int32_t unused;
	int64_t end, deadline;
};

struct thread {
	struct traffic *traffic;
	void *item;
};

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static void *run_vcpu(void *argument)
{
	const struct thread *thread = argument;
	struct traffic *traffic = thread->traffic;
	struct vcpu *vcpu = thread->item;

	while (!atomic_load(&traffic->stop)) {
		if (ioctl(vcpu->fd, traffic->run, 0)) {
			if (errno == EINTR)
				continue;
			vcpu->unexpected = -errno;
			break;
		}
		vcpu->exits++;
		if (*vcpu->exit_reason == EXIT_IOAPIC_EOI) {
			atomic_fetch_add(&vcpu->eois[*vcpu->eoi_vector], 1);
		} else if (*vcpu->exit_reason == EXIT_IO && *vcpu->port == traffic->idle_port) {
			*vcpu->operation = vcpu->does;
		} else {
			vcpu->unexpected = *vcpu->exit_reason;
			break;
		}
	}
	atomic_store(&traffic->stop, 1);
	return NULL;
}

/* Return whether every vCPU has taken all messages, or with overlaps the last one. */
static int is_taken(const struct stream *stream)
{
	for (int i = 0; i < stream->targets; i++) {
		struct count *count = stream->counts[i];
		const uint32_t last = stream->overlaps ? atomic_load(&count->seen)
						       : atomic_load(&count->taken);

		if (last != atomic_load(&count->sent))
			return 0;
	}
	return !stream->eois || *stream->eois == atomic_load(&stream->counts[0]->taken);
}

/* Return 0 if the result of the message is wrong. */
static int send_one(const struct traffic *traffic, struct stream *stream)
{
	const uint64_t one = 1;
	int result = stream->targets;

	for (int i = 0; i < stream->targets; i++)
		atomic_fetch_add(&stream->counts[i]->sent, 1);
	if (stream->message)
		result = ioctl(stream->fd, traffic->signal_msi, stream->message);
	else if (write(stream->fd, &one, sizeof(one)) != sizeof(one))
		result = -1;
	stream->got = result < 0 ? -errno : result;
	return result == stream->targets;
}

static void send_all(struct traffic *traffic, struct sender *sender)
{
	sender->wrong = sender->late = -1;
	do {
		for (int i = 0; i < sender->count; i++) {
			struct stream *stream = &sender->streams[i];

			if (!stream->overlaps && !is_taken(stream))
				continue;
			if (!send_one(traffic, stream)) {
				sender->wrong = i;
				atomic_store(&traffic->stop, 1);
				return;
			}
		}
		sched_yield();	/* The guests are to take some, where processors are few. */
	} while (now() < traffic->end && !atomic_load(&traffic->stop));
	for (int i = 0; i < sender->count; i++)
		while (!is_taken(&sender->streams[i]) && !atomic_load(&traffic->stop)) {
			if (now() > traffic->deadline) {
				sender->late = i;
				return;
			}
			sched_yield();
		}
}

static void *run_sender(void *argument)
{
	const struct thread *thread = argument;

	send_all(thread->traffic, thread->item);
	return NULL;
}

/* Send in a forked process, which exits with the number of a late stream + 1, or 0. */
static pid_t fork_sender(struct traffic *traffic, struct sender *sender)
{
	const pid_t child = fork();

	if (child)
		return child;
	send_all(traffic, sender);
	_exit(sender->wrong >= 0 ? 255 : sender->late + 1);
}

static void ignore(int number)
{
	(void)number;
}

/* Join a thread; kick it until the deadline. Return 0 if the thread did not end. */
static int join(pthread_t id, const struct vcpu *vcpu, int64_t deadline)
{
	for (;;) {
		struct timespec soon;

		clock_gettime(CLOCK_REALTIME, &soon);
		soon.tv_nsec += 2000000;
		if (soon.tv_nsec >= 1000000000) {
			soon.tv_nsec -= 1000000000;
			soon.tv_sec++;
		}
		if (vcpu) {
			*vcpu->immediate_exit = 1;
			pthread_kill(id, SIGUSR1);
		}
		if (!pthread_timedjoin_np(id, NULL, &soon))
			break;
		if (now() > deadline)
			return 0;
	}
	if (vcpu)
		*vcpu->immediate_exit = 0;
	return 1;
}

static void stop_vcpus(struct traffic *traffic, const pthread_t *ids, int count)
{
	atomic_store(&traffic->stop, 1);
	for (int i = 0; i < count; i++)
		*traffic->vcpus[i].stop = 1;
	for (int i = 0; i < count; i++)
		if (!join(ids[i], &traffic->vcpus[i], traffic->deadline + 1000000000ll))
			traffic->late = i;
}

static void wait_for_process(struct sender *sender, pid_t child)
{
	int status;

	if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) == 255)
		sender->wrong = 0;
	else
		sender->late = WEXITSTATUS(status) - 1;
}

/* Send for some time, and wait for all messages. Return 0, or the errno of a thread's creation. */
int traffic_run(struct traffic *traffic)
{
	const struct sigaction kick = { .sa_handler = ignore };
	struct sigaction before;
	static struct thread threads[MAX_VCPUS + MAX_SENDERS];
	pthread_t vcpus[MAX_VCPUS], senders[MAX_SENDERS];
	pid_t children[MAX_SENDERS];
	int running = 0, error = 0;

	traffic->late = -1;
	traffic->end = now() + traffic->milliseconds * 1000000ll;
	traffic->deadline = traffic->end + traffic->patience * 1000000ll;
	sigaction(SIGUSR1, &kick, &before);
	for (int i = 0; i < traffic->sender_count; i++) {
		struct sender *sender = &traffic->senders[i];

		sender->wrong = sender->late = -1;
		if (sender->is_process)
			children[i] = fork_sender(traffic, sender);
	}
	for (; running < traffic->vcpu_count && !error; running += !error) {
		threads[running] = (struct thread){ traffic, &traffic->vcpus[running] };
		error = pthread_create(&vcpus[running], NULL, run_vcpu, &threads[running]);
	}
	for (int i = 0; i < traffic->sender_count && !error; i++) {
		struct thread *thread = &threads[MAX_VCPUS + i];

		*thread = (struct thread){ traffic, &traffic->senders[i] };
		if (!traffic->senders[i].is_process)
			error = pthread_create(&senders[i], NULL, run_sender, thread);
	}
	for (int i = 0; i < traffic->sender_count && !error; i++) {
		if (traffic->senders[i].is_process)
			wait_for_process(&traffic->senders[i], children[i]);
		else if (!join(senders[i], NULL, traffic->deadline + 1000000000ll))
			traffic->late = MAX_VCPUS + i;
	}
	stop_vcpus(traffic, vcpus, running);
	sigaction(SIGUSR1, &before, NULL);
	return error;
}
