"""The calls of the control socket, carried out.

Law: one method a call. It asks adapters and engine, tells the listeners, and gives the reply; who may call
is decided before, in `control`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from vnic import __version__
from vnic.control import interface as api
from vnic.daemon import reports, values
from vnic.daemon.adapters import Adapter, Adapters
from vnic.daemon.events import Events, rfc3339
from vnic.daemon.keyfile import wireshark_line
from vnic.engine.contract import SaReport
from vnic.errors import OidError, RequestError
from vnic.ipsec.association import Direction, SaId, SecurityAssociation
from vnic.ipsec.policy import PolicyEntry, Selector
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.status import NdisStatus

log = logging.getLogger(__name__)

Reply = TypeVar("Reply")

_UPPER_HALF = 0xFFFFFFFF


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

    def wall(self, moment: float) -> str:
        """Turn monotonic seconds into RFC 3339."""
        return rfc3339(self.wall_clock() - (self.clock() - moment))


class Handlers:
    """The daemon as `control.interface.Service`."""

    def __init__(self, adapters: Adapters, events: Events, about: About) -> None:
        self._adapters = adapters
        self._events = events
        self._about = about
        self._methods: dict[type[api.Call[Any]], Callable[[Any], Awaitable[Any]]] = {
            api.AddAdapter: self._add_adapter,
            api.SetAdapter: self._set_adapter,
            api.DeleteAdapter: self._delete_adapter,
            api.ListAdapters: self._list_adapters,
            api.AddSa: self._add_sa,
            api.ReplaceSa: self._replace_sa,
            api.UpdateSa: self._update_sa,
            api.DeleteSa: self._delete_sa,
            api.FlushSas: self._flush_sas,
            api.ListSas: self._list_sas,
            api.AddPolicy: self._add_policy,
            api.DeletePolicy: self._delete_policy,
            api.FlushPolicies: self._flush_policies,
            api.ListPolicies: self._list_policies,
            api.SetPolicyDefault: self._set_policy_default,
            api.GetPolicyDefault: self._get_policy_default,
            api.ListDropReasons: self._list_drop_reasons,
            api.GetStatistics: self._get_statistics,
            api.GetCapabilities: self._get_capabilities,
            api.ExportKeys: self._export_keys,
            api.GetDaemon: self._get_daemon,
        }

    def answer(self, request: api.Call[Reply]) -> Awaitable[Reply]:
        """Carry out a call; see `Service`."""
        return self._methods[type(request)](request)

    async def stream(self, request: api.Call[Reply]) -> AsyncIterator[Reply]:
        """Carry out the one call that is answered again and again."""
        assert isinstance(request, api.Monitor)
        async for event in self._events.listen():
            yield cast(Reply, api.MonitorReply(event=event))

    # ------------------------------------------------------------------------------------ adapters

    async def _add_adapter(self, request: api.AddAdapter) -> api.AdapterReply:
        adapter = await self._adapters.add(request)
        return api.AdapterReply(adapter=await reports.adapter_state(self._adapters, adapter))

    async def _set_adapter(self, request: api.SetAdapter) -> api.AdapterReply:
        adapter = await self._adapters.set(request)
        if (request.policy_default_in, request.policy_default_out) != (None, None):
            self._tell_default(adapter)
        return api.AdapterReply(adapter=await reports.adapter_state(self._adapters, adapter))

    async def _delete_adapter(self, request: api.DeleteAdapter) -> api.NoReply:
        await self._adapters.delete(request.name)
        return api.NoReply()

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
        except OidError:
            raise
        except RequestError as error:
            raise _malformed(error) from None
        handle = adapter.engine.add_sa(sa, self._about.clock(), replace=replace)
        self._tell_sa("sa_updated" if replace else "sa_added", adapter, sa, handle)
        for reason in sa.weak:
            log.warning("adapter %s, %s: weak: %s", adapter.name, sa.id, reason)
        await self._adapters.refresh_mtu(adapter)
        return _sa_reply(adapter, sa, handle)

    async def _direction_of(self, adapter: Adapter, message: api.Sa) -> Direction:
        """Take the direction as given, or as it follows from the addresses of the TAP."""
        if message.direction is not None:
            return Direction(message.direction)
        source = values.address_of(message.src, "src")
        destination = values.address_of(message.dst, "dst")
        adapter.require_running()
        tap = adapter.tap
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
        return _sa_reply(adapter, report.sa, report.offload_handle)

    async def _delete_sa(self, request: api.DeleteSa) -> api.SaReply:
        adapter, report = self._find_sa(request)
        adapter.engine.delete_sa(report.sa.id)
        self._tell_sa("sa_deleted", adapter, report.sa, report.offload_handle)
        await self._adapters.refresh_mtu(adapter)
        return _sa_reply(adapter, report.sa, report.offload_handle)

    def _find_sa(self, request: api.UpdateSa | api.DeleteSa) -> tuple[Adapter, SaReport]:
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
            adapter = self._adapters.require(request.adapter)
            sa = adapter.engine.find_handle(OffloadHandle(request.handle))
            if sa is None:
                raise OidError(
                    NdisStatus.INVALID_PARAMETER,
                    "there is no SA with this handle",
                    field="handle",
                    value=str(request.handle)[:64],
                    allowed="a handle that `vnic sa show` lists",
                )
            return adapter, _known(adapter, sa)
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
            for report in adapter.engine.sas():
                if protocol is None or report.sa.protocol is protocol:
                    adapter.engine.delete_sa(report.sa.id)
                    self._tell_sa("sa_deleted", adapter, report.sa, report.offload_handle)
                    count += 1
            await self._adapters.refresh_mtu(adapter)
        status = NdisStatus.SUCCESS
        return api.FlushSasReply(count=count, status=status, status_name=status.label)

    async def _list_sas(self, request: api.ListSas) -> api.SasReply:
        reveal_keys = bool(request.reveal_keys)
        if reveal_keys:
            self._check_keys_may_show("reveal_keys")
        sas = []
        for adapter in self._adapters.chosen(request.adapter):
            sas += await reports.sa_states(adapter, self._about.wall, reveal_keys=reveal_keys)
        return api.SasReply(sas=sas)

    def _tell_sa(
        self, kind: api.EventWord, adapter: Adapter, sa: SecurityAssociation, handle: OffloadHandle
    ) -> None:
        what = kind.removeprefix("sa_")
        text = f"adapter {adapter.name}: SA {sa.direction.value} {sa.id} {what}"
        self._events.tell(kind, text, adapter=adapter.name, sa=values.full_name_of(sa), handle=int(handle))

    # ------------------------------------------------------------------------------------ policies

    async def _add_policy(self, request: api.AddPolicy) -> api.PolicyReply:
        adapter = self._adapters.require(request.adapter)
        adapter.require_running()
        update = bool(request.update)
        entry = adapter.engine.add_policy(values.policy_of(request.policy), replace=update)
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
        entry = adapter.engine.delete_policy(direction, selector, index)
        self._tell_policy("policy_deleted", adapter, entry)
        await self._adapters.refresh_mtu(adapter)
        return api.PolicyReply(adapter=adapter.name, policy=values.policy_message(entry))

    def _with_policy(
        self, adapter: str | None, direction: Direction, selector: Selector | None, index: int
    ) -> Adapter:
        """Give the adapter that is named, or the only one that has the policy."""
        if adapter is not None or len(self._adapters) < 2:
            return self._adapters.require(adapter)
        having = [
            one
            for one in self._adapters.all()
            if any(
                entry.direction is direction
                and (entry.index == index if selector is None else entry.selector == selector)
                for entry in one.engine.policies()
            )
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
        for adapter in self._adapters.chosen(request.adapter):
            for entry in adapter.engine.policies():
                if direction is None or entry.direction is direction:
                    adapter.engine.delete_policy(entry.direction, entry.selector)
                    self._tell_policy("policy_deleted", adapter, entry)
                    count += 1
            await self._adapters.refresh_mtu(adapter)
        return api.FlushPoliciesReply(count=count)

    async def _list_policies(self, request: api.ListPolicies) -> api.PoliciesReply:
        return api.PoliciesReply(
            policies=[
                api.PolicyState(adapter=adapter.name, policy=values.policy_message(entry))
                for adapter in self._adapters.chosen(request.adapter)
                for entry in adapter.engine.policies()
            ]
        )

    async def _set_policy_default(self, request: api.SetPolicyDefault) -> api.PolicyDefaultsReply:
        chosen = self._adapters.chosen(request.adapter)
        for adapter in chosen:
            adapter.require_running()
        for adapter in chosen:
            adapter.set_defaults(inbound=request.inbound, outbound=request.outbound)
            self._tell_default(adapter)
        return api.PolicyDefaultsReply(defaults=[reports.policy_default(adapter) for adapter in chosen])

    async def _get_policy_default(self, request: api.GetPolicyDefault) -> api.PolicyDefaultsReply:
        chosen = self._adapters.chosen(request.adapter)
        return api.PolicyDefaultsReply(defaults=[reports.policy_default(adapter) for adapter in chosen])

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
        return api.StatisticsReply(
            adapters=[await reports.adapter_statistics(adapter, self._about.wall) for adapter in chosen]
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
                for report in adapter.engine.sas()
            ]
        )

    def _check_keys_may_show(self, field: str) -> None:
        if not self._about.reveal_keys:
            raise RequestError(
                "the configuration forbids to show keys ([control] reveal_keys)",
                field=field,
                allowed="no keys",
            )

    async def _get_daemon(self, request: api.GetDaemon) -> api.DaemonReply:
        about = self._about
        return api.DaemonReply(
            version=__version__,
            engine=about.engine,
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


def _sa_reply(adapter: Adapter, sa: SecurityAssociation, handle: OffloadHandle) -> api.SaReply:
    status = NdisStatus.SUCCESS
    return api.SaReply(
        adapter=adapter.name,
        direction=sa.direction.value,
        handle=int(handle),
        status=status,
        status_name=status.label,
        weak=list(sa.weak),
    )


def _known(adapter: Adapter, sa: SaId) -> SaReport:
    report = adapter.engine.find_sa(sa)
    assert report is not None
    return report
