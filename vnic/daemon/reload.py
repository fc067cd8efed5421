"""From one configuration to the next, touching only what differs.

Law: an adapter whose table did not change is not touched, and one added at run time stays. One adapter that
cannot be had is logged and leaves the others alone.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable
from dataclasses import replace

from vnic.control.interface import AddAdapter, SetAdapter, Wire
from vnic.daemon.adapters import Adapters
from vnic.daemon.settings import NO_WIRE, change
from vnic.errors import VnicError

log = logging.getLogger(__name__)


async def apply(adapters: Adapters, old: Iterable[AddAdapter], new: Iterable[AddAdapter]) -> list[str]:
    """Make, change and take away adapters.

    Args:
        old: checked settings of the configuration in force, () at the start.
        new: checked settings of the one to come.

    Returns:
        What could not be done, one line an adapter.
    """
    before = {settings.name: settings for settings in old}
    after = {settings.name: settings for settings in new}
    problems: list[str] = []
    for name in sorted(before.keys() - after.keys()):
        if adapters.find(name) is not None:
            await _try(problems, name, adapters.delete(name))
    links: dict[str, Wire] = {}
    made: set[str] = set()
    for name, settings in after.items():
        await _bring_to(adapters, before.get(name), settings, links, made, problems)
    for name, settings in after.items():
        if settings.wire is not None and settings.wire.kind == "link" and settings.wire.name in made:
            links[name] = settings.wire
    # Only when all ends exist can they be joined, and one that links back is joined already.
    for name, wire in links.items():
        adapter = adapters.find(name)
        if adapter is not None and wire != adapters.wire_of(adapter):
            await _try(problems, name, adapters.set(SetAdapter(name=name, wire=wire)))
    return problems


async def _bring_to(
    adapters: Adapters,
    before: AddAdapter | None,
    settings: AddAdapter,
    links: dict[str, Wire],
    made: set[str],
    problems: list[str],
) -> None:
    """Bring one adapter to its settings, but for a link, which is put off into `links`."""
    name = settings.name
    wire = settings.wire or NO_WIRE
    adapter = adapters.find(name)
    if adapter is not None and adapter.failure:
        log.info("adapter %s had failed and is made anew", name)
        await _try(problems, name, adapters.delete(name))
        adapter = None
    if adapter is not None:
        how = change(before or adapter.settings, settings)
        if not how.remake:
            request = how.request
            if request is None:
                return
            if wire.kind == "link" and request.wire is not None:
                links[name] = wire
                request = replace(request, wire=None)
            await _try(problems, name, adapters.set(request))
            if request.keywords is not None:
                log.info("adapter %s: its keywords are in force after `vnic adapter restart %s`", name, name)
            return
        log.warning("adapter %s is made anew; its SAs and policies are gone", name)
        await _try(problems, name, adapters.delete(name))
    if wire.kind == "link":
        links[name] = wire
        settings = replace(settings, wire=NO_WIRE)
    made.add(name)
    await _try(problems, name, adapters.add(settings))


async def _try(problems: list[str], name: str, work: Awaitable[object]) -> None:
    try:
        await work
    except VnicError as error:
        problems.append(f"adapter {name}: {error}")
        log.error("adapter %s: %s", name, error)
