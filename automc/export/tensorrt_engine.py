"""Build a TensorRT engine of the ONNX file beside this script. Run it where the GPU is; it needs `pip install tensorrt` alone.

    python3 THIS.py                 layers that were not compressed to 8 bits stay in fp32, as they were
    python3 THIS.py --float fp16    or run in fp16

Layers on integers carry their scales in the file. Engines are of one GPU and one version of TensorRT: build anew for another.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

MODEL = ""
PRECISIONS: dict[str, str] = {}


def main(arguments: list[str] | None = None) -> int:
    """Build and write the engine; 0 done, 2 the file does not fit, 4 TensorRT is missing or cannot build it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--float", choices=("fp32", "fp16"), default="fp32", help="of layers that are not on integers")
    parser.add_argument("--out", type=Path, help="the engine; default: the model's name with .engine")
    given = parser.parse_args(arguments)
    try:
        import tensorrt
    except ImportError as error:
        return _fail(
            4, f"TensorRT is not installed here ({error}). Run this where the GPU is, after: pip install tensorrt"
        )
    model = Path(__file__).resolve().with_name(MODEL)
    if not model.is_file():
        return _fail(2, f"{model} is not there. Keep this script and its ONNX file in one folder.")
    return _build(tensorrt, model, given.out or model.with_suffix(".engine"), given.float)


def _build(trt: Any, model: Path, engine: Path, floating: str) -> int:
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.WARNING))
    if not parser.parse(model.read_bytes()):
        told = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        return _fail(2, f"TensorRT {trt.__version__} cannot read {model.name}: {told}")
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    if "int8" in PRECISIONS.values():
        config.set_flag(trt.BuilderFlag.INT8)
    if floating == "fp16":
        config.set_flag(trt.BuilderFlag.FP16)
    missing = set(PRECISIONS) - _constrain(network, trt.float16 if floating == "fp16" else trt.float32)
    if missing:
        return _fail(2, f"TensorRT {trt.__version__} has no layer {min(missing)!r}: the file and this script differ.")
    built = builder.build_serialized_network(network, config)
    if built is None:
        return _fail(4, f"TensorRT {trt.__version__} built no engine; its messages above say why.")
    engine.write_bytes(built)
    counts = {kind: list(PRECISIONS.values()).count(kind) for kind in ("int8", "float")}
    print(f"Wrote {engine}: {counts['int8']} layer(s) in int8, {counts['float']} in {floating}.")
    return 0


def _constrain(network: Any, floating: Any) -> set[str]:
    """Fix the precision of layers in floating point (the others' is in their scales); the names that were found."""
    found = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        name = layer.name if layer.name in PRECISIONS else re.sub(r"_\d+$", "", layer.name)
        if name not in PRECISIONS:
            continue
        found.add(name)
        if PRECISIONS[name] == "float":
            layer.precision = floating
    return found


def _fail(code: int, sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
