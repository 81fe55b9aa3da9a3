"""The element-wise merge: saliency of single weights, survivors as packed bits, everything a tile at a time."""
