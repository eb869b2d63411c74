# Everything a newcomer needs: `make demo` shows it, `make test` checks it, both set themselves up.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# What each Debian package is for is in docs/dependencies.md.
PACKAGES := python3-venv iproute2 nftables iputils-ping tcpdump procps wireguard-go wireguard-tools
# A router's and a TURN server's daemons and firewalls, which tests start by themselves; as services they stay off.
TEST_PACKAGES := miniupnpd miniupnpd-nftables coturn microsocks dnsmasq-base bind9-dnsutils dbus-daemon systemd \
	ufw firewalld iptables busybox-static
# The kernel's package has another name on Ubuntu.
KERNEL_PACKAGES := binutils file qemu-system-x86 busybox-static kmod \
	$(shell . /etc/os-release 2>/dev/null; [ "$$ID" = ubuntu ] && echo linux-image-generic || echo linux-image-amd64)
ONLY ?=
# Most of the time of these is waiting. Tests that share a lab stay together (tests/conftest.py).
PARALLEL := -n 4 --dist loadfile

.PHONY: help setup packages test-packages package package-test package-boot mint demo demo-market test check unit sim sim-long contract lab test-kernel bench matrix fmt clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: packages $(STAMP) ## system packages and the command at .venv/bin/nostrvpn

packages:
	@packaging/install-packages $(PACKAGES)

test-packages:
	@packaging/install-packages --without-services $(TEST_PACKAGES)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: setup ## two laptops behind two NATs meet: the whole product in a minute
	@$(BIN)/nostrvpn lab demo

demo-market: setup mint ## an exit is sold and bought by the megabyte, with a mint, and all books agree
	@$(BIN)/nostrvpn lab market

test: setup test-packages check unit sim contract lab test-kernel ## everything, in about 26 minutes

check: setup ## style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup ## pure tests, one process
	$(BIN)/pytest -q -n 2 tests/unit

sim: setup ## whole nodes and paths in virtual time
	$(BIN)/pytest -q -n 2 tests/sim

sim-long: setup ## days of big meshes in virtual time, in some minutes: loss, roaming, relays that die
	$(BIN)/python -m tests.sim.big_network --seeds 100 --first 201 --nodes 24 --hours 6
	$(BIN)/python -m tests.sim.big_network --seeds 3 --nodes 200
	$(BIN)/python -m tests.sim.market_day --buyers 1000 --sellers 100 --hours 24

mint: ## a Cashu mint for the tests, in build/mint
	@packaging/install-mint

contract: setup test-packages mint ## one suite against each real implementation
	$(BIN)/pytest -q $(PARALLEL) --reruns 1 -raR tests/contract

lab: setup test-packages mint ## real daemons in network namespaces
	$(BIN)/pytest -q $(PARALLEL) --reruns 1 -raR tests/lab

matrix: setup ## every kind of network meets every other: writes docs/matrix.md
	@mkdir -p build
	$(BIN)/nostrvpn lab matrix > build/matrix.md
	mv build/matrix.md docs/matrix.md

test-kernel: setup ## the kernel's own WireGuard: this machine's, or a booted kernel's
	@! $(BIN)/python tests/kernel/boot.py --needed || packaging/install-packages $(KERNEL_PACKAGES) || true
	$(BIN)/python tests/kernel/boot.py

package: ## dist/nostrvpn_VERSION_ARCH.deb for this Debian release
	@packaging/install-packages python3-venv
	packaging/debian/build

package-test: package ## install, upgrade, remove and purge it, in a Debian of its own
	@packaging/install-packages debootstrap iproute2
	tests/package/run "$$(ls -t dist/nostrvpn_*.deb | head -n 1)"

package-boot: package ## the same under systemd, in a booted machine (minutes of emulation)
	@packaging/install-packages debootstrap iproute2 e2fsprogs tcpdump $(KERNEL_PACKAGES)
	tests/package/boot "$$(ls -t dist/nostrvpn_*.deb | head -n 1)"

bench: setup mint ## measure; ONLY=connect for one part; JSON in build/bench/
	$(BIN)/python -m tests.bench.run $(ONLY)

fmt: setup ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built
	rm -rf $(VENV) build dist *.egg-info
