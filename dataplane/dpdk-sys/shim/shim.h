/*
 * What of DPDK is a macro or a static inline function, and so is no symbol that could be linked: as functions
 * and constants with names of their own. `shim_x` does what `rte_x` does and no more.
 *
 * Nothing here depends on one version's layout: offsets of fields are computed by the compiler from the
 * installed headers. Checked with 22.11; what later long-term releases renamed is told apart below.
 */
#ifndef POLLUX_SHIM_H
#define POLLUX_SHIM_H

#include <stddef.h>
#include <stdint.h>

#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mbuf_pool_ops.h>
#include <rte_memory.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_version.h>

/* ---- fields of a struct rte_mbuf, bytes from its start ---- */

static const size_t SHIM_MBUF_BUF_ADDR = offsetof(struct rte_mbuf, buf_addr);
static const size_t SHIM_MBUF_DATA_OFF = offsetof(struct rte_mbuf, data_off);
static const size_t SHIM_MBUF_NB_SEGS = offsetof(struct rte_mbuf, nb_segs);
static const size_t SHIM_MBUF_OL_FLAGS = offsetof(struct rte_mbuf, ol_flags);
static const size_t SHIM_MBUF_PKT_LEN = offsetof(struct rte_mbuf, pkt_len);
static const size_t SHIM_MBUF_DATA_LEN = offsetof(struct rte_mbuf, data_len);
static const size_t SHIM_MBUF_POOL = offsetof(struct rte_mbuf, pool);
static const size_t SHIM_MBUF_NEXT = offsetof(struct rte_mbuf, next);
static const size_t SHIM_MBUF_TX_OFFLOAD = offsetof(struct rte_mbuf, tx_offload);

/* Where tx_offload keeps its numbers, bits from its lowest. */
static const uint32_t SHIM_TX_L3_LEN_SHIFT = RTE_MBUF_L2_LEN_BITS;
static const uint32_t SHIM_TX_L4_LEN_SHIFT = RTE_MBUF_L2_LEN_BITS + RTE_MBUF_L3_LEN_BITS;
static const uint32_t SHIM_TX_TSO_SEGSZ_SHIFT = RTE_MBUF_L2_LEN_BITS + RTE_MBUF_L3_LEN_BITS + RTE_MBUF_L4_LEN_BITS;

static const size_t SHIM_MEMPOOL_POOL_DATA = offsetof(struct rte_mempool, pool_data);

/* ---- flags of an mbuf ---- */

static const uint64_t SHIM_F_EXTERNAL = RTE_MBUF_F_EXTERNAL;
static const uint64_t SHIM_F_RX_L4_CKSUM_MASK = RTE_MBUF_F_RX_L4_CKSUM_MASK;
static const uint64_t SHIM_F_RX_L4_CKSUM_GOOD = RTE_MBUF_F_RX_L4_CKSUM_GOOD;
static const uint64_t SHIM_F_TX_IPV4 = RTE_MBUF_F_TX_IPV4;
static const uint64_t SHIM_F_TX_IPV6 = RTE_MBUF_F_TX_IPV6;
static const uint64_t SHIM_F_TX_IP_CKSUM = RTE_MBUF_F_TX_IP_CKSUM;
static const uint64_t SHIM_F_TX_TCP_CKSUM = RTE_MBUF_F_TX_TCP_CKSUM;
static const uint64_t SHIM_F_TX_UDP_CKSUM = RTE_MBUF_F_TX_UDP_CKSUM;
static const uint64_t SHIM_F_TX_TCP_SEG = RTE_MBUF_F_TX_TCP_SEG;

/* ---- what a device can ---- */

static const uint64_t SHIM_RX_UDP_CKSUM = RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
static const uint64_t SHIM_RX_TCP_CKSUM = RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
static const uint64_t SHIM_RX_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
static const uint64_t SHIM_TX_IPV4_CKSUM = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
static const uint64_t SHIM_TX_UDP_CKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
static const uint64_t SHIM_TX_TCP_CKSUM = RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
static const uint64_t SHIM_TX_TCP_TSO = RTE_ETH_TX_OFFLOAD_TCP_TSO;
static const uint64_t SHIM_TX_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
/* Addresses, and ports where there are any. */
static const uint64_t SHIM_RSS_ADDRESSES_AND_PORTS = RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP | RTE_ETH_RSS_SCTP;

static const uint32_t SHIM_PKTMBUF_HEADROOM = RTE_PKTMBUF_HEADROOM;
static const uint32_t SHIM_MBUF_BYTES = sizeof(struct rte_mbuf);

/* ---- functions ---- */

/* The error of this thread's last call: rte_errno. */
int shim_errno(void);

uint16_t shim_eth_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
uint16_t shim_eth_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
uint16_t shim_eth_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
void shim_pktmbuf_free(struct rte_mbuf *mbuf);
int shim_ring_dequeue(struct rte_ring *ring, void **object);

/* Whether the link is up, and its speed in Mbit/s (UINT32_MAX: unknown). Negative: an error number. */
int shim_eth_link(uint16_t port, uint32_t *megabits);

/*
 * What DPDK says goes to this descriptor from now on, unbuffered; the descriptor stays the caller's. The one of the
 * first call is used by all. Not to be called by two threads at once. -1: errno.
 */
int shim_log_to(int descriptor);
/* ... and to standard error and the system's log again. */
void shim_log_restore(void);

#endif
