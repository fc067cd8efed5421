"""For authors of protocol drivers: attach to an adapter with an external transport and drive its NIC.

Law: what a driver sees is what NDIS lets a driver see: net buffer lists with out-of-band information,
completions, indications and OID requests. No key, no policy, no frame format here.

    async with await Client.connect() as client:
        async with await Driver.attach_to(client, "nic0") as driver:
            result = await oid_request(client, "nic0", OidRequest(...))
            completion = await driver.send([frame], TransmitInfo(...))
            async for indicated in driver.indications():
                ...

`BlockingDriver` does the same without an event loop.
"""

from vnic.driver.blocking import BlockingDriver
from vnic.driver.driver import Driver
from vnic.driver.exchange import Completion, Received
from vnic.driver.requests import nbl_socket_of, oid_request
from vnic.ndis.status import StatusIndication

__all__ = [
    "BlockingDriver",
    "Completion",
    "Driver",
    "Received",
    "StatusIndication",
    "nbl_socket_of",
    "oid_request",
]
