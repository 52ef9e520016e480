"""How ranks find one another: the same settings as ``mlx.launch`` makes, on ports that are free."""

import json
import socket
from argparse import ArgumentParser, Namespace

import pytest
from mlx._distributed_utils import launch
from mlx._distributed_utils.common import Hostfile as MlxHostfile

from mlxbench_kernel.cluster import rendezvous
from mlxbench_kernel.cluster.hostfile import BACKENDS, Host, Hostfile
from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.rank import ports

MACS = [
    {"ssh": "a", "ips": ["10.0.0.1"], "rdma": [None, "rdma_en2", ["rdma_en3", "rdma_en4"]]},
    {"ssh": "b", "ips": ["10.0.0.2"], "rdma": ["rdma_en2", None, "rdma_en3"]},
    {"ssh": "c", "ips": ["10.0.0.3"], "rdma": [["rdma_en2", "rdma_en4"], "rdma_en3", None]},
]
PORT = 32323  # where mlx.launch starts to count


@pytest.fixture
def mlx_launch(monkeypatch, tmp_path):
    """What ``mlx.launch`` would start: for each rank its variables and files, as MLX makes them."""
    started = []

    def record(kind, ranks, verbose):
        started.extend(ranks)

    monkeypatch.setattr(launch, "_launch_with_io", record)

    def run(backend, hosts, repeat=1):
        path = tmp_path / "hosts.json"
        path.write_text(json.dumps(hosts))
        start = getattr(launch, f"launch_{backend.partition('-')[0]}")
        args = Namespace(
            backend=backend, env=[], cwd=None, python=None, verbose=False, starting_port=PORT,
            nccl_port=PORT, connections_per_ip=1, repeat_hosts=repeat,
        )  # fmt: skip
        start(ArgumentParser(), MlxHostfile.from_file(path).hosts, args, ["train.py"])
        settings = []
        for (rank, _, _, _, files, env, _), _ in started:
            variables = {"MLX_RANK": str(rank), **dict(text.split("=", 1) for text in env)}
            settings.append((variables, {name: json.loads(text) for name, text in files.items()}))
        return Hostfile.read(path), settings

    return run


def ours(backend, hostfile, addresses):
    hostfile.check(backend)
    return [(s.variables, s.files) for s in rendezvous.settings(backend, hostfile.hosts, addresses)]


def test_ring_is_told_what_mlx_launch_tells_it(mlx_launch):
    hosts = [
        {"ssh": "a", "ips": ["10.0.0.1", "10.0.1.1"]},
        {"ssh": "b", "ips": ["10.0.0.2", "10.0.1.2"]},
        {"ssh": "b", "ips": ["10.0.0.2", "10.0.1.2"]},
    ]
    hostfile, theirs = mlx_launch("ring", hosts)
    count = iter(range(PORT, PORT + 6))
    addresses = [[f"{ip}:{next(count)}" for ip in host["ips"]] for host in hosts]
    assert ours("ring", hostfile, addresses) == theirs
    assert theirs[2][1] == {"MLX_HOSTFILE": addresses}


@pytest.mark.parametrize("backend", ["jaccl", "jaccl-ring"])
def test_jaccl_is_told_what_mlx_launch_tells_it(mlx_launch, backend):
    hostfile, theirs = mlx_launch(backend, MACS)
    assert ours(backend, hostfile, [[f"10.0.0.1:{PORT}"], [], []]) == theirs
    variables, files = theirs[1]
    assert files == {"MLX_IBV_DEVICES": [host["rdma"] for host in MACS]}
    assert variables["MLX_JACCL_COORDINATOR"] == f"10.0.0.1:{PORT}"
    assert ("MLX_JACCL_RING" in variables) == (backend == "jaccl-ring")


def test_nccl_is_told_what_mlx_launch_tells_it(mlx_launch):
    gpus = [{"ssh": name, "ips": [ip]} for name, ip in (("a", "10.0.0.1"), ("b", "10.0.0.2"))]
    hostfile, theirs = mlx_launch("nccl", [gpu for gpu in gpus for _ in range(2)], repeat=2)
    told = ours("nccl", hostfile, [[f"10.0.0.1:{PORT}"], [], [], []])
    from_the_start = rendezvous.gpus("nccl", hostfile.hosts, [""] * 4)
    both = [
        ({**variables, **gpu}, files)
        for (variables, files), gpu in zip(told, from_the_start, strict=True)
    ]
    assert both == theirs
    assert [gpu["CUDA_VISIBLE_DEVICES"] for gpu in from_the_start] == ["0", "1", "0", "1"]


def test_ranks_of_nccl_share_out_the_gpus_that_may_be_used():
    hosts = Hostfile.local(2).hosts
    own = {"CUDA_VISIBLE_DEVICES": "GPU-5b"}, {"CUDA_VISIBLE_DEVICES": "3"}
    assert rendezvous.gpus("nccl", hosts, ["GPU-5b,3"] * 2) == list(own)
    assert rendezvous.gpus("ring", hosts, ["2,3"] * 2) == [{}, {}]


def test_one_rank_alone_is_told_nothing():
    alone = Hostfile.local(1).hosts
    for backend in BACKENDS:
        assert rendezvous.settings(backend, alone, [[]]) == [rendezvous.RankSettings({})]
        assert rendezvous.reservations(backend, alone) == [[]]
        assert rendezvous.targets(backend, [[]]) == [[]]


def test_each_rank_of_a_ring_listens_and_tries_the_next():
    hosts = [Host("a", ("10.0.0.1", "10.0.1.1")), Host("b", ("10.0.0.2:5000", "10.0.1.2:5001"))]
    assert rendezvous.reservations("ring", hosts) == [
        ["10.0.0.1", "10.0.1.1"],
        ["10.0.0.2", "10.0.1.2"],
    ]
    assert rendezvous.targets("ring", [["a:1"], ["b:1"], ["c:1"]]) == [["b:1"], ["c:1"], ["a:1"]]


@pytest.mark.parametrize("backend", ["nccl", "jaccl", "jaccl-ring"])
def test_elsewhere_rank_0_listens_and_all_others_try_it(backend):
    hosts = [Host("a", ("10.0.0.1:5000", "10.0.1.1")), Host("b"), Host("c")]
    assert rendezvous.reservations(backend, hosts) == [["10.0.0.1"], [], []]
    assert rendezvous.targets(backend, [["a:1"], [], []]) == [[], ["a:1"], ["a:1"]]


def test_mpirun_finds_the_ranks_itself():
    hosts = [Host("a"), Host("b"), Host("a")]
    assert rendezvous.reservations("mpi", hosts) == [[], [], []]
    assert rendezvous.targets("mpi", [[], [], []]) == [[], [], []]
    command = rendezvous.mpirun(hosts, ["PYTHONPATH", "IPP_CONNECTION_INFO"])
    assert command[:3] == ["mpirun", "-n", "3"]
    assert command[command.index("--host") + 1] == "a,b,a"
    assert [command[i + 1] for i, word in enumerate(command) if word == "-x"] == [
        "PYTHONPATH", "IPP_CONNECTION_INFO",
    ]  # fmt: skip
    assert "--host" not in rendezvous.mpirun(Hostfile.local(2).hosts, [])


def test_the_mpi_library_is_named_where_mlx_would_not_find_it(monkeypatch):
    def on_a_machine_with(library):
        monkeypatch.setattr(rendezvous.ctypes.util, "find_library", lambda name: library)
        return rendezvous.settings("mpi", Hostfile.local(2).hosts, [[], []])[1].variables

    assert on_a_machine_with("libmpi.so.40") == {"MLX_MPI_LIBNAME": "libmpi.so.40"}
    assert on_a_machine_with("libmpi.so") == {}
    assert on_a_machine_with(None) == {}


def test_the_backend_that_was_asked_for_goes_before_the_hostfile_and_our_choice():
    macs = [Host(mac["ssh"], tuple(mac["ips"]), tuple(mac["rdma"])) for mac in MACS]
    plain = [Host("a", ("10.0.0.1",)), Host("b", ("10.0.0.2",))]
    mac, gpu, cpu = {"ring", "mpi", "jaccl"}, {"ring", "nccl"}, {"ring", "mpi"}
    assert rendezvous.choose("ring", "jaccl", macs, [mac] * 3) == "ring"
    assert rendezvous.choose("any", "mpi", plain, [cpu] * 2) == "mpi"
    assert rendezvous.choose("", "jaccl-ring", macs, [mac] * 3) == "jaccl-ring"
    assert rendezvous.choose("any", "any", macs, [mac] * 3) == "jaccl"
    assert rendezvous.choose("", "", macs, [mac, mac, cpu]) == "ring"
    assert rendezvous.choose("", "", plain, [mac] * 2) == "ring"
    assert rendezvous.choose("", "", plain, [gpu] * 2) == "nccl"
    assert rendezvous.choose("", "", plain, [gpu, cpu]) == "ring"
    assert [rendezvous.init_name(name) for name in BACKENDS] == [
        "ring", "jaccl", "jaccl", "nccl", "mpi",
    ]  # fmt: skip


def test_a_backend_that_a_host_lacks_is_refused_with_those_it_has():
    hosts = [Host("a"), Host("mac-b")]
    with pytest.raises(UsageError) as caught:
        rendezvous.choose("nccl", "", hosts, [{"ring", "nccl"}, {"ring", "mpi"}])
    assert "nccl is not available on mac-b; there: mpi, ring" in str(caught.value)
    with pytest.raises(UsageError, match=r"jaccl-ring is not available on a; there: none"):
        rendezvous.choose("", "jaccl-ring", hosts, [set(), {"jaccl"}])


@pytest.fixture
def reserve():
    """`ports.reserve`, with the ports given up at the end."""
    yield ports.reserve
    ports.release()


def test_reserved_ports_are_free_differ_and_can_be_reached(reserve):
    addresses = reserve(["127.0.0.1", "127.0.0.1"])
    assert len(set(addresses)) == 2
    assert all(address.startswith("127.0.0.1:") for address in addresses)
    assert ports.unreachable(addresses, 5) == {}
    ports.release()
    assert list(ports.unreachable(addresses, 5)) == addresses
    assert "refused" in ports.unreachable(addresses[:1], 5)[addresses[0]]


def test_mlx_can_take_a_reserved_port_over_at_once(reserve):
    (address,) = reserve(["127.0.0.1"])
    assert ports.unreachable([address], 5) == {}
    ports.release()
    with socket.socket() as listener:
        # As mlx/distributed/utils.cpp of MLX 0.32.4 does it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        listener.listen()


def test_a_new_reservation_gives_the_last_one_up(reserve):
    first = reserve(["127.0.0.1"])
    second = reserve(["127.0.0.1"])
    assert list(ports.unreachable(first + second, 5)) == first


def test_an_address_of_another_machine_is_refused_by_name(reserve):
    # 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
    with pytest.raises(OSError, match=r"192\.0\.2\.1 is not an address of "):
        reserve(["127.0.0.1", "192.0.2.1"])
    assert ports._reserved == []


def test_a_port_that_a_firewall_eats_is_reported_in_time():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        # A full queue answers as a firewall that drops: not at all.
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())
        address = "{}:{}".format(*listener.getsockname())
        assert ports.unreachable([address], 0.2) == {address: "timed out"}
        for connection in waiting:
            connection.close()
