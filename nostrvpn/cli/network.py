"""``invite``, ``join``, ``peers`` and ``peer``: who belongs to the network."""

from __future__ import annotations

import re
import time

import click

from nostrvpn.cli.output import console, json_option, show_json, span
from nostrvpn.cli.peer_argument import PEER
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import UsageError

__all__ = ["invite_command", "join_command", "parse_span", "peer_command", "peers_command"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
# The limits of the control interface (control/schema.py), told here in the user's words.
_MIN_EXPIRY, _MAX_EXPIRY = 60, 366 * 86_400


def parse_span(text: str) -> int:
    """Return the seconds of ``90s``, ``15m``, ``24h``, ``7d`` or ``2w``; raise UsageError."""
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip().lower())
    if match is None:
        raise UsageError(f"{text[:40]!r} is not a time span", "write 30m, 24h or 7d")
    return int(match[1]) * _UNITS[match[2]]


@click.command("invite")
@click.argument("npub", required=False)
@click.option("--once", is_flag=True, help="For whoever uses the link first, one time.")
@click.option("--expires", default="24h", show_default=True, help="How long: 30m, 24h, 7d.")
@click.option("--qr", is_flag=True, help="Show the link as a QR code too.")
@json_option
@click.pass_obj
def invite_command(
    options: Options, npub: str | None, once: bool, expires: str, qr: bool, as_json: bool
) -> None:
    """Make a link that lets another node join.

    It is for NPUB alone, or with --once, for whoever uses it first.
    """
    if (npub is None) == (not once):
        raise UsageError(
            "an invite is either for one NPUB or --once",
            "ask the other node for: nostrvpn id; then: nostrvpn invite NPUB",
        )
    if npub is not None:
        from nostrvpn.identity.keys import BadKey, parse_npub

        try:
            parse_npub(npub)
        except BadKey as error:
            raise UsageError(str(error), error.hint) from error
    seconds = parse_span(expires)
    if not _MIN_EXPIRY <= seconds <= _MAX_EXPIRY:
        raise UsageError("--expires must be between 1m and 366d", "for example: --expires 24h")
    answer = ControlClient(options.control_socket).call(
        "invite", npub=npub, once=once, expires_s=seconds
    )
    if as_json:
        show_json(answer)
        return
    click.echo(answer["link"])  # alone on standard output, for scripts
    whose = "whoever uses it first" if once else "that npub only"
    left = span(answer["expires_at"] - time.time())
    click.echo(f"For {whose}, valid for {left}. There, run: sudo nostrvpn join LINK", err=True)
    if once:
        click.echo("Send it over a channel you trust: who has it can join.", err=True)
    if qr:
        from nostrvpn.cli.qr import show_qr

        show_qr(answer["link"])


@click.command("join")
@click.argument("link")
@json_option
@click.pass_obj
def join_command(options: Options, link: str, as_json: bool) -> None:
    """Join the network that a nostrvpn:// LINK invites to."""
    link = link.strip()
    if not link.lower().startswith("nostrvpn://"):
        raise UsageError(
            f"{link[:40]!r} is not an invite", "it starts with nostrvpn://; quote it in the shell"
        )
    answer = ControlClient(options.control_socket).call("join", link=link)
    if as_json:
        show_json(answer)
        return
    inviter = answer["inviter"]
    if answer["state"] == "joined":
        click.echo(f"Joined the network of {inviter}.")
        click.echo("Next: nostrvpn peers, nostrvpn ping PEER")
    else:
        click.echo(f"Asked {inviter} to let this node in.")
        click.echo("It completes when that node is online; see: nostrvpn status")


@click.command("peers")
@json_option
@click.pass_obj
def peers_command(options: Options, as_json: bool) -> None:
    """List the other members of the network."""
    answer = ControlClient(options.control_socket).call("peers")
    if as_json:
        show_json(answer)
        return
    peers = answer["peers"]
    if not peers:
        click.echo("No peers yet: nostrvpn invite NPUB, or nostrvpn join LINK")
        return
    from nostrvpn.cli.status import peer_table

    console().print(peer_table(peers))


@click.group("peer")
def peer_command() -> None:
    """Rename or remove a member.

    PEER is a name, an npub, or the beginning of one.
    """


@peer_command.command("remove")
@click.argument("peer", type=PEER)
@json_option
@click.pass_obj
def remove(options: Options, peer: str, as_json: bool) -> None:
    """Remove PEER from the network."""
    answer = ControlClient(options.control_socket).call("peer_remove", peer=peer)
    if as_json:
        show_json(answer)
        return
    click.echo(f"Removed {_called(answer)}.")


@peer_command.command("rename")
@click.argument("peer", type=PEER)
@click.argument("name")
@json_option
@click.pass_obj
def rename(options: Options, peer: str, name: str, as_json: bool) -> None:
    """Call PEER by another NAME."""
    from nostrvpn.config.names import check_name

    try:
        check_name(name)
    except ValueError as error:
        raise UsageError(str(error), "for example: home-server") from error
    answer = ControlClient(options.control_socket).call("peer_rename", peer=peer, name=name)
    if as_json:
        show_json(answer)
        return
    click.echo(f"{answer['npub']} is now called {answer['name']}.")


def _called(peer: dict[str, str]) -> str:
    return f"{peer['name']} ({peer['npub']})" if peer.get("name") else peer["npub"]
