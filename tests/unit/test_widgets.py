"""What a person sees of the cluster, in a terminal and in a notebook."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from fake_cluster import FakeCluster, cluster_info

from mlxbench_kernel.widgets import ClustersTable, ProgressBar, RanksMarker, RanksTable


def cells_of(html):
    """The texts of a table's cells, row by row; fails if a tag is not closed."""
    rows, open_tags = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            open_tags.append(tag)
            if tag == "tr":
                rows.append([])
            if tag in ("th", "td"):
                rows[-1].append("")

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

        def handle_data(self, data):
            if open_tags[-1] in ("th", "td"):
                rows[-1][-1] += data

    reader = Reader()
    reader.feed(html)
    reader.close()
    assert open_tags == []
    return rows


def test_ranks_in_a_terminal_stand_in_columns():
    cluster = FakeCluster(2, notes=("copied model.py to mini",))
    text = repr(RanksTable(cluster.status(), cluster.info)).splitlines()
    assert text[0].split() == ["rank", "host", "pid", "device", "MLX", "memory"]
    assert text[1].split()[:5] == ["0", "studio", "4000", "cpu", "0.32.4"]
    assert text[2].startswith("1     studio  4001")
    assert "MLX 12.3 MB, process 210 MB; 7.90 GB of 16.0 GB free" in text[1]
    assert text[3] == "backend ring · seed 17 · cluster mlx-c0ffee · copied model.py to mini"


def test_ranks_in_a_notebook_are_the_same_table():
    cluster = FakeCluster(2)
    html = RanksTable(cluster.status(), cluster.info, states=True)._repr_html_()
    header, first, second = cells_of(html)
    assert header == ["rank", "host", "pid", "device", "MLX", "memory", "state"]
    assert first[0] == "0"
    assert second[:3] == ["1", "studio", "4001"]
    assert second[-1] == "busy 3 s · line 2: mx.eval(loss)"
    assert "seed 17" in html


def test_a_rank_that_does_not_answer_has_unknown_memory():
    cluster = FakeCluster(1)
    assert "unknown" in repr(RanksTable(cluster.info.ranks, cluster.info))


def test_what_a_host_calls_itself_is_no_markup():
    cluster = FakeCluster(1, folder="<b>", notes=("<script>alert(1)</script>",))
    html = RanksTable(cluster.status(), cluster.info)._repr_html_()
    html += ClustersTable([cluster.info])._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html


def test_colours_come_from_the_page_so_that_light_and_dark_themes_work():
    cluster = FakeCluster(1)
    for widget in (RanksTable(cluster.status(), cluster.info), RanksMarker("rank 0")):
        html = widget._repr_html_()
        assert "background" not in html
        assert set(re.findall(r"[^-]color: ([^;\"]+)", html)) == {"inherit"}
        for rule in re.findall(r"border-bottom: [^;\"]+", html):
            assert "var(--jp-border-color2, rgba(128, 128, 128" in rule


def test_the_list_of_clusters_says_which_can_be_attached():
    mine = cluster_info(2, id="mlx-111111", owner_started=-1.0)
    left = cluster_info(4, id="mlx-222222", owner=2**22 + 1)
    table = ClustersTable([left, mine])
    text = repr(table).splitlines()
    assert text[1].split() == ["mlx-222222", "4", "ring", "/home/ada/digits", "nobody"]
    assert text[-1] == "type %mlx_dist attach mlx-222222"
    assert cells_of(table._repr_html_())[1][0] == "mlx-222222"


def test_the_marker_says_where_a_cell_runs():
    assert repr(RanksMarker("ranks 0-1")) == "▸ ranks 0-1"
    assert "▸ ranks 0-1" in RanksMarker("ranks 0-1")._repr_html_()


def test_the_progress_bar_shows_percent_and_text_and_goes(capsys):
    with ProgressBar() as progress:
        progress(0.0, "starting ranks")
        progress(0.4, "engines are registered")
        progress(0.2, "late news")  # never back
        progress(7.0, "joining")  # never beyond the end
    shown = capsys.readouterr().err
    assert "starting ranks   0%" in shown
    assert "engines are registered  40%" in shown
    assert "late news  40%" in shown
    assert "joining 100%" in shown
    assert shown.rsplit("\r", 1)[-1].strip() == ""


def test_the_progress_bar_goes_also_when_the_work_fails(capsys):
    def work():
        with ProgressBar() as progress:
            progress(0.5, "starting ranks")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert capsys.readouterr().err.rsplit("\r", 1)[-1].strip() == ""


def test_work_that_is_over_at_once_shows_no_bar(capsys):
    with ProgressBar():
        pass
    assert capsys.readouterr().err == ""


def test_drawing_needs_no_ipyparallel():
    code = (
        "import sys, mlxbench_kernel.widgets as w; repr(w.RanksMarker('rank 0'));"
        "sys.exit('ipyparallel' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
