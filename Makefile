# The ways to use this repository. Each target first installs what it needs and the machine lacks
# (scripts/setup.sh) and says what it installed.

CARGO ?= cargo
# Debian leaves the administrator's commands (ip, iptables) out of an ordinary user's PATH.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
target := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo demo-xdp steer test model soak bench instructions lint

help:
	@echo 'make demo          build Pollux and watch connections go through a ClusterIP'
	@echo 'make demo-xdp      the same with the ports of that node on AF_XDP; as root'
	@echo 'make     the same with the ports of that node on DPDK'
	@echo 'make test          all tests, then the guard over instruction counts'
	@echo 'make model         the flow table under the model checker alone (part of make test)'
	@echo 'make soak          long runs at scale, each part of scripts/soak.sh'
	@echo 'make bench         benchmarks: time for each packet, then instruction counts'
	@echo 'make instructions  the guard over instruction counts alone'
	@echo 'make steer         compile the steering program of AF_XDP ports anew'
	@echo 'make lint          formatting, clippy, documentation, licences: no warning passes'

demo:
	@scripts/setup.sh demo
	$(CARGO) build --locked --release --package pollux-control --bin pollux
	$(target)/release/pollux demo

demo-xdp:
	@scripts/setup.sh demo
	$(CARGO) build --locked --release --package pollux-control --bin pollux
	$(target)/release/pollux demo --backend af_xdp

# The steering program of AF_XDP ports. Its object is kept beside it; a test compares them.
steer:
	@scripts/setup.sh steer
	cd dataplane/src/port/af_xdp && clang -target bpf -mcpu=v2 -O2 -Wall -Wextra -Werror -c steer.c -o steer.o

test:
	@scripts/setup.sh test
	$(CARGO) test --locked --workspace --features dpdk
	$(CARGO) test --locked --package pollux-dataplane --features model --test model -- --test-threads 2
	$(CARGO) bench --locked --package pollux-bench --bench instructions

model:
	@scripts/setup.sh test
	$(CARGO) test --locked --package pollux-dataplane --features model --test model -- --nocapture --test-threads 2

soak:
	@scripts/setup.sh soak
	$(CARGO) build --locked --release --package pollux-bench --bin pollux-bench
	@scripts/soak.sh $(target)/release

bench:
	@scripts/setup.sh bench
	$(CARGO) bench --locked --package pollux-bench --features control

instructions:
	@scripts/setup.sh bench
	$(CARGO) bench --locked --package pollux-bench --bench instructions

lint:
	@scripts/setup.sh lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --features dpdk -- -D warnings
	$(CARGO) clippy --locked --package pollux-dataplane --features model --test model -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --features dpdk --no-deps --document-private-items
	@if command -v cargo-deny >/dev/null; then \
		$(CARGO) deny --workspace check bans licenses sources; \
	else \
		echo 'lint: licences and sources not checked: cargo install --locked cargo-deny'; \
	fi
