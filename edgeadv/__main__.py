"""``python -m edgeadv``, and the command ``edgeadv``."""

import sys


def entry() -> int:
    """Run the command line; Ctrl-C while it is still loading is no traceback either."""
    try:
        from .cli import main
    except KeyboardInterrupt:
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(entry())
