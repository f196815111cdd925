"""From FP32 stage graphs to INT8 ones: ranges, Q/DQ pairs, sensitive layers."""
