"""What goes between driver and workers: JSON and tensors, as bytes. Nothing of it is code, so nothing is unpickled."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from safetensors.torch import load, save
from torch import Tensor

_HEAD = struct.Struct("<QQ")
LARGEST = 1 << 36


@dataclass(frozen=True)
class Message:
    """A question or an answer.

    Attributes:
        kind: what is asked: "open", "predict", "look", "decode", "advance"; of answers "answer" or "error".
        values: JSON values. tensors: by name.
    """

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def pack(message: Message) -> bytes:
    """A message as bytes; tensors are copied to the CPU, types and bits stay."""
    text = json.dumps({"kind": message.kind, "values": dict(message.values)}).encode()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in message.tensors.items()}
    body = save(tensors) if tensors else b""
    return _HEAD.pack(len(text), len(body)) + text + body


def unpack(data: bytes) -> Message:
    """The message. Raises ValueError for bytes that are none."""
    if len(data) < _HEAD.size:
        raise ValueError("not a message: it is too short")
    text, body = _HEAD.unpack(data[: _HEAD.size])
    if _HEAD.size + text + body != len(data):
        raise ValueError(f"not a message: {len(data)} bytes instead of {_HEAD.size + text + body}")
    told = json.loads(data[_HEAD.size : _HEAD.size + text])
    tensors = load(data[_HEAD.size + text :]) if body else {}
    return Message(told["kind"], told["values"], tensors)


def send(stream: BinaryIO, data: bytes) -> None:
    """Write a packed message. Raises OSError where the other side is gone."""
    stream.write(data)
    stream.flush()


def receive(stream: BinaryIO) -> bytes:
    """Read a packed message. Raises EOFError where the other side is gone."""
    head = _exactly(stream, _HEAD.size)
    text, body = _HEAD.unpack(head)
    if text + body > LARGEST:
        raise EOFError(f"a message of {text + body} bytes: the other side does not speak this language")
    return head + _exactly(stream, text + body)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    parts, left = [], count
    while left:
        part = stream.read(left)
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
