"""A base's weights on a GPU: copied once and held there as far as they fit, the others streamed at every read.

A merge reads the graph's weights twice in every iteration. What fits on the device is copied there once. The rest
passes through two pairs of buffers, page-locked ones on the host and their like on the device: while the device works
on one tile, the next is read from the file and copied, in a queue of its own.

A buffer is written again only after whoever used it last is known to be done: the host waits for the copy out of its
buffer, and the copying queue for the computation on the tile before the last one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from samerge.weights.protocol import WeightSource
from samerge.weights.stored import InMemory
from samerge.weights.tiling import spans

_log = logging.getLogger(__name__)

#: What is left free on the device for factors, flows, workspaces and streaming buffers: this share, and so many bytes.
_MARGIN_SHARE, _MARGIN_BYTES = 0.1, 2 << 30
#: Bytes that are copied at a time when a weight is brought to the device to stay.
_SLAB = 64 << 20


class Event(Protocol):
    """A point in a device queue."""

    def synchronize(self) -> None:
        """Wait on the host until the device has passed it."""


class Queues(Protocol):
    """A device's two queues, one that computes (torch's current one) and one that copies."""

    def host(self, size: int) -> Tensor:
        """A host buffer of bytes that the device can copy from by itself."""

    def device(self, size: int) -> Tensor:
        """A buffer of bytes on the device."""

    def mark(self) -> Event:
        """The point after everything that the computing queue has been given so far."""

    def copy(self, target: Tensor, source: Tensor, after: Event) -> Event:
        """Have the copying queue copy, once `after` has passed; the point when it is done."""

    def hold(self, until: Event) -> None:
        """Have the computing queue wait for a point."""


class CudaQueues:
    """`Queues` of a CUDA (or ROCm) device.

    Args:
        place: the device.
    """

    def __init__(self, place: torch.device) -> None:
        self._place = place
        self._side = torch.cuda.Stream(place)  # type: ignore[no-untyped-call]

    def host(self, size: int) -> Tensor:
        """Page-locked memory."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def device(self, size: int) -> Tensor:
        """Device memory."""
        return torch.empty(size, dtype=torch.uint8, device=self._place)

    def mark(self) -> Event:
        """An event in the current stream."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._place))
        return event

    def copy(self, target: Tensor, source: Tensor, after: Event) -> Event:
        """A copy in the side stream."""
        assert isinstance(after, torch.cuda.Event)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._side):
            self._side.wait_event(after)
            target.copy_(source, non_blocking=True)
            done.record(self._side)
        return done

    def hold(self, until: Event) -> None:
        """The current stream waits."""
        assert isinstance(until, torch.cuda.Event)
        torch.cuda.current_stream(self._place).wait_event(until)


@dataclass(frozen=True)
class _Slot:
    """A host buffer and a device buffer, and the point when the copy from one to the other is done."""

    host: Tensor
    device: Tensor
    copied: Event | None = None


class Ring:
    """Brings tensors to a device through two pairs of buffers that take turns.

    Args:
        queues: of the device.
    """

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        empty = torch.empty(0, dtype=torch.uint8)
        self._slots = [_Slot(empty, empty), _Slot(empty, empty)]
        self._turn = 0
        self._before: Event | None = None  # when the tensor before the last one was done with

    def send(self, rows: Tensor) -> Tensor:
        """The same on the device, for work in the computing queue until the next but one is sent.

        Args:
            rows: on the host; may be changed once this returns.
        """
        queues, size = self._queues, rows.numel() * rows.element_size()
        now = queues.mark()  # the work on everything sent so far has been given by now
        slot = self._slots[self._turn]
        if slot.copied is not None:
            slot.copied.synchronize()
        after = self._before or now
        if slot.device.numel() < size:
            # Memory that is new to this ring may still be in use by whatever was given to the computing queue before.
            slot, after = _Slot(queues.host(size), queues.device(size)), now
        host = slot.host[:size].view(rows.dtype).view(rows.shape)
        host.copy_(rows)
        sent = slot.device[:size].view(rows.dtype).view(rows.shape)
        copied = queues.copy(sent, host, after)
        queues.hold(copied)
        self._slots[self._turn] = _Slot(slot.host, slot.device, copied)
        self._turn, self._before = 1 - self._turn, now
        return sent


class OnDevice:
    """A `WeightSource` whose tensors come on a device. For one thread.

    What `read` returns of a streamed tensor is overwritten by the next read but one.

    Args:
        source: the base.
        tensors: names of those that will be read, in the order in which they shall have a place on the device.
        place: the device.
        budget: bytes that may be held there.
        queues: of the device.
    """

    def __init__(
        self, source: WeightSource, tensors: Iterable[str], place: torch.device, budget: int, queues: Queues
    ) -> None:
        self._source, self._place, self._ring = source, place, Ring(queues)
        self.held: dict[str, Tensor] = {}
        wanted = dict.fromkeys(tensors)
        sizes = {tensor: math.prod(source.shapes[tensor]) * source.dtype(tensor).itemsize for tensor in wanted}
        left = budget
        for tensor, size in sizes.items():
            if size <= left and (copy := self._bring(tensor)) is not None:
                self.held[tensor] = copy
                left -= size
        _log.info(
            "weights on %s: %d of %d tensors are held there, %.2f of %.2f GiB; the others are read at every sweep",
            place,
            len(self.held),
            len(sizes),
            (budget - left) / 2**30,
            sum(sizes.values()) / 2**30,
        )

    @property
    def name(self) -> str:
        """What the base is called."""
        return self._source.name

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's configuration."""
        return self._source.config

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return self._source.shapes

    def dtype(self, tensor: str) -> torch.dtype:
        """The dtype that a tensor is read in."""
        return self._source.dtype(tensor)

    def read(self, tensor: str, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Rows `start:stop` of a tensor, on the device."""
        if tensor in self.held:
            return InMemory(self.held[tensor]).read(start, stop, expert)
        rows = self._source.read(tensor, start, stop, expert)
        return rows if rows.device == self._place else self._ring.send(rows)

    def _bring(self, tensor: str) -> Tensor | None:
        """A copy of a tensor on the device; None when it lies there already."""
        shape = self._source.shapes[tensor]
        whole: Tensor | None = None
        for start, stop in spans(shape, _SLAB // self._source.dtype(tensor).itemsize):
            rows = self._source.read(tensor, start, stop)
            if rows.device == self._place:
                return None
            if whole is None:
                whole = torch.empty(shape, dtype=rows.dtype, device=self._place)
            whole[start:stop] = self._ring.send(rows)
        return whole


def on_device(source: WeightSource, tensors: Iterable[str], place: torch.device) -> WeightSource:
    """The source with its tensors on a GPU, held there as far as they fit; the source itself for other devices.

    Args:
        source: the base.
        tensors: names of those that will be read.
        place: where to compute.
    """
    if place.type != "cuda":
        return source
    place = torch.device("cuda", torch.cuda.current_device()) if place.index is None else place
    free, _ = torch.cuda.mem_get_info(place)
    budget = max(0, int(free * (1 - _MARGIN_SHARE)) - _MARGIN_BYTES)
    return OnDevice(source, tensors, place, budget, CudaQueues(place))
