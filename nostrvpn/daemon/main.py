"""From options to a running daemon: compose the parts, run, take everything down in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from contextlib import AsyncExitStack, suppress
from functools import partial
from ipaddress import ip_address

from nostrvpn.config.addresses import check_proxy_url
from nostrvpn.config.model import Config, Permissions, Relay
from nostrvpn.config.options import JOIN_VARIABLE, Options
from nostrvpn.control.server import ControlServer
from nostrvpn.daemon.boot_guard import PRECIOUS_SPACES, SECRET_SPACES, doubt_exit
from nostrvpn.daemon.guest_meter import GuestMeter
from nostrvpn.daemon.host_watch import HostWatch
from nostrvpn.daemon.loop import Loop, moment
from nostrvpn.daemon.market_parts import Host
from nostrvpn.daemon.market_service import MarketService
from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.daemon.services import Services
from nostrvpn.daemon.sleepers import Sleepers
from nostrvpn.endpoint import parse_endpoint
from nostrvpn.errors import NostrvpnError, SystemRefused
from nostrvpn.host.state import ALIAS_MARK, MAX_ALIAS
from nostrvpn.identity.keys import RootSecret
from nostrvpn.io.config_file import load_config
from nostrvpn.io.durable_file import make_private_directory
from nostrvpn.io.identity_file import load_identity
from nostrvpn.io.lock import StateLock
from nostrvpn.io.logs import start_logging
from nostrvpn.io.netlink import main_routes
from nostrvpn.io.privilege import account_of, become
from nostrvpn.io.runtime_directory import give_runtime_directory
from nostrvpn.io.service_manager import notify
from nostrvpn.io.store import Record, Store
from nostrvpn.io.wireguard import Backend, select_backend
from nostrvpn.io.wireguard_claim import require_no_other_node
from nostrvpn.mesh.joining import parse_any_link
from nostrvpn.mesh.policy import LocalPolicy
from nostrvpn.node.desired import TunnelSettings
from nostrvpn.node.node import Node, NodeSettings
from nostrvpn.node.relaying import RelayRole
from nostrvpn.paths.hard_nat.search import SOURCE_PORTS
from nostrvpn.paths.settings import PathSettings
from nostrvpn.wireguard.device import SecretKey

__all__ = ["run"]

SPACES = ("meta", "network", "policy", "invite", "join", "peer", "session", "keys")
# Ports below are registered for services, above are the kernel's own ephemeral range (32768+ by
# default) which other programs draw from.
PORT_RANGE = (20_000, 32_000)

_log = logging.getLogger(__name__)


def run(options: Options) -> int:
    """Run the daemon in the foreground until it is stopped; return the exit code.

    NostrvpnError says why it could not start.
    """
    account = account_of(options.home) if os.geteuid() == 0 else None
    if account is not None:
        give_runtime_directory(options.runtime_dir, account)
        become(account)
    config = load_config(options.config, options.overlay)
    start_logging(config.log_level, options.log_file)
    # A relay's ports and its clients' connections need more than the usual 1024.
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != most:  # a service may not change what it may use
        # The kernel's own limit (fs.nr_open) may be below.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    lock = StateLock(options.lock_path)
    lock.acquire()
    try:
        restarts = asyncio.run(_run(options, config))
    finally:
        lock.release()
    if restarts:
        # The same process by the same words, so a service manager sees no difference.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return 0


async def _run(options: Options, config: Config) -> bool:
    """Run until it is stopped; return whether it is to begin anew."""
    running = asyncio.get_running_loop()
    asked: list[str] = []
    loop: Loop | None = None
    async with AsyncExitStack() as stack:
        composing = running.create_task(_compose(options, config, stack))

        def stop(name: str) -> None:
            # A signal may come between the end of the task and our hearing of it.
            asked.append(name)
            if loop is not None:
                loop.stop(name)
            elif not composing.done():
                composing.cancel()

        # From the start: what is made until then must be taken down too.
        for number in (signal.SIGTERM, signal.SIGINT):
            running.add_signal_handler(number, stop, signal.Signals(number).name)
        try:
            loop = await composing
        except asyncio.CancelledError:
            if not asked:
                raise
            _log.info("stopping before it was up: %s", asked[0])
            return False
        if asked:
            loop.stop(asked[0])
        notify("READY=1")
        # What stands now stays: no collection need look at it again.
        gc.collect()
        gc.freeze()
        gc.enable()
        link = os.environ.pop(JOIN_VARIABLE, "").strip()  # gone before a restart
        joining = running.create_task(_join(loop, link)) if link else None
        await loop.run()
        if joining is not None:
            joining.cancel()
        if asked or not loop.restarts:
            notify("STOPPING=1")  # or a service manager ends what begins anew
    _log.info("stopped")
    return loop.restarts and not asked


async def _join(loop: Loop, link: str) -> None:
    """Join by a link from the environment, unless this is that network; the log says what came of it."""
    try:
        document = await loop.call("network", {}, True)
        wanted = parse_any_link(link).network_id
        if isinstance(document, dict) and document["id"] == wanted and document["role"]:
            _log.info("a member already of the network that %s names", JOIN_VARIABLE)
            return
        answer = await loop.call("join", {"link": link}, True)
        _log.info("joining by %s: %s", JOIN_VARIABLE, answer)
    except NostrvpnError as exc:
        _log.warning("joining by %s: %s", JOIN_VARIABLE, exc)


def _policy(said: Permissions) -> LocalPolicy:
    """Return what the configuration says; "network" leaves it to the roster."""
    inbound = None if said.inbound == "network" else said.inbound
    return LocalPolicy(
        inbound=inbound, same_owner=said.same_owner if said.same_owner != "network" else None
    )


async def _compose(options: Options, config: Config, stack: AsyncExitStack) -> Loop:
    secret = load_identity(options.state_dir, os.environ)
    store = _open_store(options, stack)
    _forget_other_identity(store, secret.public_key)
    backend: Backend = select_backend(config.wireguard.backend)
    epoch = _stored_epoch(store)
    tunnel = _tunnel(options, config, SecretKey(secret.wireguard_private_key(epoch)), store)
    interface, port = tunnel.interface, tunnel.listen_port
    sleepers = Sleepers(port)
    stack.callback(sleepers.close)
    settings = NodeSettings(
        secret,
        options.name or config.name or socket.gethostname(),
        tunnel,
        options.relay_urls(config),
        config.relays.active,
        config.stun,
        _path_settings(config, may_sleep=sleepers.is_open),
        _relay_role(secret, options.relay_settings(config), port),
        config.relay.volunteers,
        _policy(config.permissions),
        is_proxied=bool(config.proxy),
        epoch=epoch,
    )
    node = Node(settings, {space: store.all(space) for space in SPACES}, backend.name)
    if store.restored:
        node.notes.append(("state_restored", store.restored))
    reconciler = await _claim(options, config, backend, stack)
    loop = Loop(node, store, reconciler, interface=interface, port=port)
    if config.proxy:
        from nostrvpn.io.proxy import SocksProxy  # most nodes need none

        loop.sockets.proxy = SocksProxy(*check_proxy_url(config.proxy))
    loop.sleepers = sleepers
    sleepers.serve(node, loop.offer)
    node.adopt(await reconciler.observe())
    await _reconcile_first(node, reconciler, interface)
    _open_tap(loop, node)
    if config.paths.hard_nat_search:
        loop.tap.listen_on(SOURCE_PORTS)
    stack.callback(loop.tap.close)
    loop.services = services = Services(node, config, loop.deliver)
    services.names.changed = loop.reconcile_soon
    if settings.relay is not None:
        _lend(services, settings.relay, options.relay_settings(config), store, loop)
    stack.push_async_callback(services.stop)
    await services.start(interface)
    loop.guests = GuestMeter(node, interface, backend, reconciler.run, loop.offer)
    loop.supervisor.start("guests", loop.guests.read_forever())
    await _open_market(options, config, loop, node, reconciler, stack)
    watch = HostWatch(loop, reconciler, interface)
    watch.must_know_network = lambda: bool(node.exits.settings.trusted)
    await watch.start()
    stack.callback(watch.stop)
    control = ControlServer(options.control_socket, loop.call)
    await control.start()
    stack.push_async_callback(control.stop)
    _log.info("%s is up: %s backend, port %d, %s", interface, backend.name, port, secret.npub)
    return loop


async def _open_market(
    options: Options,
    config: Config,
    loop: Loop,
    node: Node,
    reconciler: Reconciler,
    stack: AsyncExitStack,
) -> None:
    assert loop.services is not None
    host = Host(
        node,
        options.interface_name(config),
        config,
        node.settings.secret,
        reconciler,
        loop.services.names,
        loop.deliver,
        loop.reconcile_soon,
        loop.applied,
        moment,
    )
    loop.market = MarketService(host, options, loop.call, loop.sockets.proxy)
    stack.push_async_callback(loop.market.stop)
    await loop.market.start()


async def _claim(
    options: Options, config: Config, backend: Backend, stack: AsyncExitStack
) -> Reconciler:
    """Return the interface's single writer; SystemRefused if another node lives there."""
    interface, must_filter = options.interface_name(config), config.permissions.enforce == "require"
    mtu, home = config.wireguard.mtu, options.home
    reconciler = Reconciler(backend, interface, mtu, must_filter=must_filter, home=home)
    stack.callback(reconciler.close)
    # Before anything is made, or taken down at the end.
    await reconciler.run(partial(require_no_other_node, interface, options.home))
    stack.push_async_callback(reconciler.delete)
    return reconciler


def _open_store(options: Options, stack: AsyncExitStack) -> Store:
    make_private_directory(options.home)
    store = Store.open(
        options.store_path, backup_spaces=PRECIOUS_SPACES, secret_spaces=SECRET_SPACES
    )
    stack.callback(store.close)
    doubt_exit(store)
    return store


async def _reconcile_first(node: Node, reconciler: Reconciler, interface: str) -> None:
    """Bring the kernel to what the node wants, but for what somebody else has; SystemRefused."""
    for is_last in (False, True):
        node.routes = await reconciler.run(partial(main_routes, interface))
        # What an earlier run routed into the tunnel must not leave by another way meanwhile, nor what
        # it let in be kept out.
        present = moment()
        node.subnets.review(node, present)
        node.exits.review(node, present)
        node.permissions.tell_time(present)
        wanted = node.desired(present.now)
        try:
            await reconciler.run(partial(reconciler.reconcile_now, wanted))
        except SystemRefused:
            # Another network of this host may have taken the same addresses just now.
            if is_last:
                raise
        else:
            node.exits.rival = reconciler.exit_rival
            return


def _tunnel(
    options: Options, config: Config, private_key: SecretKey, store: Store
) -> TunnelSettings:
    return TunnelSettings(
        options.interface_name(config),
        f"{ALIAS_MARK} {options.home}".encode()[:MAX_ALIAS].decode(errors="ignore"),
        config.wireguard.mtu,
        private_key,
        private_key.public_key,
        config.wireguard.listen_port or _stored_port(store),
        config.wireguard.keepalive,
    )


def _lend(services: Services, role: RelayRole, relay: Relay, store: Store, loop: Loop) -> None:
    from nostrvpn.daemon.relay_service import RelayService  # most nodes lend nothing

    services.use_relay(
        RelayService(role.secret, relay, store, moment=moment, send_control=loop.tap.send)
    )


def _path_settings(config: Config, *, may_sleep: bool) -> PathSettings:
    paths = config.paths
    return PathSettings(
        opener_ttl=paths.opener_ttl,
        hard_nat_search=paths.hard_nat_search,
        sleep_after=paths.sleep_after_minutes * 60.0 or None if may_sleep else None,
    )


def _relay_role(secret: RootSecret, relay: Relay, port: int) -> RelayRole | None:
    if relay.offer == "none":
        return None
    listen = relay.websocket.listen
    return RelayRole(
        secret.relay_secret(),
        port,
        relay.offer == "anyone",
        tuple(ip_address(text) for text in relay.address),
        relay.websocket.url,
        parse_endpoint(listen).port if listen else 0,
    )


def _open_tap(loop: Loop, node: Node) -> None:
    try:
        loop.tap.open()
        node.tap_error = loop.tap.self_test_result
    except NostrvpnError as exc:
        # The node still serves tunnels whose endpoints it knows; status says what is missing.
        _log.error("%s", exc)
        node.tap_error = str(exc)


def _forget_other_identity(store: Store, public_key: str) -> None:
    """Drop what was between others and an identity before this one: nobody shares those secrets now."""
    known = store.all("meta").get("public_key")
    if known == public_key:
        return
    if known is not None:
        keys = [key for key in store.all("keys") if key != "ring"]
        for space, names in (("keys", keys), ("invite", store.all("invite")), ("join", ["link"])):
            store.delete(space, *names)
        store.delete("session", *store.all("session"))
    store.put([Record("meta", "public_key", public_key)])


def _stored_epoch(store: Store) -> int:
    """Return the number of the WireGuard key in use: raised to change the key, the npub stays."""
    stored = store.all("meta").get("wireguard_epoch")
    return stored if isinstance(stored, int) and 0 < stored < 1 << 31 else 0


def _stored_port(store: Store) -> int:
    """Return this node's own port: drawn once, then kept, so that NAT mappings survive a restart."""
    stored = store.all("meta").get("listen_port")
    if isinstance(stored, int) and 0 < stored < 65_536:
        return stored
    low, high = PORT_RANGE
    port = low + int.from_bytes(os.urandom(4), "big") % (high - low)
    store.put([Record("meta", "listen_port", port)])
    return port
