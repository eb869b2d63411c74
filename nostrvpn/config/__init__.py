"""What the user decides: the configuration as a validated value, and where things live. Pure.

Decides which settings exist, their defaults and limits, and how a mistake in the file is explained.
Open ``model.py`` first; ``parse.py`` reads YAML, ``render.py`` writes it, ``amend.py`` adds to it;
``defaults.py`` lists the public relays and STUN servers; ``addresses.py`` and ``names.py`` check
what is typed; ``options.py`` is what the command line says about one node, ``profiles.py`` how one node
is in several networks, ``relay.py`` how that
goes with what the configuration says about relaying.
Files are read in ``nostrvpn.io.config_file``. Imports nothing of nostrvpn but ``errors``.
"""
