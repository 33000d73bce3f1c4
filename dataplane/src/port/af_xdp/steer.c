/*
 * The steering program: which of the frames that come in at an interface are Pollux's, and which the kernel's.
 *
 * Pollux gets what a guard (port/guard.rs) would keep from the kernel: unicast IP packets addressed to the
 * interface. The kernel gets the rest: ARP, groups, VLAN-tagged frames, other protocols, and of IPv6 what never
 * leaves its link. Frames end here only when no socket is there to take them, and then they are counted.
 *
 * Compiled into steer.o, which is kept beside this file, so that building Pollux needs no clang (`make steer`
 * makes it anew). Self-contained for the same reason: no header but the kernel's interface, written down here.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* ---- the kernel's interface (linux/bpf.h) ---- */

struct xdp_md {
	u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

struct map {
	u32 type, key_size, value_size, max_entries, flags;
};

enum { XDP_DROP = 1, XDP_PASS = 2, XDP_REDIRECT = 4 };
enum { HASH = 1, ARRAY = 2, PERCPU_ARRAY = 6, XSKMAP = 17 };

static void *(*const lookup)(void *map, const void *key) = (void *)1;
static long (*const redirect_map)(void *map, u64 key, u64 otherwise) = (void *)51;

#define SECTION(name) __attribute__((section(name), used))

/* ---- what Pollux sets and reads ---- */

/* Bits of settings.what. */
enum { TAKE_V4 = 1, TAKE_V6 = 2, TAKE_ALL = 4, LEAVE_SOME = 8 };

struct settings {
	u32 what;
	u8 address[6];	/* the interface's link address */
	u8 padding[2];
};

/* The kernel's of all unicast packets: protocol, and destination port as in the packet. */
struct service {
	u8 protocol, padding;
	u16 port;
};

SECTION("maps") struct map SETTINGS = {ARRAY, sizeof(u32), sizeof(struct settings), 1, 0};
/* By queue; made as long as the interface has queues. */
SECTION("maps") struct map SOCKETS = {XSKMAP, sizeof(u32), sizeof(u32), 1, 0};
SECTION("maps") struct map LEAVE = {HASH, sizeof(struct service), sizeof(u8), 64, 0};
/* Frames that no socket was there for. */
SECTION("maps") struct map LOST = {PERCPU_ARRAY, sizeof(u32), sizeof(u64), 1, 0};

/* ---- the program ---- */

enum { ETHERNET = 14, IPV4 = 0x0008, IPV6 = 0xdd86 };	/* types as in the frame, read by a little-endian machine */
enum { TCP = 6, UDP = 17, ICMPV6 = 58, SCTP = 132 };

static __attribute__((always_inline)) int take(struct xdp_md *context)
{
	u32 zero = 0;
	int verdict = redirect_map(&SOCKETS, context->rx_queue_index, XDP_DROP);

	if (verdict != XDP_REDIRECT) {
		u64 *lost = lookup(&LOST, &zero);
		if (lost)
			*lost += 1;
	}
	return verdict;
}

/* Whether the packet goes to a port that is the kernel's. `transport` is where its header starts. */
static __attribute__((always_inline)) int is_left(u8 protocol, const u8 *transport, const u8 *end)
{
	struct service service = {protocol, 0, 0};

	if (protocol != TCP && protocol != UDP && protocol != SCTP)
		return 0;
	if (transport + 4 > end)
		return 0;
	service.port = *(const u16 *)(transport + 2);
	return lookup(&LEAVE, &service) != 0;
}

static __attribute__((always_inline)) int steer(struct xdp_md *context)
{
	const u8 *frame = (const u8 *)(unsigned long)context->data;
	const u8 *end = (const u8 *)(unsigned long)context->data_end;
	const u8 *ip = frame + ETHERNET;
	const struct settings *settings;
	u32 zero = 0;
	u16 type;

	settings = lookup(&SETTINGS, &zero);
	if (!settings)
		return XDP_PASS;
	if (settings->what & TAKE_ALL)
		return take(context);
	if (ip > end)
		return XDP_PASS;
	for (int i = 0; i < 6; i++)
		if (frame[i] != settings->address[i])
			return XDP_PASS;
	type = *(const u16 *)(frame + 12);
	if (type == IPV4 && settings->what & TAKE_V4) {
		/* Behind options, and in a fragment, no port is read: Pollux's. */
		if (settings->what & LEAVE_SOME && ip + 20 <= end && ip[0] == 0x45 && !(ip[6] & 0x3f) && !ip[7]
		    && is_left(ip[9], ip + 20, end))
			return XDP_PASS;
		return take(context);
	}
	if (type == IPV6 && settings->what & TAKE_V6) {
		/* A packet that ends before what is read of it is the kernel's to refuse. */
		if (ip + 40 > end)
			return XDP_PASS;
		if (ip[24] == 0xfe && (ip[25] & 0xc0) == 0x80)
			return XDP_PASS;
		/* Neighbour discovery: types 133 to 137. */
		if (ip[6] == ICMPV6 && (ip + 41 > end || (ip[40] >= 133 && ip[40] <= 137)))
			return XDP_PASS;
		if (settings->what & LEAVE_SOME && is_left(ip[6], ip + 40, end))
			return XDP_PASS;
		return take(context);
	}
	return XDP_PASS;
}

/* For frames that fit one buffer. */
SECTION("xdp") int pollux_steer(struct xdp_md *context)
{
	return steer(context);
}

/* For jumbo frames, in several. */
SECTION("xdp.frags") int pollux_steer_mb(struct xdp_md *context)
{
	return steer(context);
}

SECTION("license") char LICENSE[] = "Apache-2.0";
