"""WireGuard as a value: what the device should be, what it is, and the least change to get there.

Decides: which peers to add, change and remove so that no session is disturbed without need, and
when a peer's endpoint is set (only when the path engine decided so: an endpoint roams by itself).
Knows nothing of how a device is reached; imports no socket, no subprocess and no sibling package.
Open ``device.py`` first, then ``diff.py``.

- ``device``  the values: ``Device`` (desired), ``ObservedDevice`` (found), keys with redacted repr
- ``diff``    desired against observed -> operations, each printable as a ``wg set`` line, never a
  secret
- ``uapi``    operations <-> the text protocol of userspace implementations
- ``quick``   export as a wg-quick file
- ``provider``  a provider, out of the wg-quick file that it hands out
"""
