"""Stage graphs: a cascade written as ONNX, counted, cast and run."""
