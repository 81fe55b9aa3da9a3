"""Where the weights of the base model come from: a folder of safetensors, or the parameters of a live model.

The base is only ever streamed: a `WeightSource` gives the rows of one tensor at a time. No model is built. Quantised
weights come dequantised, a live model's weights without the adapters that are merged into them at the moment, and
offloaded weights from where they were offloaded to.
"""

from samerge.graph.widths import matrix_shape
from samerge.weights.folder import FolderSource
from samerge.weights.inside_peft import unwrap
from samerge.weights.live_model import ModelSource
from samerge.weights.protocol import WeightSource
from samerge.weights.tiling import read_tile

__all__ = ["FolderSource", "ModelSource", "WeightSource", "matrix_shape", "read_tile", "unwrap"]
