"""``why``: what carries data to a peer, what was tried, what blocks and what would help."""

from __future__ import annotations

from typing import Any

import click

from nostrvpn.cli.output import dash, json_option, shown_as_json, span
from nostrvpn.cli.peer_argument import PEER
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient

__all__ = ["why_command"]


@click.command("why")
@click.argument("peer", type=PEER)
@json_option
@click.pass_obj
def why_command(options: Options, peer: str, as_json: bool) -> None:
    """Say in words why the path to PEER is as it is.

    PEER is a name, an npub, or the beginning of one.
    """
    answer = ControlClient(options.control_socket).call("why", peer=peer)
    if shown_as_json(answer, as_json):
        return
    click.echo(f"{answer.get('name') or answer['peer'][:16] + '…'}: {answer['summary']}")
    if answer["tried"]:
        click.echo("\nTried:")
        _show_tried(answer["tried"])
    for title, key in (("In the way:", "blocks"), ("What would help:", "helps")):
        if answer[key]:
            click.echo(f"\n{title}")
            for item in answer[key]:
                click.echo(f"  - {item['text']}")
    if answer.get("search"):
        click.echo(f"\nSearch for ports: {answer['search']}.")
    if answer.get("next_try_in_s") is not None:
        click.echo(f"\nNext try in {span(answer['next_try_in_s'])}.")


def _show_tried(tried: list[dict[str, Any]]) -> None:
    width = max(len(item["address"]) for item in tried)
    for item in tried:
        rtt = dash(item.get("rtt_ms"), "{:.0f} ms")
        address, result = item["address"].ljust(width), item["result"].ljust(8)
        click.echo(f"  {address}  {result}  {rtt:>7}  {item['text']}")
