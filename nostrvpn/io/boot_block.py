"""What lockdown holds back, kept as an nft script that nft alone loads when the host starts.

The lockdown unit does so before it runs the guard (``daemon/boot_guard.py``): the block is there
however long the guard takes and whether or not it comes up. The state database decides; the script
follows it. Whoever starts the host has no table of ours, so the script makes one and replaces none.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from nostrvpn.config.options import BOOT_BLOCK, NETWORKS
from nostrvpn.host import nft_text
from nostrvpn.host.shield import Shield, render_shield, shield_table
from nostrvpn.io.durable_file import refusal, sync_directory, write_durably
from nostrvpn.io.nftables import has_marks
from nostrvpn.io.privilege import as_owner
from nostrvpn.io.shield import remove_shield

__all__ = ["keep_boot_block", "remove_boot_blocks", "undo_boot_block"]


def keep_boot_block(home: str, interface: str, shield: Shield) -> bool:
    """Let the script in ``home`` say what ``shield`` does, durably, none if that is empty; return
    whether that took a change. NostrvpnError if the disk refuses."""
    path = Path(home, BOOT_BLOCK)
    if shield.is_empty:
        return _remove(path)
    name = shield_table(interface)
    body = render_shield(shield, interface).removeprefix(nft_text.removal(name))
    text = f"{_beginning(name)}{body}".encode()
    with as_owner(path.parent), suppress(OSError):
        if path.read_bytes() == text:
            return False
    write_durably(path, text, mode=0o600, replace=True)
    return True


def undo_boot_block(home: str, interface: str) -> None:
    """Remove a script that says what is not decided any more, and the table that was made by it, but
    no other; NostrvpnError if one of them is refused."""
    path = Path(home, BOOT_BLOCK)
    text = _read(path)
    if text is None:
        return
    marks = tuple(re.findall(r' comment "(\w+)"$', text, re.MULTILINE))
    if marks and has_marks(shield_table(interface), marks):
        remove_shield(interface)
    _remove(path)


def remove_boot_blocks(state_dir: str, interface: str | None = None) -> list[str]:
    """Remove the scripts of all networks of a node, or those for one interface; return their paths.
    NostrvpnError if one is refused."""
    found = [Path(state_dir, BOOT_BLOCK), *Path(state_dir, NETWORKS).glob(f"*/{BOOT_BLOCK}")]
    if interface is not None:
        beginning = _beginning(shield_table(interface))
        found = [path for path in found if (_read(path) or "").startswith(beginning)]
    return [str(path) for path in found if _remove(path)]


def _beginning(name: str) -> str:
    # Where there is a table already, all of the script is refused. (With its body nft makes it empty.)
    return f"create table inet {name}\n"


def _read(path: Path) -> str | None:
    try:
        with as_owner(path.parent):
            return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise refusal("read", path, error) from error


def _remove(path: Path) -> bool:
    try:
        with as_owner(path.parent):
            path.unlink()
            sync_directory(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise refusal("remove", path, error) from error
    return True
