"""Cashu ecash: tokens, blind signatures, spending conditions, without any I/O (the NUTs).

Decides: what a valid proof, token and lock are, which outputs a wallet asks a mint to sign, and what
its answers are worth. Knows nothing of leases, relays and files. Open ``proof.py`` first.

- ``proof``       proofs, signatures and keysets as values
- ``wire``        the same as JSON, and how strictly it is read
- ``blind``       blind signatures and their proof (NUT-00, NUT-12)
- ``conditions``  locks: who may spend what (NUT-10, NUT-11)
- ``operations``  requests to a mint, and proofs from its answers
- ``answers``     what a mint says of itself, its keys and quotes
- ``secrets``     secrets that twelve words can make again (NUT-13, BIP-39)
- ``amounts``     splitting, choosing proofs, fees
- ``token``       money as text (V3, V4)
- ``request``     payment requests (NUT-18)
- ``channel``     a payment channel from locks alone
- ``purse``       what a wallet owns, and operations written down whole
- ``mint_url``    the URL of a mint, written in one way
"""
