"""What PEFT 0.20, the oldest that is admitted, does wrongly: tests that meet it are left out there."""

from __future__ import annotations

import peft
import pytest
from packaging.version import Version

_BEFORE = Version(peft.__version__) < Version("0.21")

counts_scales_once = pytest.mark.skipif(_BEFORE, reason="PEFT before 0.21 counts scales twice in its svd combinations")
saves_biases = pytest.mark.skipif(_BEFORE, reason="PEFT before 0.21 does not save the biases of bias='lora_only'")
takes_layer_0 = pytest.mark.skipif(_BEFORE, reason="PEFT before 0.21 takes layers_to_transform=0 for none")
