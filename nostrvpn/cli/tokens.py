"""``token``: links by which several nodes join, each let in by whichever member is online."""

from __future__ import annotations

import time
from typing import Any

import click

from nostrvpn.cli.members import show_link
from nostrvpn.cli.output import console, json_option, shown_as_json, span, table
from nostrvpn.cli.terms import checked_tags, parse_span, terms_options
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient

__all__ = ["token_command"]


@click.group("token")
def token_command() -> None:
    """Links by which several nodes join, without anybody of this network at the keyboard."""


@token_command.command("create")
@click.option(
    "--uses", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many nodes."
)
@click.option("--expires", default="7d", show_default=True, help="How long: 30m, 24h, 7d.")
@click.option(
    "--role",
    type=click.Choice(["member", "guest"]),
    default="member",
    show_default=True,
    help="Guests admit nobody.",
)
@terms_options
@json_option
@click.pass_obj
def create(
    options: Options,
    /,
    uses: int,
    expires: str,
    tags: tuple[str, ...],
    as_json: bool,
    **terms: Any,
) -> None:
    """Make a link by which nodes join; any member that is online lets them in.

    On a new machine: NOSTRVPN_JOIN=LINK nostrvpn up
    """
    answer = ControlClient(options.control_socket).call(
        "token_create",
        uses=uses,
        expires_s=parse_span("--expires", expires),
        tags=checked_tags(tags),
        **terms,
    )
    if shown_as_json(answer, as_json):
        return
    whose = "one node" if uses == 1 else f"{uses} nodes"
    show_link(answer, f"{whose} (token {answer['id']})", open_to_all=True)


@token_command.command("list")
@json_option
@click.pass_obj
def listed(options: Options, as_json: bool) -> None:
    """List the network's tokens; the links themselves are not kept."""
    answer = ControlClient(options.control_socket).call("token_list")
    if shown_as_json(answer, as_json):
        return
    if not answer["tokens"]:
        click.echo("No tokens: nostrvpn token create")
        return
    made = table("id", "state", ">used", "expires in", "role", "tags")
    for token in answer["tokens"]:
        left = token["expires_at"] - time.time()
        role = f"{token['role']}, ephemeral" if token["ephemeral"] else token["role"]
        made.add_row(
            token["id"],
            token["state"],
            f"{token['used']} of {token['uses']}",
            span(left) if left > 0 else "-",
            role,
            ", ".join(token["tags"]) or "-",
        )
    console().print(made)


@token_command.command("revoke")
@click.argument("token", metavar="ID")
@json_option
@click.pass_obj
def revoke(options: Options, token: str, as_json: bool) -> None:
    """Let nobody else in by the token ID; who came in by it stays."""
    answer = ControlClient(options.control_socket).call("token_revoke", id=token)
    if shown_as_json(answer, as_json):
        return
    click.echo(f"Token {answer['id']} lets nobody in any more.")
