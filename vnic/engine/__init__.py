"""Joins transport and miniport into one card: burst in, burst out.

Law: the only importer of both roles; no I/O, no clock.
"""
