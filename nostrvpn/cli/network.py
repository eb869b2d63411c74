"""``network``: the networks of this node, and what was decided in them."""

from __future__ import annotations

import time
from typing import Any

import click

from nostrvpn.cli.choosing import find_network, network_document
from nostrvpn.cli.output import (
    console,
    dash,
    json_option,
    shown_as_json,
    table,
    warn_unless_applied,
)
from nostrvpn.cli.seconds import seconds_option
from nostrvpn.cli.terms import checked_label
from nostrvpn.config.options import FIRST, Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import UsageError, UserError
from nostrvpn.io.profiles import (
    create_profile,
    profiles,
    remove_profile,
    select_profile,
    used_profiles,
)

__all__ = ["network_command", "other_networks"]


@click.group("network")
def network_command() -> None:
    """The networks of this node: each has its own interface, members and rules."""


@network_command.command("create")
@click.argument("name")
@json_option
@click.pass_obj
def create(options: Options, name: str, as_json: bool) -> None:
    """Create the network NAME, with this node as its owner."""
    from nostrvpn.cli.running import start_network

    called = checked_label(name)
    assert called is not None
    place, is_new = _free_place(options, called, quiet=as_json)
    status = start_network(place)
    answer = ControlClient(place.control_socket).call("network_create", name=called)
    answer |= {"profile": place.network, "interface": status["interface"]}
    if shown_as_json(answer, as_json):
        return
    click.echo(f"The network {answer['name']} is up on {answer['interface']}; this node owns it.")
    if is_new:
        click.echo(
            f"Commands speak to it with --network {place.network}; always: "
            f"nostrvpn network switch {place.network}"
        )
    click.echo("Next: nostrvpn invite THEIR_NPUB, or nostrvpn token create")


@network_command.command("list")
@json_option
@click.pass_obj
def listed(options: Options, as_json: bool) -> None:
    """List the networks of this node."""
    rows = [_row(options, profile) for profile in profiles(options)]
    if shown_as_json({"networks": rows}, as_json):
        return
    made = table("profile", "network", "interface", ">members", "role", "state")
    for row in rows:
        made.add_row(
            f"{row['profile']} *" if row["selected"] else row["profile"],
            dash(row["name"]),
            dash(row["interface"]),
            dash(row["members"]),
            dash(row["role"]),
            "running" if row["running"] else "down",
        )
    console().print(made)
    click.echo("* commands speak to this one; another: nostrvpn network switch PROFILE")


@network_command.command("switch")
@click.argument("network")
@json_option
@click.pass_obj
def switch(options: Options, network: str, as_json: bool) -> None:
    """Let all commands speak to NETWORK from now on."""
    profile = find_network(options, network)
    select_profile(options, profile)
    if shown_as_json({"profile": profile}, as_json):
        return
    click.echo(f"Commands speak to {profile} now.")


@network_command.command("leave")
@click.argument("network", required=False)
@click.option("--yes", is_flag=True, help="Do not ask.")
@seconds_option("--timeout", 20.0, "Seconds to wait for others to hear.")
@json_option
@click.pass_obj
def leave(options: Options, network: str | None, yes: bool, timeout: float, as_json: bool) -> None:
    """Leave a network for good, and forget it.

    The others are told, and take this node out. The identity stays.
    """
    from nostrvpn.cli.running import start_network
    from nostrvpn.cli.spawn import stop_daemon

    place = options.of_network(find_network(options, network)) if network else options
    start_network(place)  # only a running daemon can tell the others
    document: dict[str, Any] = ControlClient(place.control_socket).call("network")
    if not yes and (as_json or not _is_confirmed(document)):
        raise UserError("nothing was left", "to leave without being asked: --yes")
    answer = ControlClient(place.control_socket).call(
        "network_leave", timeout=timeout + 5.0, wait_s=timeout
    )
    if not answer["told"] and not yes:
        raise UserError(
            "no relay has taken the message by which the others hear of it",
            "try again later; or leave without telling them: --yes",
        )
    stop_daemon(place, 15.0)
    remove_profile(place)
    answer |= {"profile": place.network}
    if shown_as_json(answer, as_json):
        return
    heard = "" if answer["told"] else "; the others were not told, since no relay could be reached"
    click.echo(f"Left {document['name'] or place.network}{heard}.")


@network_command.command("log")
@json_option
@click.pass_obj
def log(options: Options, as_json: bool) -> None:
    """Show who decided what, in the order in which it holds."""
    answer = ControlClient(options.control_socket).call("network_log")
    if shown_as_json(answer, as_json):
        return
    for entry in answer["operations"]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["at"]))
        void = f"  (void: {entry['void']})" if entry["void"] else ""
        click.echo(f"{when}  {entry['author']['name']}: {entry['text']}{void}")
    if answer["pending"]:
        click.echo(f"{answer['pending']} more wait for others that have not arrived yet.")


@network_command.command("settings")
@click.option("--name", help="The network's name, for everybody.")
@click.option(
    "--inbound",
    type=click.Choice(["ping", "none", "all"]),
    help="What members may send each other where no rule says.",
)
@click.option(
    "--same-owner",
    type=click.Choice(["on", "off"]),
    help="Whether one person's devices may everything with each other.",
)
@json_option
@click.pass_obj
def settings(
    options: Options, name: str | None, inbound: str | None, same_owner: str | None, as_json: bool
) -> None:
    """Show what holds in the whole network, or change it; changing is for owner and admins."""
    given: dict[str, Any] = {
        "name": checked_label(name),
        "inbound": inbound,
        "same_owner": None if same_owner is None else same_owner == "on",
    }
    changes = {key: value for key, value in given.items() if value is not None}
    answer = ControlClient(options.control_socket).call("network_settings", **changes)
    if shown_as_json(answer, as_json):
        return
    warn_unless_applied(answer)
    click.echo(f"name        {answer['name']}")
    click.echo(f"inbound     {answer['inbound']}")
    click.echo(f"same owner  {'on' if answer['same_owner'] else 'off'}")


def other_networks(options: Options) -> list[dict[str, Any]]:
    """Return the node's other networks as ``network list`` shows them."""
    return [_row(options, name) for name in used_profiles(options) if name != options.network]


def _row(options: Options, profile: str) -> dict[str, Any]:
    document = network_document(options.of_network(profile))
    return {
        "profile": profile,
        "selected": profile == options.network,
        "running": document is not None,
        "id": (document or {}).get("id"),
        "name": (document or {}).get("name"),
        "interface": (document or {}).get("interface"),
        "members": (document or {}).get("members"),
        "role": (document or {}).get("role"),
    }


def _free_place(options: Options, name: str, *, quiet: bool) -> tuple[Options, bool]:
    """Return a place without a network: the first one's, one that waits for its own, or a new one."""
    from nostrvpn.cli.running import start_network
    from nostrvpn.config.profiles import free_profile

    known = profiles(options)
    wanted = [name] if name in known and name != FIRST else [FIRST]
    if options.is_named:
        wanted = [options.network]
    for profile in wanted:
        place = options.of_network(profile)
        start_network(place, quiet=quiet)
        document = network_document(place) or {}
        if document.get("id") is None and document.get("joining") is None:
            return place, False
        if profile != FIRST or options.is_named:
            raise UserError(
                f"{profile} is the network {document.get('name') or '(being joined)'} already",
                "choose another name; see: nostrvpn network list",
            )
    try:
        return create_profile(options, free_profile(name, known)), True
    except ValueError as error:
        raise UsageError(str(error), "for example: nostrvpn network create work") from error


def _is_confirmed(document: dict[str, Any]) -> bool:
    """Say what leaving means, and ask."""
    name = document["name"] or "this network"
    if document["role"] == "owner":
        others = (document["members"] or 1) - 1
        if others:
            click.echo(
                f"This node owns {name}, and is not replaced: {others} other members stay, and nobody "
                "can make or unmake admins any more.",
                err=True,
            )
        else:
            click.echo(f"This node owns {name} and is its only member: the network ends.", err=True)
    return click.confirm(f"Leave {name}?", err=True)
