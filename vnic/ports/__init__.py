"""Ports: the file descriptors on both sides of the card.

Law: frames in, frames out; no IPsec words here.
"""
