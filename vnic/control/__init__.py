"""The control socket: the Varlink interface, its server and its client.

Law: messages and who may send them; what a message does lives in `daemon`.
"""
