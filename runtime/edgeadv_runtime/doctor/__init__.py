"""What works on this machine, what is missing, and the command that helps. Nothing found wanting is an error here."""

from .checks import Check, Status
from .diagnosis import diagnose
from .extras import EXTRAS

__all__ = ["EXTRAS", "Check", "Status", "diagnose"]
