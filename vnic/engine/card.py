"""NicCard: what a card does by handing it to its NIC, whichever transport drives it.

Law: passes on, decides nothing.
"""

from __future__ import annotations

from vnic.miniport.adapter import MiniportAdapter
from vnic.miniport.configuration import FeatureState
from vnic.ndis.capabilities import OffloadCapabilities, TaskOffload
from vnic.ndis.keywords import Keywords
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.status import StatusIndication


class NicCard:
    """The NIC's part of `engine.contract.Card`, which says what each call means."""

    def __init__(self, miniport: MiniportAdapter) -> None:
        self._miniport = miniport

    @property
    def capabilities(self) -> OffloadCapabilities:
        return self._miniport.capabilities

    @property
    def hardware(self) -> TaskOffload:
        return self._miniport.hardware

    @property
    def current(self) -> TaskOffload:
        return self._miniport.current

    @property
    def keywords(self) -> Keywords:
        return self._miniport.keywords

    def features(self) -> list[FeatureState]:
        return self._miniport.features()

    def set_keywords(self, keywords: Keywords) -> None:
        self._miniport.set_keywords(keywords)

    def begin_reset(self) -> None:
        self._miniport.begin_reset()

    def end_reset(self) -> None:
        self._miniport.end_reset()

    def pause(self) -> None:
        self._miniport.pause()

    def resume(self) -> None:
        self._miniport.resume()

    def remove(self) -> None:
        self._miniport.remove()

    def set_load_balanced(self, load_balanced: bool, master: str = "") -> None:
        self._miniport.set_load_balanced(load_balanced, master)

    def take_indications(self) -> list[StatusIndication]:
        return self._miniport.take_indications()

    def request_sa_deletion(self, handle: OffloadHandle) -> None:
        self._miniport.request_deletion(handle)
