"""One WireGuard link of ours: made, and its device and what is around it brought to what is desired.

Blocking; used by the reconciler's worker thread only.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from nostrvpn.errors import SystemRefused
from nostrvpn.host import diff as host_diff
from nostrvpn.host.state import HostState
from nostrvpn.io.netlink import apply_host, find_link, observe_host
from nostrvpn.io.wireguard import Backend
from nostrvpn.wireguard import diff as wireguard_diff
from nostrvpn.wireguard.device import Device, ObservedDevice

__all__ = ["OwnLink"]

_log = logging.getLogger(__name__)


class OwnLink:
    """The link of one name. It remembers which endpoints its peers were given."""

    def __init__(self, backend: Backend, name: str) -> None:
        self._backend, self._name = backend, name
        self._applied: dict[str, int] = {}

    def find(self) -> ObservedDevice | None:
        """Return the device; None if there is none, or none that answers."""
        try:
            return self._backend.observe(self._name)
        except SystemRefused as exc:
            _log.warning("the tunnel %s does not answer and is made anew: %s", self._name, exc)
            return None

    def make(self, mtu: int) -> ObservedDevice | None:
        """Have the link: a device of ours is adopted, one whose process hangs is replaced."""
        self._backend.create(self._name, mtu)
        self._applied = {}
        return self._backend.observe(self._name)

    def set_device(self, observed: ObservedDevice | None, device: Device) -> None:
        """Bring what was observed to ``device``."""
        operations = wireguard_diff.diff(observed, device, self._applied, interface=self._name)
        for operation in operations:
            _log.info("[#] %s", operation)
        if operations:
            self._backend.apply(self._name, operations, device)
        self._applied = wireguard_diff.applied_generations(device)

    def settle(self, device: Device, host: HostState, *, anew: bool = False) -> None:
        """Have this link, one beside a network's, with its device and what is around it; SystemRefused.

        With ``anew`` its peers are made anew: such a one shakes hands at once, an old one sends into the
        void for 15 s. So they are where the device is given another key: who pays by the byte under this
        key does not inherit what was counted under another.
        """
        link = find_link(self._name)
        if link is not None and link.home:
            raise SystemRefused(
                f"the interface {self._name} is another node's",
                "Choose another name for that node's, with --interface.",
            )
        found = self.find()
        if found is not None and (anew or found.public_key not in (None, device.public_key)):
            self.set_device(found, replace(device, peers=()))
            found = self.find()
        self.set_device(found or self.make(host.mtu), device)
        changes = host_diff.diff(observe_host(self._name), host)
        for change in changes:
            _log.info("[#] %s", change)
        apply_host(changes)

    def remove(self) -> None:
        """Remove the link, present or not; a network's or a stranger's stays. SystemRefused."""
        link = find_link(self._name)
        if link is not None and link.is_ours and not link.home:
            _log.info("[#] ip link delete dev %s", self._name)
            self._backend.delete(self._name)
        self._applied = {}
