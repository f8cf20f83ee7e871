"""From a compressed PyTorch model to the file that runs: ONNX with integer layers, torch.export, or the policy alone."""
