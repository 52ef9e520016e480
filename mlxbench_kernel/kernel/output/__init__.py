"""What a person sees of a cell's output on many ranks.

`CellOutput` takes in the messages of the ranks as they come and merges them: what ranks say
alike stands once, marked with the ranks. A presenter, chosen by `choose_presenter`, shows it
in the front-end while it changes: `InPlace` where displays can be updated, `Append` in
terminals. `CellOutput.failure` gives the one exception that stands for the errors of all
ranks.

From the inside: `screen` and `ansi` know terminals, `nodes` and `merge` hold and merge the
items, `model` is `CellOutput`, `failure` the errors, `blocks` renders; `presenter`,
`live` and `append` show.
"""

from mlxbench_kernel.kernel.output.append import Append
from mlxbench_kernel.kernel.output.failure import CellFailure, RankError
from mlxbench_kernel.kernel.output.live import InPlace, choose_presenter
from mlxbench_kernel.kernel.output.model import CellOutput
from mlxbench_kernel.kernel.output.presenter import Presenter
from mlxbench_kernel.kernel.output.ranks import format_ranks

__all__ = [
    "Append",
    "CellFailure",
    "CellOutput",
    "InPlace",
    "Presenter",
    "RankError",
    "choose_presenter",
    "format_ranks",
]
