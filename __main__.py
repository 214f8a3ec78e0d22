"""``python -m testtime``: the same command as ``testtime``."""

import sys

from testtime.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
