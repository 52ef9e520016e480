"""Hostfiles: read as ``mlx.launch`` reads them, and refused in one line where they are wrong."""

import json

import pytest
from mlx._distributed_utils.common import Hostfile as MlxHostfile

from mlxbench_kernel.cluster.hostfile import BACKENDS, Host, Hostfile, parse_env
from mlxbench_kernel.errors import UsageError

# The example of `Hostfile.from_file` in MLX 0.32.4, mlx/_distributed_utils/common.py.
MACS = {
    "backend": "jaccl",
    "envs": ["MLX_METAL_FAST_SYNCH=1", "OPTIONS=a=b, c", "EMPTY="],
    "hosts": [
        {"ssh": "mac-a", "ips": ["123.123.123.1"], "rdma": [None, "rdma_en2", "rdma_en3"]},
        {"ssh": "mac-b", "ips": ["123.123.123.2"], "rdma": ["rdma_en2", None, "rdma_en3"]},
        {"ssh": "mac-c", "ips": ["123.123.123.3"], "rdma": ["rdma_en2", "rdma_en3", None]},
    ],
}
RING = [
    {"ssh": "ada@mac-a", "ips": ["10.0.0.1", "10.0.1.1"]},
    {"ssh": "mac-b", "ips": ["10.0.0.2", "10.0.1.2"]},
    {"ssh": "127.0.0.1", "ips": ["127.0.0.1:5000", "127.0.0.1:5001"], "rdma": []},
]


@pytest.fixture
def write(tmp_path):
    """Writes a value as a hostfile and gives its path."""

    def write(value, name="hosts.json"):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


def refusal(call, *arguments):
    """The message of a refusal, which is one line."""
    with pytest.raises(UsageError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def agrees_with_mlx(path):
    """Whether MLX's own reader finds the same in the file."""
    ours, theirs = Hostfile.read(path), MlxHostfile.from_file(path)
    return (
        ours.backend == theirs.backend
        and [f"{name}={value}" for name, value in ours.envs.items()] == theirs.envs
        and [
            (host.ssh, list(host.ips), [list(d) if isinstance(d, tuple) else d for d in host.rdma])
            for host in ours.hosts
        ]
        == [(host.ssh_hostname, host.ips, host.rdma) for host in theirs.hosts]
    )


def test_both_forms_are_read_as_mlx_reads_them(write):
    several_wires = [
        {"ssh": "a", "ips": ["10.0.0.1"], "rdma": [None, ["rdma_en2", "rdma_en3"]]},
        {"ssh": "b", "ips": [], "rdma": [["rdma_en4", "rdma_en5"], None]},
    ]
    for value in (MACS, RING, [{"ssh": "alone"}], several_wires, {"hosts": RING}):
        assert agrees_with_mlx(write(value))


def test_what_mlx_distributed_config_writes_is_read(write):
    hosts = MlxHostfile.from_list("10.0.0.1,10.0.0.2", repeats=2).hosts
    for backend in BACKENDS:
        path = write(MlxHostfile(hosts, backend, ["A=1"]).to_json())
        assert agrees_with_mlx(path)
        assert [host.ssh for host in Hostfile.read(path).hosts] == [
            "10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2",
        ]  # fmt: skip


def test_the_macs_are_ready_for_every_backend_that_they_can_have(write):
    hostfile = Hostfile.read(write(MACS))
    assert hostfile.backend == "jaccl"
    assert hostfile.envs == {"MLX_METAL_FAST_SYNCH": "1", "OPTIONS": "a=b, c", "EMPTY": ""}
    assert hostfile.hosts[1].rdma == ("rdma_en2", None, "rdma_en3")
    for backend in BACKENDS:
        hostfile.check(backend)


def test_the_path_may_start_at_home(write, monkeypatch):
    path = write(RING)
    monkeypatch.setenv("HOME", str(path.parent))
    assert Hostfile.read("~/hosts.json").hosts == Hostfile.read(path).hosts


def test_only_this_machine_goes_without_ssh():
    assert all(host.is_local for host in Hostfile.local(3).hosts)
    assert Host("localhost").is_local
    assert not Host("mac-a", ("127.0.0.1",)).is_local


def test_a_file_that_cannot_be_read(write, tmp_path):
    write(RING, "macs.json")
    message = refusal(Hostfile.read, tmp_path / "mac.json")
    assert "mac.json does not exist" in message and "macs.json" in message
    assert "does not exist" in refusal(Hostfile.read, tmp_path / "nowhere" / "hosts.json")
    assert "cannot be read" in refusal(Hostfile.read, tmp_path)
    assert "nobody-of-that-name" in refusal(Hostfile.read, "~nobody-of-that-name/hosts.json")
    assert "is not JSON" in refusal(Hostfile.read, write("mac-a slots=2\n"))
    assert "is not JSON" in refusal(Hostfile.read, write('[{"ssh": "mac-a",}]'))
    latin = write("")
    latin.write_bytes('[{"ssh": "büro"}]'.encode("latin-1"))
    assert "is not JSON" in refusal(Hostfile.read, latin)


A, B = {"ssh": "mac-a", "ips": ["10.0.0.1"]}, {"ssh": "mac-b", "ips": ["10.0.0.2"]}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "a list of hosts is expected"),
        (3, "a list of hosts is expected"),
        ("null", "a list of hosts is expected"),
        ({"hosts": {"mac-a": 1}}, "a list of hosts is expected"),
        ({"hosts": []}, "a list of hosts is expected"),
        ({}, '"hosts" is missing'),
        ({"host": [A]}, "unknown key 'host'; use hosts"),
        ({"backend": "jacl", "hosts": [A]}, "'jacl'; use jaccl"),
        ({"backend": "gloo", "hosts": [A]}, "ring, jaccl, jaccl-ring, nccl, mpi"),
        ({"backend": None, "hosts": [A]}, '"backend" is None'),
        ({"envs": {"A": "1"}, "hosts": [A]}, '"envs" is not a list'),
        ({"envs": ["2A=1"], "hosts": [A]}, "'2A=1'"),
        ({"envs": [5], "hosts": [A]}, "NAME=VALUE"),
        (["mac-a"], "host 0 is not an object"),
        ([A, {"ips": ["10.0.0.2"]}], 'host 1: "ssh" is missing'),
        ([A, {"ssh": ""}], 'host 1: "ssh" is missing'),
        ([A, {"ssh": 7}], 'host 1: "ssh" is missing'),
        ([{"ssh": "-oProxyCommand=touch x"}], "no host name"),
        ([{"ssh": "mac a"}], "no host name"),
        ([{"ssh": "mac-a", "ip": "10.0.0.1"}], "host 0 has an unknown key 'ip'; use ips"),
        ([{"ssh": "mac-a", "ips": "10.0.0.1"}], '(mac-a): "ips" is not a list'),
        ([A, {"ssh": "mac-b", "ips": ["10.0.0.256"]}], "host 1 (mac-b): '10.0.0.256' is not"),
        ([A, {"ssh": "mac-b", "ips": ["mac-b.local"]}], "'mac-b.local' is not an IP address"),
        ([A, {"ssh": "mac-b", "ips": [3]}], "3 is not an IP address"),
        ([A, {"ssh": "mac-b", "ips": [["10.0.0.2"]]}], "is not an IP address"),
        ([{"ssh": "mac-a", "rdma": {"0": None}}], '"rdma" is not a list'),
        ([{"ssh": "mac-a", "rdma": [None, 5]}], '"rdma" is not a list of null and device names'),
        ([{"ssh": "mac-a", "rdma": [["rdma_en2", None]]}], '"rdma" is not a list of null'),
    ],
)
def test_a_file_of_the_wrong_shape(write, value, says):
    path = write(value)
    message = refusal(Hostfile.read, path)
    assert message.startswith(f"hostfile {path}: ")
    assert says in message


def test_the_same_host_twice_is_legitimate_but_not_the_same_ip_and_port(write):
    twice = Hostfile.read(write([A, A]))
    assert [host.ssh for host in twice.hosts] == ["mac-a", "mac-a"]
    twice.check("ring")
    Hostfile.read(
        write([{"ssh": "mac-a", "ips": [f"10.0.0.1:{port}"]} for port in (5000, 5001)])
    ).check("ring")
    with_port = {"ssh": "mac-b", "ips": ["10.0.0.1:5000"]}
    message = refusal(Hostfile.read, write([{**with_port, "ssh": "mac-a"}, A, with_port]))
    assert "10.0.0.1:5000 stands at host 0 and again at host 2" in message
    own = [{"ssh": "mac-a", "ips": ["10.0.0.1:5000", "10.0.0.1:5000"]}]
    assert "at host 0 and again at host 0" in refusal(Hostfile.read, write(own))


def hosts(*entries):
    return Hostfile(tuple(Host(*entry) for entry in entries), path="macs.json")


def test_ring_needs_the_same_number_of_ips_everywhere():
    missing = hosts(("mac-a", ("10.0.0.1",)), ("mac-b",))
    message = refusal(missing.check, "ring")
    assert "hostfile macs.json: host 1 (mac-b) has no" in message
    unequal = hosts(("mac-a", ("10.0.0.1",)), ("mac-b", ("10.0.0.2", "10.0.1.2")))
    assert "host 1 (mac-b) has 2 ips and host 0 has 1" in refusal(unequal.check, "ring")
    missing.check("mpi")


def test_ring_cannot_have_ipv6():
    # MLX 0.32.4 answers "Can't parse address [fd00::1]:5000" when the ranks are up already.
    six = hosts(("mac-a", ("fd00::1",)), ("mac-b", ("fd00::2",)))
    message = refusal(six.check, "ring")
    assert "host 0 (mac-a): fd00::1 is an IPv6 address" in message


def test_jaccl_needs_a_meeting_point_and_a_square_matrix():
    good = [("a", ("10.0.0.1",), (None, "en2")), ("b", (), ("en2", None))]
    hosts(*good).check("jaccl")
    for backend in ("jaccl", "jaccl-ring"):
        nowhere = hosts(("a", (), (None, "en2")), good[1])
        assert 'host 0 (a) has no "ips"' in refusal(nowhere.check, backend)
        short = hosts(good[0], ("b", (), ("en2",)))
        assert '(b): "rdma" has 1 entries for 2 hosts' in refusal(short.check, backend)
        none = hosts(("a", ("10.0.0.1",)), ("b", ("10.0.0.2",)))
        assert '"rdma" has 0 entries' in refusal(none.check, backend)
        itself = hosts(good[0], ("b", (), ("en2", "en3")))
        assert '(b): "rdma"[1] is its own: use null' in refusal(itself.check, backend)
        gap = hosts(good[0], ("b", (), (None, None)))
        assert '(b): "rdma"[0] is null, but jaccl needs a device to a' in refusal(
            gap.check, backend
        )


def test_a_ring_of_thunderbolt_cables_needs_devices_to_the_neighbours_only():
    four = hosts(
        ("a", ("10.0.0.1",), (None, "en2", None, "en3")),
        ("b", (), ("en2", None, "en3", None)),
        ("c", (), (None, "en2", None, "en3")),
        ("d", (), ("en2", None, "en3", None)),
    )
    four.check("jaccl-ring")
    assert '(a): "rdma"[2] is null' in refusal(four.check, "jaccl")


def test_nccl_needs_a_meeting_point():
    nowhere = hosts(("gpu-a",), ("gpu-b", ("10.0.0.2",)))
    assert 'host 0 (gpu-a) has no "ips"' in refusal(nowhere.check, "nccl")
    hosts(("gpu-a", ("10.0.0.1",)), ("gpu-b",)).check("nccl")


def test_one_rank_needs_nothing():
    for backend in BACKENDS:
        hosts(("mac-a",)).check(backend)


def test_variables():
    assert parse_env("A=") == ("A", "")
    assert parse_env("_A1=x=y\nz") == ("_A1", "x=y\nz")
    for wrong in ("A", "=1", "A B=1", "A-B=1", "", None):
        assert "NAME=VALUE" in refusal(parse_env, wrong)
