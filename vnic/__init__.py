"""vnic: the virtual network card that does IPsec."""

__version__ = "0.1.0"
