"""Progress meters: what they show and when, tested with a clock that the test controls."""

import io

import pytest

from awmkit import AbstractMeter, AbstractProgress, NoProgress, TqdmProgress


class Clock:
    """A clock in seconds whose time the test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return float(self.now)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("awmkit._progress.monotonic", clock)
    return clock


def test_the_phase_is_shown_immediately_and_the_time_left_excludes_compilation(clock):
    stream = io.StringIO()
    with TqdmProgress(stream).start("fit AWM", 100) as meter:
        meter.update(0, phase="compiling")
        clock.now = 500  # The first update compiles.
        meter.update(10, "loss 3", phase="fitting")
        clock.now = 520
        meter.update(20, "loss 2", phase="fitting")
        clock.now = 680
        meter.update(100, "loss 1")
    assert stream.getvalue().splitlines() == [
        "fit AWM, compiling: 0/100 [00:00 elapsed, ? left]",
        "fit AWM, fitting: 10/100 [08:20 elapsed, ? left, loss 3]",
        "fit AWM, fitting: 20/100 [08:40 elapsed, 02:40 left, loss 2]",
        "fit AWM, fitting: 100/100 [11:20 elapsed, 00:00 left, loss 1]",
    ]


def test_the_time_left_of_a_resumed_run_ignores_the_steps_done_before(clock):
    stream = io.StringIO()
    meter = TqdmProgress(stream).start("train", 100)
    meter.update(50, phase="compiling")
    clock.now = 500
    meter.update(60)
    clock.now = 520
    meter.update(80)
    assert "80/100 [08:40 elapsed, 00:20 left]" in stream.getvalue()


def test_a_file_gets_a_line_at_each_new_phase_every_ten_seconds_and_at_the_end(clock):
    stream = io.StringIO()
    with TqdmProgress(stream).start("train", 30) as meter:
        for second in range(1, 31):
            clock.now = second
            meter.update(second, phase=("collecting", "fitting")[second % 2])
    assert [line.split()[2] for line in stream.getvalue().splitlines()] == ["1/30", "2/30", "12/30", "22/30", "30/30"]


def test_a_terminal_shows_one_line_that_is_updated_in_place(clock):
    stream = Terminal()
    with TqdmProgress(stream).start("fit", 10) as meter:
        meter.update(0, phase="compiling")
        meter.update(10, phase="fitting")
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n") and text.count("\r") >= 2
    assert "fit, compiling:   0%|" in text and "fit, fitting: 100%|" in text


def test_no_progress_shows_nothing(capsys):
    with NoProgress().start("fit", 10) as meter:
        meter.update(10, "loss 1", phase="fitting")
    assert capsys.readouterr() == ("", "")


def test_a_custom_meter_is_closed_after_an_error():
    class Meter(AbstractMeter):
        closed = False

        def update(self, done, note="", *, phase=None):
            raise RuntimeError("stop")

        def close(self):
            self.closed = True

    class Own(AbstractProgress):
        def start(self, label, total):
            return meter

    meter = Meter()
    with pytest.raises(RuntimeError), Own().start("fit", 10) as running:
        running.update(1)
    assert meter.closed


def test_the_repr_of_a_progress_object_is_its_constructor_call():
    assert repr(TqdmProgress()) == "TqdmProgress()" and repr(NoProgress()) == "NoProgress()"
