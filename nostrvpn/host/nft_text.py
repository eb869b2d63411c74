"""The text of an nft script that replaces one table of ours, and the marks by which the table is known.

Each rule's comment is a digest of what the table is made from. So what is found can be told from what
is wanted without comparing rules, and somebody else's flush shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

__all__ = ["Chain", "digest", "elements", "marks", "removal", "script"]

Chain = tuple[str, str, Sequence[str]]
"""Name, ``TYPE hook …; policy …;`` (empty for a chain that is only jumped to), and rules."""

_DIGEST_CHARS = 16


def digest(*parts: object) -> str:
    """Return the mark of a table made from these parts: equal exactly if their ``repr`` is."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:_DIGEST_CHARS]


def marks(chains: Iterable[Chain], mark: str) -> tuple[str, ...]:
    """Return the comments of the rules of a table that has these chains, in the kernel's order."""
    return (mark,) * sum(len(rules) for _, _, rules in chains)


def removal(name: str) -> str:
    """Return the script that removes table ``inet name``, present or not."""
    # Unquoted: nft takes no quotes here, and every name that passed is_interface_name is a word to it.
    return f"table inet {name} {{}}\ndelete table inet {name}\n"


def script(name: str, sets: Iterable[str], chains: Iterable[Chain], mark: str) -> str:
    """Return the script that, as one transaction, makes table ``inet name`` of these anew.

    ``sets`` are declarations of sets and maps, a line each; every rule gets ``mark`` as its comment.
    """
    body = "".join(f"\t{declaration}\n" for declaration in sets)
    for chain, hook, rules in chains:
        kind = f"\t\ttype {hook}\n" if hook else ""
        text = "".join(f'\t\t{rule} comment "{mark}"\n' for rule in rules)
        body += f"\tchain {chain} {{\n{kind}{text}\t}}\n"
    return f"{removal(name)}table inet {name} {{\n{body}}}\n"


def elements(texts: Iterable[str]) -> str:
    """Return what a set's declaration says of its elements; nothing if there are none."""
    listed = ", ".join(sorted(texts))
    return f"elements = {{ {listed} }}; " if listed else ""
