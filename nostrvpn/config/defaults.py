"""Public servers that a node uses until it is told otherwise. None of them is run by this project.

Each line is another operator, in several countries, so that no single one going away (or looking)
matters much. Every node tests the relays it uses and replaces the unfit ones from this list.
"""

from __future__ import annotations

__all__ = ["DEFAULT_RELAYS", "DEFAULT_STUN"]

DEFAULT_RELAYS: tuple[str, ...] = (
    "wss://relay.damus.io",  # Damus
    "wss://nos.lol",  # jb55's and friends' community relay
    "wss://relay.primal.net",  # Primal
    "wss://nostr.mom",  # nostr.mom
    "wss://offchain.pub",  # offchain.pub
    "wss://relay.snort.social",  # Snort
    "wss://nostr.oxtr.dev",  # oxtr.dev
    "wss://nostr-pub.wellorder.net",  # wellorder.net
)

DEFAULT_STUN: tuple[str, ...] = (
    "stun.l.google.com:19302",  # Google
    "stun.cloudflare.com:3478",  # Cloudflare
    "stun.nextcloud.com:3478",  # Nextcloud
    "global.stun.twilio.com:3478",  # Twilio
    "stun.sipgate.net:3478",  # sipgate
    "stun.antisip.com:3478",  # Antisip
)
