"""What the paper packages share, lower layers first (a module imports only from layers below).

1. ``assets``, ``checkpoints``, ``images``, ``complexity``, ``packing``, ``cli``, ``workspace``
2. ``kernels``, ``data``, ``metrics``
3. ``training``
4. ``tables``, ``parity``

Importing this package loads none of them, and no torch.
"""

__version__ = "0.1.0"
