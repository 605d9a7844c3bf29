"""Import before torchrec: what torchrec, fbgemm and torch print at import and while planning is not for the user."""

import logging
import warnings

_WARNS = ("torchrec", "fbgemm_gpu", r"torch\.distributed", r"torch\.jit", "torchmetrics")
_LOGS = ("torchrec", "torch.fx._symbolic_trace", "torch.distributed")

for _module in _WARNS:
    warnings.filterwarnings("ignore", module=_module)
for _logger in _LOGS:
    logging.getLogger(_logger).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="Please use DTensor instead")
