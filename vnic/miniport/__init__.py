"""The NIC: seals, opens and reports.

Law: never reads the SPD, never checks replay, never drops, never frames. Imports `ndis`, `ipsec`,
`packet`; never `transport`.
"""
