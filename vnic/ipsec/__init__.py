"""Values and pure rules of RFC 4301-4304.

Law: no tables of live state, no ciphers, no I/O.
"""
