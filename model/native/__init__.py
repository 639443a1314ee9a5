"""The network's kernels in C++, compiled at first use; without a compiler the same is computed by torch alone."""
