"""UniAR: one autoregressive model that understands, generates and edits images through bitwise visual tokens."""

from uniar.torchvision_compat import ensure_torchvision_imports

ensure_torchvision_imports()
