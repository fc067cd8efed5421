"""A protocol driver in one file: two NICs with external transports, an SA pair by OID, one packet across.

    vnic adapter add nic0 transport external
    vnic adapter add nic1 transport external wire link nic0
    python examples/python/driver.py nic0 nic1

The program frames the packet as a transport does (IPv4, ESP header, room for the IV, data, padding, trailer,
room for the ICV); nic0 makes IV, cipher text and ICV; nic1 checks and opens it and says so out of band.
"""

import asyncio
import os
import sys
from ipaddress import ip_address

from vnic.control.client import DEFAULT_SOCKET, Client
from vnic.driver import Driver, Received, oid_request
from vnic.ipsec.association import KeyMaterial
from vnic.ndis.capabilities import ENCAPSULATION_IEEE_802_3
from vnic.ndis.configuration_structs import (
    EncapsulationSetting,
    EncapsulationSwitch,
    OffloadEncapsulation,
    pack_offload_encapsulation,
)
from vnic.ndis.netbuffer import OffloadHandle, TransmitInfo
from vnic.ndis.oid import AddSa, AlgorithmInfo, Operation, SaElement
from vnic.ndis.oids import Oid, OidRequest, RequestType
from vnic.ndis.structs import ADD_SA, pack_add_sa
from vnic.packet.checksum import ones_complement_sum

AES_GCM_128 = 0x8  # IPSEC_OFFLOAD_V2_ENCRYPTION_AES_GCM_128
SPI = 0x1000
SOURCE, DESTINATION = ip_address("192.0.2.1").packed, ip_address("192.0.2.2").packed
ETHERNET = EncapsulationSetting(EncapsulationSwitch.ON, ENCAPSULATION_IEEE_802_3, 14)
DATA = b"sealed by one NIC, opened by the other"


async def set_oid(client: Client, adapter: str, oid: Oid, buffer: bytearray) -> bytes:
    """Set an OID; gives the buffer with what the NIC wrote back."""
    result = await oid_request(client, adapter, OidRequest(oid, RequestType.SET, buffer))
    print(f"{adapter}: {oid.label}: {result.status.label} {result.message}")
    if result.status:
        raise SystemExit(2)
    return result.information_buffer


async def add_sa(client: Client, adapter: str, key: KeyMaterial, *, inbound: bool) -> OffloadHandle:
    """Offload the SA by IPSEC_OFFLOAD_V2_ADD_SA; gives the handle the NIC wrote into it."""
    element = SaElement(Operation.ESP, SPI, encryption=AlgorithmInfo(AES_GCM_128, key))
    request = pack_add_sa([AddSa(inbound, SOURCE, DESTINATION, (element,))])
    answer = await set_oid(client, adapter, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA, request)
    at = ADD_SA.offset_of("OffloadHandle")
    return OffloadHandle(int.from_bytes(answer[at : at + 8], "little"))


def esp_packet(number: int) -> tuple[bytearray, TransmitInfo]:
    """Frame the data; gives the frame and what the NIC must know about it."""
    pad_length = -(len(DATA) + 2) % 4
    trailer = bytes(range(1, pad_length + 1)) + bytes((pad_length, 59))
    esp = SPI.to_bytes(4, "big") + number.to_bytes(4, "big") + bytes(8) + DATA + trailer + bytes(16)
    header = bytearray.fromhex("4500 0000 0000 4000 4032 0000") + SOURCE + DESTINATION
    header[2:4] = (len(header) + len(esp)).to_bytes(2, "big")
    header[10:12] = (0xFFFF - ones_complement_sum(header)).to_bytes(2, "big")
    ethernet = bytes.fromhex("02 00 00 00 00 02  02 00 00 00 00 01  08 00")
    info = TransmitInfo(OffloadHandle(0), OffloadHandle(0), 59, pad_length, 0, len(header))
    return bytearray(ethernet + header + esp), info


async def main(sender: str, receiver: str, control_socket: str = DEFAULT_SOCKET) -> int:
    """Carry one packet from one NIC to the other."""
    async with (
        await Client.connect(control_socket) as client,
        await Driver.attach_to(client, sender) as one,
        await Driver.attach_to(client, receiver) as other,
    ):
        key = KeyMaterial(os.urandom(20))  # key and salt (RFC 4106 §8.1)
        for adapter in (sender, receiver):
            on = pack_offload_encapsulation(OffloadEncapsulation(ETHERNET, ETHERNET))
            await set_oid(client, adapter, Oid.OFFLOAD_ENCAPSULATION, on)
        handle = await add_sa(client, sender, key, inbound=False)
        await add_sa(client, receiver, key, inbound=True)

        frame, info = esp_packet(1)
        completion = await one.send([frame], info._replace(offload_handle=handle))
        print(f"{sender}: send completed with {completion.status.label}")

        async for indicated in other.indications():
            if isinstance(indicated, Received):
                print(f"{receiver}: {indicated.info}")
                print(f"{receiver}: {bytes(indicated.frame[50 : 50 + len(DATA)]).decode()}")
                return 0
    return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:4])))
