"""``exec``: run one command through an exit, in a network of its own, while the host keeps its way."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from ipaddress import ip_address, ip_interface
from typing import Any

import click

from nostrvpn.cli.peer_argument import PEER
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import NostrvpnError, SystemRefused, UsageError, UserError

__all__ = ["exec_command"]

_FAILURES = {126: "cannot be run", 127: "was not found"}


# What follows the first word belongs to the command.
@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("--exit", "peer", metavar="PEER", type=PEER, required=True, help="The exit to use.")
@click.option(
    "--user", metavar="NAME", help="Whom the command runs as.  [default: whoever called sudo]"
)
@click.argument("command", metavar="COMMAND...", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_obj
def exec_command(options: Options, peer: str, user: str | None, command: tuple[str, ...]) -> int:
    """Run one command through an exit, in a network namespace of its own.

    The host itself keeps its own way to the internet. The command reaches the internet through PEER or
    not at all, and nothing else: no member, no local network, no service of this host. Needs root.
    """
    if os.geteuid() != 0:
        raise UserError(
            "a network of its own for a command takes root",
            f"sudo nostrvpn exec --exit {peer} -- {command[0]}",
        )
    account = _account(user)
    _enter(options, peer)
    environment = _environment(account)
    from nostrvpn.io.booth import become_user, run_command

    if account is not None and account.pw_uid != 0:
        become_user(account)
    code = run_command(command, environment)
    click.echo(f"error: {command[0]} {_FAILURES[code]}", err=True)
    return code


def _account(name: str | None) -> pwd.struct_passwd | None:
    """Return whom the command runs as; None to go on as root."""
    try:
        if name is not None:
            return pwd.getpwnam(name)
        caller = os.environ.get("SUDO_UID", "")
        return pwd.getpwuid(int(caller)) if caller.isdecimal() and int(caller) else None
    except KeyError:
        whom = f"{name!r}" if name is not None else f"with the number {os.environ['SUDO_UID']}"
        raise UsageError(f"there is no user {whom}", "name one: --user NAME") from None


def _environment(account: pwd.struct_passwd | None) -> dict[str, str]:
    """Return what the command's environment is: ours, with the user's own name and home."""
    found = dict(os.environ)
    if account is not None:
        found |= {"USER": account.pw_name, "LOGNAME": account.pw_name}
        found |= {"HOME": account.pw_dir, "SHELL": account.pw_shell or "/bin/sh"}
    return found


def _enter(options: Options, peer: str) -> None:
    """Have the daemon lead a booth to the exit, and move there."""
    from nostrvpn.io.booth import BoothPlan, booths_taken, enter_booth
    from nostrvpn.io.exit_rivals import exit_rivals
    from nostrvpn.io.forward_policy import forward_obstacle

    client = ControlClient(options.control_socket)
    answer: Any = client.call("exec_begin", peer=peer, taken=booths_taken())
    try:
        if not answer.get("applied"):
            raise SystemRefused(
                f"the way through {answer['exit']} is not ready", "the daemon's log says why"
            )
        if rivals := exit_rivals(answer["tunnel"]):
            raise UserError(
                f"{rivals[0]}, another network of this host, uses an exit, and there is one at a time",
                "end that, or use its exit: nostrvpn --network NAME exec",
            )
        obstacle = forward_obstacle(answer["tunnel"], answer["versions"])
        if obstacle is not None:
            click.echo(
                f"{obstacle.where} drops what the command sends: {obstacle.remedy}", err=True
            )
        if not answer["resolvers"]:
            click.echo(f"{answer['exit']} answers no DNS: names do not resolve.", err=True)
        enter_booth(
            BoothPlan(
                answer["link"],
                answer["tunnel"],
                tuple(ip_interface(text) for text in answer["outside"]),
                tuple(ip_interface(text) for text in answer["inside"]),
                tuple(ip_address(text) for text in answer["resolvers"]),
            )
        )
        client.call("exec_ready", link=answer["link"])
    except NostrvpnError:
        with suppress(NostrvpnError):  # without the daemon there is nothing to give back
            client.call("exec_end", link=answer["link"])
        raise
