"""``allow``, ``deny``, ``rules``, ``shields-up`` and ``policy``: who may do what here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from nostrvpn.cli.output import console, json_option, shown_as_json, table, warn_unless_applied
from nostrvpn.cli.peer_argument import PEER
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient

__all__ = [
    "allow_command",
    "deny_command",
    "policy_command",
    "rules_command",
    "shields_up_command",
]

_DEFAULTS = {
    "none": "nothing is let in",
    "ping": "only ping is let in",
    "all": "members may everything",
}


def _rule_arguments(command: Callable[..., Any]) -> Any:
    """Give a command what allow and deny have in common."""
    at = click.option(
        "--at", type=PEER, metavar="WHO", help="With --network: at whose node; else at everybody's."
    )
    network = click.option("--network", is_flag=True, help="For the whole network; admins only.")
    undo = click.option("--undo", is_flag=True, help="Take this rule back.")
    who = click.argument("who", type=PEER)
    what = click.argument("what", default="inbound")
    return who(what(network(at(undo(json_option(click.pass_obj(command)))))))


@click.command("allow")
@_rule_arguments
def allow_command(options: Options, **given: Any) -> None:
    """Let WHO do WHAT at this node.

    WHO is a member, tag:NAME, or all. WHAT is inbound (everything that WHO may send here; the
    default), inbound:tcp/22,udp/53-60,icmp (these ports, and ping), lan (the networks behind this
    node), exit (the internet through it) or files.
    """
    _permit(options, allow=True, **given)


@click.command("deny")
@_rule_arguments
def deny_command(options: Options, **given: Any) -> None:
    """Do not let WHO do WHAT at this node; open connections are cut.

    WHO and WHAT are those of nostrvpn allow. A rule about a member beats one about a tag, which
    beats one about all; among equals deny wins.
    """
    _permit(options, allow=False, **given)


def _permit(options: Options, *, as_json: bool, **given: Any) -> None:
    answer = ControlClient(options.control_socket).call("permit", **given)
    if shown_as_json(answer, as_json):
        return
    warn_unless_applied(answer)
    where = "In the whole network" if given["network"] else "At this node"
    click.echo(f"{where}: {answer['text']}{' (taken back)' if answer['undone'] else ''}.")


@click.command("rules")
@json_option
@click.pass_obj
def rules_command(options: Options, as_json: bool) -> None:
    """List the rules of this node and of the network, in the order in which they count."""
    answer = ControlClient(options.control_socket).call("rules")
    if shown_as_json(answer, as_json):
        return
    if answer["shields_up"]:
        click.echo("Shields are up: nothing is let in, whatever the rules say.")
    made = table("whose", "rule")
    for whose, key in (("this node", "local"), ("network", "network")):
        for rule in answer[key]:
            made.add_row(whose, rule["text"])
    if made.row_count:
        console().print(made)
    if answer["same_owner"]:
        click.echo("Devices of the same owner may everything with each other.")
    click.echo(f"Where no rule says: {_DEFAULTS[answer['inbound']]}.")


@click.command("shields-up")
@click.argument("state", type=click.Choice(["on", "off"]))
@json_option
@click.pass_obj
def shields_up_command(options: Options, state: str, as_json: bool) -> None:
    """Let nothing in from the network for now, whatever the rules say; or let it in again."""
    answer = ControlClient(options.control_socket).call("shields_up", up=state == "on")
    if shown_as_json(answer, as_json):
        return
    warn_unless_applied(answer)
    if answer["shields_up"]:
        click.echo("Shields are up: nothing is let in from the network.")
    else:
        click.echo("Shields are down: the rules decide again.")


@click.group("policy")
def policy_command() -> None:
    """Ask what the rules mean."""


@policy_command.command("test")
@click.argument("source", type=PEER)
@click.argument("target", type=PEER)
@click.argument("what", default="inbound")
@json_option
@click.pass_obj
def test(options: Options, source: str, target: str, what: str, as_json: bool) -> None:
    """Say whether SOURCE may do WHAT at TARGET, and which rule decides.

    SOURCE and TARGET are members, or me. WHAT is tcp/22, udp/53, ping, inbound (everything that
    has no port), lan, exit or files.
    """
    answer = ControlClient(options.control_socket).call(
        "policy_test", source=source, target=target, what=what
    )
    if shown_as_json(answer, as_json):
        return
    word = "may" if answer["allowed"] else "may not"
    click.echo(f"{answer['source']['name']} {word} {answer['what']} at {answer['target']['name']}:")
    click.echo(f"  {answer['text']}")
    if answer["note"]:
        click.echo(f"  ({answer['note']})")
