"""Running an encoder's graph with ONNX Runtime: devices, batches, memory, sessions."""
