"""``rotate``: another identity for this node, or another WireGuard key, without leaving its networks.

The new secret is written down before anybody hears of it, and takes the old one's place once every
network has been told; whatever happens in between, running it again goes on from there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from nostrvpn.cli.choosing import network_document
from nostrvpn.cli.output import json_option, show_json
from nostrvpn.cli.seconds import seconds_option
from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import SystemRefused, UserError
from nostrvpn.io.profiles import used_profiles

if TYPE_CHECKING:
    from nostrvpn.identity.keys import RootSecret

__all__ = ["rotate_command"]


@click.command("rotate")
@click.option("--wireguard", is_flag=True, help="Another WireGuard key only; the npub stays.")
@seconds_option("--timeout", 30.0, "Seconds to wait for the relays.")
@json_option
@click.pass_obj
def rotate_command(options: Options, wireguard: bool, timeout: float, as_json: bool) -> None:
    """Give this node a new identity (npub) in all its networks.

    It keeps its names, roles and IPv4 addresses, and its IPv6 addresses change. Tunnels are built up
    anew. What was interrupted goes on when it is run again.
    """
    answer = _rotate_wireguard(options) if wireguard else _rotate_identity(options, timeout)
    if as_json:
        show_json(answer)
    elif wireguard:
        click.echo(f"This node's WireGuard key is number {answer['epoch'] + 1} now.")
    else:
        click.echo(f"This node is {answer['npub']} now.")
        click.echo(f"The secret before is in {answer['former']}; keep it until all is well.")


def _rotate_wireguard(options: Options) -> dict[str, Any]:
    """Raise the epoch of one network's WireGuard key, and start its daemon anew."""
    client = ControlClient(options.control_socket)
    answer: dict[str, Any] = client.call("rotate_wireguard")
    _restart(options)
    return answer


def _rotate_identity(options: Options, timeout: float) -> dict[str, Any]:
    from nostrvpn.io.identity_file import adopt_next, load_identity, prepare_next

    places = [options.of_network(profile) for profile in used_profiles(options)]
    for place in places:
        if network_document(place) is None:
            raise UserError(
                f"the network {place.network} is down, and would not hear of it",
                "start it first: nostrvpn up",
            )
    root = load_identity(options.state_dir, os.environ)
    running = [ControlClient(place.control_socket).call("id")["npub"] for place in places]
    stale = [place for place, npub in zip(places, running, strict=True) if npub != root.npub]
    if stale:  # the secret was replaced, and then something came in between
        former = adopt_next(options.state_dir, os.environ)
    else:
        new = prepare_next(options.state_dir, os.environ)
        for place in places:
            _tell(place, root, new, timeout)
        former, stale = adopt_next(options.state_dir, os.environ), places
    for place in stale:
        _restart(place)
    npub = load_identity(options.state_dir, os.environ).npub
    return {"npub": npub, "former": str(former)}


def _tell(place: Options, root: RootSecret, new: RootSecret, timeout: float) -> None:
    from nostrvpn.mesh.operations import agree_to_rotate

    given: dict[str, Any] = {"npub": new.npub, "wait_s": timeout}
    network = (network_document(place) or {}).get("id")
    if network is not None:  # the daemon does not have the new secret, so the proof is made here
        aux = os.urandom(32)
        given["proof"] = agree_to_rotate(new.reveal(), network, root.public_key, aux)
    answer = ControlClient(place.control_socket).call("rotate", timeout=timeout + 5.0, **given)
    if not answer["told"]:
        raise SystemRefused(
            f"no relay has taken the news for the network {place.network} yet",
            "it is kept: run nostrvpn rotate again when a relay is connected",
        )


def _restart(place: Options) -> None:
    """Start a daemon anew as it was started, and wait until it answers."""
    import time

    from nostrvpn.cli.spawn import wait_until

    client = ControlClient(place.control_socket)
    before = client.call("restart")["run"]
    deadline = time.monotonic() + 20.0

    def is_new() -> bool:
        document = network_document(place)
        return document is not None and document.get("run") not in (None, before)

    if not wait_until(is_new, deadline):
        raise SystemRefused("the daemon did not come back", f"see {place.log_path}")
