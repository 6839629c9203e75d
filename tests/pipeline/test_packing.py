"""Tests of packed weights: they are smaller, come back byte for byte, and damage is refused."""

import re

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttlib.pipeline import packing


@given(st.binary(max_size=200))
def test_packed_weights_come_back_byte_for_byte(content):
    assert packing.unpack(packing.pack(content)) == content


def test_packing_makes_checkpoints_smaller_and_changes_nothing_that_is_read(tmp_path):
    weights = {"w": torch.randn(300, 64).bfloat16(), "edges": torch.randn(5, 7, dtype=torch.float64)}
    content = safetensors.torch.save(weights)
    packed = packing.pack(content)
    assert len(packed) < 0.75 * len(content)
    for name, stored in (("model.safetensors", content), (packing.PACKED, packed)):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(stored)
        assert packing.weights(folder) == content
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'model.safetensors'} is missing")):
        packing.weights(tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9])
def test_packed_weights_that_end_too_early_are_refused(fraction):
    packed = packing.pack(bytes(range(256)) * 20)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        packing.unpack(packed[: int(fraction * len(packed))])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        packing.unpack(b"no stream" + packed)
