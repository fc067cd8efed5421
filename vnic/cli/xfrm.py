"""`vnic xfrm`: what `ip xfrm` is, for the card.

Law: a table.
"""

from __future__ import annotations

from vnic.cli.grammar import Object
from vnic.cli.monitor import XFRM_MONITOR
from vnic.cli.xfrm_policy import POLICY
from vnic.cli.xfrm_state import STATE

XFRM = Object(
    "xfrm",
    "SAs and policies in the words of `ip xfrm`",
    objects=(STATE, POLICY),
    verbs=(XFRM_MONITOR,),
)
