#!/usr/bin/env bash
# Installs what a make target needs and the machine lacks: Debian's packages through apt (through sudo when
# not root), Rust's components through rustup. Touches nothing, and no network, when nothing is missing.
#
#   scripts/setup.sh demo|steer|test|soak|bench|lint
#
# Ends with 4, and says what to install by hand, when it can not install it.
set -euo pipefail

target=${1:-}
# Debian leaves the administrator's commands out of an ordinary user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# Each line: a command that must be there, and the packages that bring it. Instead of a command: a path (a pattern) that
# must match a file, or pkg:NAME, what pkg-config must know.
compiler=("cc gcc libc6-dev")
namespaces=("ip iproute2")
# What feature dpdk is built with: DPDK and its drivers, and clang's library for its headers.
dpdk=("pkg-config pkg-config" "pkg:libdpdk libdpdk-dev" "/usr/lib/llvm-*/lib/libclang*.so* libclang-dev")
case $target in
demo) needs=("${compiler[@]}" "${namespaces[@]}") ;;
steer) needs=("clang clang") ;;
test)
	needs=("${compiler[@]}" "${namespaces[@]}" "${dpdk[@]}" "iptables-restore iptables" "conntrack conntrack" "valgrind valgrind"
		"tcpdump tcpdump")
	# Compiles the steering program anew, to compare it with the object that is kept.
	needs+=("clang clang")
	# The programs of control/tests/programs.rs.
	needs+=("curl curl" "nginx nginx" "iperf3 iperf3" "dig bind9-dnsutils" "dnsmasq dnsmasq-base" "openssl openssl"
		"ping iputils-ping" "tracepath iputils-tracepath" "traceroute traceroute" "wrk wrk")
	;;
soak) needs=("${compiler[@]}" "${namespaces[@]}" "ping iputils-ping" "jq jq") ;;
bench) needs=("${compiler[@]}" "valgrind valgrind") ;;
lint) needs=("${compiler[@]}" "${dpdk[@]}") ;;
*)
	echo "usage: scripts/setup.sh demo|steer|test|soak|bench|lint" >&2
	exit 2
	;;
esac

# Packages whose daemon is to run in the tests' namespaces only, and its service.
daemons=("nginx nginx.service")

lacks() { # what is lacking, what to do
	echo "setup: make $target lacks $1. $2" >&2
	exit 4
}

is_there() { # what a line begins with
	case $1 in
	pkg:*) pkg-config --exists "${1#pkg:}" 2>/dev/null ;;
	/*) compgen -G "$1" >/dev/null ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

if ! command -v cargo >/dev/null; then
	lacks "Rust (cargo)" "Install it from https://rustup.rs or, on Ubuntu 24.04, with: apt install rustup"
fi

packages=()
for need in "${needs[@]}"; do
	read -r command rest <<<"$need"
	if ! is_there "$command"; then
		read -ra more <<<"$rest"
		packages+=("${more[@]}")
	fi
done

if ((${#packages[@]} > 0)); then
	by_hand="Install by hand: ${packages[*]}"
	command -v apt-get >/dev/null || lacks "${packages[*]}, and there is no apt" "$by_hand"
	as_root=()
	if [[ $(id -u) != 0 ]]; then
		command -v sudo >/dev/null || lacks "${packages[*]}, and you are neither root nor have sudo" "$by_hand"
		as_root=(sudo)
		# Nobody is there to type a password.
		[[ -t 0 ]] || as_root+=(-n)
	fi
	# Debian's packages start their daemons, unless this file says no; and again when the machine starts.
	policy=/usr/sbin/policy-rc.d
	quietly() {
		[[ -e $policy ]] && return
		trap '"${as_root[@]}" rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
		"${as_root[@]}" chmod 755 "$policy"
	}
	stay_off() {
		local daemon package service
		for daemon in "${daemons[@]}"; do
			read -r package service <<<"$daemon"
			if [[ -d /run/systemd/system && " ${packages[*]} " == *" $package "* ]]; then
				"${as_root[@]}" systemctl --quiet disable --now "$service"
			fi
		done
	}
	apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >/dev/null; }
	echo "setup: installing ${packages[*]}" >&2
	apt update || echo "setup: apt-get update failed; trying with the lists as they are" >&2
	quietly
	apt install -y --no-install-recommends "${packages[@]}" || lacks "${packages[*]}, and apt-get failed" "$by_hand"
	stay_off
	for need in "${needs[@]}"; do
		read -r command _ <<<"$need"
		is_there "$command" || lacks "$command, although its package is installed" "$by_hand"
	done
	echo "setup: installed ${packages[*]} (for make $target)" >&2
fi

if [[ $target == lint ]]; then
	components=()
	cargo fmt --version >/dev/null 2>&1 || components+=(rustfmt)
	cargo clippy --version >/dev/null 2>&1 || components+=(clippy)
	if ((${#components[@]} > 0)); then
		by_hand="Install by hand: ${components[*]}"
		command -v rustup >/dev/null || lacks "${components[*]}, and there is no rustup" "$by_hand"
		rustup component add "${components[@]}" || lacks "${components[*]}, and rustup failed" "$by_hand"
		echo "setup: installed ${components[*]} (for make lint)" >&2
	fi
fi
