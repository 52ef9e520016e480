"""The extension in real Jupyter kernels and in terminal IPython, with a fake cluster in them."""

import os
import sys
from pathlib import Path

import pexpect
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

import mlxbench_kernel

TESTS = Path(__file__).parents[1]
HOLD_RANKS = f"""\
import sys
sys.path.insert(0, {str(TESTS)!r})
from fake_cluster import FakeCluster, magics
cluster = magics(get_ipython()).cluster = FakeCluster(2)
"""


class Notebook:
    """A kernel, and a front-end that talks to it as JupyterLab does."""

    def __init__(self, module, folder):
        argv = [sys.executable, "-m", module, "-f", "{connection_file}"]
        self.manager = KernelManager()
        self.manager._kernel_spec = KernelSpec(argv=argv, display_name=module, language="python")
        self.manager.start_kernel(env={**os.environ, "IPYTHONDIR": str(folder)})
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel()
        self.manager.cleanup_resources()

    def run(self, code, **options):
        """Run a cell; its reply, and the contents of the messages that it put out by type."""
        put_out = {}

        def keep(message):
            put_out.setdefault(message["msg_type"], []).append(message["content"])

        options = {"allow_stdin": False, "timeout": 60, **options}
        reply = self.client.execute_interactive(code, output_hook=keep, **options)
        return reply["content"], put_out

    def value(self, expression):
        """The value of an expression in the kernel, whatever mode it is in."""
        reply, _ = self.run("", user_expressions={"value": expression})
        result = reply["user_expressions"]["value"]
        assert result["status"] == "ok", result
        return result["data"]["text/plain"]

    def ask(self, request, *arguments):
        """The content of the kernel's reply to another kind of request."""
        asked = getattr(self.client, request)(*arguments)
        while True:
            reply = self.client.get_shell_msg(timeout=60)
            if reply["parent_header"].get("msg_id") == asked:
                return reply["content"]


@pytest.fixture(scope="module", params=["mlxbench_kernel.kernel", "ipykernel_launcher"])
def kernel(request, tmp_path_factory):
    notebook = Notebook(request.param, tmp_path_factory.mktemp("ipython"))
    if request.param == "ipykernel_launcher":
        notebook.run("%load_ext mlxbench_kernel")
    yield notebook
    notebook.close()


@pytest.fixture
def notebook(kernel):
    kernel.run("%%local\n" + HOLD_RANKS)
    yield kernel
    kernel.run("%mlx_dist down")


@pytest.fixture
def auto(notebook):
    reply, _ = notebook.run("%mlx_dist auto on")
    assert reply["status"] == "ok"
    return notebook


def sent(notebook):
    """What the ranks were given, in order."""
    return eval(notebook.value("[call[1] for call in cluster.calls if call[0] == 'execute']"))


def shown(put_out):
    """All text that the cell shows."""
    texts = [each["text"] for each in put_out.get("stream", [])]
    texts += [
        each["data"].get("text/plain", "")
        for kind in ("display_data", "update_display_data", "execute_result")
        for each in put_out.get(kind, [])
    ]
    return "\n".join(texts)


def test_the_view_of_its_own_memory_goes_into_lazy_graphs_as_the_magic_does(kernel):
    reply, _ = kernel.run(
        "import mlx.core as mx\n"
        "from mlxbench_kernel.widgets.memory import MemoryView\n"
        "lazy = (mx.ones((10, 10)) @ mx.ones((10, 10))) + 1\n"
        "view = MemoryView()"
    )
    assert reply["status"] == "ok"
    panel = kernel.value("view._panels[0].said.model_id").strip("'")
    kernel.client.execute("view.panels.selected_index = 0")
    text = ""
    try:
        while not text:  # on the channel that browsers read
            message = kernel.client.get_iopub_msg(timeout=30)
            content = message["content"]
            if message["msg_type"] == "comm_msg" and content["comm_id"] == panel:
                text = content["data"]["state"].get("value", "")
        assert "not evaluated yet: lazy (" in text
    finally:
        kernel.run("view.close()")


def test_a_wrong_line_is_one_line_of_error(kernel):
    reply, put_out = kernel.run("%mlx_dist up -n abc")
    assert (reply["status"], reply["ename"]) == ("error", "UsageError")
    [error] = put_out["error"]
    [line] = error["traceback"]
    assert "-n takes a number of ranks, 1 or more, not 'abc'; type %mlx_dist up -n 2" in line
    assert "\n" not in line


def test_a_cell_before_up_says_what_to_type(kernel):
    reply, _ = kernel.run("%%mlx_dist\nx = 1")
    assert reply["evalue"] == "no ranks are running: type %mlx_dist up -n 2 first"


def test_a_cell_shows_what_the_ranks_print(notebook):
    _, put_out = notebook.run("%%mlx_dist --out results\nprint('hello')\nrank")
    assert shown(put_out).count("hello") == 1
    assert notebook.value("results") == "{0: 0, 1: 1}"


def test_an_error_on_ranks_stops_run_all(notebook):
    reply, put_out = notebook.run("\n\n%%mlx_dist\n1 / 0")
    assert reply["status"] == "error"
    assert len(put_out["error"]) == 1


@pytest.mark.parametrize("wait", ["", "import asyncio\nawait asyncio.sleep(0.01)\n"])
def test_in_auto_mode_a_cell_runs_once_per_rank(auto, wait):
    _, put_out = auto.run(f"{wait}runs = globals().get('runs', 0) + 1")
    assert shown(put_out).startswith("▸ ranks 0-1")
    assert auto.value("[names['runs'] for names in cluster.names]") == "[1, 1]"
    assert len(sent(auto)) == 1


def test_in_auto_mode_local_cells_may_await(auto):
    reply, put_out = auto.run("%%local\nimport asyncio\nawait asyncio.sleep(0.01)\n6 * 7")
    assert reply["status"] == "ok"
    assert shown(put_out) == "42"
    assert sent(auto) == []


def test_what_a_front_end_runs_for_itself_stays_here(auto):
    auto.run("for_a_variable_viewer = 1", silent=True)
    auto.run("for_a_debugger = 2", store_history=False)
    assert auto.value("(for_a_variable_viewer, for_a_debugger)") == "(1, 2)"
    assert sent(auto) == []


def test_requests_beside_cells_work_in_auto_mode(auto):
    assert auto.ask("is_complete", "for step in range(3):")["status"] == "incomplete"
    assert auto.ask("is_complete", "x = 1")["status"] == "complete"
    assert auto.ask("inspect", "cluster", 7)["found"]
    assert sent(auto) == []


def test_tab_is_answered_by_the_ranks(notebook):
    reply = notebook.ask("complete", "%%mlx_dist\nx = 1\nx + lo", 23)
    assert reply["matches"] == ["loss", "loss_history"]
    assert (reply["cursor_start"], reply["cursor_end"]) == (21, 23)
    reply = notebook.ask("complete", "%mlx_dist sta", 13)
    assert (reply["matches"], reply["cursor_start"]) == (["status"], 10)


def test_help_of_the_magic(kernel):
    text = kernel.ask("inspect", "%mlx_dist", 9)["data"]["text/plain"]
    assert "%mlx_dist up -n 2" in text


def test_a_notebook_that_never_asks_for_ranks_does_not_pay_for_them(tmp_path):
    code = (
        "import sys, mlxbench_kernel\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "mlxbench_kernel.load_ipython_extension(InteractiveShell())\n"
        "print(*{'ipyparallel', 'mlx.core', 'ipywidgets', 'tqdm'} & set(sys.modules))\n"
    )
    child = pexpect.run(
        f'{sys.executable} -c "{code}"', env={**os.environ, "IPYTHONDIR": str(tmp_path)}
    )
    assert child.strip() == b""


def test_the_kernel_says_what_it_is_and_ends_its_ranks(tmp_path):
    notebook = Notebook("mlxbench_kernel.kernel", tmp_path)
    try:
        info = notebook.ask("kernel_info")
        assert info["implementation"] == "mlxbench"
        assert info["implementation_version"] == mlxbench_kernel.__version__
        assert info["banner"].startswith(f"MLX Bench {mlxbench_kernel.__version__}")
        assert info["language_info"]["name"] == "python"
        _, put_out = notebook.run("%load_ext mlxbench_kernel")  # as in other kernels
        assert "already loaded" in shown(put_out)
        notebook.run(HOLD_RANKS)
        ended = tmp_path / "ended"
        notebook.run(f"cluster.down = lambda: open({str(ended)!r}, 'w').close()")
    finally:
        notebook.close()
    assert ended.exists()


def test_a_terminal_shows_the_mode_in_its_prompt(tmp_path):
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "IPython", "--simple-prompt", "--no-banner", "--colors=nocolor"],
        env={**os.environ, "IPYTHONDIR": str(tmp_path), "TERM": "dumb"},
        encoding="utf-8", timeout=60, echo=False,
    )  # fmt: skip

    def enter(line, prompt):
        terminal.sendline(line)
        terminal.expect_exact(prompt)
        return terminal.before

    terminal.expect_exact("In [1]: ")
    enter("%load_ext mlxbench_kernel", "In [2]: ")
    enter(f"exec({HOLD_RANKS!r})", "In [3]: ")
    enter("%mlx_dist auto on", "ranks 0-1 In [4]: ")
    printed = enter("print('hello')", "ranks 0-1 In [5]: ")
    assert "▸ ranks 0-1" in printed
    assert "hello" in printed
    assert not enter("%mlx_dist auto off", "In [6]: ").endswith("ranks 0-1 ")
    terminal.close()
