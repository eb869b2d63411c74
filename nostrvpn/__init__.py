"""nostrvpn: a WireGuard mesh VPN agent for Linux with Nostr as its signaling.

Open ``docs/architecture.md`` first. Packages, from the user downwards:

``cli`` > ``control`` > ``daemon`` > ``lab`` > ``io`` > ``node`` > the pure concepts
(``relaying``, ``signaling``, ``mesh``, ``paths``, ``portmap``, ``wireguard``, ``host``, ``nostr``,
``identity``, ``config``, ``stun``)
> this package's own ``errors``, ``machine`` and ``endpoint``.

Imports only point down this list; ``tests/unit/test_architecture.py`` enforces it.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
