"""What a module is, wherever it lies: a hash of its weights."""

import hashlib

import torch
from torch import nn


def weights_hash(*modules: nn.Module) -> str:
    """Of names, types, shapes and numbers of all weights and buffers that are saved."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
