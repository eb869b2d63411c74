"""The detached daemon's log is bounded and takes what is written to stderr as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import logging, os, sys
from nostrvpn.io import logs
logs._MAX_LOG = 2000
logs.start_logging("info", sys.argv[1])
for number in range(200):
    logging.getLogger("nostrvpn.x").info("line %d", number)
    logging.getLogger("library").info("not shown")
    logging.getLogger("nostrvpn.x").debug("not shown")
os.write(2, b"last words\\n")
"""


def test_bounded_and_complete_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    subprocess.run([sys.executable, "-c", CODE, path], check=True, timeout=30)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["daemon.log", "daemon.log.1"]
    assert path.stat().st_size <= 2000 + len("last words\n")
    text = path.read_text()
    assert "line 199" in text
    assert text.endswith("last words\n")
    assert "not shown" not in text
