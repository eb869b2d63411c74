"""aioice's STUN codec without the rest of aioice.

Importing ``aioice.stun`` imports the package first: its ICE agent, mDNS and a DNS library, 4 MB of a
daemon's 70 for code that is never called here. So the package is stood in for while its one module
is imported, and forgotten again: whoever imports aioice later gets all of it, with a codec of its own.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["stun"]


def _import_alone() -> Any:
    spec = find_spec("aioice")
    if spec is None or "aioice" in sys.modules:
        return import_module("aioice.stun")
    package = ModuleType("aioice")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["aioice"] = package
    try:
        return import_module("aioice.stun")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "aioice"]:
            del sys.modules[name]


stun = _import_alone()
