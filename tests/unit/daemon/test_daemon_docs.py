"""The reference of the configuration says what the code does."""

import re
from pathlib import Path

from vnic.control.interface import Capabilities, V1Capabilities, fields_of
from vnic.control.server import Limits
from vnic.daemon.config import AdapterTable, CapabilitiesTable, Control, HostTable, StateTable, V1Table, parse
from vnic.daemon.events import QUEUE_LENGTH
from vnic.ndis.keywords import HostSwitches
from vnic.ports.offloads import OFFLOADS

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "configuration.md").read_text()


def test_the_example_is_a_good_configuration() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert [one.name for one in parse(example, "example").adapters] == ["left", "right", "uplink", "bare"]


def test_every_key_is_described() -> None:
    for table in (Control, HostTable, StateTable, AdapterTable, CapabilitiesTable, V1Table):
        for key in table.__struct_fields__:
            assert re.search(rf"^\| .*`{key}`", TEXT, re.MULTILINE), key


def test_the_example_of_control_holds_the_defaults() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert parse(example, "example").control == Control()
    assert parse(example, "example").host == HostSwitches()
    assert parse(example, "example").state == StateTable()


def test_the_tables_of_a_card_have_the_members_of_the_messages() -> None:
    for table, message in ((CapabilitiesTable, Capabilities), (V1Table, V1Capabilities)):
        assert list(table.__struct_fields__) == [one.name for one in fields_of(message)]


def test_every_offload_is_named() -> None:
    for offload in OFFLOADS:
        assert f"`{offload.name}`" in TEXT


def test_limits_are_those_of_the_code() -> None:
    limits = Limits()
    said = f"{limits.clients} clients, {limits.readers} of them readers, {limits.per_user} of one user"
    assert said in TEXT
    assert limits.message_length == 1 << 20
    assert f"{limits.unread_length >> 10} KiB of answers" in TEXT
    assert f"for {limits.stall_s:.0f} seconds" in TEXT
    assert f"oldest of {QUEUE_LENGTH:,} waiting" in TEXT
