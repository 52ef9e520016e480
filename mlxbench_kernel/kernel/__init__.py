"""The notebook's side: the Jupyter kernel "MLX Bench", the magics, and the output of cells.

`extension` puts everything into an IPython shell, `magics` has the command line read by
`commands` and delegates to ``cluster/``; `auto` sends cells to the ranks
without a magic, `complete` completes names that live on the ranks, `app` is the kernel,
`spec` its entry in Jupyter's launcher, and `output` shows what ranks print.
"""
