"""The name servers that this host has outside, whoever it asks just now. Blocking: short files.

While an exit is used, the host's resolver knows us alone. Whoever makes its files keeps the servers of
the networks around; where it does not, those are given that were there before we came.
"""

from __future__ import annotations

from pathlib import Path

from nostrvpn.endpoint import Endpoint
from nostrvpn.host.resolver import RECORD_ENDING, search_domains, servers_in
from nostrvpn.io.resolv_conf import read_resolv_conf, read_text

__all__ = ["HostServers"]

# What has the servers themselves, where resolv.conf names a program on this host: systemd-resolved's,
# NetworkManager's, and the records of both resolvconfs.
_FILES = (
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)
_RECORDS = Path("/run/resolvconf")
_MAX_RECORDS = 32


class HostServers:
    """``outside`` is for packets of ours that are marked; ``own`` also for programs on this host."""

    def __init__(self) -> None:
        self._known: tuple[Endpoint, ...] = ()

    def outside(self) -> tuple[Endpoint, ...]:
        """Return the servers outside this host; the last known ones where nobody says; may be empty.

        What listens on this host is left out: its own questions would not be marked.
        """
        for text in _texts():
            found = servers_in(text)
            if found:
                self._known = found
                break
        return self._known

    def own(self) -> tuple[Endpoint, ...]:
        """Return the servers that this host's programs ask, or those behind systemd-resolved."""
        for text in (*(read_text(path) for path in _FILES[:1]), read_resolv_conf(), *_texts()):
            found = servers_in(text, loopback=True)
            if found:
                return found
        return ()

    def searched(self) -> frozenset[str]:
        """Return the domains of the networks that this host is in."""
        return frozenset().union(*(search_domains(text) for text in _texts()))


def _texts() -> list[str]:
    records = sorted(
        path
        for path in _RECORDS.glob("*/*")
        if not path.name.endswith(RECORD_ENDING) and path.is_file()
    )
    return [
        *(read_text(path) for path in _FILES),
        read_resolv_conf(),
        *(read_text(path) for path in records[:_MAX_RECORDS]),
    ]
