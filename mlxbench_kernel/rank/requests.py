"""Words of the messages between the notebook's side and a rank, beside Jupyter's own."""

REQUEST = "mlxbench_request"  # on the control channel
MEMORY = "mlxbench_memory"  # on iopub: samples that nobody has asked for one by one
META = "mlxbench"  # the key of what is sent along with a cell, and comes back with its reply
OWN_CELL = "# mlxbench"  # how a cell begins that no user has typed
RELEASED = "mlxbench broke this collective off"  # how the error of a freed collective begins
LOST = "connection to a peer was lost"  # MLX 0.32.4, mlx/distributed/ring/ring.cpp
FREED_IN_PLACE = frozenset({"ring"})  # the backends whose sockets can be shut from outside
