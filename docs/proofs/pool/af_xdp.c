/*
 * Proof: the pool's memory works as AF_XDP's UMEM, one UMEM for all ports, and a chain of chunks as a
 * multi-buffer frame.
 *
 *   af_xdp ordinary|huge          (as root)
 *
 * Makes a network namespace with a veth pair; each end has an AF_XDP socket in copy mode. No library: the
 * rings, the redirecting program (five instructions) and its attachment are plain system calls, because
 * that is what Pollux will do.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/bpf.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/if_xdp.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common.h"

/* Newer than the headers of Debian 12. */
#ifndef XDP_USE_SG
#define XDP_USE_SG (1 << 4)
#endif
#ifndef XDP_PKT_CONTD
#define XDP_PKT_CONTD (1 << 0)
#endif
#ifndef BPF_F_XDP_HAS_FRAGS
#define BPF_F_XDP_HAS_FRAGS (1U << 5)
#endif

#define CHUNKS 4096u
#define BYTES ((size_t)CHUNKS * CHUNK)
#define RING 512u
#define BURST 32u
#define ROOM (CHUNK - HEADROOM)
#define ETHER_TYPE 0x88b5	/* reserved for experiments */

enum attach { NATIVE, GENERIC };
enum buffers { SINGLE, MULTI };

static uint8_t *memory;
static uint32_t free_list[CHUNKS];
static unsigned free_count;

static uint32_t take(void)
{
	if (free_count == 0)
		die("the free list is empty");
	return free_list[--free_count];
}

static void give(uint64_t address)
{
	free_list[free_count++] = address / CHUNK;
}

/* ---- rings ---- */

struct ring {
	uint32_t *producer, *consumer;
	void *entries;
	uint32_t at;	/* our side's position */
};

static struct ring map_ring(int fd, off_t what, const struct xdp_ring_offset *offset, size_t entry)
{
	uint8_t *start = mmap(NULL, offset->desc + RING * entry, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, what);

	if (start == MAP_FAILED)
		die("map a ring");
	return (struct ring){
		(uint32_t *)(start + offset->producer), (uint32_t *)(start + offset->consumer), start + offset->desc, 0};
}

static bool has_entry(const struct ring *ring)
{
	return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE) != ring->at;
}

static void produced(struct ring *ring)
{
	__atomic_store_n(ring->producer, ring->at, __ATOMIC_RELEASE);
}

static void consumed(struct ring *ring)
{
	__atomic_store_n(ring->consumer, ring->at, __ATOMIC_RELEASE);
}

/* ---- sockets ---- */

struct port {
	int fd, link, map, program;
	unsigned interface;
	struct ring fill, completion, rx, tx;
	uint32_t outstanding;	/* chunks in the fill and tx rings */
};

static int register_memory(int fd, uint32_t headroom)
{
	struct xdp_umem_reg umem = {
		.addr = (uintptr_t)memory, .len = BYTES, .chunk_size = CHUNK, .headroom = headroom};

	return setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof(umem));
}

static int open_socket(void)
{
	int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket(AF_XDP)");
	return fd;
}

static void fill_ring(struct port *port, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		((uint64_t *)port->fill.entries)[port->fill.at++ % RING] = (uint64_t)take() * CHUNK;
	port->outstanding += count;
	produced(&port->fill);
}

/* Opens a socket on queue 0 of `name`. With `first`, shares that socket's UMEM. */
static void open_port(struct port *port, const char *name, const struct port *first, enum buffers buffers,
		      uint32_t headroom)
{
	static const int rings[] = {XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING};
	struct xdp_mmap_offsets offsets;
	struct sockaddr_xdp address = {.sxdp_family = AF_XDP};
	socklen_t length = sizeof(offsets);
	unsigned entries = RING;

	memset(port, 0, sizeof(*port));
	port->interface = address.sxdp_ifindex = if_nametoindex(name);
	port->fd = open_socket();
	if (first == NULL && register_memory(port->fd, headroom) != 0)
		die("XDP_UMEM_REG");
	for (unsigned i = 0; i < 4; i++)
		if (setsockopt(port->fd, SOL_XDP, rings[i], &entries, sizeof(entries)) != 0)
			die("size a ring");
	if (getsockopt(port->fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length) != 0)
		die("XDP_MMAP_OFFSETS");
	port->fill = map_ring(port->fd, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, sizeof(uint64_t));
	port->completion = map_ring(port->fd, XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, sizeof(uint64_t));
	port->rx = map_ring(port->fd, XDP_PGOFF_RX_RING, &offsets.rx, sizeof(struct xdp_desc));
	port->tx = map_ring(port->fd, XDP_PGOFF_TX_RING, &offsets.tx, sizeof(struct xdp_desc));
	fill_ring(port, RING / 2);
	if (first != NULL) {
		address.sxdp_flags = XDP_SHARED_UMEM;
		address.sxdp_shared_umem_fd = first->fd;
	} else {
		address.sxdp_flags = XDP_COPY | (buffers == MULTI ? XDP_USE_SG : 0);
	}
	if (bind(port->fd, (struct sockaddr *)&address, sizeof(address)) != 0)
		die("bind to %s", name);
}

static int bpf(enum bpf_cmd command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

/* Redirects every frame of the port's queue 0 to its socket. */
static void attach(struct port *port, enum attach how, enum buffers buffers)
{
	union bpf_attr map = {.map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4, .max_entries = 1};
	uint32_t key = 0;

	port->map = bpf(BPF_MAP_CREATE, &map);
	if (port->map < 0)
		die("make an XSKMAP");
	union bpf_attr element = {
		.map_fd = port->map, .key = (uintptr_t)&key, .value = (uintptr_t)&port->fd};
	if (bpf(BPF_MAP_UPDATE_ELEM, &element) != 0)
		die("put the socket into the XSKMAP");

	const struct bpf_insn code[] = {
		{.code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = 2, .src_reg = 1, .off = offsetof(struct xdp_md, rx_queue_index)},
		{.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = port->map},
		{0},
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = XDP_PASS},
		{.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_redirect_map},
		{.code = BPF_JMP | BPF_EXIT},
	};
	union bpf_attr program = {
		.prog_type = BPF_PROG_TYPE_XDP,
		.insns = (uintptr_t)code,
		.insn_cnt = sizeof(code) / sizeof(*code),
		.license = (uintptr_t) "Apache-2.0",
		.prog_flags = buffers == MULTI ? BPF_F_XDP_HAS_FRAGS : 0,
	};
	port->program = bpf(BPF_PROG_LOAD, &program);
	if (port->program < 0)
		die("load the program");
	union bpf_attr link = {.link_create = {.prog_fd = port->program,
					       .target_ifindex = port->interface,
					       .attach_type = BPF_XDP,
					       .flags = how == NATIVE ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE}};
	port->link = bpf(BPF_LINK_CREATE, &link);
	if (port->link < 0)
		die("attach the program");
}

/* ---- frames ---- */

struct part {
	uint64_t address;
	uint32_t length;
};

struct frame {
	struct part parts[64];
	unsigned count;
	uint32_t length;
};

/* A frame as pool.rs lays it: headroom in the first chunk only. */
static struct frame build(uint32_t number, uint32_t length)
{
	struct frame frame = {.length = length};

	for (uint32_t from = 0; from < length; frame.count++) {
		uint32_t offset = from == 0 ? HEADROOM : 0, left = length - from;
		uint32_t part = left < CHUNK - offset ? left : CHUNK - offset;
		uint64_t address = (uint64_t)take() * CHUNK + offset;

		fill(memory + address, number, from, part);
		if (from == 0) {
			memcpy(memory + address + 12, (uint16_t[]){htons(ETHER_TYPE)}, 2);
			memcpy(memory + address + 14, &number, 4);
		}
		frame.parts[frame.count] = (struct part){address, part};
		from += part;
	}
	return frame;
}

static bool frame_intact(const struct frame *frame, uint32_t number, uint32_t length)
{
	uint32_t from = 0;

	for (unsigned i = 0; i < frame->count; i++) {
		uint32_t skip = i == 0 ? 18 : 0;

		if (!intact(memory + frame->parts[i].address + skip, number, from + skip, frame->parts[i].length - skip))
			return false;
		from += frame->parts[i].length;
	}
	return from == length && memcmp(memory + frame->parts[0].address + 14, &number, 4) == 0;
}

static void give_frame(const struct frame *frame)
{
	for (unsigned i = 0; i < frame->count; i++)
		give(frame->parts[i].address);
}

static void queue(struct port *port, const struct frame *frame)
{
	for (unsigned i = 0; i < frame->count; i++)
		((struct xdp_desc *)port->tx.entries)[port->tx.at++ % RING] = (struct xdp_desc){
			.addr = frame->parts[i].address,
			.len = frame->parts[i].length,
			.options = i + 1 < frame->count ? XDP_PKT_CONTD : 0,
		};
	port->outstanding += frame->count;
	produced(&port->tx);
}

/* Sends what is queued. Says why not (errno), or 0. */
static int kick(struct port *port)
{
	int error = 0;

	for (unsigned tries = 0; tries < 1000; tries++) {
		error = sendto(port->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 ? errno : 0;
		if (error != EAGAIN && error != EBUSY && error != ENOBUFS)
			break;
	}
	return error;
}

/* Takes sent chunks back. Says how many, and sets `last` to the last address. */
static unsigned reclaim(struct port *port, uint64_t *last)
{
	unsigned count = 0;

	while (has_entry(&port->completion)) {
		*last = ((uint64_t *)port->completion.entries)[port->completion.at++ % RING];
		give(*last);
		count++;
	}
	consumed(&port->completion);
	port->outstanding -= count;
	return count;
}

/* The next frame, if one comes within `milliseconds`. */
static bool receive(struct port *port, struct frame *frame, int milliseconds)
{
	struct pollfd ready = {.fd = port->fd, .events = POLLIN};

	memset(frame, 0, sizeof(*frame));
	for (;;) {
		struct xdp_desc desc;

		if (!has_entry(&port->rx) && poll(&ready, 1, milliseconds) <= 0)
			return false;
		desc = ((struct xdp_desc *)port->rx.entries)[port->rx.at++ % RING];
		consumed(&port->rx);
		port->outstanding--;
		if (frame->count == sizeof(frame->parts) / sizeof(*frame->parts))
			die("a frame of more than %u parts", frame->count);
		frame->parts[frame->count++] = (struct part){desc.addr, desc.len};
		frame->length += desc.len;
		if ((desc.options & XDP_PKT_CONTD) == 0)
			break;
	}
	fill_ring(port, frame->count); /* as many as were used up */
	return true;
}

/* ---- what is proved ---- */

static void command(const char *line)
{
	if (system(line) != 0)
		die("%s", line);
}

static void make_veth(unsigned mtu)
{
	char line[256];

	command("ip link del va 2>/dev/null || true");
	snprintf(line, sizeof(line),
		 "ip link add va mtu %u numtxqueues 1 numrxqueues 1 type veth peer name vb mtu %u numtxqueues 1 numrxqueues 1",
		 mtu, mtu);
	command(line);
	command("ip link set va up && ip link set vb up");
}

static void all_free(struct port *a, struct port *b)
{
	uint64_t last;

	reclaim(a, &last);
	reclaim(b, &last);
	check(free_count + a->outstanding + b->outstanding == CHUNKS && a->outstanding == RING / 2
	      && b->outstanding == RING / 2,
	      "every chunk is free or in a fill ring (%u + %u + %u)", free_count, a->outstanding, b->outstanding);
}

static void close_port(struct port *port)
{
	close(port->link);
	close(port->program);
	close(port->map);
	close(port->fd);
}

/* A burst goes a → b; b sends the very chunks that it received back to a. */
static void frames_pass(struct port *a, struct port *b, uint32_t headroom)
{
	struct frame frame;
	unsigned there = 0, back = 0, placed = 0;
	uint64_t last = 0;

	for (uint32_t i = 0; i < BURST; i++) {
		frame = build(i, 60 + i * 46);
		queue(a, &frame);
	}
	if (kick(a) != 0)
		die("send");
	for (uint32_t i = 0; i < BURST && receive(b, &frame, 200); i++) {
		there += frame.count == 1 && frame_intact(&frame, i, 60 + i * 46);
		placed += frame.parts[0].address % CHUNK == 256 + headroom;
		queue(b, &frame);
	}
	if (kick(b) != 0)
		die("send back");
	for (uint32_t i = 0; i < BURST && receive(a, &frame, 200); i++) {
		back += frame_intact(&frame, i, 60 + i * 46);
		give_frame(&frame);
	}
	check(there == BURST, "%u frames cross, content intact (%u)", BURST, there);
	check(placed == BURST, "UMEM headroom %u: a received frame starts at chunk + %u", headroom, 256 + headroom);
	check(back == BURST, "the chunks received by one port leave by the other as they are (%u)", back);
	check(reclaim(a, &last) == BURST && reclaim(b, &last) == BURST && last % CHUNK == 256 + headroom,
	      "sent chunks come back with the address they were sent with");
}

static struct xdp_statistics statistics(const struct port *port)
{
	struct xdp_statistics all;
	socklen_t length = sizeof(all);

	if (getsockopt(port->fd, SOL_XDP, XDP_STATISTICS, &all, &length) != 0)
		die("XDP_STATISTICS");
	return all;
}

/* The longest frame that one chunk receives. */
static void longest_single(struct port *a, struct port *b)
{
	struct frame frame = build(1, ROOM);
	uint64_t before = statistics(b).rx_dropped, last;

	queue(a, &frame);
	kick(a);
	check(receive(b, &frame, 200) && frame_intact(&frame, 1, ROOM), "one chunk receives a frame of %u bytes", ROOM);
	give_frame(&frame);
	frame = build(2, ROOM + 1);
	frame.count = 1; /* what does not fit is sent from the headroom's side of one chunk */
	give(frame.parts[1].address);
	frame.parts[0].address--;
	frame.parts[0].length = ROOM + 1;
	queue(a, &frame);
	kick(a);
	check(!receive(b, &frame, 50) && statistics(b).rx_dropped == before + 1, "one of %u is dropped and counted (rx_dropped)", ROOM + 1);
	reclaim(a, &last);
}

/* Sends one chain of `length` bytes. Says whether it came whole, and in which parts. */
static bool chain_passes(struct port *a, struct port *b, uint32_t length, struct frame *frame)
{
	struct frame sent = build(length, length);
	bool came;
	uint64_t last;

	queue(a, &sent);
	kick(a);
	came = receive(b, frame, 100) && frame_intact(frame, length, length);
	reclaim(a, &last);
	give_frame(frame);
	return came;
}

static void chains_pass(struct port *a, struct port *b)
{
	struct frame frame;
	unsigned longest = 0;
	uint64_t invalid = statistics(a).tx_invalid_descs;
	bool later = true;

	check(chain_passes(a, b, 9014, &frame), "a jumbo frame of 9014 bytes crosses as a chain");
	for (unsigned i = 1; i < frame.count; i++)
		later &= frame.parts[i].address % CHUNK == 256;
	check(frame.count == (9014 + ROOM - 1) / ROOM && later && frame.parts[0].length == ROOM,
	      "received as %u chunks of at most %u bytes, each one at chunk + 256", frame.count, frame.parts[0].length);
	for (unsigned chunks = 2; chunks <= 33; chunks++) {
		uint32_t length = chunks == 33 ? SUPER_FRAME : ROOM + (chunks - 1) * CHUNK;

		if (!chain_passes(a, b, length, &frame))
			break;
		longest = chunks;
	}
	check(longest >= 18 && statistics(a).tx_invalid_descs > invalid,
	      "chains of up to %u chunks (%u bytes) are sent; a longer one is dropped and counted (tx_invalid_descs)", longest,
	      ROOM + (longest - 1) * CHUNK);
}

/* Whether a TCP segment's checksum is complete. */
static bool checksum_complete(const struct frame *frame)
{
	uint8_t bytes[65536];
	uint32_t length = 0, sum = 0;

	for (unsigned i = 0; i < frame->count; i++) {
		memcpy(bytes + length, memory + frame->parts[i].address, frame->parts[i].length);
		length += frame->parts[i].length;
	}
	sum = IPPROTO_TCP + length - 34; /* pseudo header */
	if (length % 2 != 0)
		bytes[length] = 0;
	for (uint32_t i = 26; i < length; i += 2)
		sum += bytes[i] << 8 | bytes[i + 1];
	while (sum >> 16 != 0)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

/* What a socket received of a super-frame. */
struct seen {
	unsigned frames, longest, payload, complete;
};

/* Sends a TCP super-frame with a partial checksum from the kernel's side of port a. */
static struct seen super_frame_from_kernel(struct port *a, struct port *b)
{
	enum { PAYLOAD = 32000, HEADERS = 54 };
	static uint8_t bytes[sizeof(struct virtio_net_hdr) + HEADERS + PAYLOAD];
	struct virtio_net_hdr *offload = (void *)bytes;
	uint8_t *start = bytes + sizeof(*offload);
	struct iphdr ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP,
			   .tot_len = htons(40 + PAYLOAD), .saddr = htonl(0x0a000001), .daddr = htonl(0x0a000002)};
	uint32_t sum = 2 * 0x0a00 + 1 + 2 + IPPROTO_TCP + 20 + PAYLOAD;
	struct tcphdr tcp = {.source = htons(1000), .dest = htons(2000), .doff = 5, .ack = 1,
			     .check = htons((sum & 0xffff) + (sum >> 16))};
	struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = a->interface, .sll_halen = 6};
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), one = 1;
	struct seen seen = {0};
	struct frame frame;

	*offload = (struct virtio_net_hdr){.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
					   .hdr_len = HEADERS, .gso_size = 1448, .csum_start = 34, .csum_offset = 16};
	memset(start, 0xff, 12);
	start[12] = 8;
	memcpy(start + 14, &ip, sizeof(ip));
	memcpy(start + 34, &tcp, sizeof(tcp));
	if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)) != 0
	    || sendto(fd, bytes, sizeof(bytes), 0, (struct sockaddr *)&address, sizeof(address)) < 0)
		die("send a super-frame");
	close(fd);
	while (receive(b, &frame, 50)) {
		seen.frames++;
		seen.payload += frame.length - HEADERS;
		seen.longest = frame.length > seen.longest ? frame.length : seen.longest;
		seen.complete += checksum_complete(&frame);
		give_frame(&frame);
	}
	return seen;
}

static void switch_off(const char *name, uint32_t what)
{
	struct ethtool_value value = {.cmd = what};
	struct ifreq request = {.ifr_data = (void *)&value};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (fd < 0 || ioctl(fd, SIOCETHTOOL, &request) != 0)
		die("switch an offload of %s off", name);
	close(fd);
}

static void super_frames(struct port *a, struct port *b)
{
	struct seen seen = super_frame_from_kernel(a, b);

	note("a TCP super-frame of 32000 bytes arrives as %u frames (longest %u), %u bytes, %u checksums complete",
	     seen.frames, seen.longest, seen.payload, seen.complete);
	switch_off("va", ETHTOOL_STXCSUM); /* and with it segmentation */
	seen = super_frame_from_kernel(a, b);
	check(seen.frames == 23 && seen.payload == 32000 && seen.complete == 23,
	      "sender without offloads: %u frames (longest %u), %u bytes, %u checksums complete", seen.frames, seen.longest,
	      seen.payload, seen.complete);
}

static void mode(enum attach how, enum buffers buffers, unsigned mtu, uint32_t headroom)
{
	struct port a, b;

	printf("-- %s XDP, %s, MTU %u, UMEM headroom %u\n", how == NATIVE ? "native" : "generic",
	       buffers == SINGLE ? "one buffer" : "multi-buffer", mtu, headroom);
	make_veth(mtu);
	free_count = 0;
	for (uint64_t i = 0; i < CHUNKS; i++)
		give(i * CHUNK);
	open_port(&a, "va", NULL, buffers, headroom);
	open_port(&b, "vb", &a, buffers, headroom);
	attach(&a, how, buffers);
	attach(&b, how, buffers);
	frames_pass(&a, &b, headroom);
	if (headroom == 0) {
		if (buffers == SINGLE)
			longest_single(&a, &b);
		else
			chains_pass(&a, &b);
		super_frames(&a, &b);
	}
	all_free(&a, &b);
	close_port(&b);
	close_port(&a);
}

/* How much headroom the kernel accepts for our chunks. Registers the same memory many times over. */
static void headroom_limit(void)
{
	int kept = open_socket(), low = 0, high = CHUNK;

	check(register_memory(kept, 0) == 0, "XDP_UMEM_REG takes the mapping: %u chunks of %u", CHUNKS, CHUNK);
	while (high - low > 1) {
		int fd = open_socket(), middle = (low + high) / 2;

		if (register_memory(fd, middle) == 0)
			low = middle;
		else
			high = middle;
		close(fd);
	}
	check(low >= (int)HEADROOM, "the same memory can be registered again; the largest UMEM headroom is %d", low);
	close(kept);
}

int main(int count, char **arguments)
{
	enum pages pages = count > 1 && strcmp(arguments[1], "huge") == 0 ? HUGE : ORDINARY;
	struct utsname kernel;

	uname(&kernel);
	if (unshare(CLONE_NEWNET) != 0)
		die("make a network namespace");
	command("ip link set lo up; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 || true");
	memory = map_pool(BYTES, pages);
	printf("-- Linux %s, %s pages\n", kernel.release, pages == HUGE ? "huge" : "ordinary");
	headroom_limit();
	mode(NATIVE, SINGLE, 2000, 0);
	mode(NATIVE, SINGLE, 2000, 256);
	mode(GENERIC, SINGLE, 2000, 0);
	mode(NATIVE, MULTI, 65535, 0);
	mode(GENERIC, MULTI, 65535, 0);
	return summary("af_xdp");
}
