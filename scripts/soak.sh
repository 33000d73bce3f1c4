#!/usr/bin/env bash
# Long runs at scale. Each part is a function that fails when what it promises does not hold; all of them run,
# and the last line says how many passed.
#
#   scripts/soak.sh FOLDER [PART...]      FOLDER has the release binaries
set -euo pipefail

binaries=${1:?usage: scripts/soak.sh FOLDER [PART...]}
shift
all=(scale traffic twins)
parts=("$@")
((${#parts[@]} > 0)) || parts=("${all[@]}")

# 1 million connections of IPv4 in 256 MiB, made, listed, expired and made again with exact counts (the command
# itself fails when one is lost); expiry at most 1 s late; the longest poll is printed.
scale() {
	local report
	report=$("$binaries/pollux-bench" conntrack --connections 1000000 --json) || return 1
	echo "$report"
	jq --exit-status '.bytes_per_connection * .connections <= 256 * 1024 * 1024 and .expiry_lag_ms <= 1000' \
		<<<"$report" >/dev/null || {
		echo "soak: more than 256 MiB, or expiry more than 1 s late" >&2
		return 1
	}
	jq --raw-output '"longest poll: \(.longest_poll_us) us of processor time"' <<<"$report"
}

# Real connections under a flood of SYNs, and transfers over bad wires (control/tests/soak). Needs root.
traffic() {
	# Each of 10,000 connections takes a descriptor.
	ulimit -n "$(ulimit -Hn)" || return 1
	"${CARGO:-cargo}" test --locked --package pollux-control --test soak -- --nocapture
}

# The kernel as judge of Pollux over AF_XDP: the folders of the corpus that make test leaves out. Needs root.
twins() {
	"${CARGO:-cargo}" test --locked --package pollux-control --test twins -- --ignored af_xdp
}

echo "soak: $(date -u +%Y-%m-%d), $(nproc) processors, $(uname -sr), load $(cut -d' ' -f1 /proc/loadavg)"
failed=0
for part in "${parts[@]}"; do
	echo "soak: $part"
	if "$part"; then
		echo "soak: $part passed"
	else
		echo "soak: $part FAILED" >&2
		failed=$((failed + 1))
	fi
done
echo "$((${#parts[@]} - failed)) passed, $failed failed"
((failed == 0))
