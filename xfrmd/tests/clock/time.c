/* Every way to wait for a time that the shim knows, under a clock that moves by itself: each must take exactly the
   time that it says, by every clock. Prints what does not. With SUPERVISED, those that the supervisor knows. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static int failures;

static long long of(struct timespec t) { return t.tv_sec * SECOND + t.tv_nsec; }

static struct timespec ts(long long nanos)
{
	return (struct timespec){ nanos / SECOND, nanos % SECOND };
}

static long long now(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return of(t);
}

static const clockid_t clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME,
	CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_MONOTONIC_RAW };
static long long before[6];

static void start(void)
{
	for (int i = 0; i < 6; i++)
		before[i] = now(clocks[i]);
}

static void took(const char *what, long long nanos)
{
	for (int i = 0; i < 6; i++) {
		long long real = now(clocks[i]) - before[i];
		if (real != nanos) {
			printf("%s: %lld ns by clock %d, not %lld\n", what, real, clocks[i], nanos);
			failures++;
		}
	}
	start();
}

static void is(const char *what, long long real, long long expected)
{
	if (real != expected) {
		printf("%s: %lld, not %lld\n", what, real, expected);
		failures++;
	}
}

static volatile sig_atomic_t signals;
static volatile sig_atomic_t value;

static void count(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	signals++;
	value = info->si_value.sival_int;
}

static void reading(void)
{
	struct timeval tv;
	struct timespec t;

	gettimeofday(&tv, NULL);
	is("gettimeofday", tv.tv_sec * SECOND + tv.tv_usec * 1000LL, now(CLOCK_REALTIME) / 1000 * 1000);
	is("time", time(NULL), now(CLOCK_REALTIME) / SECOND);
	timespec_get(&t, TIME_UTC);
	is("timespec_get", of(t), now(CLOCK_REALTIME));
	syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
	is("clock_gettime by number", of(t), now(CLOCK_MONOTONIC));
	is("a processor's time goes on", now(CLOCK_PROCESS_CPUTIME_ID) > 0, 1);
}

static void sleeping(void)
{
	struct timespec t = ts(3 * SECOND + 5);

	is("nanosleep", nanosleep(&t, NULL), 0);
	took("nanosleep", of(t));
	is("sleep", sleep(7), 0);
	took("sleep", 7 * SECOND);
	is("usleep", usleep(250), 0);
	took("usleep", 250000);
	t = ts(now(CLOCK_REALTIME) + 3600 * SECOND);
	is("clock_nanosleep", clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL), 0);
	took("clock_nanosleep", 3600 * SECOND);
	t = ts(now(CLOCK_MONOTONIC) - SECOND);
	is("in the past", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL), 0);
	took("in the past", 0);
	t.tv_nsec = SECOND;
	is("no time", clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL), EINVAL);
}

static void polling(void)
{
	int fds[2], epoll = epoll_create1(0);
	struct epoll_event event = { .events = EPOLLIN };
	struct timespec t = ts(2 * SECOND);
	struct timeval tv = { 5, 500000 };
	fd_set set;

	if (pipe(fds))
		exit(3);
	epoll_ctl(epoll, EPOLL_CTL_ADD, fds[0], &event);
	struct pollfd p = { fds[0], POLLIN, 0 };
	is("poll", poll(&p, 1, 1500), 0);
	took("poll", 1500000000LL);
	is("ppoll", ppoll(&p, 1, &t, NULL), 0);
	took("ppoll", 2 * SECOND);
	is("poll of nothing", poll(NULL, 0, 10), 0);
	took("poll of nothing", 10000000LL);
	FD_ZERO(&set);
	FD_SET(fds[0], &set);
	is("select", select(fds[0] + 1, &set, NULL, NULL, &tv), 0);
	took("select", 5500000000LL);
	is("nothing is left", tv.tv_sec * 1000000LL + tv.tv_usec, 0);
	is("no descriptor", FD_ISSET(fds[0], &set), 0);
	FD_SET(fds[0], &set);
	is("pselect", pselect(fds[0] + 1, &set, NULL, NULL, &t, NULL), 0);
	took("pselect", 2 * SECOND);
	is("epoll_wait", epoll_wait(epoll, &event, 1, 4000), 0);
	took("epoll_wait", 4 * SECOND);
	is("epoll_pwait2", epoll_pwait2(epoll, &event, 1, &t, NULL), 0);
	took("epoll_pwait2", 2 * SECOND);

	if (fork() == 0) {
		sleep(3);
		_exit(write(fds[1], "x", 1) != 1);
	}
	is("poll with news", poll(&p, 1, 10000), 1);
	took("poll with news", 3 * SECOND);
	is("poll at once", poll(&p, 1, 10000), 1);
	is("epoll at once", epoll_wait(epoll, &event, 1, 4000), 1);
	FD_SET(fds[0], &set);
	tv.tv_sec = 10;
	is("select at once", select(fds[0] + 1, &set, NULL, NULL, &tv), 1);
	is("all is left", tv.tv_sec, 10);
	took("at once", 0);
	wait(NULL);
	start();

#ifndef SUPERVISED
	int udp = socket(AF_INET, SOCK_DGRAM, 0);
	tv.tv_sec = 9;
	tv.tv_usec = 0;
	setsockopt(udp, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
	char byte;
	is("recv", recv(udp, &byte, 1, 0), -1);
	is("errno of recv", errno, EAGAIN);
	took("recv", 9 * SECOND);
#endif
}

/* Signals that come meanwhile. */
static void interrupted(void)
{
	struct sigaction action = { .sa_sigaction = count, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct pollfd nothing = { -1, 0, 0 };

	sigaction(SIGUSR1, &action, NULL);
	signals = 0;
	if (fork() == 0) {
		sleep(3);
		kill(getppid(), SIGUSR1);
		sleep(4);
		kill(getppid(), SIGUSR1);
		_exit(0);
	}
	is("sleep ends with a signal", sleep(100), 97);
	took("sleep ends with a signal", 3 * SECOND);
	is("poll ends with a signal", poll(&nothing, 1, 100000), -1);
	is("errno of poll", errno, EINTR);
	took("poll ends with a signal", 4 * SECOND);
	is("signals", signals, 2);
	while (wait(NULL) < 0)
		;
	is("sleep after that", sleep(5), 0);
	took("sleep after that", 5 * SECOND);
	signals = 0;
}

#ifndef SUPERVISED
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static sem_t semaphore;
static int told;
static uint32_t word;

static void *later(void *nothing)
{
	sleep(5);
	pthread_mutex_lock(&mutex);
	told = 1;
	pthread_cond_signal(&cond);
	pthread_mutex_unlock(&mutex);
	sleep(5);
	sem_post(&semaphore);
	sleep(5);
	__atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	return nothing;
}

static void *cancelled(void *nothing)
{
	struct timespec t = ts(now(CLOCK_REALTIME) + 1000 * SECOND);

	pthread_mutex_lock(&mutex);
	told = 2;
	pthread_cleanup_push((void (*)(void *))pthread_mutex_unlock, &mutex);
	for (;;)
		pthread_cond_timedwait(&cond, &mutex, &t);
	pthread_cleanup_pop(0);
	return nothing;
}

static void threads(void)
{
	pthread_t thread;
	pthread_cond_t monotonic;
	pthread_condattr_t attributes;
	struct timespec t;
	int result = 0;

	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&monotonic, &attributes);
	sem_init(&semaphore, 0, 0);
	pthread_mutex_lock(&mutex);
	t = ts(now(CLOCK_REALTIME) + 60 * SECOND);
	while (result == 0)
		result = pthread_cond_timedwait(&cond, &mutex, &t);
	is("pthread_cond_timedwait", result, ETIMEDOUT);
	took("pthread_cond_timedwait", 60 * SECOND);
	t = ts(now(CLOCK_MONOTONIC) + 61 * SECOND);
	for (result = 0; result == 0;)
		result = pthread_cond_timedwait(&monotonic, &mutex, &t);
	is("the same by monotonic time", result, ETIMEDOUT);
	took("the same by monotonic time", 61 * SECOND);
	t = ts(now(CLOCK_MONOTONIC) + 62 * SECOND);
	for (result = 0; result == 0;)
		result = pthread_cond_clockwait(&cond, &mutex, CLOCK_MONOTONIC, &t);
	is("pthread_cond_clockwait", result, ETIMEDOUT);
	took("pthread_cond_clockwait", 62 * SECOND);
	t = ts(now(CLOCK_REALTIME) + 2 * SECOND);
	is("sem_timedwait", sem_timedwait(&semaphore, &t), -1);
	is("errno of sem_timedwait", errno, ETIMEDOUT);
	took("sem_timedwait", 2 * SECOND);
	t = ts(now(CLOCK_MONOTONIC) + 3 * SECOND);
	is("sem_clockwait", sem_clockwait(&semaphore, CLOCK_MONOTONIC, &t), -1);
	took("sem_clockwait", 3 * SECOND);
	t = ts(4 * SECOND);
	is("futex", syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0), -1);
	is("errno of futex", errno, ETIMEDOUT);
	took("futex", 4 * SECOND);

	pthread_create(&thread, NULL, later, NULL);
	t = ts(now(CLOCK_REALTIME) + 60 * SECOND);
	for (result = 0; result == 0 && told == 0;)
		result = pthread_cond_timedwait(&cond, &mutex, &t);
	is("a signal", told, 1);
	took("a signal", 5 * SECOND);
	pthread_mutex_unlock(&mutex);
	t = ts(now(CLOCK_REALTIME) + 60 * SECOND);
	is("a post", sem_timedwait(&semaphore, &t), 0);
	took("a post", 5 * SECOND);
	t = ts(60 * SECOND);
	is("a wake", syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0), 0);
	took("a wake", 5 * SECOND);
	pthread_join(thread, NULL);

	pthread_create(&thread, NULL, cancelled, NULL);
	pthread_mutex_lock(&mutex);
	while (told != 2) {
		pthread_mutex_unlock(&mutex);
		usleep(1000);
		pthread_mutex_lock(&mutex);
	}
	pthread_mutex_unlock(&mutex);
	pthread_cancel(thread);
	pthread_join(thread, NULL);
	is("the mutex after a cancellation", pthread_mutex_trylock(&mutex), 0);
	pthread_mutex_unlock(&mutex);
	start();
}

static void timers(void)
{
	struct sigaction action = { .sa_sigaction = count, .sa_flags = SA_SIGINFO };
	struct itimerval interval = { { 1, 0 }, { 2, 0 } };
	struct itimerspec spec = { { 10, 0 }, { 30, 0 } };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	timer_t timer;
	uint64_t expired;

	sigaction(SIGALRM, &action, NULL);
	sigaction(SIGUSR1, &action, NULL);
	is("alarm", alarm(100), 0);
	sleep(40);
	is("what was left of it", alarm(20), 60);
	pause();
	is("SIGALRM", signals, 1);
	took("alarm", 60 * SECOND);
	setitimer(ITIMER_REAL, &interval, NULL);
	for (signals = 0; signals < 3;)
		pause();
	getitimer(ITIMER_REAL, &interval);
	is("getitimer", interval.it_value.tv_sec, 1);
	alarm(0);
	took("setitimer", 4 * SECOND);
	is("nanosleep ends with a signal", (alarm(5), sleep(100)), 95);
	took("nanosleep ends with a signal", 5 * SECOND);

	event.sigev_value.sival_int = 77;
	is("timer_create", timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
	is("timer_settime", timer_settime(timer, 0, &spec, NULL), 0);
	for (signals = 0; signals < 2;)
		pause();
	is("what the signal carries", value, 77);
	took("timer_settime", 40 * SECOND);
	timer_gettime(timer, &spec);
	is("timer_gettime", of(spec.it_value), 10 * SECOND);
	is("timer_delete", timer_delete(timer), 0);

	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	spec.it_value = ts(now(CLOCK_MONOTONIC) + 15 * SECOND);
	spec.it_interval = ts(0);
	is("timerfd_settime", timerfd_settime(fd, TFD_TIMER_ABSTIME, &spec, NULL), 0);
	is("read of a timer", read(fd, &expired, 8), 8);
	is("how often", expired, 1);
	took("timerfd_settime", 15 * SECOND);
	spec.it_value = ts(5 * SECOND);
	timerfd_settime(fd, 0, &spec, NULL);
	struct pollfd p = { fd, POLLIN, 0 };
	is("poll of a timer", poll(&p, 1, 60000), 1);
	took("poll of a timer", 5 * SECOND);
}

#endif

int main(void)
{
	start();
	reading();
	took("reading", 0);
	sleeping();
	polling();
	interrupted();
#ifndef SUPERVISED
	threads();
	timers();
#endif
	if (failures == 0)
		puts("every wait took its time");
	return failures != 0;
}
