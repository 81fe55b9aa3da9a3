"""Where the weights of the base model come from: a folder of safetensors, or the parameters of a live model.

The base is only ever streamed: a `WeightSource` gives the rows of one tensor at a time. No model is built. Quantised
weights come dequantised, a live model's weights without the adapters that are merged into them at the moment, and
offloaded weights from where they were offloaded to.
"""

from samerge.checkpoints.folder import FolderSource
from samerge.checkpoints.live import ModelSource
from samerge.checkpoints.naming import unwrap
from samerge.checkpoints.protocol import WeightSource
from samerge.checkpoints.tiling import read_tile
from samerge.graph.widths import matrix_shape

__all__ = ["FolderSource", "ModelSource", "WeightSource", "matrix_shape", "read_tile", "unwrap"]
