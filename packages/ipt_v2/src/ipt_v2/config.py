"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from papers_shared.restoration.commands import TrainConfig

__all__ = ["TrainConfig"]
