"""What TensorFlow reads from the environment as it is imported: what trains imports this before."""

import os

# oneDNN's convolutions. On processors without AVX-512 TensorFlow leaves them out, and a step takes half as long again.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
