"""An interrupt that is swallowed comes again, in a process of its own."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import time
from biomedclip_ray.run.interrupt import listen
listen(again_s=2)
for _ in range(2):
    try:
        print("listens", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("swallowed", flush=True)
time.sleep(60)
"""


IN_THREAD = """
import time
from biomedclip_ray.run.interrupt import in_thread, listen
listen()
print(in_thread(lambda: "done"))
try:
    in_thread(lambda: 1 / 0)
except ZeroDivisionError:
    print("raised", flush=True)
try:
    in_thread(lambda: print("waits", flush=True) or time.sleep(60))
except KeyboardInterrupt:
    print("stopped")
"""


def test_what_runs_in_a_thread_can_be_left() -> None:
    process = subprocess.Popen([sys.executable, "-c", IN_THREAD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(3)] == ["done", "raised", "waits"]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[0] == "stopped\n"
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_is_swallowed_comes_again(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "listens\n"
    process.send_signal(number)
    output, error = process.communicate(timeout=30)
    assert output.split() == ["swallowed", "listens", "swallowed"]
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode != 0
