"""The `vnic` command: words in the manner of `ip`, to messages, to text or JSON.

Law: knows the control interface and nothing of the engine.
"""
