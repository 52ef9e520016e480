"""mlx-lm's server on real ranks, asked by OpenAI's own client while the notebook goes on."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from running import until

from mlxbench_kernel.cluster import Cluster
from mlxbench_kernel.errors import ClusterError, GivenUp, UsageError
from mlxbench_kernel.models.small import make_small_model
from mlxbench_kernel.remote.language_model import ModelOnRanks
from mlxbench_kernel.remote.serving import Server
from mlxbench_kernel.remote.tuning import finetune

PROMPT = "The quick brown fox"
MESSAGES: Any = [{"role": "system", "content": "Short."}, {"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # With these weights its text is of whole characters, which come one by one.
    return make_small_model(tmp_path_factory.mktemp("models") / "llama", seed=2)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_model(tmp_path_factory.mktemp("models") / "qwen2", "qwen2", files=2)


@pytest.fixture
def lm(ranks: Cluster, folder: Path) -> Iterator[ModelOnRanks]:
    made = ModelOnRanks.load(folder, "tensor", cluster=ranks)
    yield made
    made.forget()


@pytest.fixture
def server(lm: ModelOnRanks) -> Iterator[Server]:
    made = Server(lm, 0, {"max_tokens": 24})
    yield made
    made.stop()


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60)


def is_listening(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


THREADS = "import threading\nalive = [each.name for each in threading.enumerate()]"


def threads(cluster: Cluster) -> dict[int, list[str]]:
    assert not cluster.execute(THREADS).errors
    found: dict[int, list[str]] = cluster.pull("alive")
    return found


def test_openai_s_client_gets_what_the_notebook_gets(lm: ModelOnRanks, server: Server) -> None:
    want = lm.generate_on_ranks(MESSAGES, 24).text
    ask = client(server)
    [listed] = ask.models.list().data
    assert listed.id == lm.path
    answer = ask.chat.completions.create(model=listed.id, messages=MESSAGES)
    assert answer.choices[0].message.content == want
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 24
    pieces = list(ask.chat.completions.create(model=listed.id, messages=MESSAGES, stream=True))
    assert "".join(each.choices[0].delta.content or "" for each in pieces) == want
    assert len(pieces) > 5
    completed = ask.completions.create(model="default_model", prompt=PROMPT, max_tokens=12)
    assert completed.choices[0].text == lm.generate_on_ranks(PROMPT, 12).text
    assert server.requests == 3
    assert server.url in repr(server) and "3 requests" in repr(server) and "curl" in repr(server)


def test_several_at_once_and_a_seed(lm: ModelOnRanks, server: Server) -> None:
    prompts = [f"{number}: {PROMPT}" for number in range(4)]
    found: dict[str, str] = {}

    def ask(prompt: str, **options: Any) -> None:
        made = client(server).completions.create(
            model="default_model", prompt=prompt, max_tokens=20, **options
        )
        found[prompt] = made.choices[0].text

    # One with a seed goes by itself, after the batch that is on.
    asking = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    asking.append(threading.Thread(target=ask, args=("seeded",), kwargs={"seed": 1}))
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert found == {
        prompt: lm.generate_on_ranks(prompt, 20).text for prompt in [*prompts, "seeded"]
    }


def test_a_cell_runs_in_the_middle_of_an_answer(lm: ModelOnRanks, server: Server) -> None:
    want = lm.generate_on_ranks(PROMPT, 200).text
    pieces = client(server).completions.create(
        model="default_model", prompt=PROMPT, max_tokens=200, stream=True
    )
    text = next(pieces).choices[0].text
    for number in range(3):  # these have collectives of their own
        cell = f"total = mx.distributed.all_sum(mx.array({number})).item()"
        assert not lm.cluster.execute(cell).errors
        assert lm.cluster.pull("total") == {0: 2 * number, 1: 2 * number}
        text += next(pieces).choices[0].text
    assert len(text) < 0.8 * len(want), "it was over before the cells ran"
    assert text + "".join(each.choices[0].text for each in pieces) == want


def test_what_cannot_be_asked_is_said_and_the_server_goes_on(server: Server) -> None:
    ask = client(server)
    for asked, said in (
        ({"model": "another/model"}, "this server has only"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "x" * 4500}, "4500 tokens, and the model is made for 4096"),
        ({"extra_body": {"adapters": "somewhere"}}, "no adapters"),
    ):
        with pytest.raises(openai.NotFoundError) as refused:
            ask.completions.create(**{"model": "default_model", "prompt": PROMPT, **asked})
        assert said in str(refused.value.body)
    assert ask.completions.create(model="default_model", prompt=PROMPT, max_tokens=2).choices


def test_a_client_that_leaves_disturbs_nobody(lm: ModelOnRanks, server: Server) -> None:
    for options in ({}, {"seed": 3}):
        pieces = client(server).completions.create(
            model="default_model", prompt=PROMPT, max_tokens=300, stream=True, **options
        )
        next(pieces)
        pieces.response.close()
    made = client(server).completions.create(model="default_model", prompt=PROMPT, max_tokens=8)
    assert made.choices[0].text == lm.generate_on_ranks(PROMPT, 8).text


def test_stopping_leaves_nothing(lm: ModelOnRanks) -> None:
    before = threads(lm.cluster)
    server = Server(lm, 0, {})
    assert is_listening(server.port)
    with pytest.raises(UsageError, match=r"serve already: .*llama at http://127"):
        Server(lm, 0, {})
    pieces = client(server).completions.create(
        model="default_model", prompt=PROMPT, max_tokens=3000, stream=True
    )
    next(pieces)
    server.stop()
    with pytest.raises(openai.APIError, match="has ended: it was stopped"):
        list(pieces)
    assert not is_listening(server.port)
    assert threads(lm.cluster) == before
    assert not any(lm.cluster.client.call("interrupt", [0, 1], 5).values()), "a cell is running"
    assert "stopped; 1 requests" in repr(server) and not server.error
    assert lm.generate_on_ranks(PROMPT, 4).text


def test_only_this_machine_can_reach_it(server: Server, ranks: Cluster) -> None:
    pid = ranks.info.ranks[0].pid
    listening = {
        each.laddr.ip
        for each in psutil.Process(pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == server.port
    }
    assert listening == {"127.0.0.1"}


def test_bad_input(lm: ModelOnRanks) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of .* cannot be used .*in use"):
            Server(lm, port, {})
    with pytest.raises(UsageError, match="no option 'temperature': it takes temp"):
        Server(lm, 0, {"temperature": 1})
    with pytest.raises(UsageError, match=r"temp=.hot.: type a number, 0 or more, as temp=0\.0"):
        Server(lm, 0, {"temp": "hot"})
    with pytest.raises(UsageError, match="max_tokens=-1: type a whole number"):
        Server(lm, 0, {"max_tokens": -1})
    with pytest.raises(UsageError, match="port='http'"):
        Server(lm, "http", {})  # type: ignore[arg-type]
    server = Server(lm, port, {})  # nothing was left of those
    assert server.port == port
    server.stop()


def test_it_stops_with_the_model(ranks: Cluster, folder: Path, pipeline: Path) -> None:
    lm = ModelOnRanks.load(folder, "tensor", cluster=ranks)
    first = Server(lm, 0, {})
    lm = ModelOnRanks.load(pipeline, "pipeline", cluster=ranks)
    assert not first.running and not is_listening(first.port)
    second = Server(lm, 0, {})
    made = client(second).completions.create(model="default_model", prompt=PROMPT, max_tokens=9)
    assert made.choices[0].text == lm.generate_on_ranks(PROMPT, 9).text
    lm.forget()
    assert not second.running and not is_listening(second.port)


def test_a_replica_on_each_rank(ranks: Cluster, folder: Path) -> None:
    lm = ModelOnRanks.load(folder, "data", cluster=ranks)
    server = Server(lm, 0, {})
    made = client(server).completions.create(model="default_model", prompt=PROMPT, max_tokens=9)
    assert made.choices[0].text == lm.generate_on_ranks(PROMPT, 9).text
    lm.forget()


def test_it_answers_with_the_weights_of_now(ranks: Cluster, folder: Path) -> None:
    lm = ModelOnRanks.load(folder, "data", cluster=ranks)
    server = Server(lm, 0, {"max_tokens": 16})

    def answer() -> str:
        asked = client(server).completions.create(model="default_model", prompt=PROMPT)
        return str(asked.choices[0].text)

    before = answer()
    tuned = finetune(
        lm, [{"text": "abcabc" * 9}] * 4, method="full", learning_rate=1e-2, compile=False
    )
    tuned.stepping.step(3)
    after = answer()
    assert after == lm.generate_on_ranks(PROMPT, 16).text != before
    lm.forget()


def test_stopping_can_be_given_up(
    lm: ModelOnRanks, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise GivenUp("nothing was run")

    with monkeypatch.context() as patched:
        patched.setattr(server, "_hold", interrupted)
        with pytest.raises(GivenUp):
            server.stop()
    made = client(server).completions.create(model="default_model", prompt=PROMPT, max_tokens=8)
    assert made.choices[0].text == lm.generate_on_ranks(PROMPT, 8).text
    server.stop()
    assert not server.running and not is_listening(server.port)


def test_an_interrupt_stops_it(lm: ModelOnRanks) -> None:
    server = Server(lm, 0, {})
    pieces = client(server).completions.create(
        model="default_model", prompt=PROMPT, max_tokens=3000, stream=True
    )
    next(pieces)
    lm.stop()
    until(lambda: not server.running)
    assert "interrupted" in server.error and not is_listening(server.port)
    assert lm.generate_on_ranks(PROMPT, 4).text


def test_an_interrupt_that_only_one_rank_hears(lm: ModelOnRanks) -> None:
    server = Server(lm, 0, {})
    pieces = client(server).completions.create(
        model="default_model", prompt=PROMPT, max_tokens=3000, stream=True
    )
    next(pieces)
    lm.cluster.client.call("interrupt", [0], 5.0)  # the other one has paused before it hears of it
    until(lambda: not server.running)
    assert server.error == "interrupted; lm.serve() starts it again"
    assert not is_listening(server.port)
    assert lm.generate_on_ranks(PROMPT, 4).text


def test_it_ends_with_its_ranks(folder: Path) -> None:
    cluster = Cluster.up(1)
    try:
        server = Server(ModelOnRanks.load(folder, "data", cluster=cluster), 0, {})
    finally:
        cluster.down()
    assert (
        not server.running
        and repr(server) == "<stopped: its ranks were ended; lm.serve() serves with others>"
    )


def test_a_page_under_its_own_name_is_kept_out(server: Server) -> None:
    """As a browser asks whose page has its name lead to the loopback."""

    def status(host: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", "/v1/models", headers={"Host": host})
        found = connection.getresponse().status
        connection.close()
        return found

    assert status(f"page.example:{server.port}") == status("page.example") == 403
    assert status(f"localhost:{server.port}") == status("127.0.0.1") == status("[::1]:1") == 200


def test_a_rank_that_is_killed(folder: Path) -> None:
    cluster = Cluster.up(2, seed=7)
    try:
        lm = ModelOnRanks.load(folder, "tensor", cluster=cluster)
        server = Server(lm, 0, {})
        pieces = client(server).completions.create(
            model="default_model", prompt=PROMPT, max_tokens=3000, stream=True
        )
        next(pieces)
        os.kill(cluster.info.ranks[1].pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match=r"the server has ended: .*lost"):
            list(pieces)
        until(lambda: not server.running)
        assert "rank 1" in server.error and "rank 1" in repr(server)
        assert "%mlx_dist" in server.error.splitlines()[0]
        until(lambda: not is_listening(server.port))
        with pytest.raises(ClusterError, match="rank 1"):
            Server(lm, 0, {})
    finally:
        cluster.down()
