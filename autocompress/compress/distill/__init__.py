"""What the compressed model learns from others.

``distill.assistant`` is imported by itself: it prunes and trains, and those two read this.
"""

from autocompress.compress.distill.features import Comparison, compared
from autocompress.compress.distill.lesson import Lesson, combined_loss, ramp
from autocompress.compress.distill.loss import Loss, Mixed, Sample, SoftLoss, TrainingStep, distillation_loss
from autocompress.compress.distill.teachers import Teacher, outputs_on, retaught, taught

__all__ = [
    "Comparison",
    "Lesson",
    "Loss",
    "Mixed",
    "Sample",
    "SoftLoss",
    "Teacher",
    "TrainingStep",
    "combined_loss",
    "compared",
    "distillation_loss",
    "outputs_on",
    "ramp",
    "retaught",
    "taught",
]
