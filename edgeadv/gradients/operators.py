"""The ONNX operators of classifiers in PyTorch, with gradients: each in the form that opset 20 gives it.

An operator takes a node's attributes and its inputs, None where an optional one is absent, and gives its output, or a
tuple where there are several. Two conventions make a graph with Q/DQ nodes differentiable and its shapes cheap:

- what ``QuantizeLinear`` gives is float32 that holds whole numbers, so that a gradient can pass;
- shapes and indices are int64 on the CPU, wherever the images are.

What older opsets say in other words :mod:`.read_onnx` rewrites.
"""

from __future__ import annotations

from .elementwise import ELEMENTWISE
from .movement import MOVEMENT, Operator
from .normalisation import NORMALISATION
from .quantisation import QUANTISATION
from .resize import resize
from .windows import WINDOWS

OPERATORS: dict[str, Operator] = {
    **ELEMENTWISE,
    **MOVEMENT,
    **NORMALISATION,
    **QUANTISATION,
    **WINDOWS,
    "Resize": resize,
}
"""By ONNX's name, what stands for it here."""
