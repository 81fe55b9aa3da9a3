"""`samerge.merge` from end to end, against PEFT itself."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from tiny import NAMES, Beast

import samerge

EXACT = [{"method": "saliency", "density": 1.0, "scaling": 1.0}, {"method": "cat"}, {"method": "linear"}]


@pytest.mark.parametrize("options", EXACT, ids=lambda options: options["method"])
def test_all_components_equal_all_adapters_active_together(beast: Beast, tmp_path, options):
    merged = samerge.merge(beast.base, beast.adapters, **options)
    together = beast.peft_model()
    together.base_model.set_adapter(list(NAMES))
    expected = beast.logits(together)
    loaded = PeftModel.from_pretrained(beast.model(), merged.save(tmp_path / "merged")).eval()
    torch.testing.assert_close(beast.logits(loaded), expected, atol=1e-5, rtol=1e-5)
    assert (expected - beast.logits(beast.model())).abs().max() > 1e-2  # the adapters do something
