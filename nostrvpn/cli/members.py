"""``invite``, ``peers`` and ``peer``: who belongs to the network, and as what."""

from __future__ import annotations

import time
from typing import Any

import click

from nostrvpn.cli.output import console, json_option, shown_as_json, span, warn_unless_applied
from nostrvpn.cli.peer_argument import PEER
from nostrvpn.cli.terms import checked_label, checked_npub, checked_tags, parse_span, terms_options
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import UsageError

__all__ = ["invite_command", "peer_command", "peers_command"]


@click.command("invite")
@click.argument("npub", required=False)
@click.option("--once", is_flag=True, help="For whoever uses the link first, one time.")
@click.option("--expires", default="24h", show_default=True, help="How long: 30m, 24h, 7d.")
@click.option(
    "--role",
    type=click.Choice(["admin", "member", "guest"]),
    default="member",
    show_default=True,
    help="Admins invite and decide too; guests admit nobody.",
)
@click.option("--expires-member", metavar="SPAN", help="The membership ends after 7d, 24h, 30m.")
@click.option("--mine", is_flag=True, help="A device of mine: what same-owner allows holds for it.")
@click.option("--name", help="What the network calls it.  [default: as it calls itself]")
@click.option("--qr", is_flag=True, help="Show the link as a QR code too.")
@terms_options
@json_option
@click.pass_obj
def invite_command(
    options: Options,
    /,
    npub: str | None,
    once: bool,
    expires: str,
    expires_member: str | None,
    name: str | None,
    tags: tuple[str, ...],
    qr: bool,
    as_json: bool,
    **terms: Any,
) -> None:
    """Make a link that lets another node join.

    It is for NPUB alone, or with --once, for whoever uses it first.
    """
    if (npub is None) == (not once):
        raise UsageError(
            "an invite is either for one NPUB or --once",
            "ask the other node for: nostrvpn id; then: nostrvpn invite NPUB",
        )
    answer = ControlClient(options.control_socket).call(
        "invite",
        npub=npub if npub is None else checked_npub(npub),
        once=once,
        expires_s=parse_span("--expires", expires),
        lasts_s=parse_span("--expires-member", expires_member) if expires_member else None,
        name=checked_label(name),
        tags=checked_tags(tags),
        **terms,
    )
    if shown_as_json(answer, as_json):
        return
    show_link(
        answer, "whoever uses it first" if once else "that npub only", open_to_all=once, qr=qr
    )


def show_link(answer: Any, whose: str, *, open_to_all: bool, qr: bool = False) -> None:
    """Print a link, alone on standard output for scripts, and what it is good for."""
    click.echo(answer["link"])
    left = span(answer["expires_at"] - time.time())
    click.echo(f"For {whose}, valid for {left}. There, run: sudo nostrvpn join LINK", err=True)
    if open_to_all:
        click.echo("Send it over a channel you trust: who has it can join.", err=True)
    if qr:
        from nostrvpn.cli.qr import show_qr

        show_qr(answer["link"])


@click.command("peers")
@json_option
@click.pass_obj
def peers_command(options: Options, as_json: bool) -> None:
    """List the other members of the network."""
    answer = ControlClient(options.control_socket).call("peers")
    if shown_as_json(answer, as_json):
        return
    peers = answer["peers"]
    if not peers:
        click.echo("No peers yet: nostrvpn invite NPUB, or nostrvpn join LINK")
        return
    from nostrvpn.cli.status import peer_table

    console().print(peer_table(peers))


@click.group("peer")
def peer_command() -> None:
    """Change or remove a member.

    PEER is a name, an npub, or the beginning of one. All but rename is for the whole network, and for
    its owner and admins.
    """


@peer_command.command("remove")
@click.argument("peer", type=PEER)
@json_option
@click.pass_obj
def remove(options: Options, peer: str, as_json: bool) -> None:
    """Remove PEER from the network."""
    answer = ControlClient(options.control_socket).call("peer_remove", peer=peer)
    if shown_as_json(answer, as_json):
        return
    warn_unless_applied(answer)
    click.echo(f"Removed {_called(answer)}.")


@peer_command.command("rename")
@click.argument("peer", type=PEER)
@click.argument("name")
@json_option
@click.pass_obj
def rename(options: Options, peer: str, name: str, as_json: bool) -> None:
    """Call PEER by another NAME on this host only; others go on as before."""
    answer = _named(options, "peer_rename", peer, name)
    if not shown_as_json(answer, as_json):
        click.echo(f"On this host {answer['npub']} is now called {answer['name']}.")


@peer_command.command("name")
@click.argument("peer", type=PEER)
@click.argument("name")
@json_option
@click.pass_obj
def name_for_all(options: Options, peer: str, name: str, as_json: bool) -> None:
    """Name PEER for the whole network; a member may name itself (me)."""
    answer = _named(options, "peer_name", peer, name)
    if not shown_as_json(answer, as_json):
        click.echo(f"The network now calls {answer['npub']} {answer['name']}.")


def _named(options: Options, command: str, peer: str, name: str) -> Any:
    label = checked_label(name)
    return ControlClient(options.control_socket).call(command, peer=peer, name=label)


@peer_command.command("role")
@click.argument("peer", type=PEER)
@click.argument("role", type=click.Choice(["admin", "member", "guest"]))
@click.option("--expires-member", metavar="SPAN", help="The membership ends after 7d, 24h, 30m.")
@json_option
@click.pass_obj
def role(options: Options, peer: str, role: str, expires_member: str | None, as_json: bool) -> None:
    """Make PEER an admin, a plain member or a guest."""
    lasts = parse_span("--expires-member", expires_member) if expires_member else None
    answer = ControlClient(options.control_socket).call(
        "peer_role", peer=peer, role=role, lasts_s=lasts
    )
    if shown_as_json(answer, as_json):
        return
    warn_unless_applied(answer)
    until = f" for {span(lasts)}" if lasts is not None else ""
    click.echo(f"{_called(answer)} is now {answer['role']}{until}.")


@peer_command.command("tag")
@click.argument("peer", type=PEER)
@click.argument("tags", nargs=-1)
@json_option
@click.pass_obj
def tag(options: Options, peer: str, tags: tuple[str, ...], as_json: bool) -> None:
    """Give PEER these TAGS and no others; none takes all away."""
    answer = ControlClient(options.control_socket).call(
        "peer_tag", peer=peer, tags=checked_tags(tags)
    )
    if shown_as_json(answer, as_json):
        return
    warn_unless_applied(answer)
    said = ", ".join(answer["tags"]) if answer["tags"] else "none"
    click.echo(f"Tags of {_called(answer)}: {said}.")


@peer_command.command("replace")
@click.argument("peer", type=PEER)
@click.argument("npub")
@click.option("--expires", default="24h", show_default=True, help="How long the link is good.")
@json_option
@click.pass_obj
def replace(options: Options, peer: str, npub: str, expires: str, as_json: bool) -> None:
    """Put the new device NPUB in the place of PEER, which is out from then on.

    It takes over name, role, tags and the IPv4 address. The link that is printed brings it in.
    """
    answer = ControlClient(options.control_socket).call(
        "peer_replace",
        peer=peer,
        npub=checked_npub(npub),
        expires_s=parse_span("--expires", expires),
    )
    if shown_as_json(answer, as_json):
        return
    warn_unless_applied(answer)
    click.echo(f"{_called(answer)} is replaced.", err=True)
    show_link(answer, "that npub only", open_to_all=False)


def _called(peer: dict[str, str]) -> str:
    return f"{peer['name']} ({peer['npub']})" if peer.get("name") else peer["npub"]
