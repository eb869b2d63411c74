"""Writes small databases in MaxMind's format (MaxMind DB file format specification 2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

__all__ = ["write_countries"]

_MARKER = b"\xab\xcd\xefMaxMind.com"
_Node = list["_Node | str | None"]


def write_countries(path: Path, countries: Mapping[str, str]) -> None:
    """Write a database that has ``country.iso_code`` for each network (CIDR)."""
    root: _Node = [None, None]
    for cidr, code in countries.items():
        network = ip_network(cidr)
        # IPv4 is at ::/96 of the one tree.
        value = int(network.network_address)
        width = network.prefixlen + (96 if network.version == 4 else 0)
        node = root
        for position in range(width):
            bit = value >> (127 - position) & 1
            if position == width - 1:
                node[bit] = code
                break
            inner = node[bit]
            if not isinstance(inner, list):
                inner = node[bit] = [None, None]
            node = inner
    nodes: list[_Node] = [root]
    for node in nodes:  # grows meanwhile
        nodes += [inner for inner in node if isinstance(inner, list)]
    numbers = {id(node): number for number, node in enumerate(nodes)}
    offsets, data = {}, b""
    for code in sorted(set(countries.values())):
        offsets[code] = len(data)
        data += _map({"country": _map({"iso_code": _text(code)})})
    tree = b""
    for node in nodes:
        for inner in node:
            if isinstance(inner, list):
                record = numbers[id(inner)]
            else:
                record = len(nodes) + (0 if inner is None else 16 + offsets[inner])
            tree += record.to_bytes(4, "big")
    about = {
        "node_count": _number(len(nodes)),
        "record_size": _number(32, 2),
        "ip_version": _number(6, 2),
        "database_type": _text("Test-Country"),
        "binary_format_major_version": _number(2, 2),
        "binary_format_minor_version": _number(0, 2),
        "build_epoch": _number(1_700_000_000, 8),
        "languages": b"\x00\x04",  # an empty array
        "description": _map({}),
    }
    path.write_bytes(tree + bytes(16) + data + _MARKER + _map(about))


def _text(text: str) -> bytes:
    raw = text.encode()
    assert len(raw) < 285
    if len(raw) < 29:
        return bytes([2 << 5 | len(raw)]) + raw
    return bytes([2 << 5 | 29, len(raw) - 29]) + raw


def _number(value: int, size: int = 4) -> bytes:
    kind = {2: b"\xa2", 4: b"\xc4", 8: b"\x08\x02"}[size]  # unsigned, of so many bytes
    return kind + value.to_bytes(size, "big")


def _map(items: Mapping[str, bytes]) -> bytes:
    return bytes([7 << 5 | len(items)]) + b"".join(_text(k) + v for k, v in items.items())
