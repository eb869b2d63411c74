"""The codec comes alone, and leaves aioice whole for others."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from nostrvpn.stun.codec import stun
assert stun.Message and "aioice" not in sys.modules and "dns" not in sys.modules
import aioice, aioice.turn
assert aioice.Connection and aioice.stun.Message and aioice.turn
"""


def test_the_codec_comes_without_its_package():
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=30)
