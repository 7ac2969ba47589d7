"""A missing optional package raises one sentence with the pip command, and `import awmkit` needs none of them."""

import re
import subprocess
import sys
from pathlib import Path

CODE = """
import sys

for name in ("gymnasium", "matplotlib", "mujoco", "rejax", "tensorboardX", "minari", "h5py"):
    sys.modules[name] = None  # Makes the import fail, as for a missing package.

import jax, awmkit, awmkit.analysis, awmkit.tasks

def attempt(code):
    try:
        exec(code)
    except ImportError as error:
        print(error)

attempt("import awmkit.gym")
attempt("import awmkit.mjx")
attempt("import awmkit.baselines")
attempt("import awmkit.plot")
attempt("import awmkit.learning.tensorboard")
attempt("awmkit.save_episodes('x.h5', awmkit.Trajectory(jax.numpy.zeros((1, 2, 1)), jax.numpy.zeros((1, 1, 1))))")
del sys.modules["gymnasium"]
attempt("import awmkit.learning.minari")
sys.modules["gymnasium"] = None
del sys.modules["mujoco"]
attempt("from awmkit.mjx import MJXTask; MJXTask.from_gymnasium('Hopper-v5')")
del sys.modules["gymnasium"]
attempt("global TaskEnv; from awmkit.gym import TaskEnv; TaskEnv(awmkit.tasks.DrivenDoublePendulum())")
attempt("env = TaskEnv(awmkit.tasks.DrivenDoublePendulum(), render_mode='rgb_array'); env.reset(); env.render()")
"""


def test_a_missing_package_raises_one_sentence_with_the_pip_command():
    command = [sys.executable, "-c", CODE]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent).stdout
    assert [re.sub(r"\(.*\)", "(...)", line) for line in printed.splitlines()] == [
        'awmkit.gym needs Gymnasium (...); run pip install "awmkit[gym]".',
        'awmkit.mjx needs MuJoCo and MJX of one version (...); run pip install "awmkit[mjx]".',
        'awmkit.baselines needs rejax (...); run pip install "awmkit[baselines]".',
        'awmkit.plot needs matplotlib (...); run pip install "awmkit[plot]".',
        'awmkit.learning.tensorboard needs tensorboardX (...); run pip install "awmkit[tensorboard]".',
        'Files of HDF5 need h5py (...); run pip install "awmkit[data]".',
        'awmkit.learning.minari needs Minari (...); run pip install "awmkit[data]".',
        'from_gymnasium needs Gymnasium (...); run pip install "awmkit[mjx]".',
        'render_mode="rgb_array" needs matplotlib (...); run pip install "awmkit[plot]".',
    ]
