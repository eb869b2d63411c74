# mypy: allow-untyped-calls, no-warn-unreachable
from nostrvpn.paths.proof import TunnelProof


def test_keepalives_and_handshakes_are_not_use_but_data_is():
    proof = TunnelProof()
    proof.reset(0.0)
    rx = tx = 0
    for now in range(0, 1200, 5):
        rx, tx = rx + 32 * (now % 25 == 0), tx + 32 * (now % 25 == 0)
        rx, tx = rx + 124 * (now % 120 == 0), tx + 148 * (now % 120 == 0)
        proof.observe(float(now), 10.0, rx, tx)
        assert not proof.is_active(float(now))
    proof.observe(1200.0, 10.0, rx + 5000, tx + 100)
    assert proof.is_active(1201.0)
    assert not proof.is_active(1246.0)


def test_only_what_came_in_after_the_choice_is_a_proof():
    proof = TunnelProof()
    proof.observe(99.0, 50.0, 1000, 1000)
    proof.reset(100.0)
    proof.observe(101.0, 52.0, 5000, 9000)
    assert not proof.proven
    proof.observe(102.0, 53.0, 5000, 9500)
    assert not proof.proven
    proof.observe(103.0, 54.0, 5032, 9500)
    assert proof.proven
    proof.reset(200.0)
    proof.observe(203.0, 1.0, 5032, 9500)
    assert proof.proven


def test_a_session_that_died_takes_the_proof_along():
    proof = TunnelProof()
    proof.reset(0.0)
    proof.observe(1.0, 0.5, 100, 100)
    assert proof.proven
    proof.observe(150.0, 150.0, 100, 5000)
    assert proof.proven
    proof.observe(260.0, 260.0, 100, 9000)
    assert not proof.proven


def test_counters_that_start_over_prove_nothing():
    proof = TunnelProof()
    proof.reset(0.0)
    proof.observe(1.0, None, 900, 900)
    proof.observe(2.0, None, 10, 10)
    assert not proof.proven
