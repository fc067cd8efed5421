"""vnicd: the event loop that joins ports, engine and control socket.

Law: all time, randomness, signals and files enter here.
"""
