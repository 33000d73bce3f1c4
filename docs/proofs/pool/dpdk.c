/*
 * Proof: the pool's memory works as DPDK's external buffers.
 *
 *   dpdk ordinary|huge
 *
 * Part 1 uses DPDK's own free list, part 2 a mempool handler of ours over the pool's free list, so that
 * both see one set of free chunks. Ports are ring devices (nothing is copied) and a null device (the
 * driver itself takes mbufs from the pool and writes into them, as a card does).
 */
#include <rte_bus_vdev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_mbuf_pool_ops.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_version.h>

#include "common.h"

#define CHUNKS 4096u
#define BYTES ((size_t)CHUNKS * CHUNK)
#define BURST 32u
#define SEGMENTS (1 + (SUPER_FRAME - (CHUNK - HEADROOM) + CHUNK - 1) / CHUNK)

static uint8_t *memory;
/* The mbuf of every chunk: 8 bytes a chunk replace any arithmetic on DPDK's layout of headers. */
static struct rte_mbuf *mbuf_of[CHUNKS];

/* The chunk of an mbuf. */
static uint32_t index_of(const struct rte_mbuf *mbuf)
{
	return ((uintptr_t)mbuf->buf_addr - (uintptr_t)memory) / CHUNK;
}

static bool is_chunk(const struct rte_mbuf *mbuf)
{
	uintptr_t at = (uintptr_t)mbuf->buf_addr - (uintptr_t)memory;

	return at < BYTES && at % CHUNK == 0;
}

/* What a device is told instead of an address. */
static rte_iova_t device_address(void *address)
{
	return rte_eal_iova_mode() == RTE_IOVA_VA ? (uintptr_t)address : rte_mem_virt2iova(address);
}

/* ---- the pool's free list, as pool.rs has it: indices ---- */

static uint32_t free_list[CHUNKS];
static unsigned free_count;

static uint32_t take(void)
{
	if (free_count == 0)
		die("the free list is empty");
	return free_list[--free_count];
}

static void give(uint32_t index)
{
	free_list[free_count++] = index;
}

/* ---- a mempool handler over it ---- */

static unsigned populated;

static int handler_alloc(struct rte_mempool *pool)
{
	(void)pool;
	return 0;
}

static void handler_free(struct rte_mempool *pool)
{
	(void)pool;
}

/*
 * While DPDK populates the mempool it enqueues every new object once, in order, before the object has a
 * buffer: object number i will get chunk i. Nothing becomes free by that; the free list knows what is free.
 */
static int handler_enqueue(struct rte_mempool *pool, void *const *objects, unsigned count)
{
	(void)pool;
	for (unsigned i = 0; i < count; i++) {
		if (populated < CHUNKS)
			mbuf_of[populated++] = objects[i];
		else
			give(index_of(objects[i]));
	}
	return 0;
}

static int handler_dequeue(struct rte_mempool *pool, void **objects, unsigned count)
{
	(void)pool;
	if (free_count < count)
		return -ENOBUFS;
	for (unsigned i = 0; i < count; i++)
		objects[i] = mbuf_of[take()];
	return 0;
}

static unsigned handler_count(const struct rte_mempool *pool)
{
	(void)pool;
	return free_count;
}

static const struct rte_mempool_ops handler = {
	.name = "pollux",
	.alloc = handler_alloc,
	.free = handler_free,
	.enqueue = handler_enqueue,
	.dequeue = handler_dequeue,
	.get_count = handler_count,
};
RTE_MEMPOOL_REGISTER_OPS(handler);

/* ---- set-up ---- */

/* One element of external memory for each 2 MiB page: a chunk never crosses one, so each may have any IOVA. */
static struct rte_mempool *create_pool(const char *name, unsigned cache)
{
	struct rte_pktmbuf_extmem parts[BYTES / HUGE_PAGE];
	struct rte_mempool *pool;

	for (unsigned i = 0; i < RTE_DIM(parts); i++) {
		uint8_t *part = memory + (size_t)i * HUGE_PAGE;

		parts[i] = (struct rte_pktmbuf_extmem){
			.buf_ptr = part,
			.buf_iova = device_address(part),
			.buf_len = HUGE_PAGE,
			.elt_size = CHUNK,
		};
	}
	pool = rte_pktmbuf_pool_create_extbuf(name, CHUNKS, cache, 0, CHUNK, SOCKET_ID_ANY, parts, RTE_DIM(parts));
	if (pool == NULL)
		die("rte_pktmbuf_pool_create_extbuf: %s", rte_strerror(rte_errno));
	return pool;
}

static void start(uint16_t port, struct rte_mempool *pool)
{
	struct rte_eth_conf configuration = {0};

	if (rte_eth_dev_configure(port, 1, 1, &configuration) != 0
	    || rte_eth_rx_queue_setup(port, 0, 256, SOCKET_ID_ANY, NULL, pool) != 0
	    || rte_eth_tx_queue_setup(port, 0, 256, SOCKET_ID_ANY, NULL) != 0 || rte_eth_dev_start(port) != 0)
		die("start port %u: %s", port, rte_strerror(rte_errno));
}

/* Two ports joined by two rings: what one sends, the other receives. */
static void join(const char *name, struct rte_mempool *pool, uint16_t ports[2])
{
	struct rte_ring *rings[2];
	char label[32];

	for (int i = 0; i < 2; i++) {
		snprintf(label, sizeof(label), "%s_%d", name, i);
		rings[i] = rte_ring_create(label, 256, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ);
		if (rings[i] == NULL)
			die("rte_ring_create: %s", rte_strerror(rte_errno));
	}
	for (int i = 0; i < 2; i++) {
		int port;

		snprintf(label, sizeof(label), "%s%c", name, 'a' + i);
		port = rte_eth_from_rings(label, &rings[i], 1, &rings[!i], 1, SOCKET_ID_ANY);
		if (port < 0)
			die("rte_eth_from_rings: %s", rte_strerror(rte_errno));
		ports[i] = port;
		start(ports[i], pool);
	}
}

static bool is_clean(const struct rte_mbuf *mbuf)
{
	return mbuf->next == NULL && mbuf->nb_segs == 1 && rte_mbuf_refcnt_read(mbuf) == 1
		&& mbuf->ol_flags == RTE_MBUF_F_EXTERNAL;
}

/* ---- part 1: DPDK's free list ---- */

struct order {
	unsigned in_order, addressed;
	ptrdiff_t strides[8];
	unsigned kinds;
};

static void visit(struct rte_mempool *pool, void *argument, void *object, unsigned number)
{
	struct order *order = argument;

	(void)pool;
	order->in_order += is_chunk(object) && index_of(object) == number;
	order->addressed += rte_mbuf_iova_get(object) == device_address(((struct rte_mbuf *)object)->buf_addr);
	mbuf_of[number] = object;
	if (number > 0) {
		ptrdiff_t stride = (uint8_t *)object - (uint8_t *)mbuf_of[number - 1];
		unsigned kind = 0;

		while (kind < order->kinds && order->strides[kind] != stride)
			kind++;
		if (kind == order->kinds && kind < RTE_DIM(order->strides))
			order->strides[order->kinds++] = stride;
	}
}

static void frames_pass(struct rte_mempool *pool, const uint16_t ports[2])
{
	struct rte_mbuf *sent[BURST], *received[BURST];
	const uint8_t *data[BURST];
	unsigned same = 0, in_place = 0, whole = 0;

	if (rte_pktmbuf_alloc_bulk(pool, sent, BURST) != 0)
		die("allocate");
	for (unsigned i = 0; i < BURST; i++) {
		uint16_t length = 60 + i * 46;

		sent[i]->data_off = HEADROOM;
		data[i] = (uint8_t *)rte_pktmbuf_append(sent[i], length);
		fill((uint8_t *)data[i], i, 0, length);
	}
	check(rte_eth_tx_burst(ports[0], 0, sent, BURST) == BURST, "ring device takes a burst of %u frames", BURST);
	check(rte_eth_rx_burst(ports[1], 0, received, BURST) == BURST, "the other ring device receives them");
	for (unsigned i = 0; i < BURST; i++) {
		const uint8_t *chunk = memory + (size_t)index_of(received[i]) * CHUNK;

		same += received[i] == sent[i];
		in_place += is_chunk(received[i]) && rte_pktmbuf_mtod(received[i], uint8_t *) == data[i]
			&& data[i] == chunk + HEADROOM;
		whole += intact(data[i], i, 0, 60 + i * 46);
	}
	check(same == BURST && in_place == BURST, "no copy: same mbufs, frames still at chunk + %u (%u of %u)", HEADROOM,
	      in_place, BURST);
	check(whole == BURST, "content intact (%u of %u)", whole, BURST);
	rte_pktmbuf_free_bulk(received, BURST);
}

/* A chain as Chain of pool.rs: the first chunk keeps its headroom, the others are filled from their first byte. */
static struct rte_mbuf *super_frame(struct rte_mbuf *const *parts, unsigned count)
{
	uint32_t from = 0;

	for (unsigned i = 0; i < count; i++) {
		uint32_t offset = i == 0 ? HEADROOM : 0, length = RTE_MIN(CHUNK - offset, SUPER_FRAME - from);

		parts[i]->data_off = offset;
		parts[i]->data_len = length;
		parts[i]->next = i + 1 < count ? parts[i + 1] : NULL;
		fill(rte_pktmbuf_mtod(parts[i], uint8_t *), 7, from, length);
		from += length;
	}
	parts[0]->nb_segs = count;
	parts[0]->pkt_len = from;
	return parts[0];
}

static bool super_frame_intact(const struct rte_mbuf *mbuf, unsigned *segments)
{
	uint32_t from = 0;
	bool whole = true;

	*segments = 0;
	for (; mbuf != NULL; mbuf = mbuf->next) {
		whole &= is_chunk(mbuf) && intact(rte_pktmbuf_mtod(mbuf, uint8_t *), 7, from, mbuf->data_len);
		from += mbuf->data_len;
		++*segments;
	}
	return whole && from == SUPER_FRAME;
}

static void super_frame_passes(struct rte_mempool *pool, const uint16_t ports[2])
{
	struct rte_mbuf *parts[SEGMENTS], *sent, *received;
	unsigned before = rte_mempool_avail_count(pool), segments;
	const char *reason = "";
	bool whole;

	if (rte_pktmbuf_alloc_bulk(pool, parts, SEGMENTS) != 0)
		die("allocate");
	sent = super_frame(parts, SEGMENTS);
	check(rte_mbuf_check(sent, 1, &reason) == 0, "a super-frame of %u bytes is a valid chain of mbufs%s", SUPER_FRAME,
	      reason);
	check(rte_eth_tx_burst(ports[0], 0, &sent, 1) == 1 && rte_eth_rx_burst(ports[1], 0, &received, 1) == 1,
	      "it passes the ring devices");
	whole = super_frame_intact(received, &segments);
	check(whole && segments == SEGMENTS, "it arrives whole in %u chunks", segments);
	rte_pktmbuf_free(received);
	check(rte_mempool_avail_count(pool) == before, "freeing the first mbuf frees the chain");
}

static void driver_allocates(struct rte_mempool *pool, uint16_t port)
{
	struct rte_mbuf *received[BURST];
	unsigned count = rte_eth_rx_burst(port, 0, received, BURST), ours = 0;

	for (unsigned i = 0; i < count; i++)
		ours += is_chunk(received[i]) && received[i]->data_off == RTE_PKTMBUF_HEADROOM;
	check(count == BURST && ours == BURST, "a driver that allocates by itself receives into our chunks, at chunk + %u",
	      RTE_PKTMBUF_HEADROOM);
	note("so a card may write %u bytes into a chunk", rte_pktmbuf_data_room_size(pool) - RTE_PKTMBUF_HEADROOM);
	rte_pktmbuf_free_bulk(received, count);
}

static void own_free_list(uint16_t null_port)
{
	struct rte_mempool *pool = create_pool("dpdk", 0);
	struct order order = {0};
	unsigned clean = 0;
	uint16_t ports[2];

	check(rte_pktmbuf_priv_flags(pool) & RTE_PKTMBUF_POOL_F_PINNED_EXT_BUF,
	      "mempool of pinned external buffers (%s) over %u chunks of %u", rte_mempool_get_ops(pool->ops_index)->name,
	      pool->size, CHUNK);
	rte_mempool_obj_iter(pool, visit, &order);
	check(order.in_order == CHUNKS, "mbuf number i has chunk i, from its first byte (%u of %u)", order.in_order, CHUNKS);
	check(order.addressed == CHUNKS, "every mbuf has its chunk's device address (%u of %u)", order.addressed, CHUNKS);
	note("distance between neighbouring mbufs: %td bytes, and %u other distances", order.strides[0], order.kinds - 1);
	note("an mbuf's header takes %u bytes beside the chunk",
	     (unsigned)(pool->header_size + pool->elt_size + pool->trailer_size));
	join("plain", pool, ports);
	frames_pass(pool, ports);
	super_frame_passes(pool, ports);
	start(null_port, pool);
	driver_allocates(pool, null_port);
	rte_eth_dev_stop(null_port);
	for (unsigned i = 0; i < CHUNKS; i++)
		clean += is_clean(mbuf_of[i]);
	check(rte_mempool_avail_count(pool) == CHUNKS && clean == CHUNKS,
	      "all %u chunks are free; a free mbuf has next NULL, 1 segment, 1 reference, flag EXTERNAL", CHUNKS);
}

/* ---- part 2: our free list under DPDK's mempool ---- */

static void shared_free_list(uint16_t null_port)
{
	struct rte_mbuf *received[BURST], *parts[SEGMENTS], *sent;
	struct rte_mempool *pool;
	uint16_t ports[2];
	uint32_t live;
	unsigned clean = 0, segments, count, at_place = 0;
	static bool seen[CHUNKS];
	bool whole;

	for (unsigned i = 0; i < CHUNKS; i++)
		give(i);
	live = take(); /* a packet that lives before DPDK is started */
	memset(mbuf_of, 0, sizeof(mbuf_of));
	if (rte_mbuf_set_user_mempool_ops("pollux") != 0)
		die("rte_mbuf_set_user_mempool_ops");
	pool = create_pool("pollux", 0);
	for (unsigned i = 0; i < CHUNKS; i++)
		at_place += index_of(mbuf_of[i]) == i && is_chunk(mbuf_of[i]);
	check(strcmp(rte_mempool_get_ops(pool->ops_index)->name, "pollux") == 0 && at_place == CHUNKS,
	      "a mempool handler over the pool's own free list; object i has chunk i (%u of %u)", at_place, CHUNKS);
	check(free_count == CHUNKS - 1 && rte_mempool_avail_count(pool) == CHUNKS - 1,
	      "populating the mempool frees nothing: a chunk in use stays in use");
	give(live);

	/* A driver's receive takes from our list; we drop the frames without calling DPDK. */
	start(null_port, pool);
	count = rte_eth_rx_burst(null_port, 0, received, BURST);
	check(count == BURST && free_count == CHUNKS - BURST, "a driver's receive takes its chunks from our list");
	for (unsigned i = 0; i < count; i++)
		give(index_of(received[i]));
	check(free_count == CHUNKS, "we return them by number, without a call of DPDK");
	count = rte_eth_rx_burst(null_port, 0, received, BURST);
	for (unsigned i = 0; i < count; i++)
		clean += is_clean(received[i]) && received[i]->data_off == RTE_PKTMBUF_HEADROOM;
	check(clean == BURST, "the driver gets them again, in order for use (%u of %u)", clean, BURST);
	rte_pktmbuf_free_bulk(received, count);
	check(free_count == CHUNKS, "what DPDK frees comes back to our list");

	/* Chunks that we took go out as a chain; whoever frees it after sending, they come back. */
	join("shared", pool, ports);
	for (unsigned i = 0; i < SEGMENTS; i++)
		parts[i] = mbuf_of[take()];
	sent = super_frame(parts, SEGMENTS);
	if (rte_eth_tx_burst(ports[0], 0, &sent, 1) != 1 || rte_eth_rx_burst(ports[1], 0, received, 1) != 1)
		die("send");
	whole = super_frame_intact(received[0], &segments);
	check(whole && segments == SEGMENTS && free_count == CHUNKS - SEGMENTS,
	      "%u chunks taken from our list pass as one chain", segments);
	rte_pktmbuf_free(received[0]);
	for (unsigned i = 0; i < free_count; i++)
		seen[free_list[i]] = true;
	clean = 0;
	for (unsigned i = 0; i < CHUNKS; i++)
		clean += seen[i] && is_clean(mbuf_of[i]);
	check(free_count == CHUNKS && clean == CHUNKS, "every chunk is on our list once, its mbuf clean");
	rte_eth_dev_stop(null_port);
}

int main(int count, char **arguments)
{
	enum pages pages = count > 1 && strcmp(arguments[1], "huge") == 0 ? HUGE : ORDINARY;
	char *ordinary[] = {"dpdk", "--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--iova-mode=va", "--no-telemetry",
			    "--log-level=error", "-l", "0", NULL};
	char *huge[] = {"dpdk", "-m", "64", "--no-pci", "--in-memory", "--no-telemetry", "--log-level=error", "-l", "0", NULL};
	size_t page = pages == HUGE ? HUGE_PAGE : 4096;
	uint16_t null_port;

	if (rte_eal_init(pages == HUGE ? (int)RTE_DIM(huge) - 1 : (int)RTE_DIM(ordinary) - 1,
			 pages == HUGE ? huge : ordinary) < 0)
		die("rte_eal_init: %s", rte_strerror(rte_errno));
	memory = map_pool(BYTES, pages);
	printf("-- %s, %s pages, IOVA mode %s\n", rte_version(), pages == HUGE ? "huge" : "ordinary",
	       rte_eal_iova_mode() == RTE_IOVA_VA ? "VA" : "PA");
	check((uintptr_t)memory % HUGE_PAGE == 0, "the mapping of %u chunks is aligned to 2 MiB", CHUNKS);
	check(rte_extmem_register(memory, BYTES, NULL, 0, page) == 0, "rte_extmem_register with pages of %zu bytes", page);
	if (rte_vdev_init("net_null0", "size=64,copy=1") != 0 || rte_eth_dev_get_port_by_name("net_null0", &null_port) != 0)
		die("make a null device: %s", rte_strerror(rte_errno));
	own_free_list(null_port);
	shared_free_list(null_port);
	return summary("dpdk");
}
