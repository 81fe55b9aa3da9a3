"""The committed figures of the consumers: what they did is what `samerge check` says."""

from __future__ import annotations

import json

import consumers

from samerge.adapters.servers import VERSIONS


def test_what_check_says_is_what_they_did() -> None:
    found = json.loads(consumers.RESULTS.read_text())
    decided = 0
    for case, by_consumer in found["cases"].items():
        for name, told in by_consumer.items():
            if "check" in told and told["did"] != "not decided by its reader":
                assert (told["did"] == "yes") == (told["check"] == "yes"), (case, name, told)
                decided += 1
    assert decided > 40
    assert found["cases"]["merged: UNet"]["diffusers"]["did"] == "yes"


def test_the_versions_are_those_of_the_rules() -> None:
    for package, name in (("vllm", "vLLM"), ("sglang", "SGLang"), ("llama-cpp-python", "llama.cpp")):
        assert consumers.PACKAGES[package].startswith(VERSIONS[name].rpartition(" ")[2])
