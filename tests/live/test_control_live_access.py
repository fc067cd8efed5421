"""The control socket of the real daemon, used by real users: root, a reader, a stranger, a foreign client."""

import grp
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import varlink
from namespaces import Namespaces
from vnicd import Vnicd, vnicd_in

from vnic.control import interface as api

pytestmark = pytest.mark.live

NOBODY = 65534
ASK = """
import asyncio, sys
from vnic.control import interface as api
from vnic.control.client import Client
async def main():
    async with await Client.connect(sys.argv[1]) as client:
        print(len((await client.call(api.ListAdapters())).adapters))
        for request in (api.DeleteAdapter(name="left"), api.ListSas(reveal_keys=True), api.ExportKeys()):
            try:
                print(await client.call(request))
            except Exception as error:
                print(type(error).__name__)
try:
    asyncio.run(main())
except Exception as error:
    print(type(error).__name__)
"""


@pytest.fixture
def reader_group() -> grp.struct_group:
    """A group of this machine that nobody is in."""
    return next(group for group in grp.getgrall() if group.gr_gid not in (0, NOBODY) and not group.gr_mem)


@pytest.fixture
def vnicd(namespaces: Namespaces, reader_group: grp.struct_group) -> Iterator[Vnicd]:
    namespace = namespaces.create("n")
    with tempfile.TemporaryDirectory(prefix="vnic-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        with vnicd_in(directory) as made:
            tap = namespaces.device("l0")
            made.write(
                f'[[adapter]]\nname = "left"\ntap = "{tap}"\nnetns = "{namespace.name}"\n',
                control=f'reader_group = "{reader_group.gr_name}"',
            )
            made.start()
            yield made


def ask_as(path: Path, user: int, *groups: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(path)],
        user=user,
        group=NOBODY,
        extra_groups=groups,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


def test_member_of_the_readers_looks_and_changes_nothing(
    vnicd: Vnicd, reader_group: grp.struct_group
) -> None:
    assert ask_as(vnicd.socket, NOBODY, reader_group.gr_gid) == ["1", *["NotPermittedError"] * 3]
    assert len(vnicd.call(api.ListAdapters()).adapters) == 1


def test_stranger_is_kept_out_by_the_file_and_by_the_daemon(vnicd: Vnicd) -> None:
    assert ask_as(vnicd.socket, NOBODY) == ["NotPermittedError"]
    vnicd.socket.chmod(0o666)
    assert ask_as(vnicd.socket, NOBODY) == ["NotPermittedError"]


def test_root_may_do_everything(vnicd: Vnicd) -> None:
    assert vnicd.call(api.ExportKeys()).lines == []
    vnicd.call(api.DeleteAdapter(name="left"))
    assert vnicd.call(api.ListAdapters()).adapters == []


@pytest.mark.interop
def test_a_client_not_ours_sees_adapters_and_hears_events(vnicd: Vnicd) -> None:
    with (
        varlink.Client(f"unix:{vnicd.socket}") as client,
        client.open("io.vnic.Adapter") as caller,
        client.open("io.vnic.Adapter") as listener,
    ):
        events = listener.Monitor(_more=True)
        assert next(events)["event"]["kind"] == "subscribed"
        assert caller.ListAdapters()["adapters"][0]["name"] == "left"
        caller.SetAdapter("left", mtu=1400)
        assert next(events)["event"]["kind"] == "adapter_changed"
        caller.DeleteAdapter("left")
        assert next(events)["event"]["kind"] == "adapter_deleted"
