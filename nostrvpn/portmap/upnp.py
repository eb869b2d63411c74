"""UPnP-IGD texts: the search (SSDP), the device description, and the SOAP calls and their answers.

Only the texts; who carries them is ``io/upnp.py``. Everything a router says is XML from outside:
defusedxml refuses document types, and with them entities. It is imported on first use, because most
hosts never see a UPnP router.

Sources: UPnP Device Architecture 1.1 (sections 1.3, 2.3, 3.1), WANIPConnection:1 and :2.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = [
    "CONFLICT",
    "MAX_DOCUMENT",
    "NO_SUCH_ENTRY",
    "ONLY_PERMANENT",
    "SEARCH_TARGETS",
    "UpnpService",
    "in_words",
    "parse_description",
    "parse_external_address",
    "parse_fault",
    "parse_location",
    "parse_mapping_entry",
    "render_call",
    "render_search",
]

MAX_DOCUMENT = 128 << 10
"""Bytes of a description or answer; those of real routers have 2 to 20 KiB."""

SEARCH_TARGETS = tuple(
    f"urn:schemas-upnp-org:device:InternetGatewayDevice:{version}" for version in (1, 2)
)

# Error codes of WANIPConnection:1, section 2.4.
NO_SUCH_ENTRY = 714
CONFLICT = 718
ONLY_PERMANENT = 725
_WORDS = {
    401: "does not know the request",
    402: "found our request malformed",
    501: "failed to carry out the request",
    606: "does not allow port mappings",
    715: "wants a mapping for one remote host only",
    716: "wants to choose the external port itself",
    CONFLICT: "gave the port to another host",
    724: "maps only equal ports",
    ONLY_PERMANENT: "makes only permanent mappings",
    726: "wants a mapping for one remote host only",
    728: "has no room for another mapping",
}

_CONNECTION = re.compile(r"urn:schemas-upnp-org:service:WAN(?:IP|PPP)Connection:[12]\Z")
# A router has one or two connections; more is no router.
_MAX_SERVICES = 4
_MAX_LOCATION = 512
_ENVELOPE = (
    '<?xml version="1.0"?>\r\n'
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
    ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
    '<s:Body><u:{action} xmlns:u="{service}">{arguments}</u:{action}></s:Body></s:Envelope>\r\n'
)


@dataclass(frozen=True, slots=True)
class UpnpService:
    """A router's connection to the internet: the type of the service, and where to call it."""

    kind: str
    control_url: str


def render_search(target: str, host: str) -> bytes:
    """Return an SSDP search for ``target``, to ``host`` (``239.255.255.250:1900``)."""
    return (
        f'M-SEARCH * HTTP/1.1\r\nHOST: {host}\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: {target}\r\n\r\n'
    ).encode()


def parse_location(data: bytes, gateway: IPv4Address) -> str:
    """Return where an SSDP answer says the description is; it must be on the gateway itself.

    Raises PeerMisbehaved: "malformed_ssdp", or "foreign_upnp" for an address elsewhere.
    """
    head, *lines = data.decode("latin-1").split("\r\n")
    if not re.match(r"HTTP/1\.[01] 200\b", head):
        raise PeerMisbehaved("malformed_ssdp", "an SSDP message that is no answer")
    fields = {name.strip().lower(): value.strip() for name, _, value in map(_field, lines)}
    location, target = fields.get("location", ""), fields.get("st", "")
    if target not in SEARCH_TARGETS or not 0 < len(location) <= _MAX_LOCATION:
        raise PeerMisbehaved("malformed_ssdp", "an SSDP answer without a router's description")
    return _on_gateway(location, gateway)


def parse_description(data: bytes, location: str, gateway: IPv4Address) -> tuple[UpnpService, ...]:
    """Return the connections that a device description offers, the likeliest first.

    Raises PeerMisbehaved: "malformed_upnp" for what is no description, "foreign_upnp" if it sends us
    to another host.
    """
    root = _parse(data)
    base = next((_text(item) for item in root.iter() if _name(item) == "URLBase"), "") or location
    services: list[UpnpService] = []
    for item in root.iter():
        if _name(item) != "service" or len(services) == _MAX_SERVICES:
            continue
        fields = {_name(child): _text(child) for child in item}
        kind, control = fields.get("serviceType", ""), fields.get("controlURL", "")
        if _CONNECTION.match(kind) and 0 < len(control) <= _MAX_LOCATION:
            services.append(UpnpService(kind, _on_gateway(_joined(base, control), gateway)))
    return tuple(services)


def render_call(service: UpnpService, action: str, arguments: Mapping[str, object]) -> bytes:
    """Return the SOAP envelope of a call."""
    inner = "".join(
        f"<{name}>{html.escape(str(value), quote=False)}</{name}>"
        for name, value in arguments.items()
    )
    return _ENVELOPE.format(action=action, service=service.kind, arguments=inner).encode()


def parse_external_address(data: bytes) -> IPv4Address:
    """Return what GetExternalIPAddress answers; raise PeerMisbehaved("malformed_upnp")."""
    found = _values(_parse(data)).get("NewExternalIPAddress", "")
    try:
        return IPv4Address(found)
    except AddressValueError as exc:
        raise PeerMisbehaved("malformed_upnp", "no external address in the answer") from exc


def parse_mapping_entry(data: bytes) -> Endpoint:
    """Return whom GetSpecificPortMappingEntry names; raise PeerMisbehaved("malformed_upnp")."""
    values = _values(_parse(data))
    try:
        client = IPv4Address(values["NewInternalClient"])
        return Endpoint(client, _port(values["NewInternalPort"]))
    except (KeyError, ValueError) as exc:
        raise PeerMisbehaved("malformed_upnp", "no client in the mapping's entry") from exc


def parse_fault(data: bytes) -> int:
    """Return the UPnP error code of a SOAP fault, or 501 (action failed) where there is none."""
    try:
        code = _values(_parse(data)).get("errorCode", "")
    except PeerMisbehaved:
        return 501
    return int(code) if re.fullmatch(r"[1-9][0-9]{2}", code, re.ASCII) else 501


def in_words(code: int) -> str:
    """Return what an error code says about the router, to follow "the router"."""
    return _WORDS.get(code, f"refused (UPnP error {code})")


def _field(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def _joined(base: str, url: str) -> str:
    try:
        return urljoin(base, url)
    except ValueError as exc:
        raise PeerMisbehaved("malformed_upnp", "a malformed URL") from exc


def _on_gateway(url: str, gateway: IPv4Address) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise PeerMisbehaved("malformed_upnp", "a malformed URL") from exc
    plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme != "http" or parts.username is not None or host != str(gateway) or not plain:
        raise PeerMisbehaved("foreign_upnp", "the router sends us to another host")
    return url


def _parse(data: bytes) -> Element:
    from xml.etree.ElementTree import ParseError

    from defusedxml.common import DefusedXmlException  # type: ignore[import-untyped]
    from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

    if len(data) > MAX_DOCUMENT:
        raise PeerMisbehaved("malformed_upnp", "an answer too long")
    try:
        # Some routers pad with zero bytes, which XML does not know.
        root: Element = fromstring(data.strip(b"\0 \r\n\t"), forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as exc:
        raise PeerMisbehaved("malformed_upnp", "no plain XML") from exc
    return root


def _name(element: Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _text(element: Element) -> str:
    return (element.text or "").strip()


def _values(root: Element) -> dict[str, str]:
    return dict(_leaves(root))


def _leaves(root: Element) -> Iterator[tuple[str, str]]:
    for item in root.iter():
        if not len(item):
            yield _name(item), _text(item)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not 0 < int(text) < 65536:
        raise ValueError("not a port")
    return int(text)
