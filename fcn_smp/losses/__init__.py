"""What a network is trained to make small."""

from fcn_smp.losses.cross_entropy import upsampled_cross_entropy
from fcn_smp.losses.segmentation import CROSS_ENTROPY, SegmentationLoss, Term

__all__ = ["CROSS_ENTROPY", "SegmentationLoss", "Term", "upsampled_cross_entropy"]
