"""The daemon's control interface: HTTP/JSON over a Unix socket.

Decides which commands exist, what arguments they take and who may call them. It moves requests and
answers; what a command does is the daemon's business. Open ``schema.py`` first: it is the table of
commands (``market_schema.py``: of the market's; ``board_schema.py``, ``wallet_schema.py``,
``lightning_schema.py`` and ``escrow_schema.py``: arguments of those about offers, ecash, Lightning and
money in escrow).
``server.py`` (aiohttp) runs in the daemon, ``client.py`` in every other process: standard library
only, so that ``nostrvpn status`` starts fast. ``client.py`` must not import the others.
May import ``errors``, ``config`` and, in the server, ``io``; imported by ``daemon`` for the server
and by ``cli``.
"""
