"""What a merge did to its experts, told from the weights alone: no data, no forward pass, no dense update."""
