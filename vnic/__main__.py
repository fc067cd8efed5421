"""`python -m vnic` is the command `vnic`."""

import sys

from vnic.cli.main import main

sys.exit(main())
