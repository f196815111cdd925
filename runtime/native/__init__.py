"""Optional native code: preprocessing, waiting for the GPU, and the CUDA kernels.

The arithmetic is in ``device.h``, once for both. Where the library was not built, callers use NumPy
and Pillow instead and get the same pixels; :func:`dvt_edge.runtime.native.library.unavailable` says
why it is missing.
"""
