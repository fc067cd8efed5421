"""Links, namespaces and addresses of the host, through pyroute2.

Law: no frames here, no IPsec words; every netlink error becomes a PortError a person can act on.
"""
