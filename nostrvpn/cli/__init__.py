"""The command line: parse, make one control call, show the answer.

Decides how commands, options and output look, and nothing else. Open ``entry.py`` first: the group,
the table of commands and what becomes of errors. One file per family of commands: ``setup`` (init,
id), ``running`` (up, down, daemon), ``service``, ``status``, ``network``, ``members`` (invite, peers,
peer), ``joining`` (join), ``tokens`` (token), ``rotating`` (rotate), ``permissions`` (allow, deny,
rules, shields-up, policy), ``routes``, ``exits``, ``exit_offer`` and ``exit_sale`` (exit), ``market``,
``statements`` and ``arbitration`` (market; ``plot``: a picture of earnings), ``exec``, ``names``
(resolve, nip05), ``wallet`` and ``lightning`` (wallet), ``probes`` (ping), ``why``, ``netcheck``,
``doctor``, ``tools`` (export, relay, cleanup, lab, completion, version).
``choosing.py`` says which of the node's networks a command speaks to, ``terms.py`` what invites and
tokens have in common, ``seconds.py`` what is given in seconds.
``output.py`` shows values as tables or JSON; ``spawn.py`` starts and watches a detached daemon;
``relay_options.py`` has the options about relaying for others, ``peer_argument.py`` the argument PEER;
``qr.py`` draws invite links, ``export.py`` renders what ``export`` answers. Commands are imported when
they are called, and heavy libraries inside them, so that ``status`` starts fast.
May import every package below; nothing imports it.
"""

from nostrvpn.cli.entry import main

__all__ = ["main"]
