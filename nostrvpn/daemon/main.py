"""From options to a running daemon: compose the parts, run, take everything down in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
from contextlib import AsyncExitStack
from ipaddress import ip_address

from nostrvpn.config.model import Config, Relay
from nostrvpn.config.options import Options
from nostrvpn.control.server import ControlServer
from nostrvpn.daemon.host_watch import HostWatch
from nostrvpn.daemon.loop import Loop, moment
from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.daemon.services import Services
from nostrvpn.daemon.sleepers import Sleepers
from nostrvpn.endpoint import parse_endpoint
from nostrvpn.errors import NostrvpnError
from nostrvpn.identity.keys import RootSecret
from nostrvpn.io.config_file import load_config
from nostrvpn.io.durable_file import make_private_directory
from nostrvpn.io.identity_file import load_identity
from nostrvpn.io.lock import StateLock
from nostrvpn.io.logs import start_logging
from nostrvpn.io.service_manager import notify
from nostrvpn.io.store import Record, Store
from nostrvpn.io.wireguard import Backend, select_backend
from nostrvpn.node.desired import TunnelSettings
from nostrvpn.node.node import Node, NodeSettings
from nostrvpn.node.relaying import RelayRole
from nostrvpn.paths.hard_nat.search import SOURCE_PORTS
from nostrvpn.paths.settings import PathSettings
from nostrvpn.wireguard.device import SecretKey

__all__ = ["run"]

SPACES = ("meta", "network", "invite", "join", "peer", "session")
# Losing one of these loses a membership, or the port and sequence numbers that peers know us by:
# the store refreshes its backup after they change.
PRECIOUS_SPACES = frozenset({"meta", "network", "invite", "join", "peer"})
# Ports below are registered for services, above are the kernel's own ephemeral range (32768+ by
# default) which other programs draw from.
PORT_RANGE = (20_000, 32_000)

_log = logging.getLogger(__name__)


def run(options: Options) -> int:
    """Run the daemon in the foreground until it is stopped; return the exit code.

    NostrvpnError says why it could not start.
    """
    config = load_config(options.config)
    start_logging(config.log_level, options.log_file)
    # A relay's ports and its clients' connections need more than the usual 1024.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    lock = StateLock(options.lock_path)
    lock.acquire()
    try:
        return asyncio.run(_run(options, config))
    finally:
        lock.release()


async def _run(options: Options, config: Config) -> int:
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
            return 0
        if asked:
            loop.stop(asked[0])
        notify("READY=1")
        # What stands now stays: no collection need look at it again.
        gc.freeze()
        gc.enable()
        await loop.run()
        notify("STOPPING=1")
    _log.info("stopped")
    return 0


async def _compose(options: Options, config: Config, stack: AsyncExitStack) -> Loop:
    secret = load_identity(options.state_dir, os.environ)
    make_private_directory(options.state_dir)
    store = Store.open(options.store_path, backup_spaces=PRECIOUS_SPACES)
    stack.callback(store.close)
    interface = options.interface_name(config)
    backend: Backend = select_backend(config.wireguard.backend)
    port = config.wireguard.listen_port or _stored_port(store)
    private_key = SecretKey(secret.wireguard_private_key())
    tunnel = TunnelSettings(
        interface,
        f"nostrvpn {options.state_dir}"[:255],
        config.wireguard.mtu,
        private_key,
        private_key.public_key,
        port,
        config.wireguard.keepalive,
    )
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
    )
    node = Node(settings, {space: store.all(space) for space in SPACES}, backend.name)
    if store.restored:
        node.notes.append(("state_restored", store.restored))
    reconciler = Reconciler(backend, interface, config.wireguard.mtu)
    stack.callback(reconciler.close)
    stack.push_async_callback(reconciler.delete)
    loop = Loop(node, store, reconciler, interface=interface, port=port)
    loop.sleepers = sleepers
    sleepers.serve(node, loop.offer)
    node.adopt(await reconciler.observe())
    await reconciler.run(lambda: reconciler.reconcile_now(node.desired(0.0)))
    _open_tap(loop, node)
    if config.paths.hard_nat_search:
        loop.tap.listen_on(SOURCE_PORTS)
    stack.callback(loop.tap.close)
    loop.services = services = Services(node, config, loop.deliver)
    if settings.relay is not None:
        _lend(services, settings.relay, options.relay_settings(config), store, loop)
    stack.push_async_callback(services.stop)
    await services.start(interface)
    watch = HostWatch(loop, reconciler)
    await watch.start()
    stack.callback(watch.stop)
    control = ControlServer(options.control_socket, loop.call)
    await control.start()
    stack.push_async_callback(control.stop)
    _log.info("%s is up: %s backend, port %d, %s", interface, backend.name, port, secret.npub)
    return loop


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


def _stored_port(store: Store) -> int:
    """Return this node's own port: drawn once, then kept, so that NAT mappings survive a restart."""
    stored = store.all("meta").get("listen_port")
    if isinstance(stored, int) and 0 < stored < 65_536:
        return stored
    low, high = PORT_RANGE
    port = low + int.from_bytes(os.urandom(4), "big") % (high - low)
    store.put([Record("meta", "listen_port", port)])
    return port
