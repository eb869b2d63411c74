"""``exit``: leave for the internet through a member, and what holds while one does."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import click

from nostrvpn.cli.output import console, dash, json_option, show_json, span, table
from nostrvpn.cli.peer_argument import PEER
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import UsageError, UserError

if TYPE_CHECKING:
    from nostrvpn.endpoint import IPAddress

__all__ = ["exit_command"]

# Subcommands of other modules: imported when they are asked for.
_ELSEWHERE = {"offer": "exit_offer", "clients": "exit_offer", "buy": "exit_sale"}
_KILL_SWITCH = click.Choice(["on", "off", "lockdown"])
_WORDS = "CIDR|DOMAIN|uid:N|cgroup:PATH"
_SHOWN_WITHOUT = ("Trusted", "This network", "Coming home", "For sale")
_STATES = {
    "answers": "answers",
    "silent": "does not answer",
    "reachable": "reachable",
    "unreachable": "no path",
    "loops": "leaves through this node",
    "down": "has no way out",
}


class _ExitGroup(click.Group):
    """``exit`` with the commands about being one, which are in a module of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*(name for name in self.commands if name not in _ELSEWHERE), *_elsewhere()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _elsewhere() and cmd_name not in self.commands:
            module = import_module(f"nostrvpn.cli.{_ELSEWHERE[cmd_name]}")
            command = getattr(module, f"{cmd_name}_command", None)
            if command is not None:
                assert isinstance(command, click.Command)
                return command
        return super().get_command(ctx, cmd_name)


def _elsewhere() -> list[str]:
    return [name for name, module in _ELSEWHERE.items() if find_spec(f"nostrvpn.cli.{module}")]


@click.group("exit", cls=_ExitGroup)
def exit_command() -> None:
    """Leave for the internet through another member; docs/exits.md says what holds meanwhile."""


@exit_command.command("list")
@json_option
@click.pass_obj
def list_exits(options: Options, as_json: bool) -> None:
    """List the members that let this node use them as its exit."""
    answer = ControlClient(options.control_socket).call("exit_list")
    if as_json:
        show_json(answer)
        return
    made = table("exit", "country", ">rtt", ">load", "carries", "policy", "path", "state")
    for one in answer["exits"]:
        state = _STATES[one["state"]]
        made.add_row(
            one["name"],
            _country(one),
            dash(one["rtt_ms"], "{} ms"),
            f"{one['load']} %",
            _carried(one),
            one["policy"],
            one["path"],
            f"in use for {span(one['since_s'])}, {state}" if one["in_use"] else state,
        )
    if made.row_count:
        console().print(made)
    else:
        click.echo("No member lets this node use it as its exit: there, nostrvpn exit offer.")
    if answer.get("wallet_sat"):
        click.echo(
            f"For {answer['wallet_sat']} sat there are strangers' exits: nostrvpn market list"
        )


@exit_command.command("use")
@click.argument("peer", metavar="PEER|auto", type=PEER)
@click.option(
    "--allow-lan/--no-allow-lan",
    default=None,
    help="Whether the local network stays reachable.  [default: as last time; at first no]",
)
@click.option(
    "--kill-switch",
    type=_KILL_SWITCH,
    help="on: nothing leaves outside until exit off. lockdown: nor after down or a reboot.  "
    "[default: as last time; at first on]",
)
@click.option(
    "--resolver",
    metavar="IP|exit",
    help="Whom to ask for names, through the exit.  [default: as last time; at first the exit]",
)
@click.option("--yes", is_flag=True, help="Although it cuts the session that this is typed in.")
@json_option
@click.pass_obj
def use(
    options: Options,
    peer: str,
    allow_lan: bool | None,
    kill_switch: str | None,
    resolver: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Send everything through PEER, or through the best exit (auto).

    What is about to change is shown first. Where it would cut the SSH session that this is typed in, it
    asks.
    """
    given: dict[str, Any] = {
        "allow_lan": allow_lan,
        "kill_switch": kill_switch,
        "resolver": resolver,
    }
    client = ControlClient(options.control_socket)
    plan = client.call("exit_use", peer=peer, dry_run=True, **given)
    _confirm(plan, yes=yes, quiet=as_json)
    answer = client.call("exit_use", peer=peer, dry_run=False, **given)
    _show(answer, as_json=as_json)


def _confirm(plan: Any, *, yes: bool, quiet: bool) -> None:
    """Show the plan, and ask if the operator's own session would be cut; UserError ends it."""
    from nostrvpn.io.ssh_session import ssh_client

    operator = ssh_client()
    is_cut = operator is not None and not _is_kept(operator, plan["kept"])
    if not quiet:
        for line in plan["lines"]:
            click.echo(f"  {line}", err=True)
    if not is_cut:
        return
    assert operator is not None
    help_words = f"--allow-lan keeps it, or nostrvpn exit bypass add {operator}"
    if not operator.is_private:
        help_words = f"nostrvpn exit bypass add {operator} keeps it"
    warning = f"this cuts the SSH session from {operator} that it is typed in"
    if yes:
        if not quiet:
            click.echo(f"  {warning}", err=True)
        return
    if quiet or not sys.stdin.isatty():
        raise UserError(warning, f"{help_words}; --yes does it all the same")
    click.echo(f"  {warning}: {help_words}", err=True)
    if not click.confirm("Go on?", err=True):
        raise UserError("nothing was changed", help_words)


def _is_kept(client: IPAddress, kept: list[str]) -> bool:
    """Whether packets for ``client`` go on as before."""
    if client.is_loopback:
        return True
    networks = [ip_network(text) for text in kept]
    return any(client in network for network in networks)


@exit_command.command("off")
@click.option("--kill-switch", type=_KILL_SWITCH, help="Set it too: off ends a lockdown.")
@json_option
@click.pass_obj
def off(options: Options, kill_switch: str | None, as_json: bool) -> None:
    """Use no exit: everything leaves by the host's own routes again, unless in lockdown."""
    answer = ControlClient(options.control_socket).call("exit_off", kill_switch=kill_switch)
    _show(answer, as_json=as_json)


@exit_command.command("status")
@json_option
@click.pass_obj
def status(options: Options, as_json: bool) -> None:
    """Show which exit is used, since when, and what may leave beside it."""
    answer = ControlClient(options.control_socket).call("exit_status")
    if as_json:
        show_json(answer)
        return
    _show(answer, as_json=False)
    rows: dict[str, Any] = {
        "Local network": "reachable" if answer["allow_lan"] else "cut off",
        "Names": ", ".join(answer["resolvers"]),
        "Around it": ", ".join(answer["bypass"]),
        "Trusted": ", ".join(answer["trusted"]),
        "This network": answer["network"],
    }
    one = answer["exit"]
    if one is not None:
        country, rtt = _country(one), dash(one["rtt_ms"], "{} ms")
        rows = {"Exit": f"{one['name']}, {country}, {rtt}, {_STATES[one['state']]}"} | rows
    if "purchase" in answer:
        from nostrvpn.cli.exit_sale import purchase_rows, sale_rows

        rows = purchase_rows(answer["purchase"]) | rows | sale_rows(answer["sale"])
    for label, value in rows.items():
        if value and (answer["state"] != "off" or label in _SHOWN_WITHOUT):
            click.echo(f"  {label:<14} {value}")


@exit_command.command("bypass")
@click.argument("action", type=click.Choice(["add", "remove", "list"]))
@click.argument("words", metavar=f"[{_WORDS}]...", nargs=-1)
@json_option
@click.pass_obj
def bypass(options: Options, action: str, words: tuple[str, ...], as_json: bool) -> None:
    """Let some traffic go around the exit: to networks or domains, or of users or cgroups.

    A domain stands for the names below it too. uid:1000-1999 is a range.
    """
    _edit(options, "bypass", action, words, as_json=as_json)


@exit_command.command("trust")
@click.argument("action", type=click.Choice(["add", "remove", "list"]))
@click.argument("words", metavar="[NETWORK]...", nargs=-1)
@json_option
@click.pass_obj
def trust(options: Options, action: str, words: tuple[str, ...], as_json: bool) -> None:
    """Use no exit in some networks, such as the one at home: the one that this host is in now.

    A network is known by its default gateway's hardware address and its prefix. Who copies both is
    believed: see docs/exits.md.
    """
    _edit(options, "trust", action, words, as_json=as_json)


def _edit(
    options: Options, what: str, action: str, words: tuple[str, ...], *, as_json: bool
) -> None:
    if not words and action != "list" and (what, action) != ("trust", "add"):
        raise UsageError(f"{action} what?", f"see: nostrvpn exit {what} list")
    if words and action == "list":
        raise UsageError("list takes no further words", f"see: nostrvpn exit {what} --help")
    answer = ControlClient(options.control_socket).call(
        f"exit_{what}", action=action, words=list(words)
    )
    if as_json:
        show_json(answer)
        return
    listed = answer["bypass" if what == "bypass" else "trusted"]
    for word in listed:
        here = " (this network)" if word == answer["network"] else ""
        click.echo(f"{word}{here}")
    if not listed:
        nothing = {"bypass": "Nothing goes around the exit.", "trust": "No network is trusted."}
        click.echo(nothing[what])


@exit_command.command("guard", hidden=True)
@json_option
@click.pass_obj
def guard(options: Options, as_json: bool) -> None:
    """Block at boot what lockdown blocks, before there is a network; without the daemon."""
    from nostrvpn.daemon.boot_guard import guard

    guarded = guard(options)
    if as_json:
        keys = ("network", "interface", "state", "reason")
        show_json({"networks": [{key: getattr(one, key) for key in keys} for one in guarded]})
        return
    for one in guarded:
        click.echo(f"{one.network} ({one.interface}): {one.state}, {one.reason}")


def _show(answer: Any, *, as_json: bool) -> None:
    if as_json:
        show_json(answer)
        return
    text = answer["text"]
    click.echo(f"{text[:1].upper()}{text[1:]}.")
    if answer["state"] == "lockdown":
        click.echo("To end the lockdown: nostrvpn exit off --kill-switch off")


def _country(one: Any) -> str:
    claimed, observed = one["country"], one["country_observed"]
    if observed is None:
        return f"{claimed} (claimed)" if claimed else "-"
    return str(observed) if claimed in (None, observed) else f"{observed} (claims {claimed})"


def _carried(one: Any) -> str:
    names = [name for name, key in (("IPv4", "v4"), ("IPv6", "v6"), ("DNS", "dns")) if one[key]]
    return ", ".join(names)
