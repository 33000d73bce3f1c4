#!/usr/bin/env bash
# Proves that the pool's memory can be given to DPDK and to AF_XDP, and that a super-frame fits it as a
# chain of chunks. Prints PASS and FAIL lines; ends with 0 when all passed. Needs root, a C compiler and
# apt (for DPDK's headers). What was seen is kept in docs/pool.md.
#
#   run.sh [dpdk|af_xdp]
set -euo pipefail
cd "$(dirname "$0")"

which=${1:-all}
if [[ $(id -u) != 0 ]]; then
	echo "run.sh: the proofs make network namespaces and load XDP programs: run it as root" >&2
	exit 4
fi
if [[ $which != af_xdp ]] && ! pkg-config --exists libdpdk 2>/dev/null; then
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libdpdk-dev pkg-config >/dev/null
fi
command -v ip >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq iproute2 >/dev/null

build=$(mktemp -d)
pages=/proc/sys/vm/nr_hugepages
pages_before=$(cat "$pages" 2>/dev/null || echo 0)
restore() {
	rm -rf "$build"
	[[ ! -w $pages ]] || echo "$pages_before" >"$pages"
}
trap restore EXIT

flags=(-std=gnu11 -O2 -g -Wall -Wextra -Werror)
status=0

# The kinds of pages that this machine gives: 8 MiB for the pool and 64 MiB for DPDK's own needs.
kinds=(ordinary)
if [[ -w $pages ]] && echo $((pages_before + 48)) >"$pages" && [[ $(cat "$pages") -ge $((pages_before + 48)) ]]; then
	kinds+=(huge)
else
	echo "NOTE no huge pages to be had: proved with ordinary pages only"
fi

if [[ $which != dpdk ]]; then
	cc "${flags[@]}" af_xdp.c -o "$build/af_xdp"
	for kind in "${kinds[@]}"; do
		"$build/af_xdp" "$kind" || status=1
	done
fi
if [[ $which != af_xdp ]]; then
	# shellcheck disable=SC2046 # pkg-config prints several words
	cc "${flags[@]}" -DALLOW_EXPERIMENTAL_API $(pkg-config --cflags libdpdk) dpdk.c -o "$build/dpdk" \
		$(pkg-config --libs libdpdk) -lrte_net_ring -lrte_net_null -lrte_bus_vdev
	for kind in "${kinds[@]}"; do
		"$build/dpdk" "$kind" || status=1
	done
fi
exit "$status"
