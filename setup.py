"""The extension in C. All else is in setup.cfg, which knows no extensions."""

from setuptools import Extension, setup

# what these leave out is what would reorder sums or fuse products: results are the same bits on every CPU
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

# where there is no compiler, NumPy does the same
setup(
    ext_modules=[Extension("dppo.algo.kernels", ["dppo/algo/kernels.c"], extra_compile_args=FLAGS, optional=True)],
)
