"""Wire formats: bytes to fields and back.

Law: no policy, no state, no keys, no I/O. Integers inside are in host order; addresses are raw
bytes (4 or 16). Malformed bytes raise PacketError, never anything else.
"""
