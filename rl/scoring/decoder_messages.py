"""What processes say to each other of samples: tensors and JSON in the safetensors format, nothing pickled.

Who may connect is for the folder of the socket to say (`Role.socket`), which no one else can open: there is no key.
"""

import json
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

_NOTES = "notes"


def send(connection: Connection, notes: Mapping[str, Any], **tensors: Tensor) -> None:
    """One message: notes that JSON can hold, and tensors on the CPU."""
    connection.send_bytes(packed(notes, tensors))


def receive(connection: Connection) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The next message: notes and tensors. Raises ConnectionError when the other side has ended."""
    try:
        return unpacked(connection.recv_bytes())
    except (EOFError, OSError) as error:  # at the end of a message, or inside it
        raise ConnectionError("the other side has closed the connection") from error


def packed(notes: Any, tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a message."""
    text = torch.frombuffer(bytearray(json.dumps(notes).encode()), dtype=torch.uint8)
    return save({_NOTES: text, **{name: tensor.contiguous() for name, tensor in tensors.items()}})


def unpacked(message: bytes) -> tuple[Any, dict[str, Tensor]]:
    """The notes and tensors of `packed`."""
    tensors = load(message)
    return json.loads(bytes(tensors.pop(_NOTES).tolist())), tensors
