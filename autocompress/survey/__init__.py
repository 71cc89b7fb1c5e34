"""What may be done to each layer on this target, what it would harm, and what it would save: measured in seconds, before any trial."""

from autocompress.survey.check import check_recipe
from autocompress.survey.harm import Judge
from autocompress.survey.layers import multiply_adds, survey
from autocompress.survey.measured import measured
from autocompress.survey.probes import Site

__all__ = ["Judge", "Site", "check_recipe", "measured", "multiply_adds", "survey"]
