"""Short training that repairs a compressed model."""

from autocompress.compress.recover.schedule import cycle, rate_share
from autocompress.compress.recover.train import recover_

__all__ = ["cycle", "rate_share", "recover_"]
