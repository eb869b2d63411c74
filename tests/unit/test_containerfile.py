"""The Containerfile, read as its builders read it; building it takes one of them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Spec: the instructions of a Containerfile(5) that we use.
KNOWN = frozenset(["FROM", "RUN", "WORKDIR", "COPY", "VOLUME", "HEALTHCHECK", "ENTRYPOINT", "CMD"])


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "packaging/Containerfile").read_text()
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", kept)
    return [
        (word, rest)
        for word, _, rest in (line.partition(" ") for line in joined.split("\n") if line)
    ]


def test_every_line_is_an_instruction_and_every_command_can_be_split():
    found = instructions()
    assert {word for word, _ in found} <= KNOWN
    assert found[0][0] == "FROM"
    for word, rest in found:
        assert shlex.split(rest), word


def test_what_it_copies_is_there():
    copied = [rest for word, rest in instructions() if word == "COPY"]
    ours = [path for rest in copied if "--from" not in rest for path in rest.split()[:-1]]
    assert ours
    assert [path for path in ours if not (ROOT / path).exists()] == []


def test_it_runs_a_command_that_exists():
    said = dict(instructions())
    assert json.loads(said["ENTRYPOINT"]) + json.loads(said["CMD"]) == [
        "nostrvpn",
        "up",
        "--foreground",
    ]
