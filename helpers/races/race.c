// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads that call KVM at the same time, round after round. After each round
 * all threads rest, and each call of the checker must have its result.
 *
 * race.py has the same structures.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { IOCTL, SIGNAL_EVENT, RAISE_LINE, POST };

enum { SHORT = 100, LONG = 2000 };	/* spins before a thread yields */
enum { CREATED = -1 };		/* as fd: the vCPU that the thread created last */
enum { POSTED = 16 };		/* bytes: operation, argument, value */
enum { IRQ_LINE_SIZE = 8 };

struct call {
	int32_t what;
	int32_t fd;
	uint64_t request;	/* POST: the address to post to */
	uint64_t argument;
	int32_t spins;		/* the longest pause before the call */
	int32_t creates;	/* the result is the fd of a vCPU */
	int32_t expected;	/* of the checker's calls: the result */
	int32_t tolerated;	/* an errno that is no failure */
	int32_t got;
	int32_t unused;
};

enum { MAX_THREADS = 8 };

/* A thread's calls. Those of phase p are calls[bounds[p]] to calls[bounds[p + 1] - 1]. */
struct program {
	struct call *calls;
	const int32_t *bounds;
};

struct race {
	struct program *programs;	/* of each thread, then of the checker */
	int32_t threads;
	int32_t phases;
	int32_t rounds;			/* a round runs a phase, in turn */
	uint32_t milliseconds;		/* until the race is given up */
	/* Results. A failed thread of -1 means that every call was as expected. */
	int32_t failed_thread;
	int32_t failed_call;
	int32_t done;			/* number of rounds that ended */
	int32_t late;			/* the thread that did not end, else -1 */
	int32_t overlapped;		/* number of rounds in which all threads called KVM at once */
	/* Used by race_run(). */
	_Atomic int32_t round;
	_Atomic int32_t ready;
	_Atomic int32_t go;
	_Atomic int32_t arrived;
	_Atomic int32_t stop;
	int32_t unused;
	uint32_t seed;			/* of the lengths of pauses */
	int64_t deadline;
	struct {
		int64_t begin, end;
	} spans[MAX_THREADS];		/* of each thread in the last round */
};

struct thread {
	struct race *race;
	int32_t number;
	int32_t created;
	uint32_t random;
};

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ll + time.tv_nsec;
}

/* Return the next number of Marsaglia's xorshift generator. */
static uint32_t draw(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

static void pause_for(uint32_t spins)
{
	for (volatile uint32_t spin = 0; spin < spins; spin++)
		;
}

static int raise_line(int fd, uint64_t request, const void *line)
{
	int32_t copy[IRQ_LINE_SIZE / 4];

	memcpy(copy, line, IRQ_LINE_SIZE);	/* KVM overwrites the GSI by the status. */
	return ioctl(fd, request, copy) ? -1 : copy[0];
}

static void make(struct thread *thread, struct call *call)
{
	const int fd = call->fd == CREATED ? thread->created : call->fd;
	const uint64_t one = 1;
	int result = 0;

	if (call->spins)
		pause_for(draw(&thread->random) % call->spins);
	errno = 0;
	switch (call->what) {
	case IOCTL:
		result = ioctl(fd, call->request, call->argument);
		break;
	case SIGNAL_EVENT:
		result = write(fd, &one, sizeof(one)) == sizeof(one) ? 0 : -1;
		break;
	case RAISE_LINE:
		result = raise_line(fd, call->request, (void *)call->argument);
		break;
	case POST:
		memcpy((void *)call->request, (void *)call->argument, POSTED);
		break;
	}
	call->got = result == -1 && errno ? -errno : result;
	if (call->creates)
		thread->created = call->got;
}

/* Make the calls of a phase. Return the first one that failed, or -1. */
static int make_all(struct thread *thread, int phase, int checks)
{
	const struct program *program = &thread->race->programs[thread->number];

	for (int i = program->bounds[phase]; i < program->bounds[phase + 1]; i++) {
		struct call *call = &program->calls[i];

		make(thread, call);
		if (checks ? call->got != call->expected
			   : call->got < 0 && -call->got != call->tolerated)
			return i;
	}
	return -1;
}

static int run_phase(struct thread *thread, int phase)
{
	struct race *race = thread->race;
	int failed;

	race->spans[thread->number].begin = now();
	failed = make_all(thread, phase, 0);
	race->spans[thread->number].end = now();
	return failed;
}

static int have_overlapped(const struct race *race)
{
	int64_t begin = race->spans[0].begin, end = race->spans[0].end;

	for (int i = 1; i < race->threads; i++) {
		begin = race->spans[i].begin > begin ? race->spans[i].begin : begin;
		end = race->spans[i].end < end ? race->spans[i].end : end;
	}
	return begin < end;
}

static int race_failed(struct race *race, int number, int call)
{
	int none = 0;

	if (call < 0)
		return 0;
	if (atomic_compare_exchange_strong(&race->stop, &none, 1)) {
		race->failed_call = call;
		race->failed_thread = number;
	}
	return 1;
}

static int is_late(const struct race *race)
{
	return race->deadline < now();
}

static struct thread thread_of(struct race *race, int number)
{
	/* The state of the generator is never 0. */
	return (struct thread){ race, number, CREATED, (race->seed * 2654435761u + 2 * number) | 1 };
}

/* Wait until *counter is at least value; yield after some spins. Return 0 if the race ends. */
static int wait_for(_Atomic int32_t *counter, int value, int spins, struct race *race)
{
	for (int waits = 0; atomic_load(counter) < value; waits++) {
		if (atomic_load(&race->stop))
			return 0;
		if (waits < spins)
			continue;
		if (is_late(race))
			return 0;
		sched_yield();
	}
	return 1;
}

static void *run_thread(void *argument)
{
	struct thread thread = *(struct thread *)argument;
	struct race *race = thread.race;

	for (int round = 0; round < race->rounds; round++) {
		if (!wait_for(&race->round, round + 1, SHORT, race))
			return NULL;
		/* A thread that is ready runs, so that all are in KVM at the same time. */
		atomic_fetch_add(&race->ready, 1);
		if (!wait_for(&race->go, round + 1, LONG, race))
			return NULL;
		race_failed(race, thread.number, run_phase(&thread, round % race->phases));
		atomic_fetch_add(&race->arrived, 1);
	}
	return NULL;
}

/* Run all rounds, with the caller as thread 0, or stop after the first failure. */
static void run_rounds(struct race *race)
{
	struct thread first = thread_of(race, 0), checker = thread_of(race, race->threads);

	for (race->done = 0; race->done < race->rounds; race->done++) {
		const int phase = race->done % race->phases;

		atomic_store(&race->arrived, 1);
		atomic_store(&race->ready, 1);
		atomic_fetch_add(&race->round, 1);
		if (!wait_for(&race->ready, race->threads, LONG, race))
			return;
		atomic_fetch_add(&race->go, 1);
		if (race_failed(race, 0, run_phase(&first, phase)))
			return;
		if (!wait_for(&race->arrived, race->threads, SHORT, race))
			return;
		race->overlapped += have_overlapped(race);
		if (atomic_load(&race->stop) ||
		    race_failed(race, race->threads, make_all(&checker, phase, 1)))
			return;
	}
}

/* Return 0, or the error number of pthread_create(). */
int race_run(struct race *race)
{
	pthread_t ids[MAX_THREADS];
	struct thread threads[MAX_THREADS];
	struct timespec end;
	int started, error = 0;

	race->deadline = now() + race->milliseconds * 1000000ll;
	race->failed_thread = race->late = -1;
	for (started = 1; started < race->threads && !error; started += !error) {
		threads[started] = thread_of(race, started);
		error = pthread_create(&ids[started], NULL, run_thread, &threads[started]);
	}
	if (!error)
		run_rounds(race);
	atomic_store(&race->stop, 1);
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 2;
	for (int i = 1; i < started; i++)
		if (pthread_timedjoin_np(ids[i], NULL, &end))
			race->late = i;
	return error;
}
