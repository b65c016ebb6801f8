"""``python -m fcn_smp`` is ``fcn-smp``."""

from fcn_smp.cli import main

main()
