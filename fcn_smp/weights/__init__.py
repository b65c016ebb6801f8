"""Other people's weights: read, checked and turned into models that ``smp.from_pretrained`` loads."""

from fcn_smp.weights.importing import Imported, import_weights
from fcn_smp.weights.own import fold_skip_scales, transfer

__all__ = ["Imported", "fold_skip_scales", "import_weights", "transfer"]
