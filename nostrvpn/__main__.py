"""``python -m nostrvpn`` is the command ``nostrvpn``."""

from __future__ import annotations

import sys

from nostrvpn.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
