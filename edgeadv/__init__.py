"""edgeadv: train it robust, ship it small, prove it on the device.

Importing this package loads no PyTorch; ``edgeadv.attacks``, ``edgeadv.models.builder`` and the other modules do.
"""

from edgeadv_runtime import __version__

__all__ = ["__version__"]
