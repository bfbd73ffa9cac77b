"""What a saved-model folder is made of, and the error that says what is wrong with one.

Loads nothing else, so what only carries such folders about does not load torch.
"""

INFO_FILE = "trialgate.json"
WEIGHTS_FILE = "model.safetensors"
SAMPLE_FILE = "sample.safetensors"


class ModelFolderError(ValueError):
    """A folder that is not a complete, sound saved model; the message says what is wrong with which file."""
