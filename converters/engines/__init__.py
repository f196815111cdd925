"""One TensorRT engine per stage, built in a process of its own."""
