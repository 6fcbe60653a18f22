"""What training and decoding processes say to each other: tensors and JSON in the safetensors format, nothing pickled.

A message is its length (8 bytes) and that many bytes.
"""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

_NOTES = "notes"
_LENGTH = struct.Struct("<Q")


def send(connection: socket.socket, notes: Mapping[str, Any], **tensors: Tensor) -> None:
    """One message: notes that JSON can hold, and tensors on the CPU."""
    text = torch.frombuffer(bytearray(json.dumps(notes).encode()), dtype=torch.uint8)
    body = save({_NOTES: text, **{name: tensor.contiguous() for name, tensor in tensors.items()}})
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive(connection: socket.socket) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The next message: notes and tensors. Raises ConnectionError when the other side has ended."""
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    tensors = load(bytes(_exactly(connection, length)))
    return json.loads(bytes(tensors.pop(_NOTES).tolist())), tensors


def _exactly(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view, filled = memoryview(data), 0
    while filled < length:
        count = connection.recv_into(view[filled:])
        if count == 0:
            raise ConnectionError("the other side has closed the connection")
        filled += count
    return data
