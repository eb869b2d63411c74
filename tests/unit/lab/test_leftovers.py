import pytest

from nostrvpn.lab.leftovers import HostSnapshot, owner_of


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("nvl4711-0-core", 4711),
        ("nvl4711-3.sock", 4711),
        ("nvl-0-core", None),
        ("xnvl4711-0", None),
        ("nvl4711", None),
        ("docker0", None),
    ],
)
def test_a_lab_name_tells_its_process(name: str, owner: int | None) -> None:
    assert owner_of(name) == owner


def test_only_what_was_added_to_the_host_is_told() -> None:
    before = HostSnapshot(links=frozenset({"lo", "gone"}))
    after = HostSnapshot(links=frozenset({"lo", "new0"}), tables=frozenset({"table inet x"}))
    assert after.added_since(before) == ["interface new0", "nftables table inet x"]
