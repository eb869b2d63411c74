"""The parts of pyroute2 that are used here, without the rest. Imported on first use: it costs 4 MB.

To import a part of a package runs the package first, and pyroute2's then imports all that it has: 60
modules and 3.5 MB for what is never called here. So the package stands there without having run,
until somebody asks it for a name that is none of its modules.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec

__all__ = ["IPRoute", "NFTables", "NetlinkError", "WireGuard"]


def _stand_in(name: str) -> None:
    spec = find_spec(name)
    if spec is None or spec.loader is None or name in sys.modules:
        return
    package, loader = module_from_spec(spec), spec.loader

    def find(missing: str) -> object:
        if find_spec(f"{name}.{missing}") is not None:
            return import_module(f"{name}.{missing}")
        del vars(package)["__getattr__"]
        loader.exec_module(package)
        return getattr(package, missing)

    vars(package)["__getattr__"] = find  # PEP 562
    sys.modules[name] = package


_stand_in("pyroute2")

from pyroute2.config import log as _log  # noqa: E402, F401 - keeps its words off standard error
from pyroute2.iproute import IPRoute  # noqa: E402
from pyroute2.netlink.exceptions import NetlinkError  # noqa: E402
from pyroute2.netlink.generic.wireguard import WireGuard  # noqa: E402
from pyroute2.nftables.main import NFTables  # noqa: E402
