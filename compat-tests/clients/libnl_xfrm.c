/* A client that knows nothing of xfrmd: SAs and policies through libnl-xfrm.
 * Prints what it sees; the test compares that with what it prints on Linux.
 * Build: cc libnl_xfrm.c $(pkg-config --cflags --libs libnl-xfrm-3.0) */
#include <stdio.h>
#include <stdlib.h>
#include <netinet/in.h>
#include <netlink/netlink.h>
#include <netlink/cache.h>
#include <netlink/object.h>
#include <netlink/xfrm/lifetime.h>
#include <netlink/xfrm/sa.h>
#include <netlink/xfrm/selector.h>
#include <netlink/xfrm/sp.h>
#include <netlink/xfrm/template.h>

static void check(const char *what, int err)
{
	printf("%s: %s\n", what, err < 0 ? nl_geterror(err) : "ok");
}

static struct nl_addr *addr(const char *text)
{
	struct nl_addr *a;
	if (nl_addr_parse(text, AF_INET, &a) < 0)
		exit(2);
	return a;
}

static struct xfrmnl_ltime_cfg *no_limits(void)
{
	struct xfrmnl_ltime_cfg *l = xfrmnl_ltime_cfg_alloc();
	xfrmnl_ltime_cfg_set_soft_bytelimit(l, ~0ull);
	xfrmnl_ltime_cfg_set_hard_bytelimit(l, ~0ull);
	xfrmnl_ltime_cfg_set_soft_packetlimit(l, ~0ull);
	xfrmnl_ltime_cfg_set_hard_packetlimit(l, ~0ull);
	return l;
}

static struct xfrmnl_sel *selector(void)
{
	struct xfrmnl_sel *sel = xfrmnl_sel_alloc();
	xfrmnl_sel_set_daddr(sel, addr("192.0.2.0/24"));
	xfrmnl_sel_set_saddr(sel, addr("198.51.100.0/24"));
	xfrmnl_sel_set_family(sel, AF_INET);
	xfrmnl_sel_set_prefixlen_d(sel, 24);
	xfrmnl_sel_set_prefixlen_s(sel, 24);
	return sel;
}

static void add_sa(struct nl_sock *sk, unsigned int spi)
{
	struct xfrmnl_sa *sa = xfrmnl_sa_alloc();
	xfrmnl_sa_set_sel(sa, selector());
	xfrmnl_sa_set_daddr(sa, addr("10.0.0.2"));
	xfrmnl_sa_set_saddr(sa, addr("10.0.0.1"));
	xfrmnl_sa_set_family(sa, AF_INET);
	xfrmnl_sa_set_spi(sa, spi);
	xfrmnl_sa_set_proto(sa, IPPROTO_ESP);
	xfrmnl_sa_set_mode(sa, 1);
	xfrmnl_sa_set_reqid(sa, 42);
	xfrmnl_sa_set_replay_window(sa, 32);
	xfrmnl_sa_set_lifetime_cfg(sa, no_limits());
	xfrmnl_sa_set_aead_params(sa, "rfc4106(gcm(aes))", 160, 128, "0123456789abcdef0123");
	check("add sa", xfrmnl_sa_add(sk, sa, 0));
	xfrmnl_sa_put(sa);
}

static void add_policy(struct nl_sock *sk)
{
	struct xfrmnl_sp *sp = xfrmnl_sp_alloc();
	struct xfrmnl_user_tmpl *tmpl = xfrmnl_user_tmpl_alloc();
	xfrmnl_sp_set_sel(sp, selector());
	xfrmnl_sp_set_dir(sp, 1);
	xfrmnl_sp_set_priority(sp, 100);
	xfrmnl_sp_set_action(sp, 0);
	xfrmnl_sp_set_lifetime_cfg(sp, no_limits());
	xfrmnl_user_tmpl_set_daddr(tmpl, addr("10.0.0.2"));
	xfrmnl_user_tmpl_set_saddr(tmpl, addr("10.0.0.1"));
	xfrmnl_user_tmpl_set_family(tmpl, AF_INET);
	xfrmnl_user_tmpl_set_proto(tmpl, IPPROTO_ESP);
	xfrmnl_user_tmpl_set_mode(tmpl, 1);
	xfrmnl_user_tmpl_set_reqid(tmpl, 42);
	xfrmnl_sp_add_usertemplate(sp, tmpl);
	check("add policy", xfrmnl_sp_add(sk, sp, 0));
	xfrmnl_sp_put(sp);
}

static void dump(struct nl_sock *sk)
{
	struct nl_dump_params params = { .dp_type = NL_DUMP_LINE, .dp_fd = stdout };
	struct nl_cache *cache;
	int err = xfrmnl_sa_alloc_cache(sk, &cache);
	check("dump sas", err);
	if (err >= 0) {
		printf("%d sas\n", nl_cache_nitems(cache));
		nl_cache_free(cache);
	}
	err = xfrmnl_sp_alloc_cache(sk, &cache);
	check("dump policies", err);
	if (err >= 0) {
		printf("%d policies\n", nl_cache_nitems(cache));
		nl_cache_dump(cache, &params);
		nl_cache_free(cache);
	}
}

int main(void)
{
	struct nl_sock *sk = nl_socket_alloc();
	struct xfrmnl_sa *sa;
	int err;

	check("connect", nl_connect(sk, NETLINK_XFRM));
	add_sa(sk, 0x1001);
	add_sa(sk, 0x1002);
	add_sa(sk, 0x1002);
	add_policy(sk);
	add_policy(sk);
	dump(sk);
	err = xfrmnl_sa_get_kernel(sk, addr("10.0.0.2"), 0x1001, IPPROTO_ESP, 0, 0, &sa);
	check("get sa", err);
	if (err >= 0) {
		printf("spi %x reqid %u\n", xfrmnl_sa_get_spi(sa), xfrmnl_sa_get_reqid(sa));
		check("delete sa", xfrmnl_sa_delete(sk, sa, 0));
		xfrmnl_sa_put(sa);
	}
	check("get sa again", xfrmnl_sa_get_kernel(sk, addr("10.0.0.2"), 0x1001, IPPROTO_ESP, 0, 0, &sa));
	dump(sk);
	nl_socket_free(sk);
	return 0;
}
