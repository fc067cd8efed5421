"""Writes `vectors/receive.txt`: what the reference engine makes of the frames of `vectors/send.txt`.

Law: the frames were opened by scapy or the textbook of `tests/interop` when they were made; what the
reference engine passes on is held to what scapy makes of it, lengths and checksums.

Run: PYTHONPATH=tests:tests/interop:tests/live:. python native/core/tests/make_receive_vectors.py

    case NAME
    host FRAME             for each "out" of the case of that name, in order
    joined VNET FRAME      what all of them become in one burst
"""

from __future__ import annotations

from make_send_vectors import ETHER, INNER, OUTER, TARGET, cases, lines_of, parsed
from transport_lab import ANY, ANY6, IN, TRANSPORT, TUNNEL, address, policy, template

from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME
from vnic.ipsec.association import IpsecProtocol, KeyMaterial, SecurityAssociation
from vnic.ndis.netbuffer import NetBuffer


def key_of(word: str) -> KeyMaterial:
    return KeyMaterial(b"" if word == "-" else bytes.fromhex(word))


def receiver_of(lines: list[str], inner: int, outer: int) -> ReferenceEngine:
    """A card with the inbound SAs of a case, and a policy that wants them."""
    ends = OUTER[outer] if outer else INNER[inner]
    engine = ReferenceEngine(lambda count: bytes(count))
    templates = []
    for line in lines:
        protocol, *words = line.split()
        if protocol not in ("esp", "ah"):
            continue
        mode = TUNNEL if outer and not templates else TRANSPORT
        sa = SecurityAssociation(
            direction=IN,
            source=address(ends[0]),
            destination=address(ends[1]),
            protocol=IpsecProtocol[protocol.upper()],
            spi=int(words[0], 16),
            mode=mode,
            encryption=ENCRYPTION_BY_NAME.get(words[1]),
            encryption_key=key_of(words[2]),
            integrity=INTEGRITY_BY_NAME.get(words[3]),
            integrity_key=key_of(words[4]),
            icv_length=int(words[5]),
            esn=words[6] == "1",
            sequence_number=int(words[7]),
        )
        engine.add_sa(sa, 0.0)
        templates.append(template(sa.protocol, mode, *(ends if mode is TUNNEL else ())))
    engine.add_policy(policy(IN, ANY if inner == 4 else ANY6, *templates))
    return engine


def main() -> None:
    written = ["# Written by make_receive_vectors.py."]
    for place, case in enumerate(cases()):
        lines = lines_of(case, 0x1000 + 2 * place)
        assert "\n".join(lines) in TARGET.read_text(), "make_send_vectors.py comes first"
        engine = receiver_of(lines, case.inner, case.outer)
        written.append(lines[0])
        burst: list[NetBuffer] = []
        for line in lines:
            word, *rest = line.split()
            if word != "out":
                continue
            burst.append(NetBuffer(bytearray.fromhex(rest[0])))
            outcome = engine.receive([NetBuffer(bytearray.fromhex(rest[0]))], 1.0)
            assert len(outcome.host) == 1, (case.name, engine.counters.drops)
            frame = bytes(outcome.host[0].frame)
            assert bytes(ETHER)[:12] == frame[:12]
            packet = parsed(frame[14:])
            again = packet.copy()
            for layer in (again, again.payload):
                for field in {"chksum", "cksum"} & layer.fields.keys():
                    layer.delfieldval(field)
            assert bytes(again) == frame[14:], (case.name, packet.show(dump=True))
            written.append(f"host {frame.hex()}")
        engine = receiver_of(lines, case.inner, case.outer)
        for buffer in engine.receive(burst, 1.0).host:
            vnet = buffer.vnet.emit() if buffer.vnet else bytes(10)
            written.append(f"joined {vnet.hex()} {bytes(buffer.frame).hex()}")
    target = TARGET.with_name("receive.txt")
    target.write_text("\n".join(written) + "\n")


if __name__ == "__main__":
    main()
