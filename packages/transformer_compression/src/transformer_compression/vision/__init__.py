"""The small vision transformer trained on CIFAR-10, and what is measured with it."""
