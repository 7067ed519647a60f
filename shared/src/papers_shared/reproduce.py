"""papers_shared's own tables: its metrics beside reference code, and published networks."""

from papers_shared.metrics.reproduce import TABLES as METRICS
from papers_shared.networks.reproduce import TABLES as NETWORKS

TABLES = METRICS | NETWORKS

__all__ = ["TABLES"]
