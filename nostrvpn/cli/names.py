"""``resolve`` and ``nip05``: what a name stands for, and by whose word."""

from __future__ import annotations

import click

from nostrvpn.cli.output import json_option, show_json
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient

__all__ = ["nip05_command", "resolve_command"]


@click.command("resolve")
@click.argument("name")
@json_option
@click.pass_obj
def resolve_command(options: Options, name: str, as_json: bool) -> int:
    """Say what this node answers for NAME, and why.

    NAME is a member's name, with or without its domain, an npub, or an address of the mesh. The exit
    code is 1 if there is no such name.
    """
    answer = ControlClient(options.control_socket).call("resolve", name=name)
    found = bool(answer["addresses"] or answer["pointer"])
    if as_json:
        show_json(answer)
        return 0 if found else 1
    click.echo(f"{answer['name']}: {answer['text']}")
    if answer["npub"]:
        click.echo(f"  npub       {answer['npub']}")
    if answer["addresses"]:
        click.echo(f"  addresses  {', '.join(answer['addresses'])}")
    if answer["pointer"]:
        click.echo(f"  name       {answer['pointer']}")
    dns = answer["dns"]
    trouble = dns.get("failure") or dns.get("problem")
    if trouble:
        click.echo(f"Other programs on this host do not know it: {trouble}.")
    return 0 if found else 1


@click.command("nip05")
@click.argument("identifier", metavar="NAME@DOMAIN")
@json_option
def nip05_command(identifier: str, as_json: bool) -> None:
    """Ask a domain for the npub of NAME@DOMAIN (NIP-05), and show it.

    It is that domain's word only, and it may say another tomorrow: compare the npub by another way
    before you invite it. Nothing here ever uses such a name by itself.
    """
    import asyncio

    from nostrvpn.identity.keys import npub
    from nostrvpn.io.nip05 import ask_domain
    from nostrvpn.nostr.nip05 import parse_identifier

    wanted = parse_identifier(identifier)
    found = npub(asyncio.run(ask_domain(wanted)))
    if as_json:
        show_json({"identifier": identifier, "npub": found, "verified": False})
        return
    click.echo(found)
    click.echo(f"By the word of {wanted.domain} only; not verified by the network.", err=True)
