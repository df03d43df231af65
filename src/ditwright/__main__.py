"""`python -m ditwright` is the command `ditwright`."""

import sys

from .cli.main import main

sys.exit(main())
