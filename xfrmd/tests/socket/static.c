/* A client without a dynamic linker: asks for the size of the SAD and prints the type of the answer. */
#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <stdio.h>
#include <sys/socket.h>

int main(void)
{
	struct {
		struct nlmsghdr header;
		unsigned int flags;
	} request = { { sizeof request, XFRM_MSG_GETSADINFO, NLM_F_REQUEST, 1, 0 }, ~0u };
	char answer[4096];
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_XFRM);

	if (fd < 0 || send(fd, &request, sizeof request, 0) < 0 || recv(fd, answer, sizeof answer, 0) < 0) {
		perror("NETLINK_XFRM");
		return 1;
	}
	printf("type 0x%x\n", ((struct nlmsghdr *)answer)->nlmsg_type);
	return 0;
}
