/* See shim.h. */
#include "shim.h"

#include <stdio.h>
#include <unistd.h>

int shim_errno(void)
{
	return rte_errno;
}

uint16_t shim_eth_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_rx_burst(port, queue, mbufs, count);
}

uint16_t shim_eth_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, mbufs, count);
}

uint16_t shim_eth_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_prepare(port, queue, mbufs, count);
}

void shim_pktmbuf_free(struct rte_mbuf *mbuf)
{
	rte_pktmbuf_free(mbuf);
}

int shim_ring_dequeue(struct rte_ring *ring, void **object)
{
	return rte_ring_dequeue(ring, object);
}

int shim_eth_link(uint16_t port, uint32_t *megabits)
{
	struct rte_eth_link link = {0};
	int result = rte_eth_link_get_nowait(port, &link);

	*megabits = link.link_speed;
	return result < 0 ? result : link.link_status == RTE_ETH_LINK_UP;
}

int shim_log_to(int descriptor)
{
	/* Made once and never closed: another thread of DPDK may be writing. */
	static FILE *file;

	if (file == NULL) {
		int own = dup(descriptor);

		file = own < 0 ? NULL : fdopen(own, "a");
		if (file == NULL) {
			if (own >= 0)
				close(own);
			return -1;
		}
		setvbuf(file, NULL, _IONBF, 0);
	}
	return rte_openlog_stream(file);
}

void shim_log_restore(void)
{
	rte_openlog_stream(NULL);
}
