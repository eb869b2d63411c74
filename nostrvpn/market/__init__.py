"""Selling and buying exits by the megabyte, without accounts: the whole market without any I/O.

Decides: what an offer says, how a lease goes from quote to receipt on both sides, what is owed, whom to
trust how far, and that every millisatoshi is accounted for. Imports no socket, clock or database; money
is integer msat. Open ``terms.py`` first.

- ``terms``  prices, and how they are paid
"""
