#!/usr/bin/env bash
# Long runs at scale. Each part is a function that fails when what it promises does not hold; all of them run,
# and the last line says how many passed.
#
#   scripts/soak.sh [PART...]
set -euo pipefail

all=(traffic)
parts=("$@")
((${#parts[@]} > 0)) || parts=("${all[@]}")

# Real connections under a flood of SYNs, and transfers over bad wires (control/tests/soak). Needs root.
traffic() {
	# Each of 10,000 connections takes a descriptor.
	ulimit -n "$(ulimit -Hn)" || return 1
	"${CARGO:-cargo}" test --locked --package pollux-control --test soak -- --nocapture
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
