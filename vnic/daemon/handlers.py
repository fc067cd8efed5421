"""The calls of the control socket, carried out.

Law: one method a call. It asks adapters and engine, tells the listeners, and gives the reply; who may call
is decided before, in `control`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from vnic import __version__
from vnic.control import interface as api
from vnic.control.oid_names import name_of
from vnic.daemon import oid_calls, reports, values
from vnic.daemon.adapters import Adapter, Adapters
from vnic.daemon.events import Events, rfc3339
from vnic.daemon.keyfile import wireshark_line
from vnic.daemon.memory import Memory
from vnic.daemon.nbls import Nbls
from vnic.daemon.numbers import Lease
from vnic.daemon.wire_faults import check_no_value
from vnic.engine.contract import Added, Engine, SaReport
from vnic.errors import OidError, RequestError
from vnic.ipsec.association import Direction, SaId, SecurityAssociation, weaknesses
from vnic.ipsec.policy import PolicyEntry, Selector
from vnic.ipsec.renewal import Renewal
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.status import NdisStatus

log = logging.getLogger(__name__)

Reply = TypeVar("Reply")

_UPPER_HALF = 0xFFFFFFFF

_MAX_SNAP_LENGTH = 1 << 20

_MOST_RENEWALS = 64
"""SAs of one rekeying: they change in one go, and frames wait for them."""

_GRACE_S = 10
"""Of old inbound SAs whose outbound ones are replaced as well: more than packets are under way."""

_SAS_A_TURN = 64
"""SAs deleted, or told of, before the frames get a turn."""

_POLICIES_A_TURN = 64
"""Policies shown or deleted before the frames get a turn."""


@dataclass(frozen=True, slots=True)
class About:
    """What the daemon knows of itself."""

    engine: str
    loop: str
    config: str | None
    reveal_keys: bool
    """Whether administrators may see keys."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    wall_clock: Callable[[], float]
    """Seconds since 1970."""
    started: float
    """Monotonic seconds."""
    ciphers: str = ""
    engine_reason: str = ""
    """As `daemon.cards.EngineChoice`."""

    def wall(self, moment: float) -> str:
        """Turn monotonic seconds into RFC 3339."""
        return rfc3339(self.wall_clock() - (self.clock() - moment))


class Handlers:
    """The daemon as `control.interface.Service`."""

    def __init__(self, adapters: Adapters, events: Events, about: About) -> None:
        self._adapters = adapters
        self._events = events
        self._about = about
        self._nbls = Nbls(about.wall_clock)
        self._memory = Memory(lambda: sum(adapter.engine.sa_count for adapter in adapters.all()))
        self._methods: dict[type[api.Call[Any]], Callable[[Any], Awaitable[Any]]] = {
            api.AddAdapter: self._add_adapter,
            api.SetAdapter: self._set_adapter,
            api.DeleteAdapter: self._delete_adapter,
            api.ResetAdapter: self._reset_adapter,
            api.PauseAdapter: self._pause_adapter,
            api.ResumeAdapter: self._resume_adapter,
            api.RestartAdapter: self._restart_adapter,
            api.RemoveAdapter: self._remove_adapter,
            api.SetWireFaults: self._set_wire_faults,
            api.DoWireFault: self._do_wire_fault,
            api.ClearWireFaults: self._clear_wire_faults,
            api.ListAdapters: self._list_adapters,
            api.AddSa: self._add_sa,
            api.ReplaceSa: self._replace_sa,
            api.UpdateSa: self._update_sa,
            api.DeleteSa: self._delete_sa,
            api.RekeySas: self._rekey_sas,
            api.RequestSaDeletion: self._request_sa_deletion,
            api.FlushSas: self._flush_sas,
            api.ListSas: self._list_sas,
            api.AddPolicy: self._add_policy,
            api.DeletePolicy: self._delete_policy,
            api.FlushPolicies: self._flush_policies,
            api.ListPolicies: self._list_policies,
            api.TestPolicy: self._test_policy,
            api.SetPolicyDefault: self._set_policy_default,
            api.GetPolicyDefault: self._get_policy_default,
            api.GetMtus: self._get_mtus,
            api.ListDropReasons: self._list_drop_reasons,
            api.GetStatistics: self._get_statistics,
            api.GetCapabilities: self._get_capabilities,
            api.ExportKeys: self._export_keys,
            api.OidRequest: self._oid_request,
            api.CancelOidRequest: self._cancel_oid_request,
            api.GetDaemon: self._get_daemon,
        }

    def answer(self, request: api.Call[Reply]) -> Awaitable[Reply]:
        """Carry out a call; see `Service`."""
        self._memory.look()
        return self._methods[type(request)](request)

    async def stream(self, request: api.Call[Reply]) -> AsyncIterator[Reply]:
        """Carry out a call that is answered again and again."""
        if isinstance(request, api.ListSas):
            async for part in self._list_parts(request):
                yield cast(Reply, part)
            return
        if isinstance(request, api.WatchNbls):
            async with contextlib.aclosing(self._watch(request)) as frames:
                async for frame in frames:
                    yield cast(Reply, api.NblReply(nbl=frame))
            return
        assert isinstance(request, api.Monitor)
        async for event in self._events.listen():
            yield cast(Reply, api.MonitorReply(event=event))

    async def _watch(self, request: api.WatchNbls) -> AsyncGenerator[api.Nbl, None]:
        adapter = self._adapters.require(request.adapter)
        adapter.require_running()
        length = request.snap_length
        if length is not None and not 0 <= length <= _MAX_SNAP_LENGTH:
            raise RequestError(
                "out of range",
                field="snap_length",
                value=str(length)[:64],
                allowed=f"0 to {_MAX_SNAP_LENGTH} bytes, or all",
            )
        watching = self._nbls.watch(adapter.name, adapter.engine, length, adapter.require_running)
        async with contextlib.aclosing(watching) as frames:
            async for frame in frames:
                yield frame

    # ------------------------------------------------------------------------------------ adapters

    async def _add_adapter(self, request: api.AddAdapter) -> api.AdapterReply:
        return await self._adapter_reply(await self._adapters.add(request))

    async def _set_adapter(self, request: api.SetAdapter) -> api.AdapterReply:
        adapter = await self._adapters.set(request)
        if (request.policy_default_in, request.policy_default_out) != (None, None):
            self._tell_default(adapter)
        return await self._adapter_reply(adapter)

    async def _delete_adapter(self, request: api.DeleteAdapter) -> api.NoReply:
        await self._adapters.delete(request.name)
        return api.NoReply()

    async def _reset_adapter(self, request: api.ResetAdapter) -> api.AdapterReply:
        adapter = self._adapters.require(request.name, "name")
        await adapter.reset(request.hold_ms or 0)
        return await self._adapter_reply(adapter)

    async def _pause_adapter(self, request: api.PauseAdapter) -> api.AdapterReply:
        adapter = self._adapters.require(request.name, "name")
        adapter.pause()
        return await self._adapter_reply(adapter)

    async def _resume_adapter(self, request: api.ResumeAdapter) -> api.AdapterReply:
        adapter = self._adapters.require(request.name, "name")
        adapter.resume()
        return await self._adapter_reply(adapter)

    async def _restart_adapter(self, request: api.RestartAdapter) -> api.AdapterReply:
        adapter = self._adapters.require(request.name, "name")
        adapter.restart()
        await self._adapters.refresh_mtu(adapter)
        return await self._adapter_reply(adapter)

    async def _remove_adapter(self, request: api.RemoveAdapter) -> api.AdapterReply:
        adapter = self._adapters.require(request.name, "name")
        adapter.remove()
        return await self._adapter_reply(adapter)

    async def _set_wire_faults(self, request: api.SetWireFaults) -> api.AdapterReply:
        adapter = self._adapters.require(request.name, "name")
        adapter.change_faults(lambda faults: faults.set(request))
        return await self._adapter_reply(adapter)

    async def _do_wire_fault(self, request: api.DoWireFault) -> api.AdapterReply:
        adapter = self._adapters.require(request.name, "name")
        if request.action == "fill":
            check_no_value(request)
            adapter.require_present()
            await adapter.filler.fill()
        else:
            adapter.change_faults(lambda faults: faults.do(request))
        return await self._adapter_reply(adapter)

    async def _clear_wire_faults(self, request: api.ClearWireFaults) -> api.AdapterReply:
        adapter = self._adapters.require(request.name, "name")
        adapter.change_faults(lambda faults: faults.clear(request.direction))
        if request.direction is None:
            await adapter.filler.empty()
        return await self._adapter_reply(adapter)

    async def _adapter_reply(self, adapter: Adapter) -> api.AdapterReply:
        return api.AdapterReply(adapter=await reports.adapter_state(self._adapters, adapter))

    async def _list_adapters(self, request: api.ListAdapters) -> api.AdaptersReply:
        chosen = (
            self._adapters.all() if request.name is None else [self._adapters.require(request.name, "name")]
        )
        return api.AdaptersReply(
            adapters=[await reports.adapter_state(self._adapters, one) for one in chosen]
        )

    # ----------------------------------------------------------------------------------------- SAs

    async def _add_sa(self, request: api.AddSa) -> api.SaReply:
        return await self._offload(request.adapter, request.sa, replace=False)

    async def _replace_sa(self, request: api.ReplaceSa) -> api.SaReply:
        return await self._offload(request.adapter, request.sa, replace=True)

    async def _offload(self, adapter_name: str | None, message: api.Sa, *, replace: bool) -> api.SaReply:
        adapter = self._adapters.require(adapter_name)
        direction = await self._direction_of(adapter, message)
        adapter.require_running()
        try:
            sa = values.sa_of(message, direction).checked()
            reserved = await _reserve(adapter, sa, fresh=bool(message.fresh))
            sa = reserved.sa
            added = adapter.engine.add_sa(sa, self._about.clock(), replace=replace)
        except OidError:
            raise
        except RequestError as error:
            raise _malformed(error) from None
        if reserved.kept:
            adapter.give_numbers(sa.id, reserved.lease)
        if sa.lifetime is not None:
            adapter.keep_time()
        self._tell_sa("sa_updated" if replace else "sa_added", adapter, sa, added.handle)
        await self._adapters.refresh_mtu(adapter)
        return _added_reply(adapter, sa, added)

    async def _rekey_sas(self, request: api.RekeySas) -> api.RekeyReply:
        adapter = self._adapters.require(request.adapter)
        adapter.require_running()
        engine = adapter.require_inline("SAs")
        if len(request.sas) > _MOST_RENEWALS:
            raise RequestError(
                "too many SAs for one rekeying",
                field="sas",
                value=str(len(request.sas)),
                allowed=f"1 to {_MOST_RENEWALS}",
            )
        renewals = [self._renewal(engine, message) for message in request.sas]
        old = [_known(adapter, renewal.old) for renewal in renewals]
        grace = request.grace
        if grace is None and any(report.sa.direction is Direction.OUTBOUND for report in old):
            grace = _GRACE_S
        self._check_peer_is_ready(adapter, renewals, old)
        try:
            # Their numbers are on the disk before the switch, so that not a packet waits for them.
            successors = [
                await _reserve(adapter, renewal.successor(report.sa), fresh=True)
                for renewal, report in zip(renewals, old, strict=True)
            ]
            self._check_peer_is_ready(adapter, renewals, old)
            renewals = [
                replace(renewal, sequence_number=successor.sa.sequence_number)
                for renewal, successor in zip(renewals, successors, strict=True)
            ]
            added = engine.rekey(renewals, grace, self._about.clock())
        except OidError:
            raise
        except RequestError as error:
            raise _malformed(error) from None
        for successor in successors:
            if successor.kept:
                adapter.give_numbers(successor.sa.id, successor.lease)
        adapter.keep_time()
        replies = []
        for renewal, before, one in zip(renewals, old, added, strict=True):
            sa = _known(adapter, renewal.old._replace(spi=renewal.spi)).sa
            self._tell_sa("sa_added", adapter, sa, one.handle)
            self._tell_rekeyed(adapter, before.sa, sa, one.handle)
            if sa.direction is Direction.OUTBOUND:
                self._tell_sa("sa_deleted", adapter, before.sa, before.offload_handle)
            replies.append(_added_reply(adapter, sa, one))
        await self._adapters.refresh_mtu(adapter)
        return api.RekeyReply(sas=replies)

    def _renewal(self, engine: Engine, message: api.Renewal) -> Renewal:
        """Find the SA that is to be replaced, and read its successor."""
        named = (message.spi, message.dst, message.proto)
        if message.handle is not None:
            if named != (None, None, None):
                raise RequestError(
                    "name the old SA once",
                    field="handle",
                    value=str(message.handle)[:64],
                    allowed="handle, or spi with dst and proto",
                )
            old = engine.find_handle(OffloadHandle(message.handle))
            if old is None:
                raise OidError(
                    NdisStatus.INVALID_PARAMETER,
                    "there is no SA with this handle",
                    field="handle",
                    value=str(message.handle)[:64],
                    allowed="a handle that `vnic sa show` lists",
                )
            return values.renewal_of(message, old)
        if message.spi is None:
            raise RequestError("the old SA is named by its SPI, or by its handle", field="old", allowed="SPI")
        destination = None if message.dst is None else values.address_of(message.dst, "dst")
        protocol = None if message.proto is None else values.protocol_of(message.proto)
        found = engine.sas_named(message.spi, destination, protocol)
        if not found:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "there is no such SA",
                field="old",
                value=f"{message.spi:#x}"[:64],
                allowed="an SA of this adapter that `vnic sa show` lists",
            )
        if len(found) > 1:
            raise RequestError(
                "several SAs have this SPI; name dst and protocol as well",
                field="old",
                value=f"{message.spi:#x}"[:64],
                allowed=", ".join(str(one) for one in found[:4]),
            )
        return values.renewal_of(message, found[0])

    def _check_peer_is_ready(self, adapter: Adapter, renewals: list[Renewal], old: list[SaReport]) -> None:
        """Refuse to switch where it is known that the far end cannot open what would be sealed: it is an
        adapter of this daemon, which has the old inbound SA and not the new one."""
        peer = self._adapters.peer_of(adapter)
        if peer is None:
            return
        for renewal, report in zip(renewals, old, strict=True):
            if report.sa.direction is Direction.INBOUND:
                continue
            new = renewal.old._replace(spi=renewal.spi)
            if peer.engine.find_sa(renewal.old) is not None and peer.engine.find_sa(new) is None:
                raise RequestError(
                    f"adapter {peer.name} at the other end of the link has no inbound SA for it yet; "
                    f"rekey that first: `vnic sa rekey dev {peer.name} in …`",
                    field="spi",
                    value=f"{renewal.spi:#x}",
                    allowed="an SPI that the far end can open",
                )

    def _tell_rekeyed(
        self, adapter: Adapter, old: SecurityAssociation, new: SecurityAssociation, handle: OffloadHandle
    ) -> None:
        if not self._events.heard():
            self._events.pass_over()
            return
        text = f"adapter {adapter.name}: SA {new.direction.value} {new.id} has replaced spi {old.spi:#010x}"
        self._events.tell(
            "sa_rekeyed",
            text,
            adapter=adapter.name,
            sa=values.full_name_of(new),
            old=values.full_name_of(old),
            handle=int(handle),
        )

    async def _direction_of(self, adapter: Adapter, message: api.Sa) -> Direction:
        """Take the direction as given, or as it follows from the addresses of the TAP."""
        if message.direction is not None:
            return Direction(message.direction)
        source = values.address_of(message.src, "src")
        destination = values.address_of(message.dst, "dst")
        adapter.require_running()
        tap = adapter.tap
        if tap is None:
            raise RequestError(
                f"adapter {adapter.name} has an external transport and no addresses to tell the direction by",
                field="dir",
                allowed="in, out",
            )
        own = {
            values.address_of(address.partition("/")[0], "address")
            for address in await self._adapters.surroundings.host.addresses(tap.name, netns=tap.netns)
        }
        if (source in own) == (destination in own):
            which = "both are addresses" if source in own else "neither is an address"
            raise RequestError(
                f"the direction does not follow from src and dst: {which} of {tap.name}; "
                f"say `offload packet dev {adapter.name} dir in` or `dir out`",
                field="dir",
                allowed="in, out",
            )
        return Direction.OUTBOUND if source in own else Direction.INBOUND

    async def _update_sa(self, request: api.UpdateSa) -> api.SaReply:
        high = request.sequence_number_high_order
        if not 0 <= high <= _UPPER_HALF:
            raise _malformed(
                RequestError(
                    "half of a sequence number has 32 bits",
                    field="sequence-number-high-order",
                    value=str(high)[:64],
                    allowed=f"0 to {_UPPER_HALF}",
                )
            )
        adapter, report = self._find_sa(request)
        adapter.engine.update_sa(report.sa.id, high)
        self._tell_sa("sa_updated", adapter, report.sa, report.offload_handle)
        return _sa_reply(adapter, report)

    async def _delete_sa(self, request: api.DeleteSa) -> api.SaReply:
        adapter, report = self._find_sa(request)
        adapter.engine.delete_sa(report.sa.id)
        self._tell_sa("sa_deleted", adapter, report.sa, report.offload_handle)
        await self._adapters.refresh_mtu(adapter)
        return _sa_reply(adapter, report)

    async def _request_sa_deletion(self, request: api.RequestSaDeletion) -> api.SaReply:
        adapter, report = self._find_sa(request)
        adapter.engine.request_sa_deletion(report.offload_handle)
        return _sa_reply(adapter, report)

    def _find_sa(
        self, request: api.UpdateSa | api.DeleteSa | api.RequestSaDeletion
    ) -> tuple[Adapter, SaReport]:
        """Find the SA that a request names."""
        named = (request.dst, request.proto, request.spi)
        if request.handle is not None:
            if named != (None, None, None):
                raise RequestError(
                    "name the SA once",
                    field="handle",
                    value=str(request.handle),
                    allowed="handle, or dst, proto, spi",
                )
            handle = OffloadHandle(request.handle)
            for adapter in self._adapters.chosen(request.adapter):
                sa = adapter.engine.find_handle(handle)
                if sa is not None:
                    return adapter, _known(adapter, sa)
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "there is no SA with this handle",
                field="handle",
                value=str(request.handle)[:64],
                allowed="a handle that `vnic sa show` lists",
            )
        if request.dst is None or request.proto is None or request.spi is None:
            missing = next(
                word for word, given in zip(("dst", "proto", "spi"), named, strict=True) if given is None
            )
            raise RequestError(
                "an SA is named by its handle, or by dst, proto and spi",
                field=missing,
                allowed="handle, or dst, proto, spi",
            )
        sa = values.sa_id_of(request.dst, request.proto, request.spi)
        having = [one for one in self._adapters.chosen(request.adapter) if one.engine.find_sa(sa) is not None]
        if not having:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "there is no such SA",
                field="spi",
                value=f"{request.spi:#x}"[:64],
                allowed="an SA that `vnic sa show` lists",
            )
        if len(having) > 1:
            raise RequestError(
                "several adapters have this SA; name the adapter (`dev ADAPTER`)",
                field="adapter",
                allowed=", ".join(one.name for one in having),
            )
        return having[0], _known(having[0], sa)

    async def _flush_sas(self, request: api.FlushSas) -> api.FlushSasReply:
        protocol = None if request.proto is None else values.protocol_of(request.proto)
        count = 0
        for adapter in self._adapters.chosen(request.adapter):
            engine = adapter.engine
            for number, report in enumerate(engine.each_sa(), 1):
                if protocol in (None, report.sa.protocol):
                    engine.delete_sa(report.sa.id)
                    self._tell_sa("sa_deleted", adapter, report.sa, report.offload_handle)
                    count += 1
                if number % _SAS_A_TURN == 0:
                    await asyncio.sleep(0)
            await self._adapters.refresh_mtu(adapter)
        status = NdisStatus.SUCCESS
        return api.FlushSasReply(count=count, status=status, status_name=status.label)

    async def _list_sas(self, request: api.ListSas) -> api.SasReply:
        self._check_listing(request)
        count = sum(adapter.engine.sa_count for adapter in self._adapters.chosen(request.adapter))
        if count > reports.SAS_A_MESSAGE:
            raise RequestError(
                f"{count} SAs are too many for one answer; call ListSas with `more`, or name the adapter",
                field="adapter",
                value=request.adapter or "",
                allowed=f"up to {reports.SAS_A_MESSAGE} SAs",
            )
        return api.SasReply(sas=[state async for part in self._list_parts(request) for state in part.sas])

    async def _list_parts(self, request: api.ListSas) -> AsyncGenerator[api.SasReply, None]:
        """Give the SAs in parts of a length that holds up nobody; at least one, if it is empty."""
        self._check_listing(request)
        part: list[api.SaState] = []
        for adapter in self._adapters.chosen(request.adapter):
            states = reports.sa_states(adapter, self._about.wall, reveal_keys=bool(request.reveal_keys))
            async for state in states:
                if len(part) == reports.SAS_A_PART:
                    yield api.SasReply(sas=part)
                    part = []
                part.append(state)
        yield api.SasReply(sas=part)

    def _check_listing(self, request: api.ListSas) -> None:
        if request.reveal_keys:
            self._check_keys_may_show("reveal_keys")

    def _tell_sa(
        self, kind: api.EventWord, adapter: Adapter, sa: SecurityAssociation, handle: OffloadHandle
    ) -> None:
        if not self._events.heard():
            self._events.pass_over()
            return
        what = kind.removeprefix("sa_")
        text = f"adapter {adapter.name}: SA {sa.direction.value} {sa.id} {what}"
        self._events.tell(kind, text, adapter=adapter.name, sa=values.full_name_of(sa), handle=int(handle))

    # ------------------------------------------------------------------------------------ policies

    async def _add_policy(self, request: api.AddPolicy) -> api.PolicyReply:
        adapter = self._adapters.require(request.adapter)
        adapter.require_running()
        update = bool(request.update)
        entry = adapter.require_inline().add_policy(values.policy_of(request.policy), replace=update)
        self._tell_policy("policy_updated" if update else "policy_added", adapter, entry)
        await self._adapters.refresh_mtu(adapter)
        return api.PolicyReply(adapter=adapter.name, policy=values.policy_message(entry))

    async def _delete_policy(self, request: api.DeletePolicy) -> api.PolicyReply:
        direction = Direction(request.direction)
        index = values.index_of(request.index)
        selector = None if request.selector is None else values.selector_of(request.selector, "sel")
        if (selector is None) == (index == 0):
            raise RequestError(
                "name a policy by selector or by index", field="policy", allowed="selector, index"
            )
        adapter = self._with_policy(request.adapter, direction, selector, index)
        entry = adapter.require_inline().delete_policy(direction, selector, index)
        self._tell_policy("policy_deleted", adapter, entry)
        await self._adapters.refresh_mtu(adapter)
        return api.PolicyReply(adapter=adapter.name, policy=values.policy_message(entry))

    def _with_policies(self, adapter: str | None) -> list[tuple[Adapter, Engine]]:
        """Give the adapter that is named, or all whose transport has policies.

        Raises:
            RequestError: there is none of that name, or its transport is external.
        """
        if adapter is not None:
            named = self._adapters.require(adapter)
            return [(named, named.require_inline())]
        return [(one, one.inline) for one in self._adapters.all() if one.inline is not None]

    def _with_policy(
        self, adapter: str | None, direction: Direction, selector: Selector | None, index: int
    ) -> Adapter:
        """Give the adapter that is named, or the only one that has the policy."""
        if adapter is not None or len(self._adapters) < 2:
            return self._adapters.require(adapter)
        having = [
            one
            for one, engine in self._with_policies(None)
            if engine.find_policy(direction, selector, index) is not None
        ]
        if len(having) != 1:
            raise RequestError(
                "several adapters have this policy; name the adapter"
                if having
                else "there is no such policy",
                field="adapter" if having else "policy",
                value="" if selector is None or having else f"{selector.source} -> {selector.destination}",
                allowed=", ".join(one.name for one in having) or "a policy that `vnic policy show` lists",
            )
        return having[0]

    async def _flush_policies(self, request: api.FlushPolicies) -> api.FlushPoliciesReply:
        direction = None if request.direction is None else Direction(request.direction)
        count = 0
        for adapter, engine in self._with_policies(request.adapter):
            for number, entry in enumerate(engine.policies()):
                if number % _POLICIES_A_TURN == _POLICIES_A_TURN - 1:
                    await asyncio.sleep(0)
                if direction not in (None, entry.direction):
                    continue
                # Somebody may have deleted it in the meantime.
                if engine.find_policy(entry.direction, None, entry.index) is not None:
                    engine.delete_policy(entry.direction, None, entry.index)
                    self._tell_policy("policy_deleted", adapter, entry)
                    count += 1
            await self._adapters.refresh_mtu(adapter)
        return api.FlushPoliciesReply(count=count)

    async def _list_policies(self, request: api.ListPolicies) -> api.PoliciesReply:
        states = []
        for adapter, engine in self._with_policies(request.adapter):
            for entry in engine.policies():
                states.append(api.PolicyState(adapter=adapter.name, policy=values.policy_message(entry)))
                if len(states) % _POLICIES_A_TURN == 0:
                    await asyncio.sleep(0)
        return api.PoliciesReply(policies=states)

    async def _test_policy(self, request: api.TestPolicy) -> api.TestPolicyReply:
        adapter = self._adapters.require(request.adapter)
        engine = adapter.require_inline()
        flow = values.flow_of(request)
        direction = Direction(request.direction or "out")
        judgement = engine.judge(direction, flow)
        return values.judgement_message(adapter.name, direction, flow, judgement, engine)

    async def _set_policy_default(self, request: api.SetPolicyDefault) -> api.PolicyDefaultsReply:
        chosen = [adapter for adapter, _ in self._with_policies(request.adapter)]
        for adapter in chosen:
            adapter.require_running()
        for adapter in chosen:
            adapter.set_defaults(inbound=request.inbound, outbound=request.outbound)
            self._tell_default(adapter)
        return api.PolicyDefaultsReply(defaults=[reports.policy_default(adapter) for adapter in chosen])

    async def _get_policy_default(self, request: api.GetPolicyDefault) -> api.PolicyDefaultsReply:
        chosen = [adapter for adapter, _ in self._with_policies(request.adapter)]
        return api.PolicyDefaultsReply(defaults=[reports.policy_default(adapter) for adapter in chosen])

    async def _get_mtus(self, request: api.GetMtus) -> api.MtusReply:
        chosen = self._with_policies(request.adapter)
        count = sum(engine.sa_count + len(engine.policies()) for _, engine in chosen)
        if count > reports.SAS_A_MESSAGE:
            raise RequestError(
                f"{count} policies and SAs are too many for one answer",
                field="adapter",
                value=request.adapter or "",
                allowed=f"adapters with up to {reports.SAS_A_MESSAGE}",
            )
        now = self._about.clock()
        return api.MtusReply(
            adapters=[await reports.adapter_mtu(adapter, engine, now) for adapter, engine in chosen]
        )

    def _tell_policy(self, kind: api.EventWord, adapter: Adapter, entry: PolicyEntry) -> None:
        what = kind.removeprefix("policy_")
        selector = entry.selector
        text = (
            f"adapter {adapter.name}: policy {entry.index} {entry.direction.value} "
            f"{selector.source} -> {selector.destination} {what}"
        )
        self._events.tell(kind, text, adapter=adapter.name, policy=values.policy_message(entry))

    def _tell_default(self, adapter: Adapter) -> None:
        default = reports.policy_default(adapter)
        text = f"adapter {adapter.name}: default is in {default.inbound}, out {default.outbound}"
        self._events.tell("policy_default_changed", text, adapter=adapter.name)

    # ------------------------------------------------------------------------------------- looking

    async def _list_drop_reasons(self, request: api.ListDropReasons) -> api.DropReasonsReply:
        return api.DropReasonsReply(reasons=reports.drop_reasons())

    async def _get_statistics(self, request: api.GetStatistics) -> api.StatisticsReply:
        chosen = self._adapters.chosen(request.adapter)
        count = sum(adapter.engine.sa_count for adapter in chosen)
        with_sas = count <= reports.SAS_A_MESSAGE if request.sas is None else request.sas
        if with_sas and count > reports.SAS_A_MESSAGE:
            raise RequestError(
                f"{count} SAs are too many for one answer; list them with ListSas",
                field="sas",
                value="true",
                allowed=f"false, or up to {reports.SAS_A_MESSAGE} SAs",
            )
        return api.StatisticsReply(
            adapters=[
                await reports.adapter_statistics(adapter, self._about.wall, with_sas=with_sas)
                for adapter in chosen
            ]
        )

    async def _get_capabilities(self, request: api.GetCapabilities) -> api.CapabilitiesReply:
        chosen = self._adapters.chosen(request.adapter)
        return api.CapabilitiesReply(adapters=[reports.capabilities(adapter) for adapter in chosen])

    async def _export_keys(self, request: api.ExportKeys) -> api.KeysReply:
        if request.format not in (None, "wireshark"):
            raise RequestError(
                "there is no such format",
                field="format",
                value=(request.format or "")[:64],
                allowed="wireshark",
            )
        self._check_keys_may_show("format")
        return api.KeysReply(
            lines=[
                wireshark_line(report.sa, report.sequence_number)
                for adapter in self._adapters.chosen(request.adapter)
                async for report in reports.sa_reports(adapter)
            ]
        )

    def _check_keys_may_show(self, field: str) -> None:
        if not self._about.reveal_keys:
            raise RequestError(
                "the configuration forbids to show keys ([control] reveal_keys)",
                field=field,
                allowed="no keys",
            )

    # ------------------------------------------------------------------------------------------ OIDs

    async def _oid_request(self, message: api.OidRequest) -> api.OidReply:
        request = oid_calls.request_of(message)
        adapter = self._adapters.require(message.adapter)
        log.debug("adapter %s: %s of %s", adapter.name, message.request_type, name_of(request.oid))
        before = self._reports_of(adapter, oid_calls.to_be_deleted(request))
        result = await adapter.oid_request(request)
        gone = [report for report in before if adapter.engine.find_sa(report.sa.id) is None]
        await self._tell_sas("sa_deleted", adapter, gone)
        come = self._reports_of(adapter, oid_calls.added(request, result))
        await self._tell_sas("sa_added", adapter, come)
        await self._adapters.refresh_mtu(adapter)
        return oid_calls.reply_of(request, result)

    async def _tell_sas(self, kind: api.EventWord, adapter: Adapter, those: list[SaReport]) -> None:
        """Tell of the SAs of a list, which may be thousands, a few at a time."""
        for number, report in enumerate(those, start=1):
            self._tell_sa(kind, adapter, report.sa, report.offload_handle)
            if number % _SAS_A_TURN == 0:
                await asyncio.sleep(0)

    def _reports_of(self, adapter: Adapter, handles: list[int]) -> list[SaReport]:
        """Describe the SAs of some handles, if anybody is to hear of them."""
        if not self._events.heard():
            return []
        names = (adapter.engine.find_handle(OffloadHandle(handle)) for handle in handles if handle)
        return [_known(adapter, name) for name in names if name is not None]

    async def _cancel_oid_request(self, request: api.CancelOidRequest) -> api.CancelReply:
        adapter = self._adapters.require(request.adapter)
        return api.CancelReply(count=adapter.cancel_oid_requests(request.request_id))

    async def _get_daemon(self, request: api.GetDaemon) -> api.DaemonReply:
        about = self._about
        return api.DaemonReply(
            version=__version__,
            engine=about.engine,
            ciphers=about.ciphers,
            engine_reason=about.engine_reason,
            pid=os.getpid(),
            started=about.wall(about.started),
            uptime_s=about.clock() - about.started,
            loop=about.loop,
            config=about.config,
            adapter_count=len(self._adapters),
        )


def _malformed(error: RequestError) -> OidError:
    """Give a refusal of an SA request the status the NIC has for malformed members."""
    return OidError(
        NdisStatus.INVALID_DATA, error.message, field=error.field, value=error.value, allowed=error.allowed
    )


@dataclass(frozen=True, slots=True)
class _Reserved:
    """An SA that is to be added, and the numbers it may send with."""

    sa: SecurityAssociation
    kept: bool = False
    """Whether anybody keeps its numbers."""
    lease: Lease | None = None
    """None: they were lost, and it may not send."""


async def _reserve(adapter: Adapter, sa: SecurityAssociation, *, fresh: bool) -> _Reserved:
    """Reserve numbers for an SA that is to be added, where they are kept; it begins behind all before.

    Raises:
        StateError: the disk refused.
    """
    if adapter.numbers is None:
        return _Reserved(sa)
    if sa.direction is Direction.INBOUND:
        adapter.numbers.hear(adapter.require_inline().departed_numbers())
        return _Reserved(replace(sa, sequence_number=max(sa.sequence_number, adapter.numbers.top(sa))))
    lease = await adapter.numbers.lease(sa, sa.sequence_number, fresh=fresh)
    adapter.require_running()
    return _Reserved(sa if lease is None else replace(sa, sequence_number=lease.after), True, lease)


def _added_reply(adapter: Adapter, sa: SecurityAssociation, added: Added) -> api.SaReply:
    """Answer for an SA that was added, and note in the log what is weak about it."""
    weak = weaknesses(sa.encryption, sa.encryption_key, sa.integrity, sa.spi)
    for reason in weak:
        log.warning("adapter %s, %s: weak: %s", adapter.name, sa.id, reason)
    return api.SaReply(
        adapter=adapter.name,
        direction=sa.direction.value,
        handle=added.handle,
        status=added.status,
        status_name=added.status.label,
        weak=list(weak),
        offload=added.offload.value,
        message=added.message,
    )


def _sa_reply(adapter: Adapter, report: SaReport) -> api.SaReply:
    status = NdisStatus.SUCCESS
    return api.SaReply(
        adapter=adapter.name,
        direction=report.sa.direction.value,
        handle=report.offload_handle,
        status=status,
        status_name=status.label,
        weak=list(report.sa.weak),
        offload=report.offload.value,
        message="",
    )


def _known(adapter: Adapter, sa: SaId) -> SaReport:
    report = adapter.engine.find_sa(sa)
    assert report is not None
    return report
