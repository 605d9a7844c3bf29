"""A stored form as ONNX."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from ctrkit.transforms.onnx_part import OPSETS


def in_onnx(stored: nn.Module, ids: Tensor, folder: Path) -> np.ndarray:
    """What onnxruntime makes of the ids."""
    program = torch.export.export(stored.eval(), (ids[:5],), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.onnx.export(program, dynamo=True, verbose=False, input_names=["ids"], opset_version=OPSETS[""]).save(folder / "m.onnx")
    session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": ids.numpy()})[0]
