"""Training with TensorFlow: the step, replicas and workers."""
