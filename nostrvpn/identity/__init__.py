"""Who this node is: one 32-byte secret and every key that follows from it. Pure.

Decides how keys are derived, and how keys and peer references are read and written as text.
Open ``keys.py`` first; ``bech32.py`` is the NIP-19 text form; ``reference.py`` finds the one peer
that a user meant. Files, passphrases and randomness live in ``nostrvpn.io.identity_file``.
Imports nothing of nostrvpn but ``errors``.
"""
