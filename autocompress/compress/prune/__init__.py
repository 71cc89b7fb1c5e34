"""What leaves the model: channels, heads, blocks, single weights."""

from autocompress.compress.prune.channels import Group, Structure, prune, structure, widths
from autocompress.compress.prune.depth import drop_blocks, residual_blocks, skip_
from autocompress.compress.prune.gradual import cubic, keeps_at
from autocompress.compress.prune.heads import Attention, attention_modules, prune_heads
from autocompress.compress.prune.importance import Scoring, weight_scores
from autocompress.compress.prune.masks import mask_, masks_of, reapply_masks_
from autocompress.compress.prune.recurrent import Recurrent, prune_recurrent, recurrent_modules
from autocompress.compress.prune.sparsity import mask_of, sparsify

__all__ = [
    "Attention", "Group", "Recurrent", "Scoring", "Structure", "attention_modules", "cubic", "drop_blocks", "keeps_at", "mask_", "mask_of",
    "masks_of", "prune", "prune_heads", "prune_recurrent", "reapply_masks_", "recurrent_modules", "residual_blocks", "skip_", "sparsify",
    "structure", "weight_scores", "widths",
]  # fmt: skip
