"""The contract between transport and miniport: data and one protocol class, no behaviour.

Law: imports `ipsec` values and `errors` only; both roles import this, never each other.
"""
