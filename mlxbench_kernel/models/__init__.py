"""Language models of mlx-lm across ranks: loading by shares, generating, looking inside, tuning.

A plain library: in a script under ``mlx.launch``, `load` and `generate` do on each rank what a
notebook's `LanguageModel` has ranks do.
"""

from mlxbench_kernel.models.generating import Piece, generate
from mlxbench_kernel.models.loading import load
from mlxbench_kernel.models.part import Part

__all__ = ["Part", "Piece", "generate", "load"]
