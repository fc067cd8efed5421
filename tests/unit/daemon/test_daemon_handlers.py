"""Every call of the control socket, carried out on the reference engine."""

import asyncio
import logging
from base64 import b64encode
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
from daemon_fakes import World, run
from nic_frames import CBC_SHA1, add_request
from transport_lab import ANY, ESP, FAR, NEAR, OUT, TUNNEL, association, policy, selector, template

from vnic.control import interface as api
from vnic.daemon.handlers import About, Handlers
from vnic.errors import OidError, PortError, RequestError
from vnic.ipsec.algorithms import ENCRYPTIONS, INTEGRITIES
from vnic.ipsec.association import Direction
from vnic.ipsec.drops import DropReason
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import pack_add_sa

T = TypeVar("T")

KEY = "5ec7e7" * 6 + "0011"
SA = api.Sa(
    src="10.9.0.1",
    dst="10.9.0.2",
    proto="esp",
    spi=0x100,
    mode="tunnel",
    encryption="aes-gcm-128",
    encryption_key=KEY,
)
IN = replace(SA, src="10.9.0.2", dst="10.9.0.1", spi=0x200)
POLICY = api.Policy(
    direction="out",
    selector=api.Selector(src="10.9.0.0/24", dst="10.9.0.2/32", proto=6, dport=443),
    action="protect",
    templates=[api.Template(proto="esp", mode="tunnel", src="10.9.0.1", dst="10.9.0.2", reqid=7)],
    priority=5,
)


class Desk:
    """Handlers over a world with the adapters `names`."""

    def __init__(self, *names: str, reveal_keys: bool = True) -> None:
        self.world = World()
        self.names = names
        about = About(
            engine="reference",
            loop="asyncio",
            config="/etc/vnic/vnic.toml",
            reveal_keys=reveal_keys,
            clock=lambda: self.world.now,
            wall_clock=lambda: 1_700_000_000.0,
            started=900.0,
        )
        self.handlers = Handlers(self.world.adapters, self.world.events, about)

    async def __aenter__(self) -> "Desk":
        for number, name in enumerate(self.names):
            await self.call(
                api.AddAdapter(name=name, tap=f"tap{number}", addresses=[f"10.9.0.{number + 1}/24"])
            )
        self.world.events.all.clear()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.world.adapters.close()

    async def call(self, request: api.Call[T]) -> T:
        return await self.handlers.answer(request)

    async def refused(self, request: api.Call[Any], field: str) -> RequestError:
        with pytest.raises(RequestError) as caught:
            await self.call(request)
        assert caught.value.field == field, caught.value
        assert KEY not in str(caught.value)
        return caught.value


def test_every_call_has_a_method() -> None:
    handlers = Desk().handlers
    assert set(handlers._methods) == {one for one in api.CALLS if not one.streams}


# --------------------------------------------------------------------------------------------- SAs


@pytest.mark.rule(88)
def test_added_sa_gets_a_handle_and_a_status() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            reply = await desk.call(api.AddSa(sa=SA))
            assert reply == api.SaReply(
                adapter="left",
                direction="out",
                handle=reply.handle,
                status=0,
                status_name="NDIS_STATUS_SUCCESS",
                weak=[],
                offload="nic",
                message="",
            )
            assert reply.handle > 0
            (event,) = desk.world.events.all
            assert (event.kind, event.handle, event.adapter) == ("sa_added", reply.handle, "left")
            assert event.sa == api.SaName(
                dst="10.9.0.2", proto="esp", spi=0x100, direction="out", src="10.9.0.1"
            )

    run(work())


@pytest.mark.parametrize(("sa", "direction"), [(SA, "out"), (IN, "in")])
def test_direction_follows_from_the_addresses_of_the_tap(sa: api.Sa, direction: str) -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            assert (await desk.call(api.AddSa(sa=sa))).direction == direction

    run(work())


@pytest.mark.parametrize(
    ("src", "dst", "words"),
    [("192.0.2.1", "192.0.2.2", "neither is"), ("10.9.0.1", "10.9.0.1", "both are")],
)
def test_direction_that_does_not_follow_has_to_be_said(src: str, dst: str, words: str) -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            sa = replace(SA, src=src, dst=dst)
            error = await desk.refused(api.AddSa(sa=sa), "dir")
            assert words in str(error)
            assert "`offload packet dev left dir in` or `dir out`" in str(error)
            assert error.allowed == "in, out"
            reply = await desk.call(api.AddSa(sa=replace(sa, direction="in")))
            assert reply.direction == "in"

    run(work())


def test_adapter_deleted_while_its_addresses_are_asked_gets_no_sa() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            desk.world.host.slow = asyncio.Event()
            adding = asyncio.create_task(desk.refused(api.AddSa(sa=SA), "adapter"))
            await asyncio.sleep(0.01)
            await desk.call(api.DeleteAdapter(name="left"))
            desk.world.host.slow.set()
            assert "it was deleted" in str(await adding)

    run(work())


def test_adapter_has_to_be_named_when_there_are_several() -> None:
    async def work() -> None:
        async with Desk("left", "right") as desk:
            error = await desk.refused(api.AddSa(sa=SA), "adapter")
            assert error.allowed == "left, right"
            assert (await desk.call(api.AddSa(sa=SA, adapter="right"))).direction == "in"
            await desk.refused(api.AddSa(sa=SA, adapter="middle"), "adapter")

    run(work())


@pytest.mark.parametrize(
    ("changes", "field", "status"),
    [
        ({"spi": 0}, "spi", NdisStatus.INVALID_DATA),
        ({"spi": 1 << 40}, "spi", NdisStatus.INVALID_DATA),
        ({"src": "x"}, "src", NdisStatus.INVALID_DATA),
        ({"dst": "10.9.0.1/24"}, "dst", NdisStatus.INVALID_DATA),
        ({"dst": "2001:db8::1"}, "src", NdisStatus.INVALID_DATA),
        ({"encryption": "rot13"}, "enc", NdisStatus.NOT_SUPPORTED),
        ({"integrity": "crc32"}, "auth", NdisStatus.NOT_SUPPORTED),
        ({"encryption_key": "xyz"}, "enc", NdisStatus.INVALID_DATA),
        ({"encryption_key": KEY[2:]}, "aead", NdisStatus.INVALID_DATA),
        ({"encryption_key": None}, "aead", NdisStatus.INVALID_DATA),
        ({"encryption": None}, "enc", NdisStatus.INVALID_DATA),
        ({"icv_length": 100}, "icv-length", NdisStatus.INVALID_DATA),
        ({"icv_length": 72}, "icv-length", NdisStatus.INVALID_DATA),
        ({"replay_window": 5}, "replay-window", NdisStatus.INVALID_DATA),
        ({"sequence_number": 1 << 40}, "sequence-number", NdisStatus.INVALID_DATA),
        ({"reqid": -1}, "reqid", NdisStatus.INVALID_DATA),
        ({"ah_alignment": 5}, "align", NdisStatus.INVALID_DATA),
        ({"selector": api.Selector()}, "sel.src", NdisStatus.INVALID_DATA),
        ({"selector": api.Selector(src="10.0.0.1/8")}, "sel.src", NdisStatus.INVALID_DATA),
        ({"selector": api.Selector(src="10.0.0.0/8", dst="::/0")}, "sel.dst", NdisStatus.INVALID_DATA),
        ({"selector": api.Selector(src="10.0.0.0/8", sport=5)}, "sel.proto", NdisStatus.INVALID_DATA),
        ({"selector": api.Selector(dst="::/0", proto=6, dport=65536)}, "sel.dport", NdisStatus.INVALID_DATA),
        ({"selector": api.Selector(dst="::/0", proto=58, sport=256)}, "sel.sport", NdisStatus.INVALID_DATA),
    ],
)
def test_refused_sa_names_the_word_and_carries_a_status(
    changes: dict[str, Any], field: str, status: NdisStatus
) -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            error = await desk.refused(api.AddSa(sa=replace(SA, direction="out", **changes)), field)
            assert isinstance(error, OidError)
            assert error.status is status
            assert desk.world.events.all == []
            assert (await desk.call(api.ListSas())).sas == []

    run(work())


def test_duplicate_is_refused_by_the_nic() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            await desk.call(api.AddSa(sa=SA))
            error = await desk.refused(api.AddSa(sa=SA), "spi")
            assert isinstance(error, OidError)
            assert error.status is NdisStatus.INVALID_PARAMETER

    run(work())


def test_weak_algorithms_work_and_are_reported_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            sa = replace(
                SA,
                encryption="des-cbc",
                encryption_key="01" * 8,
                integrity="hmac-md5-96",
                integrity_key="02" * 16,
            )
            reply = await desk.call(api.AddSa(sa=sa))
            assert [text.partition(":")[0] for text in reply.weak] == ["des-cbc", "hmac-md5-96"]
            (state,) = (await desk.call(api.ListSas())).sas
            assert state.weak == reply.weak
            assert caplog.text.count("weak: ") == 2
            assert "0101" not in caplog.text

    run(work())


def test_sa_is_shown_as_it_is_and_its_keys_only_on_request() -> None:
    async def work() -> None:
        async with Desk("left", "right") as desk:
            selector = api.Selector(src="10.9.0.0/24", dst="10.9.0.2/32", proto=17, sport=1, dport=2)
            asked = replace(
                SA,
                direction="out",
                icv_length=64,
                esn=True,
                replay_window=128,
                reqid=9,
                selector=selector,
                sequence_number=41,
                ah_alignment=4,
                decap_dscp=True,
                no_ecn=True,
                no_pmtu_discovery=True,
                mode="tunnel",
                df="clear",
                hop_limit=0,
                dscp=46,
                flow_label=0xABCDE,
                tfc_padding=1400,
                dummy_interval=500,
            )
            reply = await desk.call(api.AddSa(sa=asked, adapter="left"))
            (state,) = (await desk.call(api.ListSas())).sas
            assert state.sa == replace(asked, encryption_key=None)
            assert (state.adapter, state.handle, state.used, state.packets) == ("left", reply.handle, None, 0)
            assert state.added == "2023-11-14T22:13:20.000000Z"
            (state,) = (await desk.call(api.ListSas(adapter="left", reveal_keys=True))).sas
            assert state.sa == asked
            assert (await desk.call(api.ListSas(adapter="right"))).sas == []

    run(work())


def test_flag_and_rule_for_df_are_one_thing_and_must_not_contradict_each_other() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            tunnel = replace(SA, mode="tunnel", direction="out")
            await desk.refused(api.AddSa(sa=replace(tunnel, no_pmtu_discovery=True, df="set")), "df")
            await desk.call(api.AddSa(sa=replace(tunnel, no_pmtu_discovery=True)))
            (state,) = (await desk.call(api.ListSas())).sas
            assert (state.sa.df, state.sa.no_pmtu_discovery) == ("clear", True)

    run(work())


@pytest.mark.parametrize("request_", [api.ListSas(reveal_keys=True), api.ExportKeys()])
def test_configuration_can_forbid_to_show_keys(request_: api.Call[Any]) -> None:
    async def work() -> None:
        async with Desk("left", reveal_keys=False) as desk:
            await desk.call(api.AddSa(sa=SA))
            with pytest.raises(RequestError, match="reveal_keys"):
                await desk.call(request_)

    run(work())


def test_sa_is_replaced_in_place() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            await desk.refused(api.ReplaceSa(sa=SA), "sa")
            await desk.call(api.AddSa(sa=SA))
            await desk.call(api.ReplaceSa(sa=replace(SA, reqid=5)))
            (state,) = (await desk.call(api.ListSas())).sas
            assert state.sa.reqid == 5
            assert [event.kind for event in desk.world.events.all] == ["sa_added", "sa_updated"]

    run(work())


@pytest.mark.rule(121)
def test_upper_half_of_an_extended_number_is_set_by_handle_or_by_name() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            handle = (await desk.call(api.AddSa(sa=replace(SA, esn=True)))).handle
            await desk.call(api.UpdateSa(handle=handle, sequence_number_high_order=2))
            reply = await desk.call(
                api.UpdateSa(dst="10.9.0.2", proto="esp", spi=0x100, sequence_number_high_order=3)
            )
            assert (reply.status_name, reply.direction) == ("NDIS_STATUS_SUCCESS", "out")
            (state,) = (await desk.call(api.ListSas())).sas
            assert state.sa.sequence_number is not None
            assert state.sa.sequence_number >> 32 == 3
            await desk.refused(
                api.UpdateSa(handle=handle, sequence_number_high_order=1 << 32), "sequence-number-high-order"
            )

    run(work())


KEY2 = "5ec7e8" * 6 + "0011"
RENEWED = api.Renewal(new_spi=0x110, spi=0x100, encryption="aes-gcm-128", encryption_key=KEY2)
RENEWED_IN = api.Renewal(
    new_spi=0x210, spi=0x200, dst="10.9.0.1", proto="esp", encryption="aes-gcm-128", encryption_key=KEY2
)


def test_rekeying_tells_of_new_and_old_and_the_old_inbound_sa_goes_by_itself() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            await desk.call(api.AddSa(sa=SA))
            await desk.call(api.AddSa(sa=replace(IN, encryption_key=KEY[:-2] + "22")))
            desk.world.events.all.clear()
            reply = await desk.call(api.RekeySas(sas=[RENEWED, RENEWED_IN]))
            assert [(one.direction, one.status, one.offload) for one in reply.sas] == [
                ("out", 0, "nic"),
                ("in", 0, "nic"),
            ]
            events = desk.world.events.all
            assert [(one.kind, one.sa.spi, one.old and one.old.spi) for one in events if one.sa] == [
                ("sa_added", 0x110, None),
                ("sa_rekeyed", 0x110, 0x100),
                ("sa_deleted", 0x100, None),
                ("sa_added", 0x210, None),
                ("sa_rekeyed", 0x210, 0x200),
            ]
            assert "0x00000100" in events[1].text
            assert KEY2 not in repr(events)
            shown = {one.sa.spi: one for one in (await desk.call(api.ListSas())).sas}
            assert {spi: one.replaced for spi, one in shown.items()} == {
                0x200: True,
                0x110: False,
                0x210: False,
            }
            assert shown[0x200].leaves == "2023-11-14T22:13:30.000000Z"
            desk.world.now += 11
            adapter = desk.world.adapters.require("left")
            adapter.keep_time()
            assert {one.sa.spi for one in (await desk.call(api.ListSas())).sas} == {0x110, 0x210}
            assert (desk.world.events.all[-1].kind, desk.world.events.all[-1].limit) == (
                "sa_expired",
                "grace",
            )

    run(work())


def test_rekeying_the_inbound_half_alone_has_no_end_unless_one_is_given() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            reply = await desk.call(api.AddSa(sa=IN))
            await desk.call(
                api.RekeySas(sas=[replace(RENEWED_IN, spi=None, dst=None, proto=None, handle=reply.handle)])
            )
            (old, _) = (await desk.call(api.ListSas())).sas
            assert (old.replaced, old.leaves) == (True, None)

    run(work())


def test_old_sa_of_a_rekeying_is_named_so_that_it_is_one() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            await desk.call(api.AddSa(sa=SA))
            await desk.call(api.AddSa(sa=replace(SA, dst="10.9.0.3", encryption_key=KEY[:-2] + "33")))
            for members, field in (
                ({}, "old"),
                ({"spi": None}, "old"),
                ({"spi": 0x999}, "old"),
                ({"handle": 5}, "handle"),
                ({"handle": 5, "spi": None}, "handle"),
                ({"dst": "nowhere"}, "dst"),
                ({"dst": "10.9.0.2", "encryption": "rot13"}, "enc"),
                ({"dst": "10.9.0.2", "encryption_key": "xy"}, "enc"),
                ({"dst": "10.9.0.2", "icv_length": 7}, "icv-length"),
                ({"dst": "10.9.0.2", "encryption_key": KEY}, "enc"),
            ):
                await desk.refused(api.RekeySas(sas=[replace(RENEWED, **members)]), field)  # type: ignore[arg-type]
            await desk.refused(api.RekeySas(sas=[]), "sas")
            await desk.refused(api.RekeySas(sas=[RENEWED] * 65), "sas")
            await desk.refused(api.RekeySas(sas=[replace(RENEWED, dst="10.9.0.2")], grace=-1), "grace")
            await desk.call(api.RekeySas(sas=[replace(RENEWED, dst="10.9.0.2")]))

    run(work())


def test_nothing_is_switched_to_an_sa_that_the_adapter_at_the_far_end_cannot_open() -> None:
    async def work() -> None:
        async with Desk("left", "right") as desk:
            await desk.call(api.SetAdapter(name="right", wire=api.Wire(kind="link", name="left")))
            await desk.call(api.AddSa(sa=replace(SA, direction="out"), adapter="left"))
            await desk.call(api.AddSa(sa=replace(SA, direction="in"), adapter="right"))
            refusal = await desk.refused(api.RekeySas(sas=[RENEWED], adapter="left"), "spi")
            assert "vnic sa rekey dev right in" in str(refusal)
            await desk.call(api.RekeySas(sas=[RENEWED], adapter="right"))
            await desk.call(api.RekeySas(sas=[RENEWED], adapter="left"))
            shown = (await desk.call(api.ListSas(adapter="left"))).sas
            assert [one.sa.spi for one in shown] == [0x110]

    run(work())


def test_adapter_with_an_external_transport_has_no_sas_to_rekey(tmp_path: Path) -> None:
    async def work() -> None:
        async with Desk() as desk:
            nbl = str(tmp_path / "nbl")
            await desk.call(api.AddAdapter(name="driven", transport="external", nbl_socket=nbl))
            await desk.refused(api.RekeySas(sas=[RENEWED], adapter="driven"), "adapter")

    run(work())


def test_sa_is_deleted_by_handle_or_by_name() -> None:
    async def work() -> None:
        async with Desk("left", "right") as desk:
            handle = (await desk.call(api.AddSa(sa=SA, adapter="left"))).handle
            await desk.call(api.DeleteSa(adapter="left", handle=handle))
            await desk.call(api.AddSa(sa=SA, adapter="left"))
            reply = await desk.call(api.DeleteSa(dst="10.9.0.2", proto="esp", spi=0x100))
            assert reply.adapter == "left"
            assert [event.kind for event in desk.world.events.all] == ["sa_added", "sa_deleted"] * 2

    run(work())


@pytest.mark.rule(113)
def test_sa_that_cannot_be_named_is_not_deleted() -> None:
    async def work() -> None:
        async with Desk("left", "right") as desk:
            for adapter in ("left", "right"):
                await desk.call(api.AddSa(sa=SA, adapter=adapter))
            named = api.DeleteSa(dst="10.9.0.2", proto="esp", spi=0x100)
            error = await desk.refused(named, "adapter")
            assert error.allowed == "left, right"
            error = await desk.refused(replace(named, spi=0x999), "spi")
            assert isinstance(error, OidError)
            assert error.status is NdisStatus.INVALID_PARAMETER
            error = await desk.refused(api.DeleteSa(adapter="left", handle=999), "handle")
            assert isinstance(error, OidError)
            await desk.refused(api.DeleteSa(handle=1 << 60), "handle")
            await desk.refused(replace(named, handle=1), "handle")
            await desk.refused(api.DeleteSa(adapter="left", dst="10.9.0.2"), "proto")
            await desk.refused(replace(named, dst="x"), "dst")
            assert len((await desk.call(api.ListSas())).sas) == 2

    run(work())


def test_flush_takes_what_fits() -> None:
    async def work() -> None:
        async with Desk("left", "right") as desk:
            ah = api.Sa(
                src="10.9.0.1",
                dst="10.9.0.2",
                proto="ah",
                spi=0x300,
                integrity="hmac-sha256-128",
                integrity_key="ab" * 32,
            )
            for adapter in ("left", "right"):
                await desk.call(api.AddSa(sa=SA, adapter=adapter))
                await desk.call(api.AddSa(sa=ah, adapter=adapter))
            assert (await desk.call(api.FlushSas(proto="ah", adapter="left"))).count == 1
            assert (await desk.call(api.FlushSas(proto="ah"))).count == 1
            reply = await desk.call(api.FlushSas())
            assert (reply.count, reply.status_name) == (2, "NDIS_STATUS_SUCCESS")
            assert (await desk.call(api.FlushSas())).count == 0

    run(work())


def test_many_sas_are_listed_without_holding_up_the_frames() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            for number in range(1000):
                key = f"{number:040x}"
                await desk.call(api.AddSa(sa=replace(SA, spi=0x1000 + number, encryption_key=key)))
            turns = 0
            listing = asyncio.create_task(desk.call(api.ListSas()))
            while not listing.done():
                await asyncio.sleep(0)
                turns += 1
            assert turns >= 4
            assert [state.sa.spi for state in listing.result().sas] == list(range(0x1000, 0x1000 + 1000))

    run(work())


# ---------------------------------------------------------------------------------------- policies


def test_what_would_become_of_a_packet_is_told_with_policy_and_sa() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            asked = api.TestPolicy(src="10.9.0.1", dst="10.9.0.2", proto=17, dport=2)
            nothing = await desk.call(asked)
            assert (nothing.verdict, nothing.policy, nothing.drop) == ("bypass", None, None)
            assert (nothing.sport, nothing.dport, nothing.direction) == (49152, 2, "out")
            wide = replace(POLICY, selector=api.Selector(dst="0.0.0.0/0", proto=17, dport=2, dport_last=9))
            added = (await desk.call(api.AddPolicy(policy=wide))).policy
            without = await desk.call(asked)
            assert without.policy == added
            assert (without.verdict, without.drop and without.drop.name) == ("drop", "out_no_sa")
            assert [(one.template.reqid, one.sa, one.handle) for one in without.templates] == [(7, None, 0)]
            hidden = await desk.call(replace(asked, dport=None))
            assert (hidden.sport, hidden.drop and hidden.drop.name) == (None, "out_fragment")
            blocked = await desk.call(
                replace(asked, src="10.9.0.2", dst="10.9.0.1", proto=50, dport=None, direction="in")
            )
            assert (blocked.verdict, blocked.sport) == ("drop", None)
            for changes, field in (
                ({"src": "here"}, "src"),
                ({"dst": "::1"}, "dst"),
                ({"proto": 256}, "proto"),
                ({"proto": 47}, "proto"),
                ({"dport": 65536}, "dport"),
                ({"sport": -1}, "sport"),
                ({"proto": 1}, "sport"),
                ({"proto": 135, "sport": 1}, "dport"),
                ({"proto": 58, "sport": 256}, "sport"),
                ({"adapter": "nobody"}, "adapter"),
            ):
                await desk.refused(replace(asked, **changes), field)

    run(work())


def test_policy_is_added_shown_updated_and_deleted() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            added = (await desk.call(api.AddPolicy(policy=POLICY))).policy
            assert added.index
            assert replace(added, index=None, templates=None) == replace(POLICY, templates=None)
            assert added.templates == [
                api.Template(proto="esp", mode="tunnel", src="10.9.0.1", dst="10.9.0.2", reqid=7, spi=0)
            ]
            await desk.refused(api.AddPolicy(policy=POLICY), "policy")
            updated = (await desk.call(api.AddPolicy(policy=replace(POLICY, priority=9), update=True))).policy
            assert (updated.priority, updated.index) == (9, added.index)
            (state,) = (await desk.call(api.ListPolicies())).policies
            assert (state.adapter, state.policy) == ("left", updated)
            gone = await desk.call(api.DeletePolicy(direction="out", selector=POLICY.selector))
            assert gone.policy == updated
            assert (await desk.call(api.ListPolicies())).policies == []
            assert [event.kind for event in desk.world.events.all if event.policy] == [
                "policy_added",
                "policy_updated",
                "policy_deleted",
            ]

    run(work())


def test_policies_set_the_mtu_of_the_tap() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            before = (await desk.call(api.ListAdapters())).adapters[0].tap.mtu
            index = (await desk.call(api.AddPolicy(policy=POLICY))).policy.index
            within = (await desk.call(api.ListAdapters())).adapters[0].tap.mtu
            await desk.call(api.DeletePolicy(direction="out", index=index))
            after = (await desk.call(api.ListAdapters())).adapters[0].tap.mtu
            assert within < before == after == 1500

    run(work())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"selector": api.Selector()}, "sel.src"),
        ({"selector": api.Selector(src="10.0.0.0/33")}, "sel.src"),
        ({"selector": api.Selector(src="10.0.0.0/8", proto=300)}, "sel.proto"),
        ({"priority": -1}, "priority"),
        ({"priority": 1 << 32}, "priority"),
        ({"index": 5}, "index"),
        ({"templates": [api.Template(proto="esp", mode="tunnel", src="x")]}, "tmpl.src"),
        ({"templates": [api.Template(proto="esp", reqid=-1)]}, "tmpl.reqid"),
        ({"templates": [api.Template(proto="esp", spi=1 << 32)]}, "tmpl.spi"),
    ],
)
def test_refused_policy_names_the_word(changes: dict[str, Any], field: str) -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            await desk.refused(api.AddPolicy(policy=replace(POLICY, **changes)), field)
            assert (await desk.call(api.ListPolicies())).policies == []

    run(work())


def test_policy_of_several_adapters_has_to_be_named() -> None:
    async def work() -> None:
        async with Desk("left", "right") as desk:
            delete = api.DeletePolicy(direction="out", selector=POLICY.selector)
            await desk.refused(delete, "policy")
            await desk.call(api.AddPolicy(policy=POLICY, adapter="left"))
            assert (await desk.call(delete)).adapter == "left"
            for adapter in ("left", "right"):
                await desk.call(api.AddPolicy(policy=POLICY, adapter=adapter))
            error = await desk.refused(delete, "adapter")
            assert error.allowed == "left, right"
            assert (await desk.call(replace(delete, adapter="right"))).adapter == "right"
            await desk.refused(api.DeletePolicy(direction="out"), "policy")
            await desk.refused(replace(delete, index=1), "policy")
            await desk.refused(replace(delete, selector=None, index=-1), "index")

    run(work())


def test_policies_are_flushed_by_direction() -> None:
    async def work() -> None:
        async with Desk("left", "right") as desk:
            inward = replace(POLICY, direction="in", action="bypass", templates=None)
            for adapter in ("left", "right"):
                await desk.call(api.AddPolicy(policy=POLICY, adapter=adapter))
                await desk.call(api.AddPolicy(policy=inward, adapter=adapter))
            assert (await desk.call(api.FlushPolicies(direction="in"))).count == 2
            assert (await desk.call(api.FlushPolicies(adapter="left"))).count == 1
            assert (await desk.call(api.FlushPolicies())).count == 1

    run(work())


def test_defaults_are_set_on_one_adapter_or_on_all() -> None:
    async def work() -> None:
        async with Desk("left", "right") as desk:
            reply = await desk.call(api.SetPolicyDefault(inbound="block"))
            assert [(one.inbound, one.outbound) for one in reply.defaults] == [("block", "allow")] * 2
            await desk.call(api.SetPolicyDefault(adapter="right", inbound="allow", outbound="block"))
            defaults = (await desk.call(api.GetPolicyDefault())).defaults
            assert [(one.adapter, one.inbound, one.outbound) for one in defaults] == [
                ("left", "block", "allow"),
                ("right", "allow", "block"),
            ]
            assert len((await desk.call(api.GetPolicyDefault(adapter="left"))).defaults) == 1
            await desk.call(api.SetAdapter(name="left", policy_default_in="allow"))
            assert [event.kind for event in desk.world.events.all].count("policy_default_changed") == 4

    run(work())


# ------------------------------------------------------------------------------------------ looking


def test_adapter_is_shown_as_configured_and_as_it_is() -> None:
    async def work() -> None:
        async with Desk() as desk:
            reply = await desk.call(
                api.AddAdapter(
                    name="left",
                    tap="tap0",
                    netns="blue",
                    queues=4,
                    addresses=["10.9.0.1/24"],
                    wire=api.Wire(kind="netdev", name="eth0", netns="red"),
                    non_ip="drop",
                    policy_default_in="block",
                )
            )
            await desk.call(api.AddSa(sa=SA))
            (state,) = (await desk.call(api.ListAdapters(name="left"))).adapters
            assert state == replace(reply.adapter, sa_count=1)
            assert (state.state, state.reason, state.engine) == ("running", "", "reference")
            assert state.tap == api.TapState(
                name="tap0",
                netns="blue",
                mac="02:00:00:00:00:01",
                mtu=1500,
                mtu_default=True,
                addresses=["10.9.0.1/24"],
                up=True,
                attached=False,
                features={
                    "tx-checksumming": "on",
                    "tx-udp-segmentation": "off: the kernel refused it (EINVAL)",
                },
                queues=4,
            )
            assert (state.wire.kind, state.wire.name, state.wire.netns) == ("netdev", "eth0", "red")
            assert (state.non_ip, state.policy_default_in, state.policy_default_out) == (
                "drop",
                "block",
                "allow",
            )
            await desk.refused(api.ListAdapters(name="right"), "name")

    run(work())


def test_failed_adapter_is_shown_with_its_reason() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            desk.world.adapters.require("left").fail("the TAP was removed")
            (state,) = (await desk.call(api.ListAdapters())).adapters
            assert (state.state, state.reason) == ("failed", "the TAP was removed")
            await desk.refused(api.AddSa(sa=SA), "adapter")
            await desk.refused(api.AddPolicy(policy=POLICY), "adapter")
            await desk.call(api.DeleteAdapter(name="left"))
            await desk.refused(api.DeleteAdapter(name="left"), "name")

    run(work())


def test_adapter_whose_device_cannot_be_asked_is_still_shown() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            desk.world.host.refusals["lookup", "tap0"] = PortError("no")
            (state,) = (await desk.call(api.ListAdapters())).adapters
            assert (state.tap.mtu, state.tap.addresses, state.tap.mac) == (1500, ["10.9.0.1/24"], "")

    run(work())


def test_drops_are_counted_by_name_place_and_kernel_counter() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            adapter = desk.world.adapters.require("left")
            adapter.engine.counters.drops[DropReason.IN_ICV] = 3
            adapter.engine.counters.rx_offloaded = 5
            adapter.tap.counters.drops["tap_write"] = 2
            adapter.wire.counters.drops["wire_down"] = 1
            adapter.wire.counters.rx_bytes = 99
            adapter.forwarder._defects.count = 4
            await desk.call(api.AddSa(sa=SA))
            (one,) = (await desk.call(api.GetStatistics())).adapters
            assert [(drop.name, drop.place, drop.packets, drop.xfrm_stat) for drop in one.drops] == [
                ("in_icv", "card", 3, "XfrmInStateProtoError"),
                ("tap_write", "tap", 2, ""),
                ("wire_down", "wire", 1, ""),
            ]
            assert (one.card.rx_offloaded, one.wire.rx_bytes, one.forwarder_errors) == (5, 99, 4)
            assert [state.sa.encryption_key for state in one.sas] == [None]

    run(work())


def test_table_of_reasons_is_given_whole() -> None:
    async def work() -> None:
        reasons = (await Desk().call(api.ListDropReasons())).reasons
        assert [(one.name, one.text, one.xfrm_stat) for one in reasons] == [
            (one.value, one.text, one.xfrm_stat) for one in DropReason
        ]

    run(work())


def test_capabilities_name_every_algorithm_with_its_weakness() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            (one,) = (await desk.call(api.GetCapabilities())).adapters
            assert [row.name for row in one.encryptions] == [row.name for row in ENCRYPTIONS]
            assert [row.name for row in one.integrities] == [row.name for row in INTEGRITIES]
            weak = {row.name for row in [*one.encryptions, *one.integrities] if row.weak}
            assert weak == {"des-cbc", "3des-cbc", "hmac-md5-96"}
            assert all(row.supported for row in one.encryptions)
            assert (one.ndis.sa_offload_capacity, one.ndis.esp) == (131072, True)
            assert "tx-checksumming" in one.tap_features

    run(work())


def test_daemon_introduces_itself() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            reply = await desk.call(api.GetDaemon())
            assert (reply.engine, reply.loop, reply.config, reply.adapter_count) == (
                "reference",
                "asyncio",
                "/etc/vnic/vnic.toml",
                1,
            )
            assert (reply.uptime_s, reply.started) == (100.0, "2023-11-14T22:11:40.000000Z")

    run(work())


def test_monitor_hears_changes_and_no_key(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            listening = desk.handlers.stream(api.Monitor())
            assert (await anext(listening)).event.kind == "subscribed"
            await desk.call(api.AddSa(sa=SA))
            await desk.call(api.AddPolicy(policy=POLICY))
            await desk.call(api.DeleteAdapter(name="left"))
            heard = [(await anext(listening)).event for _ in range(4)]
            assert [event.kind for event in heard] == [
                "sa_added",
                "policy_added",
                "adapter_changed",
                "adapter_deleted",
            ]
            numbers = [event.sequence_number for event in heard]
            assert numbers == list(range(numbers[0], numbers[0] + 4))
            assert KEY not in str(heard)
            await listening.aclose()  # type: ignore[attr-defined]

    with caplog.at_level(logging.DEBUG):
        run(work())
    assert KEY not in caplog.text


def test_key_that_did_too_much_is_weak_and_told_of() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            worn = replace(
                SA, encryption="3des-cbc", encryption_key="0123456789abcdef" * 2 + "fedcba9876543210"
            )
            worn = replace(worn, integrity="hmac-sha1-96", integrity_key="00" * 20)
            await desk.call(api.AddSa(sa=worn))
            adapter = desk.world.adapters.require("left")
            assert adapter.inline is not None
            (state,) = adapter.inline._sad  # type: ignore[attr-defined]
            lifetimes = adapter.inline._sad.lifetimes  # type: ignore[attr-defined]
            for blocks, limit, power in ((1 << 20, "cipher-soft", 20), (1 << 32, "cipher-hard", 32)):
                state.counters.bytes = blocks * 8
                assert lifetimes.admit([state], 1, 100, 1.0) is None
                adapter.keep_time()
                (shown,) = (await desk.call(api.ListSas())).sas
                assert f"3des-cbc: this key has done 2^{power} blocks of 64 bits; rekey" in shown.weak
                event = desk.world.events.all[-1]
                assert (event.kind, event.limit) == ("cipher_limit", limit)
            await desk.call(api.SetAdapter(name="left", cipher_limits="enforce"))
            (shown_adapter,) = (await desk.call(api.ListAdapters())).adapters
            assert shown_adapter.cipher_limits == "enforce"
            assert lifetimes.admit([state], 1, 100, 1.0) is state

    run(work())


def test_tags_answers_and_memory_for_fragments_are_set_in_place_and_shown() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            (before,) = (await desk.call(api.ListAdapters())).adapters
            assert (before.vlan, before.prohibited, before.reassembly) == ("protect", "silent", 4 << 20)
            change = api.SetAdapter(name="left", vlan="drop", prohibited="answer", reassembly=1 << 20)
            await desk.call(change)
            (after,) = (await desk.call(api.ListAdapters())).adapters
            assert (after.vlan, after.prohibited, after.reassembly) == ("drop", "answer", 1 << 20)
            await desk.refused(api.SetAdapter(name="left", reassembly=5), "reassembly")

    run(work())


def test_end_of_a_life_is_told_without_traffic_and_shown_before() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            life = api.Lifetime(time_soft=1, packet_hard=7)
            await desk.call(api.AddSa(sa=replace(SA, lifetime=life)))
            adapter = desk.world.adapters.require("left")
            (state,) = (await desk.call(api.ListSas())).sas
            assert (state.sa.lifetime, state.expiring) == (life, False)
            engine = adapter.inline
            assert engine is not None
            engine.keep_time(engine.deadline)
            adapter.keep_time()
            (state,) = (await desk.call(api.ListSas())).sas
            assert state.expiring
            (event,) = (one for one in desk.world.events.all if one.kind == "sa_expiring")
            assert (event.limit, event.sa) == (
                "time-soft",
                api.SaName(dst="10.9.0.2", proto="esp", spi=0x100),
            )
            assert "time-soft" in event.text

    run(work())


# --------------------------------------------------------------------------------------------- keys


def test_keys_are_exported_for_wireshark() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            await desk.call(api.AddSa(sa=SA))
            cbc = replace(
                IN,
                encryption="aes-cbc-128",
                encryption_key="01" * 16,
                integrity="hmac-sha256-128",
                integrity_key="02" * 32,
                esn=True,
                sequence_number=5 << 32,
            )
            await desk.call(api.AddSa(sa=cbc))
            lines = (await desk.call(api.ExportKeys(format="wireshark"))).lines
            assert lines == [
                '"IPv4","10.9.0.1","10.9.0.2","0x00000100",'
                f'"AES-GCM with 16 octet ICV [RFC4106]","0x{KEY}","NULL","","32-bit","0x0"',
                '"IPv4","10.9.0.2","10.9.0.1","0x00000200",'
                f'"AES-CBC [RFC3602]","0x{"01" * 16}","HMAC-SHA-256-128 [RFC4868]","0x{"02" * 32}",'
                '"64-bit","0x5"',
            ]
            await desk.refused(api.ExportKeys(format="pgp"), "format")

    run(work())


def test_telling_of_a_long_list_of_sas_lets_the_frames_pass() -> None:
    async def work() -> None:
        async with Desk("left") as desk:
            base = add_request((CBC_SHA1,))
            (element,) = base.elements
            buffer = pack_add_sa(
                [replace(base, elements=(replace(element, spi=1000 + i),)) for i in range(500)]
            )
            heard: list[int] = []

            async def frames() -> None:
                while True:
                    heard.append(len(desk.world.events.all))
                    await asyncio.sleep(0)

            passing = asyncio.create_task(frames())
            message = api.OidRequest(
                adapter="left",
                oid="tcp_task_ipsec_offload_v2_add_sa",
                request_type="set",
                information_buffer=b64encode(buffer).decode(),
            )
            reply = await desk.call(message)
            passing.cancel()
            assert len(reply.handles) == len(desk.world.events.all) == 500
            assert max(now - before for before, now in pairwise([*heard, 500])) <= 64

    run(work())


def test_sizes_of_policies_and_sas_are_told() -> None:
    async def work() -> None:
        async with Desk("left", "right") as desk:
            adapter = desk.world.adapters.require("left").require_inline()
            adapter.add_policy(policy(OUT, ANY, template(ESP, TUNNEL, NEAR, FAR)))
            adapter.add_policy(policy(OUT, selector(protocol=17)))
            adapter.add_sa(association(OUT, TUNNEL, NEAR, FAR), 0.0)
            adapter.add_sa(association(Direction.INBOUND, TUNNEL, FAR, NEAR), 0.0)
            left, right = (await desk.call(api.GetMtus())).adapters
            assert (left.wire_mtu, left.mtu) == (1500, 1446)
            assert [(one.overhead, one.mtu) for one in left.policies] == [(54, 1446)]
            ((name, rest),) = [(one.sa, one) for one in left.sas]
            assert (name.dst, name.direction, rest.mode) == (FAR, "out", "tunnel")
            assert (rest.path_mtu, rest.path_known_s, rest.overhead, rest.mtu) == (1500, None, 54, 1446)
            assert (right.policies, right.sas, right.mtu) == ([], [], 1500)
            (one,) = (await desk.call(api.GetMtus(adapter="right"))).adapters
            assert one.adapter == "right"

    run(work())
