"""What lives inside each rank: the engine it runs in, joining the group, and the control channel.

A rank is one MLX process of the group; it lives in an ipyparallel engine (an IPython
kernel) whose id is the rank. Nothing here imports a widget library.
"""
