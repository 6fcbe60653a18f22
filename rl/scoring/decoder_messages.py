"""What training and decoding processes say to each other: tensors and JSON in the safetensors format, nothing pickled.

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
    text = torch.frombuffer(bytearray(json.dumps(notes).encode()), dtype=torch.uint8)
    connection.send_bytes(save({_NOTES: text, **{name: tensor.contiguous() for name, tensor in tensors.items()}}))


def receive(connection: Connection) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The next message: notes and tensors. Raises ConnectionError when the other side has ended."""
    try:
        tensors = load(connection.recv_bytes())
    except (EOFError, OSError) as error:  # at the end of a message, or inside it
        raise ConnectionError("the other side has closed the connection") from error
    return json.loads(bytes(tensors.pop(_NOTES).tolist())), tensors
