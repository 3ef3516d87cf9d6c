"""``python -m edgeadv``, and the command ``edgeadv``."""

import os
import signal
import sys


def entry() -> int:
    """Run the command line; Ctrl-C while it is still loading, or again while it ends, is no traceback either."""
    # the next file that is opened would get the number of a stream that is closed, and with it what libraries print
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    try:
        from .cli import main
        from .workflows.threads import share_processor

        share_processor()
        status = main()
    except KeyboardInterrupt:
        status = 130
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # what is left is the interpreter's end, which has nothing to tell
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return status


if __name__ == "__main__":
    sys.exit(entry())
