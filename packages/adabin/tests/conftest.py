"""Fixtures of AdaBin's tests."""

from __future__ import annotations

import pytest
import torch

from papers_shared import assets


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def released_file():
    """The authors' checkpoint; skipped where no mirror holds it."""
    try:
        return assets.fetch("adabin_resnet20_cifar10", download=False).path
    except assets.AssetMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def cifar10_test():
    """CIFAR-10's test set; skipped where no mirror holds it."""
    from papers_shared.data.cifar10 import load_cifar10

    try:
        return load_cifar10("test", download=False)
    except assets.AssetMissing as error:
        pytest.skip(str(error))
