"""Our own networks: a coarser one gives its weights to a finer one, and skip scales go into the scores.

Long et al. (CVPR 2015, section 4.2) train FCN-16s from FCN-32s and FCN-8s from FCN-16s: the new skip starts from zero,
so that the finer network begins with the answers of the coarser one.
"""

from segmentation_models_pytorch.base import SegmentationModel
from torch import Tensor


def transfer(source: SegmentationModel, target: SegmentationModel) -> list[str]:
    """Copy the weights of ``source`` to ``target`` where both have them, in place.

    Scores of another number of classes keep what ``target`` starts with.

    Args:
        source: A network of this package, or another one of SMP.
        target: One with the same encoder; it is changed.

    Returns:
        Names of the parameters and buffers of ``target`` that ``source`` does not have, such as the scores of new
        skips, or of other classes.

    Raises:
        ValueError: They do not have the same encoder.
    """
    own: dict[str, Tensor] = target.state_dict()
    given: dict[str, Tensor] = source.state_dict()
    fresh = [name for name, tensor in own.items() if name not in given or given[name].shape != tensor.shape]
    strange = [name for name in [*fresh, *(given.keys() - own.keys())] if name.startswith("encoder.")]
    if strange:
        raise ValueError(
            f"The encoders of {source.name} and {target.name} differ ({strange[0]} and {len(strange) - 1} more weights"
            f" have no counterpart); encoder_name should be {source.config['encoder_name']!r}."
        )
    for name, tensor in own.items():
        if name not in fresh:
            tensor.copy_(given[name])
    return fresh


def fold_skip_scales(model: SegmentationModel) -> None:
    """Multiply the scores' weights by the skips' scales, in place: the same answers up to rounding, without scales.

    It turns a network of the at-once form (scales 0.01 and 0.0001) into the plain one.

    Args:
        model: One of the FCNs.
    """
    decoder = model.decoder
    for k, score in enumerate(decoder.skip_scores):
        score.weight.data.mul_(decoder.skip_scales[k])
        decoder.skip_scales[k] = 1.0
    model.config["decoder_skip_scales"] = None
