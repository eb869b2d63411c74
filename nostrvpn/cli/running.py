"""``up``, ``down`` and ``daemon``: the network starts and stops with its daemon."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import replace
from typing import Any

import click

from nostrvpn.cli.choosing import with_network
from nostrvpn.cli.output import json_option, show_json
from nostrvpn.cli.relay_options import relay_options
from nostrvpn.cli.seconds import seconds_option
from nostrvpn.cli.tools import check_privilege, remove_leftovers
from nostrvpn.config.options import FIRST, JOIN_VARIABLE, Options, RelayOptions
from nostrvpn.control.client import ControlClient, DaemonNotRunning
from nostrvpn.errors import NostrvpnError, SystemRefused
from nostrvpn.io.profiles import profiles, used_profiles

__all__ = ["daemon_command", "down_command", "start_network", "up_command"]

# What a start may take that other commands need: on a busy machine, many times the usual second.
START_S = 20.0


@click.command("up")
@click.argument("network", required=False)
@click.option("--name", help="This node's name.")
@click.option(
    "--relay", "relays", multiple=True, metavar="URL", help="Use this Nostr relay; repeatable."
)
@click.option("--foreground", is_flag=True, help="Stay, and log to the terminal: one network only.")
@seconds_option("--timeout", 20.0, "Seconds to wait for the first relay.")
@relay_options
@json_option
@click.pass_obj
def up_command(
    options: Options,
    relay: RelayOptions,
    network: str | None,
    name: str | None,
    relays: tuple[str, ...],
    foreground: bool,
    timeout: float,
    as_json: bool,
) -> int:
    """Start all networks of this node, or NETWORK; create the identity if needed.

    With a link in the environment variable NOSTRVPN_JOIN it joins too, unless it is in that network
    already.
    """
    from nostrvpn.cli.setup import checked_relays
    from nostrvpn.cli.terms import checked_label

    deadline = time.monotonic() + timeout
    options = with_network(options, network) if network is not None else options
    options = replace(
        options, name=checked_label(name, "--name"), relays=checked_relays(relays), relay=relay
    )
    options = options.of_network(FIRST) if foreground and not options.is_named else options
    running = _running_status(options)
    if running is not None and foreground:
        raise SystemRefused("nostrvpn is already up", "stop it first: nostrvpn down")
    if running is not None and (name or relays or relay.given) and not as_json:
        click.echo("Already up: these options take effect after nostrvpn down.", err=True)
    if running is None:
        _prepare(options, quiet=as_json)
    if foreground:
        return _run(options)
    statuses = _start_all(options, running, deadline)
    joined = _join_as_told(options, quiet=as_json)
    status = _wait_relay(options, statuses[options.network], deadline)
    others = {profile: other for profile, other in statuses.items() if profile != options.network}
    if as_json:
        told = [{"profile": profile} | other for profile, other in others.items()]
        show_json(
            status | ({"networks": told} if told else {}) | ({"join": joined} if joined else {})
        )
        return _exit_code(others)
    _show_up(status, has_joined=joined is not None)
    for profile, other in others.items():
        if "error" in other:
            click.echo(f"network {profile}: {other['error']['text']}", err=True)
        else:
            click.echo(f"network {profile} is up on {other['interface']}")
    return _exit_code(others)


@click.command("down")
@click.option("--network", help="Stop this network only.")
@seconds_option("--timeout", 15.0, "Seconds to wait for the end.")
@json_option
@click.pass_obj
def down_command(options: Options, network: str | None, timeout: float, as_json: bool) -> None:
    """Stop all networks of this node, and leave the host as it was before."""
    from nostrvpn.cli.spawn import stop_daemon

    options = with_network(options, network) if network is not None else options
    chosen = (options.network,) if options.is_named else profiles(options)
    were_running, removed = False, []
    for place in [options.of_network(profile) for profile in chosen]:
        if stop_daemon(place, timeout):
            were_running = True
        else:
            removed += _remove_leftovers(place)
    if as_json:
        show_json({"was_running": were_running, "removed": removed})
        return
    for item in removed:
        click.echo(f"Removed {item}, left by a daemon that was killed.")
    whose = f"The network {options.network}" if options.is_named else "nostrvpn"
    click.echo(f"{whose} is down." if were_running else f"{whose} was not running.")


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
    """Run one network's daemon in the foreground; this is what a service runs.

    It is the first network's, unless --network (before the command) names another.
    """
    from nostrvpn.cli.setup import checked_relays
    from nostrvpn.cli.terms import checked_label

    chosen = replace(
        options if options.is_named else options.of_network(FIRST),
        name=checked_label(name, "--name"),
        relays=checked_relays(relays),
        relay=relay,
        log_file=log_file,
    )
    return _run(chosen)


def start_network(options: Options, *, quiet: bool = True) -> Any:
    """Start one network's daemon, unless it runs, and return its status once it answers."""
    status = _running_status(options)
    if status is not None:
        return status
    from nostrvpn.cli.spawn import start_detached, wait_answering

    _prepare(options, quiet=quiet)
    process, log_start = start_detached(options)
    return wait_answering(options, process, log_start, time.monotonic() + START_S)


def _start_all(options: Options, running: Any, deadline: float) -> dict[str, Any]:
    """Start what does not run yet; return each network's status, the one that is meant first.

    Where another one than that fails, its entry is ``{"error": …}``.
    """
    from nostrvpn.cli.spawn import start_detached, wait_answering

    chosen, places = {options.network: running}, {options.network: options}
    if not options.is_named:
        # What relaying for others takes, ports for one, only one of them can have.
        plain = replace(options, relay=RelayOptions())
        for profile in used_profiles(options):
            if profile != options.network:
                places[profile] = plain.of_network(profile)
                chosen[profile] = _running_status(places[profile])
    # All at once, then waited for: a start takes most of a second.
    started = {p: start_detached(places[p]) for p, status in chosen.items() if status is None}
    for profile, (process, log_start) in started.items():
        try:
            chosen[profile] = wait_answering(places[profile], process, log_start, deadline)
        except NostrvpnError as error:
            if profile == options.network:
                raise
            chosen[profile] = {"error": {"code": error.code, "text": str(error)}}
    return chosen


def _join_as_told(options: Options, *, quiet: bool) -> dict[str, Any] | None:
    link = os.environ.get(JOIN_VARIABLE, "").strip()
    if not link:
        return None
    from nostrvpn.cli.joining import join_by_link, say_joined

    answer = join_by_link(options, link)
    if not quiet:
        say_joined(answer)
    return answer


def _exit_code(others: dict[str, Any]) -> int:
    return 1 if any("error" in other for other in others.values()) else 0


def _remove_leftovers(options: Options) -> list[str]:
    from nostrvpn.daemon.boot_guard import is_locked
    from nostrvpn.io.config_file import load_config

    check_privilege()
    interface = options.interface_name(load_config(options.config, options.overlay))
    return remove_leftovers(interface, options.home, keep_shield=is_locked(options))


def _run(options: Options) -> int:
    """Be the daemon until it ends."""
    check_privilege()
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
    check_privilege()
    from nostrvpn.cli.setup import create_node
    from nostrvpn.io.config_file import load_config
    from nostrvpn.io.identity_file import has_identity

    options.relay_settings(load_config(options.config, options.overlay))
    if has_identity(options.state_dir, os.environ):
        return False
    made = create_node(options, options.name, options.relays)
    if not quiet:
        click.echo(f"Created this node's identity: {made['npub']}")
        click.echo(f"Its secret is in {made['identity']}: keep a copy, nobody can restore it.")
    return True


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


def _show_up(status: Any, *, has_joined: bool) -> None:
    relays = [relay for relay in status["relays"] if relay.get("state") == "connected"]
    click.echo(f"nostrvpn is up on {status['interface']} ({status['backend']} WireGuard)")
    click.echo(f"  npub       {status['npub']}")
    if status["addresses"]:
        click.echo(f"  addresses  {', '.join(status['addresses'])}")
    click.echo(f"  relays     {len(relays)} connected: {', '.join(r['url'] for r in relays)}")
    if status["peers"]:
        click.echo(f"  peers      {len(status['peers'])}, see: nostrvpn status")
    elif not has_joined:
        click.echo("Next, to connect another node, one of the two:")
        click.echo("  nostrvpn invite THEIR_NPUB   then run the printed link on the other node")
        click.echo("  nostrvpn join LINK           with a link that the other node printed")
