#!/usr/bin/env bash
# Installs what a make target needs and the machine lacks: Debian's packages through apt (through sudo when
# not root), Rust's components through rustup. Touches nothing, and no network, when nothing is missing.
#
#   scripts/setup.sh demo|test|bench|lint
#
# Ends with 4, and says what to install by hand, when it can not install it.
set -euo pipefail

target=${1:-}
# Debian leaves the administrator's commands out of an ordinary user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# Each line: a command that must be there, and the packages that bring it.
compiler=("cc gcc libc6-dev")
namespaces=("ip iproute2")
case $target in
demo) needs=("${compiler[@]}" "${namespaces[@]}") ;;
test) needs=("${compiler[@]}" "${namespaces[@]}" "iptables-restore iptables" "conntrack conntrack" "valgrind valgrind") ;;
bench) needs=("${compiler[@]}" "valgrind valgrind") ;;
lint) needs=("${compiler[@]}") ;;
*)
	echo "usage: scripts/setup.sh demo|test|bench|lint" >&2
	exit 2
	;;
esac

lacks() { # what is lacking, what to do
	echo "setup: make $target lacks $1. $2" >&2
	exit 4
}

if ! command -v cargo >/dev/null; then
	lacks "Rust (cargo)" "Install it from https://rustup.rs or, on Ubuntu 24.04, with: apt install rustup"
fi

packages=()
for need in "${needs[@]}"; do
	read -r command rest <<<"$need"
	if ! command -v "$command" >/dev/null; then
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
	apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >/dev/null; }
	echo "setup: installing ${packages[*]}" >&2
	apt update || echo "setup: apt-get update failed; trying with the lists as they are" >&2
	apt install -y --no-install-recommends "${packages[@]}" || lacks "${packages[*]}, and apt-get failed" "$by_hand"
	for need in "${needs[@]}"; do
		read -r command _ <<<"$need"
		command -v "$command" >/dev/null || lacks "the command $command, although its package is installed" "$by_hand"
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
