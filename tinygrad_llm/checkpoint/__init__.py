"""Checkpoints that survive: one safetensors file with a checksum, and folders of them.

    state    nested state, such as an optimizer's, taken apart into tensors and JSON
    file     one file: written whole or not at all, verified to the last bit when read
    folder   the files of a run: the newest good ones, the best one
    lock     one writer in a folder, and a folder that stays where it is
"""

from tinygrad_llm.checkpoint.file import CheckpointError, NewerVersionError, load_checkpoint, save_checkpoint, verify_checkpoint
from tinygrad_llm.checkpoint.folder import CheckpointFolder, Loaded
from tinygrad_llm.checkpoint.lock import FolderMovedError
from tinygrad_llm.checkpoint.state import flatten_state, unflatten_state

__all__ = [
    "CheckpointError",
    "CheckpointFolder",
    "FolderMovedError",
    "Loaded",
    "NewerVersionError",
    "flatten_state",
    "load_checkpoint",
    "save_checkpoint",
    "unflatten_state",
    "verify_checkpoint",
]
