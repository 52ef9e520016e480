"""What a user types after ``%mlx_dist`` and ``%%mlx_dist``, right and wrong."""

import re

import pytest

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.kernel import subcommands
from mlxbench_kernel.kernel.commands import RunCell, read_cell, read_line
from mlxbench_kernel.kernel.ranks import RankSelection, ranks_text


def error_of(read, line):
    """The message that a wrong line gives; it is one line, and says what to type."""
    with pytest.raises(UsageError) as caught:
        read(line)
    message = str(caught.value)
    assert "\n" not in message
    assert "type " in message
    return message


def test_up_with_everything():
    command = read_line(
        "up -n 4 --hostfile my-hosts.json --backend jaccl-ring --env A=1 --env B=x=y "
        "--seed 7 --python /opt/py/bin/python --timeout 2.5 --keep"
    )
    assert command == subcommands.Up(
        n=4,
        hostfile="my-hosts.json",
        backend="jaccl-ring",
        env=[("A", "1"), ("B", "x=y")],
        seed=7,
        python="/opt/py/bin/python",
        timeout=2.5,
        keep=True,
    )


def test_up_alone_leaves_the_choice_to_the_cluster():
    command = read_line("up")
    assert (command.n, command.hostfile, command.backend, command.env) == (None, None, None, [])
    assert command.timeout == 60
    assert not command.keep
    assert read_line("up").env is not read_line("up --env A=1").env


def test_quotes_hold_words_together_and_a_comment_ends_the_line():
    command = read_line("up --env 'NOTE=two # words' --hostfile \"my hosts.json\"  # on the Macs")
    assert command.env == [("NOTE", "two # words")]
    assert command.hostfile == "my hosts.json"
    assert read_line("up --env A=b#c").env == [("A", "b#c")]
    assert read_line("up -n 2 # don't").n == 2


def test_a_home_folder_in_a_path_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert read_line("up --hostfile ~/hosts.json").hostfile == "/home/ada/hosts.json"


def test_names_stand_anywhere_and_may_have_commas():
    assert read_line("push lr, batch --ranks 1 seed").names == ("lr", "batch", "seed")
    assert read_line("pull --ranks 0 loss --as first") == subcommands.Pull(
        ("loss",), RankSelection("0", ((0, 0),)), "first"
    )


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("status", subcommands.Status()),
        ("restart", subcommands.Restart(None)),
        ("heal", subcommands.Heal(False)),
        ("heal --drop", subcommands.Heal(True)),
        ("down", subcommands.Down()),
        ("attach", subcommands.Attach(None)),
        ("attach mlx-12ab", subcommands.Attach("mlx-12ab")),
        ("interrupt --ranks 1", subcommands.Interrupt(RankSelection("1", ((1, 1),)))),
        ("log", subcommands.Log(None, 20)),
        ("log -n 5 --ranks 0", subcommands.Log(RankSelection("0", ((0, 0),)), 5)),
        ("doctor", subcommands.Doctor(None, None)),
        ("doctor --hostfile h.json --python py", subcommands.Doctor("h.json", "py")),
        ("auto on", subcommands.Auto(True)),
        ("auto off", subcommands.Auto(False)),
    ],
)
def test_each_subcommand_is_read(line, command):
    assert read_line(line) == command


def test_a_cell_line_is_read():
    assert read_cell("") == RunCell(None, None, None, False, False)
    assert read_cell("--ranks 0,2-3 --timeout 9 --out results") == RunCell(
        RankSelection("0,2-3", ((0, 0), (2, 3))), 9.0, "results", False, False
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("stauts", ["no subcommand 'stauts'", "nearest is status", "type %mlx_dist status"]),
        ("xyzzy", ["no subcommand 'xyzzy'", "up, status, restart", "type %mlx_dist help"]),
        ("up --hostfiel h", ["--hostfiel", "nearest is --hostfile", "--hostfile hosts.json"]),
        ("up --host h", ["no option --host", "nearest is --hostfile"]),
        ("up --bakend=ring", ["no option --bakend,", "nearest is --backend", "--backend ring"]),
        ("up -q", ["no option -q, only --help, -n, --hostfile", "type %mlx_dist up --help"]),
        ("status -n 2", ["%mlx_dist status", "no option -n"]),
        ("up -n 0", ["-n takes a number of ranks, 1 or more, not '0'", "%mlx_dist up -n 2"]),
        ("up -n -3", ["-n", "not '-3'"]),
        ("up -n abc", ["-n takes a number of ranks", "not 'abc'", "type %mlx_dist up -n 2"]),
        ("up -n 1_0", ["not '1_0'"]),
        ("up -n 2.5", ["not '2.5'"]),
        ("up -n", ["-n needs a value", "type %mlx_dist up -n 2"]),
        ("up -n --keep", ["-n needs a value"]),
        ("up 2", ["'2'", "type %mlx_dist up -n 2"]),
        ("up --keep=yes", ["--keep takes no value"]),
        ("up --backend rin", ["--backend takes ring, jaccl,", "not 'rin'", "nearest is ring"]),
        ("up --backend quantum", ["--backend takes ring", "any, not 'quantum'"]),
        ("up --env FOO", ["--env takes NAME=VALUE, not 'FOO'", "--env NAME=VALUE"]),
        ("up --env =x", ["--env takes NAME=VALUE, not '=x'"]),
        ("up --env 'A B=x'", ["--env takes NAME=VALUE"]),
        ("up --seed -1", ["--seed takes a random seed, from 0 to", "not '-1'"]),
        ("up --seed 18446744073709551616", ["--seed takes", "not '18446744073709551616'"]),
        ("up --timeout -1", ["--timeout takes seconds, more than 0, not '-1'", "--timeout 60"]),
        ("up --timeout nan", ["--timeout takes seconds", "not 'nan'"]),
        ("up --timeout inf", ["--timeout takes seconds", "not 'inf'"]),
        ("up --timeout soon", ["--timeout takes seconds", "not 'soon'"]),
        ("up --hostfile 'my hosts.json", ["a quote is not closed"]),
        ("status now", ["'now'", "type %mlx_dist status"]),
        ("interrupt --ranks 3-1", ["--ranks takes a range from low to high, not '3-1'"]),
        ("interrupt --ranks a", ["--ranks takes ranks such as 0,2-3, not 'a'"]),
        ("interrupt --ranks -1", ["--ranks takes ranks such as 0,2-3, not '-1'"]),
        ("interrupt --ranks 0,,1", ["--ranks takes ranks such as 0,2-3"]),
        ("interrupt --ranks", ["--ranks needs a value"]),
        ("log -n 0", ["-n takes a number of lines, 1 or more, not '0'"]),
        ("attach one two", ["takes one cluster's ID", "type %mlx_dist attach one"]),
        ("push", ["names of the variables are missing", "type %mlx_dist push lr batch"]),
        ("push --ranks 0", ["names of the variables are missing"]),
        ("push model.w", ["takes names of variables, not 'model.w'"]),
        ("push lr --as x", ["%mlx_dist push", "no option --as"]),
        ("pull", ["names of the variables are missing", "type %mlx_dist pull"]),
        ("pull x --as", ["--as needs a value", "type %mlx_dist pull loss --as first_loss"]),
        ("pull x --as 2x", ["--as takes a name of a variable, not '2x'"]),
        ("pull x --as for", ["--as takes a name of a variable, not 'for'"]),
        ("pull x y --as z", ["--as goes with one name, not with 2", "pull x --as z"]),
        ("auto", ["takes on or off", "type %mlx_dist auto on"]),
        ("auto maybe", ["takes on or off, not 'maybe'"]),
        ("auto on off", ["takes on or off"]),
    ],
)
def test_a_wrong_line_says_what_and_where_and_what_to_type(line, said):
    message = error_of(read_line, line)
    assert message.startswith(("%mlx_dist", "a quote"))
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--rank 0", ["no option --rank", "nearest is --ranks"]),
        ("--out 1st", ["--out takes a name of a variable, not '1st'"]),
        ("--timeout 0", ["--timeout takes seconds, more than 0, not '0'"]),
        ("up -n 2", ["no option -n"]),
        ("status", ["status runs no cell", "type %mlx_dist status, with one %"]),
        ("print(1)", ["'print(1)'"]),
    ],
)
def test_a_wrong_cell_line_says_so(line, said):
    message = error_of(read_cell, line)
    assert message.startswith("%%mlx_dist: ")
    for part in said:
        assert part in message


def test_ranks_are_compared_with_how_many_there_are():
    assert RankSelection.parse("2-3,0,3").among(4) == [0, 2, 3]
    assert "there is no rank 9, ranks 0-1 are running; type --ranks 0-1" in error_of(
        RankSelection.parse("0,9").among, 2
    )
    assert "only rank 0 is running; type --ranks 0" in error_of(RankSelection.parse("1").among, 1)
    # found wrong before a list of that length is made
    assert "no rank 99999999999" in error_of(RankSelection.parse("0-99999999999").among, 2)


def test_ranks_are_named_as_people_write_them():
    assert ranks_text([0]) == "rank 0"
    assert ranks_text([1, 0]) == "ranks 0-1"
    assert ranks_text([0, 2, 3]) == "ranks 0,2-3"


@pytest.mark.parametrize("line", ["", "help", "--help", "-h"])
def test_help_lists_every_subcommand(line):
    text = read_line(line).text
    for name in subcommands.SUBCOMMANDS:
        assert re.search(rf"^%mlx_dist {name}\b", text, re.MULTILINE)
    assert "%%mlx_dist [--ranks 0,2-3] [--timeout S] [--out NAME]" in text
    assert "%%local" in text


@pytest.mark.parametrize("line", ["up --help", "up -n 2 -h", "help up"])
def test_help_of_a_subcommand_lists_its_options(line):
    text = read_line(line).text
    assert text.startswith("usage: %mlx_dist up [options]")
    for option in ("-n N", "--hostfile F", "--backend B", "--env K=V", "--keep", "--seed N"):
        assert option in text
    assert "%mlx_dist attach finds them" in text


def test_help_is_shown_also_when_names_are_missing():
    assert read_line("pull --help").text.startswith("usage: %mlx_dist pull NAMES [options]")
    cell_help = read_cell("--help").text
    assert cell_help.startswith("usage: %%mlx_dist [options]")
    assert "--auto" not in cell_help


def test_nothing_is_printed_and_nothing_exits(capsys):
    for line in ("up --nonsense", "up -n", "auto maybe"):
        error_of(read_line, line)
    read_line("up --help")
    assert capsys.readouterr() == ("", "")
