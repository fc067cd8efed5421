"""The protocol driver: frames, numbers, pads and checks.

Law: no ciphers; asks the NIC through `ndis.oid.Miniport`. Imports `ndis`, `ipsec`, `packet`;
never `miniport`.
"""
