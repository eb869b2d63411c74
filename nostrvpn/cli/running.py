"""``up``, ``down`` and ``daemon``: the network starts and stops with its daemon."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import replace
from typing import Any

import click

from nostrvpn.cli.output import json_option, show_json
from nostrvpn.cli.relay_options import relay_options
from nostrvpn.config.options import Options, RelayOptions
from nostrvpn.control.client import ControlClient, DaemonNotRunning
from nostrvpn.errors import SystemRefused

__all__ = ["daemon_command", "down_command", "up_command"]


@click.command("up")
@click.option("--name", help="This node's name.")
@click.option(
    "--relay", "relays", multiple=True, metavar="URL", help="Use this Nostr relay; repeatable."
)
@click.option("--foreground", is_flag=True, help="Stay, and log to the terminal.")
@click.option(
    "--timeout", default=20.0, show_default=True, help="Seconds to wait for the first relay."
)
@relay_options
@json_option
@click.pass_obj
def up_command(
    options: Options,
    relay: RelayOptions,
    name: str | None,
    relays: tuple[str, ...],
    foreground: bool,
    timeout: float,
    as_json: bool,
) -> int:
    """Start the network; create the identity if needed."""
    from nostrvpn.cli.setup import checked_name, checked_relays

    deadline = time.monotonic() + timeout
    options = replace(options, name=checked_name(name), relays=checked_relays(relays), relay=relay)
    status = _running_status(options)
    if status is not None and foreground:
        raise SystemRefused("nostrvpn is already up", "stop it first: nostrvpn down")
    if status is not None and (name or relays or relay.given) and not as_json:
        click.echo("Already up: these options take effect after nostrvpn down.", err=True)
    fresh = status is None and _prepare(options, quiet=as_json)
    if foreground:
        return _run(options)
    if status is None:
        from nostrvpn.cli.spawn import start_detached, wait_answering

        process, log_start = start_detached(options)
        status = wait_answering(options, process, log_start, deadline)
    status = _wait_relay(options, status, deadline)
    if as_json:
        show_json(status)
    else:
        _show_up(status, fresh)
    return 0


@click.command("down")
@click.option("--timeout", default=15.0, show_default=True, help="Seconds to wait for the end.")
@json_option
@click.pass_obj
def down_command(options: Options, timeout: float, as_json: bool) -> None:
    """Stop the network, and leave the host as it was before."""
    from nostrvpn.cli.spawn import stop_daemon
    from nostrvpn.cli.tools import remove_leftovers

    was_running = stop_daemon(options, timeout)
    removed = []
    if not was_running:
        from nostrvpn.io.config_file import load_config

        _check_privilege()
        removed = remove_leftovers(options.interface_name(load_config(options.config)))
    if as_json:
        show_json({"was_running": was_running, "removed": removed})
        return
    for item in removed:
        click.echo(f"Removed {item}, left by a daemon that was killed.")
    click.echo("nostrvpn is down." if was_running else "nostrvpn was not running.")


@click.command("daemon")
@click.option("--name", help="This node's name.")
@click.option(
    "--relay", "relays", multiple=True, metavar="URL", help="Use this Nostr relay; repeatable."
)
@relay_options
@click.option("--log-file", hidden=True)
@click.pass_obj
def daemon_command(
    options: Options,
    relay: RelayOptions,
    name: str | None,
    relays: tuple[str, ...],
    log_file: str | None,
) -> int:
    """Run the daemon in the foreground; this is what a service runs."""
    from nostrvpn.cli.setup import checked_name, checked_relays

    chosen = replace(
        options,
        name=checked_name(name),
        relays=checked_relays(relays),
        relay=relay,
        log_file=log_file,
    )
    return _run(chosen)


def _run(options: Options) -> int:
    """Be the daemon until it ends."""
    _check_privilege()
    # To look for garbage in what is being imported takes a fifth of the start; the daemon enables it.
    gc.disable()
    from nostrvpn.daemon.main import run

    return run(options)


def _running_status(options: Options) -> Any:
    try:
        return ControlClient(options.control_socket).call("status", timeout=5.0)
    except DaemonNotRunning:
        return None


def _prepare(options: Options, *, quiet: bool) -> bool:
    """Check rights and configuration and create a missing identity; say whether it is new."""
    _check_privilege()
    from nostrvpn.cli.setup import create_node
    from nostrvpn.io.config_file import load_config
    from nostrvpn.io.identity_file import has_identity

    options.relay_settings(load_config(options.config))
    if has_identity(options.state_dir, os.environ):
        return False
    made = create_node(options, options.name, options.relays)
    if not quiet:
        click.echo(f"Created this node's identity: {made['npub']}")
        click.echo(f"Its secret is in {made['identity']}: keep a copy, nobody can restore it.")
    return True


def _check_privilege() -> None:
    """Raise SystemRefused unless this process may make interfaces and raw sockets."""
    from nostrvpn.io.privilege import has_net_admin, has_net_raw

    held = {"CAP_NET_ADMIN": has_net_admin(), "CAP_NET_RAW": has_net_raw()}
    missing = [name for name, has in held.items() if not has]
    if missing:
        raise SystemRefused(
            f"no permission to change the network ({' and '.join(missing)} missing)",
            "run it as root (sudo)",
        )


def _wait_relay(options: Options, status: Any, deadline: float) -> Any:
    """Return a status with a connected relay; raise with what the daemon says is wrong."""
    from nostrvpn.cli.spawn import wait_until

    latest = status
    client = ControlClient(options.control_socket)

    def connected() -> bool:
        nonlocal latest
        if _connected(latest):
            return True
        latest = client.call("status", timeout=5.0)
        return _connected(latest)

    if wait_until(connected, deadline):
        return latest
    problems = latest.get("problems") or []
    worst = next((item for item in problems if item.get("severity") == "error"), None)
    worst = worst or next(iter(problems), None)
    reasons = sorted(
        {f"{relay['url']}: {relay['reason']}" for relay in latest["relays"] if relay.get("reason")}
    )
    detail = worst["text"] if worst else "; ".join(reasons[:2])
    raise SystemRefused(
        "the daemon is up, but no relay is connected" + (f": {detail}" if detail else ""),
        (worst or {}).get("hint")
        or "it keeps trying: nostrvpn status --watch; check the internet connection and relays",
    )


def _connected(status: Any) -> bool:
    return any(relay.get("state") == "connected" for relay in status["relays"])


def _show_up(status: Any, fresh: bool) -> None:
    relays = [relay for relay in status["relays"] if relay.get("state") == "connected"]
    click.echo(f"nostrvpn is up on {status['interface']} ({status['backend']} WireGuard)")
    click.echo(f"  npub       {status['npub']}")
    if status["addresses"]:
        click.echo(f"  addresses  {', '.join(status['addresses'])}")
    click.echo(f"  relays     {len(relays)} connected: {', '.join(r['url'] for r in relays)}")
    if status["peers"]:
        click.echo(f"  peers      {len(status['peers'])}, see: nostrvpn status")
    elif fresh or not status["peers"]:
        click.echo("Next, to connect another node, one of the two:")
        click.echo("  nostrvpn invite THEIR_NPUB   then run the printed link on the other node")
        click.echo("  nostrvpn join LINK           with a link that the other node printed")
