"""The training loop: state, checkpoints, callbacks, validation, and processes."""
