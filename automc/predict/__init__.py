"""What a policy would cost on a device: learned from kernels and whole models measured there, and vectorised over policies."""
