"""Write a trained run as safetensors, ONNX and StableHLO, float32 or int8."""
