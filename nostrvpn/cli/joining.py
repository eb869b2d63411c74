"""``join``: into the network that a link invites to, in a place of its own where one is needed."""

from __future__ import annotations

from typing import Any

import click

from nostrvpn.cli.choosing import network_document
from nostrvpn.cli.output import json_option, show_json
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import UsageError, UserError
from nostrvpn.io.profiles import create_profile, profiles

__all__ = ["join_by_link", "join_command", "say_joined"]

TOKEN_LINK = "nostrvpn://join/"


@click.command("join")
@click.argument("link")
@click.option(
    "--as",
    "profile",
    metavar="NAME",
    help="What this host calls the network, if it gets a place of its own.",
)
@json_option
@click.pass_obj
def join_command(options: Options, link: str, profile: str | None, as_json: bool) -> None:
    """Join the network that a nostrvpn:// LINK invites to.

    A node that is in another network already stays in it, and is in both from then on.
    """
    answer = join_by_link(options, link, profile)
    if as_json:
        show_json(answer)
    else:
        say_joined(answer)


def join_by_link(options: Options, link: str, profile: str | None = None) -> dict[str, Any]:
    """Join by an invite or a token; return the daemon's answer with the ``profile`` that joined.

    Who is a member already is just told so, however old the link is: it may be typed, or come by an
    environment variable, at every start.
    """
    link = link.strip()
    if not link.lower().startswith("nostrvpn://"):
        raise UsageError(
            f"{link[:40]!r} is not an invite", "it starts with nostrvpn://; quote it in the shell"
        )
    network = _network_of(link)
    place, document = _place_for(options, network)
    made = False
    is_here = document is not None and document.get("id") == network
    if is_here and document is not None and document.get("role") is not None:
        answer = {"network": network, "inviter": None, "state": "member"}
    elif is_here and link.startswith(TOKEN_LINK):
        # Nobody would even answer; an invite may be somebody's word that it is let in again.
        raise UserError(
            "this node was removed from that network", "ask for a new invite for its npub"
        )
    else:
        if place is None:
            place, made = _make_place(options, profile), True
        answer = ControlClient(place.control_socket).call("join", link=link)
    place = place or options
    named = network_document(place) or {}
    return answer | {
        "profile": place.network,
        "name": named.get("name") if named.get("id") == network else None,
        "new": made,
        "interface": named.get("interface"),
    }


def say_joined(answer: dict[str, Any]) -> None:
    """Tell what became of a joining."""
    called = answer["name"] or "the network"
    if answer["new"]:
        click.echo(
            f"This node is in another network already, and stays: this one is {answer['profile']} "
            f"here, on {answer['interface']}."
        )
    if answer["state"] == "member":
        click.echo(f"This node is a member of {called} already.")
    elif answer["state"] == "joined":
        whose = f" of {answer['inviter']}" if answer["inviter"] else ""
        click.echo(f"Joined {called}{whose}.")
        click.echo("Next: nostrvpn peers, nostrvpn ping PEER")
    else:
        whom = answer["inviter"] or "the network's members"
        click.echo(f"Asked {whom} to let this node in.")
        who = "that node" if answer["inviter"] else "one of them"
        click.echo(f"It completes when {who} is online; see: nostrvpn status")
    if answer["new"]:
        profile = answer["profile"]
        click.echo(
            f"Commands speak to it with --network {profile}; always: nostrvpn network switch {profile}"
        )


def _network_of(link: str) -> str:
    """Return the network's id that a link names; "" if the daemon is to say what is wrong with it."""
    from nostrvpn.mesh.joining import parse_any_link

    try:
        return parse_any_link(link).network_id
    except UserError:
        return ""


def _place_for(options: Options, network: str) -> tuple[Options | None, dict[str, Any] | None]:
    """Return where to join, and what is there; None where a new place is needed."""
    present: dict[str, Any] = ControlClient(options.control_socket).call("network")
    if options.is_named or not network:
        return options, present
    here = {options.network: present}
    for profile in profiles(options):
        if profile not in here:
            here[profile] = network_document(options.of_network(profile)) or {}
    for profile, document in here.items():
        if network in (document.get("id"), document.get("joining")):
            return options.of_network(profile), document
    for profile, document in here.items():
        is_alone = not document.get("members") or document["members"] == 1
        if document and is_alone and (profile == options.network or document["id"] is None):
            return options.of_network(profile), document
    return None, None


def _make_place(options: Options, profile: str | None) -> Options:
    """Make a further network's place and start its daemon."""
    from nostrvpn.cli.running import start_network
    from nostrvpn.config.profiles import free_profile

    taken = profiles(options)
    if profile is None:
        profile = free_profile("network-2", taken)
    try:
        made = create_profile(options, profile)
    except ValueError as error:
        raise UsageError(f"--as: {error}", "for example: --as work") from error
    start_network(made)
    return made
