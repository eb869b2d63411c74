"""What this node relays for others: the rules between the settings, and one run's overrides."""

from __future__ import annotations

from typing import Any

import msgspec

from nostrvpn.config.addresses import (
    check_ip_port,
    check_port_range,
    check_public_ip,
    check_relay_url,
)
from nostrvpn.config.model import Relay, WebSocket
from nostrvpn.config.options import RelayOptions
from nostrvpn.errors import UserError

__all__ = ["BadRelay", "check_relay", "relay_with"]


class BadRelay(UserError):
    """A relay setting that cannot be; ``path`` is its place below ``relay``."""

    def __init__(self, path: tuple[str | int, ...], text: str, hint: str) -> None:
        super().__init__(text, hint)
        self.path = path


def check_relay(relay: Relay) -> Relay:
    """Return the settings with every address in its one spelling; BadRelay names the wrong one."""
    addresses: dict[bool, str] = {}
    for index, text in enumerate(relay.address):
        try:
            address = check_public_ip(text)
        except ValueError as error:
            raise BadRelay(("address", index), str(error), "an example: 203.0.113.5") from error
        if addresses.setdefault(":" in address, address) != address:
            text = "at most one IPv4 and one IPv6 address can be announced"
            raise BadRelay(("address", index), text, "keep the one that others reach best")
    try:
        ports = check_port_range(relay.ports)
    except ValueError as error:
        raise BadRelay(("ports",), str(error), "an example: 33000-33999") from error
    if len(ports) < relay.pairs:
        text = f"{relay.ports} are {len(ports)} ports, {relay.pairs} pairs need one each"
        raise BadRelay(("ports",), text, "widen relay.ports, or lower relay.pairs")
    websocket = _check_websocket(relay.websocket)
    return msgspec.structs.replace(relay, address=tuple(addresses.values()), websocket=websocket)


def _check_websocket(given: WebSocket) -> WebSocket:
    listen, url = given.listen, given.url
    try:
        listen = check_ip_port(listen) if listen else ""
    except ValueError as error:
        raise BadRelay(("websocket", "listen"), str(error), "an example: 0.0.0.0:443") from error
    try:
        url = check_relay_url(url) if url else ""
    except ValueError as error:
        hint = "an example: wss://relay.example.org/nostrvpn"
        raise BadRelay(("websocket", "url"), str(error), hint) from error
    if bool(given.certificate) != bool(given.key):
        text = "certificate and key belong together"
        raise BadRelay(("websocket",), text, "name both files (PEM), or none of them")
    if given.certificate and not url.startswith("wss://"):
        text = "a certificate is for a host name, so url must be wss://HOST"
        raise BadRelay(("websocket",), text, "an example: url: wss://relay.example.org")
    if (url or given.certificate) and not listen:
        text = "it needs listen, the address and port to serve at"
        raise BadRelay(("websocket",), text, "an example: listen: 0.0.0.0:443")
    return msgspec.structs.replace(given, listen=listen, url=url)


def relay_with(relay: Relay, options: RelayOptions) -> Relay:
    """Return the settings with what the command line says instead; BadRelay if they do not fit."""
    changes = {
        "offer": options.offer,
        "address": options.address or None,
        "pairs": options.pairs,
        "mbit": options.mbit,
        "gigabytes": options.gigabytes,
    }
    chosen: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    if options.websocket is not None:
        chosen["websocket"] = msgspec.structs.replace(relay.websocket, listen=options.websocket)
    made = check_relay(msgspec.structs.replace(relay, **chosen))
    if made.offer == "none" and (options.given - {"offer"}):
        text = "this node is not to relay for anybody, so the other relay options do nothing"
        raise BadRelay(("offer",), text, "add --relay-for members")
    return made
