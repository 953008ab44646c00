"""What both checkpoints have: weights in bfloat16, and the tokenizer."""

from pathlib import Path

import torch
from safetensors.torch import save_file


def write_weights(model, tok, out, name_of):
    """Writes both to folder `out`, which it returns. `name_of` gives a weight's published name, or None for
    one that is not in the file."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    named = ((name_of(name), w) for name, w in model.state_dict().items())
    weights = {name: w.detach().to(torch.bfloat16).contiguous().clone() for name, w in named if name}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    tok.save(str(out / "tokenizer.json"))
    return out
