import io

import pytest
from rich.console import Console

from skipway.study.running.board import Board, Row, make_row


def _shown(board: Board, width: int = 100, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, highlight=False)
    console.print(board)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    return [line.rstrip() for line in text.splitlines()]


def _board(trials: int) -> Board:
    return Board(
        [
            make_row(f"resnet{depth} {skip} seed {seed}", {"depth": str(depth), "skip": skip})
            for seed in range(trials // 4)
            for depth in (20, 56)
            for skip in ("none", "residual")
        ],
        "degradation",
    )


def test_a_study_that_fits_is_shown_whole():
    board = _board(8)
    done, running, failed, diverged = board.rows[:4]
    board.end(done, "done", "train error 1.0 %, test error 5.0 %", 62.0)
    board.end(failed, "failed", "out of memory", None)
    board.end(diverged, "diverged", "diverged in round 3", 5.0)
    running.state, running.round, running.rounds, running.share, running.seconds = "running", 3, 10, 0.25, 20.0
    lines = _shown(board)
    header, *rows = lines[:9]
    assert header.split() == ["trial", "round", "measured", "time"]
    assert " ".join(rows[0].split()) == "resnet20 none seed 0 done train error 1.0 %, test error 5.0 % 1:02"
    assert " ".join(rows[1].split()) == "resnet20 residual seed 0 running 3 of 10 0:20"
    assert " ".join(rows[2].split()) == "resnet56 none seed 0 failed out of memory"
    assert " ".join(rows[3].split()) == "resnet56 residual seed 0 diverged diverged in round 3"
    assert all(row.endswith("waiting") for row in rows[4:])
    assert lines[-1].startswith("degradation: 1 of 8 done, 1 running, 1 failed, 1 diverged, 4 waiting, about ")


@pytest.mark.parametrize(("width", "height"), [(100, 24), (70, 24), (40, 12)])
def test_of_many_trials_those_that_matter_are_shown(width: int, height: int):
    board = _board(200)
    for number, row in enumerate(board.rows[:100]):
        board.end(row, "failed" if number == 7 else "done", "train error 1.0 %, test error 5.0 %", row.weight)
    for row in board.rows[100:102]:
        row.state, row.round, row.rounds, row.share, row.seconds = "running", 2, 10, 0.5, 9.0
    lines = _shown(board, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert sum(" running" in line for line in lines if line.startswith("resnet")) == 2
    assert sum(" failed" in line for line in lines if line.startswith("resnet")) == 1
    # What finished last stands above what runs.
    assert any(line.startswith(board.rows[99].title[:10]) for line in lines)
    text = " ".join(lines)
    assert "degradation: 99 of 200 done, 2 running, 1 failed, 98 waiting, about " in text
    shown = sum(line.startswith("resnet") for line in lines)
    assert f"and {200 - shown} more: " in text


def test_the_time_left_is_told_by_what_is_known():
    board = _board(8)
    assert board.left() is None
    assert board.share() == 0
    for row in board.rows[:4]:
        board.end(row, "done", "", row.weight / 10)
    # Of the other seed, each trial takes as long as its like.
    assert board.left() == pytest.approx(2 * (2.0 + 5.6))
    assert board.share() == pytest.approx(0.5)
    board.rows[4].state = board.rows[5].state = "running"
    assert board.left() == pytest.approx(2.0 + 5.6)
    # One that is itself slower than its like is believed: a quarter of it took 3 s since it was gone on with.
    slow = board.rows[4]
    slow.share, slow.first_share, slow.seconds = 0.5, 0.25, 3.0
    assert board.left() == pytest.approx((6.0 + 2.0 + 2 * 5.6) / 2)


def test_heavier_trials_are_expected_to_take_longer():
    board = Board([Row("a", 10.0, "a"), Row("b", 30.0, "b")])
    board.end(board.rows[0], "done", "", 2.0)
    assert board.left() == pytest.approx(6.0)
    assert make_row("x", {"depth": "20", "width": "8", "skip": "none", "model": "resnet"}).weight == 160
    assert make_row("x", {"depth": "as built"}).weight == 1


def test_nothing_is_left_of_a_study_that_has_ended():
    board = _board(4)
    for row in board.rows:
        board.end(row, "done", "", 1.0)
    assert board.line() == "4 of 4 done"
    assert board.share() == 1
    assert board.left() == 0
