"""Cashu ecash: tokens, blind signatures, spending conditions, without any I/O (the NUTs).

Decides: what a valid proof, token and lock are, which outputs a wallet asks a mint to sign, and what
its answers are worth. Knows nothing of leases, relays and files. Open ``proof.py`` first.

- ``proof``  proofs, signatures and keysets as values
"""
