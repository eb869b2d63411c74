"""The main job, as a user runs it: ``nostrvpn lab demo``."""

import json
import os
import signal
import subprocess
import sys

import pytest

from nostrvpn.lab.patience import patient
from nostrvpn.lab.processes import python_module

pytestmark = pytest.mark.lab


@pytest.mark.timeout(patient(120))
def test_the_demo_meets_transfers_and_leaves_nothing_behind() -> None:
    done = subprocess.run(
        python_module("nostrvpn", "lab", "demo", "--json"),
        capture_output=True,
        text=True,
        timeout=patient(100),
    )
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(done.stdout)
    assert told["direct"] is True
    assert told["left_behind"] == []
    assert len(told["ping_ms"]) == 2  # IPv6 and IPv4 overlay
    assert all(40 <= mean < 40 + patient(60) for mean in told["ping_ms"].values())
    assert told["transfer"]["bytes"] == 10_000_000
    assert len(told["transfer"]["sha256"]) == 64
    assert {peer["node"] for peer in told["peers"]} == {"laptop-a", "laptop-b"}
    for peer in told["peers"]:
        assert peer["path"] == "direct"
        assert peer["endpoint"].startswith("11.0.")  # through the NATs, not by a private address
        assert peer["rx_bytes"] + peer["tx_bytes"] > 10_000_000


@pytest.mark.timeout(patient(320))
def test_the_market_demo_ends_with_books_that_agree_and_leaves_nothing_behind() -> None:
    done = subprocess.run(
        python_module("nostrvpn", "lab", "market", "--json"),
        capture_output=True,
        text=True,
        timeout=patient(300),  # half a minute if nothing else runs
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    told = json.loads(done.stdout)
    assert told["disagreements"] == []
    assert told["left_behind"] == []
    locked, plain = told["leases"]
    assert locked["mode"] == "locked"
    assert locked["bytes"] > 66_000_000
    assert plain["refund_sat"] > 0
    accounts = told["accounts"]
    assert accounts["bought"]["spent"] == -accounts["sold"]["earned"] > 60_000
    assert any("pauses" in step["text"] for step in told["steps"])


@pytest.mark.timeout(patient(60))
def test_ctrl_c_ends_the_demo_and_leaves_nothing_behind() -> None:
    with subprocess.Popen(
        python_module("nostrvpn", "lab", "demo"),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as demo:
        try:
            assert demo.stdout is not None
            for line in demo.stdout:
                if "daemon up" in line:
                    break
            else:
                pytest.fail("the demo ended before a daemon was up")
            os.kill(demo.pid, signal.SIGINT)
            rest = demo.stdout.read()
            assert demo.wait(patient(20)) == 130
        finally:
            demo.kill()
        assert "nothing left behind" in rest
        assert not [n for n in os.listdir("/run/netns") if n.startswith(f"nvl{demo.pid}-")]


def test_a_lab_that_cannot_be_built_says_why_in_two_lines() -> None:
    done = subprocess.run(
        (sys.executable, "-m", "nostrvpn", "lab", "run", "two-nats"),
        env={**os.environ, "NOSTRVPN_LAB_PATIENCE": "none"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "NOSTRVPN_LAB_PATIENCE" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
