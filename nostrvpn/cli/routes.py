"""``routes``: networks behind members, and behind this node."""

from __future__ import annotations

from typing import Any

import click

from nostrvpn.cli.output import console, json_option, shown_as_json, table, warn_unless_applied
from nostrvpn.cli.peer_argument import PEER
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import UsageError

__all__ = ["routes_command"]

_NETWORKS = click.argument("networks", metavar="[CIDR]...", nargs=-1)
_WITHDRAW = click.option("--withdraw", is_flag=True, help="Take it back.")


@click.group("routes", invoke_without_command=True)
@json_option
@click.pass_context
def routes_command(ctx: click.Context, as_json: bool) -> None:
    """Reach networks behind members: list them, share one, approve, accept.

    A network is used if its router shares it (advertise), an admin approved it (approve) and this
    node takes it (accept). Without a command: all of them, and how each stands.
    """
    if ctx.invoked_subcommand is None:
        _show(ControlClient(ctx.obj.control_socket).call("routes"), as_json=as_json)


@routes_command.command("advertise")
@_NETWORKS
@_WITHDRAW
@click.option(
    "--snat/--no-snat",
    default=None,
    help="Whether hosts there see this node's address (the default), or the member's own: then they "
    "need a route back through this node.",
)
@json_option
@click.pass_obj
def advertise(
    options: Options, networks: tuple[str, ...], withdraw: bool, snat: bool | None, as_json: bool
) -> None:
    """Share networks behind this node, each as CIDR, for example 192.168.5.0/24.

    An admin has to approve them, and members reach them to whom lan is allowed here.
    """
    if not networks and snat is None:
        raise UsageError("which network?", "for example: nostrvpn routes advertise 192.168.5.0/24")
    answer = ControlClient(options.control_socket).call(
        "routes_advertise", networks=networks, withdraw=withdraw, snat=snat
    )
    _show(answer, as_json=as_json)


@routes_command.command("approve")
@click.argument("peer", type=PEER)
@_NETWORKS
@_WITHDRAW
@json_option
@click.pass_obj
def approve(
    options: Options, peer: str, networks: tuple[str, ...], withdraw: bool, as_json: bool
) -> None:
    """Let PEER be the router of networks, for the whole network; admins only.

    Without CIDR: what it shares now; with --withdraw all that was approved. PEER may be me.
    """
    answer = ControlClient(options.control_socket).call(
        "routes_approve", peer=peer, networks=networks, withdraw=withdraw
    )
    _show(answer, as_json=as_json)


@routes_command.command("accept")
@click.argument("who", metavar="PEER|all", type=PEER)
@_NETWORKS
@click.option("--force", is_flag=True, help="Although it hides a part of a local network.")
@json_option
@click.pass_obj
def accept(
    options: Options, who: str, networks: tuple[str, ...], force: bool, as_json: bool
) -> None:
    """Send packets for networks behind PEER (or behind all) to it.

    Without CIDR: whatever it shares and admins approve, now and later.
    """
    answer = ControlClient(options.control_socket).call(
        "routes_accept", who=who, networks=networks, accept=True, force=force
    )
    _show(answer, as_json=as_json)


@routes_command.command("refuse")
@click.argument("who", metavar="PEER|all", type=PEER)
@_NETWORKS
@json_option
@click.pass_obj
def refuse(options: Options, who: str, networks: tuple[str, ...], as_json: bool) -> None:
    """Send nothing for these networks to PEER any more, or for any of its networks."""
    answer = ControlClient(options.control_socket).call(
        "routes_accept", who=who, networks=networks, accept=False, force=False
    )
    _show(answer, as_json=as_json)


def _show(answer: Any, *, as_json: bool) -> None:
    if shown_as_json(answer, as_json):
        return
    warn_unless_applied(answer)
    made = table("network", "behind", "advertised", "approved", "accepted", "state")
    for one in answer["shared"]:
        made.add_row(one["network"], "this node", "yes", _yes(one["approved"]), "-", one["text"])
    for one in answer["routes"]:
        words = [_yes(one[key]) for key in ("advertised", "approved", "accepted")]
        made.add_row(one["network"], one["name"], *words, one["text"])
    if not made.row_count:
        click.echo("No networks behind members: nostrvpn routes advertise CIDR shares one.")
        return
    console().print(made)
    if answer["shared"] and not answer["snat"]:
        click.echo("Hosts behind this node see members' own addresses: they need a route back.")


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"
