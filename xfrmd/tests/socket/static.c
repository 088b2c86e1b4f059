/*
 * A client without a dynamic linker. Without an argument it asks for the size of the SAD and prints the type of
 * the answer; with the name of a case it does that, and says what went wrong.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what)                                                                                    \
	do {                                                                                           \
		if (!(what)) {                                                                         \
			fprintf(stderr, "line %d: %s: %s\n", __LINE__, #what, strerror(errno));        \
			_exit(1);                                                                      \
		}                                                                                      \
	} while (0)

#define FAILS(what, with) CHECK((what) < 0 && errno == (with))

static int netlink(void)
{
	return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_XFRM);
}

/* The type of the answer to a request that is nothing but a number behind its header. */
static int ask(int fd, int type, char *answer, size_t room)
{
	struct {
		struct nlmsghdr header;
		unsigned int flags;
	} request = { { sizeof request, type, NLM_F_REQUEST, 1, 0 }, ~0u };

	if (send(fd, &request, sizeof request, 0) < 0 || recv(fd, answer, room, 0) < 0)
		return -1;
	return ((struct nlmsghdr *)answer)->nlmsg_type;
}

static int answers(int fd)
{
	char answer[4096];

	return ask(fd, XFRM_MSG_GETSADINFO, answer, sizeof answer) == XFRM_MSG_NEWSADINFO;
}

/* Policies of the instance of this thread's namespace. */
static unsigned int policies(void)
{
	char answer[4096];
	struct xfrmu_spdinfo *found = (void *)(answer + NLMSG_HDRLEN + sizeof(unsigned int) + NLA_HDRLEN);
	int fd = netlink();

	CHECK(ask(fd, XFRM_MSG_GETSPDINFO, answer, sizeof answer) == XFRM_MSG_NEWSPDINFO);
	close(fd);
	return found->outcnt;
}

static void add_policy(int fd)
{
	struct {
		struct nlmsghdr header;
		struct xfrm_userpolicy_info policy;
	} request = { { sizeof request, XFRM_MSG_NEWPOLICY, NLM_F_REQUEST | NLM_F_ACK, 1, 0 } };
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
	} answer;

	request.policy.sel.family = AF_INET;
	request.policy.dir = XFRM_POLICY_OUT;
	CHECK(send(fd, &request, sizeof request, 0) == sizeof request);
	CHECK(recv(fd, &answer, sizeof answer, 0) > 0);
	CHECK(answer.header.nlmsg_type == NLMSG_ERROR && answer.error.error == 0);
}

/* Copies have numbers of the supervisor's choice, or are refused. */
static void numbers(void)
{
	int fd = netlink(), copy, high;

	CHECK(answers(fd));
	CHECK((copy = dup(fd)) > fd && answers(copy));
	CHECK((high = fcntl(fd, F_DUPFD_CLOEXEC, 850)) >= 850 && answers(high));
	CHECK(dup2(copy, 899) == 899 && answers(899));
	CHECK(dup3(copy, 898, O_CLOEXEC) == 898 && answers(898));
	FAILS(dup2(fd, 5), EBADF);
	FAILS(dup3(fd, 6, 0), EBADF);
	FAILS(fcntl(fd, F_DUPFD, 950), EMFILE);
	CHECK(close(fd) == 0);
	FAILS(send(fd, "", 1, 0), EBADF);
	CHECK(answers(copy) && answers(high));
	/* Another file takes a number, and has it. */
	CHECK(dup2(0, copy) == copy);
	FAILS(send(copy, "", 1, 0), ENOTSOCK);
	CHECK(answers(899));
}

/* What is passed has a number of the host's choice: it reaches nobody, and says so. */
static void passed(void)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { .header = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	char byte = 0;
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof control };
	int pair[2], fd = netlink();

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
	CHECK(sendmsg(pair[0], &message, 0) == 1);
	CHECK(recvmsg(pair[1], &message, 0) == 1);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	CHECK(fd < 800);
	CHECK(!answers(fd) && errno == ECONNREFUSED);
	/* By a number that is looked at, it is one again. */
	CHECK(dup2(fd, 850) == 850 && answers(850));
}

static int udp(in_port_t port)
{
	struct sockaddr_in name = { AF_INET, htons(port), { htonl(INADDR_LOOPBACK) } };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (bind(fd, (void *)&name, sizeof name) == 0)
		return fd;
	close(fd);
	return -1;
}

/* A port is free when its socket has been closed, with options that the host has not heard of. */
static void ports(void)
{
	struct xfrm_userpolicy_info pass = { .sel = { .family = AF_INET }, .dir = XFRM_POLICY_OUT };
	struct sockaddr_in name;
	socklen_t len = sizeof name;
	int on = 2, fd = udp(0), tries;

	CHECK(getsockname(fd, (void *)&name, &len) == 0);
	CHECK(setsockopt(fd, IPPROTO_UDP, 100, &on, sizeof on) == 0);
	CHECK(close(fd) == 0);
	CHECK((fd = udp(ntohs(name.sin_port))) >= 0);
	CHECK(setsockopt(fd, IPPROTO_IP, IP_XFRM_POLICY, &pass, sizeof pass) == 0);
	CHECK(close(fd) == 0);
	for (tries = 0; (fd = udp(ntohs(name.sin_port))) < 0; tries++) {
		CHECK(tries < 3000);
		usleep(10000);
	}
}

static void rings(void)
{
	char parameters[256] = { 0 };

	FAILS(syscall(SYS_io_uring_setup, 1, parameters), ENOSYS);
}

static void *elsewhere(void *unused)
{
	CHECK(unshare(CLONE_NEWNET) == 0);
	CHECK(policies() == 0);
	int fd = netlink();
	add_policy(fd);
	CHECK(policies() == 1);
	return unused;
}

/* A thread in a namespace of its own has the instance of that one. */
static void threads(void)
{
	int fd = netlink();
	pthread_t thread;

	CHECK(policies() == 0);
	CHECK(pthread_create(&thread, NULL, elsewhere, NULL) == 0);
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(policies() == 0);
	add_policy(fd);
	CHECK(policies() == 1);
}

/* A child that has its parent's memory, and descriptors of its own. */
static void borrowed(void)
{
	int fd = netlink(), status;
	pid_t child = vfork();

	if (child == 0) {
		int own = netlink();
		int fine = answers(fd) && answers(own) && close(fd) == 0 && answers(own);
		_exit(!fine);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(answers(fd));
}

int main(int count, char **words)
{
	static const struct {
		const char *name;
		void (*body)(void);
	} cases[] = { { "numbers", numbers }, { "passed", passed }, { "ports", ports },
		      { "rings", rings }, { "threads", threads }, { "borrowed", borrowed } };
	size_t index;
	char answer[4096];

	if (count < 2) {
		int type = ask(netlink(), XFRM_MSG_GETSADINFO, answer, sizeof answer);
		if (type < 0) {
			perror("NETLINK_XFRM");
			return 1;
		}
		printf("type 0x%x\n", type);
		return 0;
	}
	for (index = 0; index < sizeof cases / sizeof *cases; index++) {
		if (strcmp(words[1], cases[index].name) == 0) {
			cases[index].body();
			return 0;
		}
	}
	fprintf(stderr, "no such case\n");
	return 1;
}
