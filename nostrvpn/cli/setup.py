"""``init`` and ``id``: make an identity, show it."""

from __future__ import annotations

import os
import socket
from typing import Any

import click

from nostrvpn.cli.output import json_option, shown_as_json
from nostrvpn.cli.terms import checked_label
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient, DaemonNotRunning
from nostrvpn.errors import UsageError, UserError

__all__ = ["checked_relays", "create_node", "id_command", "init_command"]


@click.command("init")
@click.option("--nsec-file", metavar="F", help="Use the nsec in a file (- for standard input).")
@click.option("--words-file", metavar="F", help="Use the words (NIP-06) in a file (- for stdin).")
@click.option("--name", help="This node's name.  [default: the host's]")
@click.option(
    "--relay", "relays", multiple=True, metavar="URL", help="Use this Nostr relay; repeatable."
)
@json_option
@click.pass_obj
def init_command(
    options: Options,
    nsec_file: str | None,
    words_file: str | None,
    name: str | None,
    relays: tuple[str, ...],
    as_json: bool,
) -> None:
    """Create this node's identity, or import one."""
    if nsec_file and words_file:
        raise UsageError("--nsec-file and --words-file exclude each other", "give one of them")
    made = create_node(options, name, relays, nsec_file=nsec_file, words_file=words_file)
    if shown_as_json(made, as_json):
        return
    click.echo(f"This node is {made['npub']}")
    click.echo(f"Its secret is in {made['identity']}: keep a copy, nobody can restore it.")
    click.echo("Next: sudo nostrvpn up")


def create_node(
    options: Options,
    name: str | None,
    relays: tuple[str, ...],
    *,
    nsec_file: str | None = None,
    words_file: str | None = None,
) -> dict[str, Any]:
    """Create identity and, where there is none, configuration; return what was made.

    Everything is checked before anything is written; an identity is never overwritten.
    """
    from nostrvpn.io.config_file import check_choices, save_choices
    from nostrvpn.io.identity_file import (
        create_identity,
        generate_root,
        has_identity,
        identity_path,
        read_nsec_file,
        read_words_file,
    )

    name, relays = checked_label(name, "--name"), checked_relays(relays)
    if has_identity(options.state_dir, os.environ):
        raise UserError(
            f"{identity_path(options.state_dir)} already holds an identity, it is not overwritten",
            "see it with: nostrvpn id; for a second node use another --state-dir",
        )
    check_choices(options.config, name, relays)
    if nsec_file:
        root = read_nsec_file(nsec_file, os.environ)
    elif words_file:
        root = read_words_file(words_file)
    else:
        root = generate_root()
    path = create_identity(options.state_dir, root, os.environ)
    created = save_choices(options.config, name, relays, default_name=_host_name())
    return {
        "npub": root.npub,
        "identity": str(path),
        "config": options.config,
        "config_created": created,
    }


def checked_relays(relays: tuple[str, ...]) -> tuple[str, ...]:
    """Return valid ``--relay`` URLs in their one spelling, or raise UsageError."""
    from nostrvpn.config.addresses import check_relay_url

    try:
        return tuple(dict.fromkeys(check_relay_url(url) for url in relays))
    except ValueError as error:
        raise UsageError(f"--relay: {error}", "for example: --relay wss://nos.lol") from error


def _host_name() -> str:
    from nostrvpn.config.names import name_from_hostname

    return name_from_hostname(socket.gethostname())


@click.command("id")
@click.option("--qr", is_flag=True, help="Show the npub as a QR code.")
@json_option
@click.pass_obj
def id_command(options: Options, qr: bool, as_json: bool) -> None:
    """Show who this node is: npub, WireGuard public key, overlay addresses."""
    try:
        identity = ControlClient(options.control_socket).call("id")
    except DaemonNotRunning:
        identity = _identity_at_rest(options)
    if shown_as_json(identity, as_json):
        return
    click.echo(f"npub                  {identity['npub']}")
    click.echo(f"WireGuard public key  {identity['wireguard_public_key']}")
    addresses = identity.get("addresses") or ["(none yet: join or found a network)"]
    click.echo(f"addresses             {', '.join(addresses)}")
    if qr:
        from nostrvpn.cli.qr import show_qr

        show_qr("nostr:" + identity["npub"])


def _identity_at_rest(options: Options) -> dict[str, Any]:
    """Return what the identity file alone tells, when no daemon runs."""
    from nostrvpn.identity.keys import wireguard_public_key
    from nostrvpn.io.identity_file import load_identity

    root = load_identity(options.state_dir, os.environ)
    return {
        "npub": root.npub,
        "wireguard_public_key": wireguard_public_key(root.wireguard_private_key()),
        "addresses": [],
    }
