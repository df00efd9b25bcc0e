"""The comparison methods, one paper one file, all with the verbs of `enkg_ref.enkg`: init, ask, tell, done.

The loss of every method is ``likelihood.misfit``, L(x) = ||G(x) - y||_Gamma^2 per row. The published guidance scales
belong to the un-weighted loss ||G(x) - y||^2: give ``Gaussian(y, 1.0)`` to reproduce them.

Rows are independent chains (EKI, Blade, FK steering, the DW chains: the particles of one ensemble). All random numbers
come from the seed, a stream and the row, so a run can be taken up at any state. ``method.counts(rows)`` gives the
calls of a whole run in closed form.
"""

from .blade import Blade
from .deft import DEFT
from .diffpir import DiffPIR
from .dpg import DPG
from .dps import DPS
from .dw_ekcn import DWEKCN
from .dw_rwmh import DWRWMH
from .eki import EKI
from .fk_steering import FKSteering
from .gsg import GSG
from .mmps import MMPS
from .pnpdm import PnPDM
from .scg import SCG

__all__ = ["DEFT", "DPG", "DPS", "DWEKCN", "DWRWMH", "EKI", "GSG", "MMPS", "SCG", "Blade", "DiffPIR", "FKSteering",
           "PnPDM"]
