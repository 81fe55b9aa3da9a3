"""Weights held on a device, and streamed through two buffers: content, order, and no buffer written too early."""

from __future__ import annotations

import logging

import pytest
import torch

from samerge.weights.resident import CudaQueues, OnDevice, Ring, on_device
from samerge.weights.stored import InMemory, StoredSource

CPU = torch.device("cpu")


class FakeEvent:
    def __init__(self, queues, queue, position):
        self.queues, self.queue, self.position = queues, queue, position

    def synchronize(self):
        self.queues.run(self.queue, self.position)


class FakeQueues:
    """Two queues that do nothing until something waits for them: the latest that a device may be with its work."""

    def __init__(self):
        self.work = {"compute": [], "copy": []}
        self.done = {"compute": 0, "copy": 0}
        self.buffers = 0
        self.known = set()

    def host(self, size):
        self.buffers += 1
        return torch.zeros(size, dtype=torch.uint8)

    def device(self, size):
        self.buffers += 1
        return torch.zeros(size, dtype=torch.uint8)

    def give(self, queue, task):
        self.work[queue].append(task)
        return FakeEvent(self, queue, len(self.work[queue]))

    def run(self, queue, position):
        while self.done[queue] < position:
            self.done[queue] += 1
            self.work[queue][self.done[queue] - 1]()

    def mark(self):
        return FakeEvent(self, "compute", len(self.work["compute"]))

    def copy(self, target, source, after):
        # memory that is new here may have been another's a moment ago, who may still be at work on it
        assert target.data_ptr() in self.known or after.position == len(self.work["compute"])
        self.known.add(target.data_ptr())
        self.give("copy", after.synchronize)
        return self.give("copy", lambda: target.copy_(source))

    def hold(self, until):
        self.give("compute", until.synchronize)

    def compute(self, task):
        return self.give("compute", task)


class HastyQueues(FakeQueues):
    """Its copies are done at once, whether or not the computation is through with the buffer, unless they must wait."""

    def copy(self, target, source, after):
        after.synchronize()
        target.copy_(source)
        return self.give("copy", lambda: None)


def tiles(count, rows=3):
    return [torch.full((rows, 4), float(i), dtype=torch.bfloat16) for i in range(count)]


@pytest.mark.parametrize("kind", [FakeQueues, HastyQueues])
def test_every_computation_sees_its_own_tile(kind):
    queues, seen = kind(), []
    ring = Ring(queues)
    for tile in tiles(9):
        sent = ring.send(tile)
        tile.fill_(-1)  # the host's tensor is free again at once
        queues.compute(lambda sent=sent: seen.append(sent.clone()))
    queues.mark().synchronize()
    assert [int(one[0, 0]) for one in seen] == list(range(9))
    assert all(one.shape == (3, 4) and one.dtype == torch.bfloat16 for one in seen)
    assert queues.buffers == 4  # two pairs, however many tiles


@pytest.mark.parametrize("kind", [FakeQueues, HastyQueues])
def test_larger_tiles_get_larger_buffers(kind):
    queues, seen = kind(), []
    ring = Ring(queues)
    for i, rows in enumerate([1, 5, 2, 7, 7, 3, 9]):
        sent = ring.send(tiles(i + 1, rows)[i])
        queues.compute(lambda sent=sent: seen.append(sent.clone()))
    queues.mark().synchronize()
    assert [(len(one), int(one[0, 0])) for one in seen] == list(zip([1, 5, 2, 7, 7, 3, 9], range(7), strict=True))


def test_the_next_copy_does_not_wait_for_the_computation_that_runs():
    queues = HastyQueues()
    ring, through = Ring(queues), []
    for i, tile in enumerate(tiles(2)):
        ring.send(tile)
        queues.compute(lambda i=i: through.append(i))
    ring.send(tiles(1)[0])  # into the first pair: tile 0 must be through, tile 1 may still be worked on
    assert through == [0]


class Source(StoredSource):
    """Counts what is read."""

    def __init__(self, tensors):
        super().__init__("base", {"model_type": "x"}, {name: InMemory(tensor) for name, tensor in tensors.items()})
        self.reads = []

    def read(self, tensor, start, stop, expert=None):
        self.reads.append(tensor)
        return super().read(tensor, start, stop, expert)


class Elsewhere(torch.Tensor):
    """A tensor on the host that says so, although the device of these tests is the host too."""

    device = torch.device("meta")


def source_of(*names, shape=(6, 4)):
    generator = torch.Generator().manual_seed(0)
    return Source({name: torch.randn(*shape, generator=generator).bfloat16().as_subclass(Elsewhere) for name in names})


def plain(tensor):
    return tensor.as_subclass(torch.Tensor)


def test_what_fits_is_read_once(caplog):
    source = source_of("a", "b", "c")
    size = 6 * 4 * 2
    with caplog.at_level(logging.INFO, "samerge"):
        held = OnDevice(source, ["c", "a", "a", "b"], CPU, 2 * size + 1, HastyQueues())
    assert list(held.held) == ["c", "a"]  # in the order given
    assert "2 of 3 tensors are held" in caplog.text
    source.reads.clear()
    for tensor in "abc":
        expected = plain(source.stored(tensor).read(1, 5))
        assert torch.equal(plain(held.read(tensor, 1, 5)), expected)
    assert source.reads == ["b"]
    assert (held.name, held.config, held.shapes) == (source.name, source.config, source.shapes)
    assert held.dtype("a") == torch.bfloat16


def test_stacks_of_matrices():
    source = source_of("a", "b", shape=(3, 6, 4))
    held = OnDevice(source, ["a", "b"], CPU, 3 * 6 * 4 * 2, HastyQueues())
    assert list(held.held) == ["a"]
    for tensor in "ab":
        assert torch.equal(plain(held.read(tensor, 2, 5, 1)), plain(source.stored(tensor).read(2, 5, 1)))


def test_weights_that_are_on_the_device_stay_where_they_are():
    tensor = torch.randn(6, 4)
    queues = HastyQueues()
    held = OnDevice(Source({"a": tensor}), ["a"], CPU, 1 << 20, queues)
    assert held.held == {}
    assert held.read("a", 0, 6).data_ptr() == tensor.data_ptr()
    assert queues.buffers == 0


def test_other_devices_read_from_the_source_itself():
    source = source_of("a")
    assert on_device(source, ["a"], CPU) is source


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    place = torch.device("cuda", 0)
    source = Source({name: torch.randn(257, 64).bfloat16() for name in "abcd"})
    held = OnDevice(source, "abcd", place, 2 * 257 * 64 * 2, CudaQueues(place))
    for tensor in "abcdabcd":
        for start in range(0, 257, 50):
            found = held.read(tensor, start, start + 50)
            assert found.device == place
            assert torch.equal(found.cpu(), source.stored(tensor).read(start, start + 50))
