"""The methods of this family as entries of ``METHODS``. No torch here."""

from __future__ import annotations

from transformer_compression.core import Method

ENTRIES: tuple[Method, ...] = ()
