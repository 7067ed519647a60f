"""papers_shared's own tables: its metrics beside their reference implementations."""

from papers_shared.metrics.reproduce import TABLES

__all__ = ["TABLES"]
