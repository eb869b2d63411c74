"""Nostr as a protocol: events, encryption, gift wraps, and one relay connection as a machine.

Decides what a valid event, payload, wrap and frame is, and how a client speaks on one connection.
Knows nothing of meshes, mailboxes or WireGuard, and opens no socket: text goes in, text comes out.
May import only ``identity``, ``config``, ``errors``, ``machine`` and ``endpoint``, besides
coincurve, cryptography and msgspec.

Open ``event`` first (NIP-01 values, signing, verifying), then ``nip44`` (encryption between two
keys), ``nip59`` (rumor, seal, gift wrap), ``frames`` (what client and relay say), ``filters``
(what was asked for), ``relay`` (one connection), ``budget`` (how much nonsense a relay may send).
Beside them ``nip05``: the key that a domain names.
"""
