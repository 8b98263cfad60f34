import pytest

from skipway.study.records.measures import better, written


@pytest.mark.parametrize(
    ("measure", "end"),
    [("test_error", "lowest"), ("validation_iou", "highest"), ("validation_bleu", "highest"), ("memory", "lowest")],
)
def test_which_end_is_good(measure: str, end: str):
    assert better(measure) == end


def test_numbers_are_written_as_people_do():
    assert written("step_seconds", 0.0123) == "12.3 ms"
    assert written("width", 8.0) == "8"
