"""What TensorFlow reads from the environment as it is imported: what trains imports this before."""

import os

# oneDNN's convolutions. On some processors TensorFlow leaves them out, and a step takes a third to a half longer.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
