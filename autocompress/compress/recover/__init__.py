"""Short training that repairs a compressed model."""

from autocompress.compress.recover.schedule import cycle, rate_share
from autocompress.compress.recover.train import Look, recover_

__all__ = ["Look", "cycle", "rate_share", "recover_"]
