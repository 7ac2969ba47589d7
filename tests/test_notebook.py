"""A guide runs in a notebook: results have readable reprs, and each figure is shown once."""

import json

import nbformat
import pytest
from nbclient import NotebookClient
from notebook import GUIDES, notebook

SHOWN = """
## Look at it

```python
from awmkit import NoProgress, plot
from awmkit.analysis import report

starts, actions = 0.1 * jax.random.normal(start_key, (2, 2)), jnp.zeros((2, 8, 1))
found = report(boat, starts, actions, reward=boat.reward, key=start_key, progress=NoProgress())
found
```

```python
plot.report(found)
```

```python
plot.growth(found.entries["Boat"].state_growth)
```
"""


@pytest.mark.skipif(not GUIDES.exists(), reason="the wheel contains no examples")
@pytest.mark.filterwarnings("default")  # Jupyter raises warnings of its own.
def test_a_guide_runs_in_a_notebook_with_readable_results_and_each_figure_once(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    guide = (GUIDES / "own_simulator.md").read_text().split("## Differentiate with respect to its parameters")[0]
    book = nbformat.reads(json.dumps(notebook(guide + SHOWN)), as_version=4)
    nbformat.validate(book)
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    table, figure, axes = [cell["outputs"] for cell in book.cells if cell["cell_type"] == "code"][-3:]
    lines = table[0]["data"]["text/plain"].splitlines()
    assert lines[0].startswith("Report(entries=['Boat'], ") and "|ds_H/da_0|" in lines[2] and lines[3].startswith("Boat")
    for outputs in (figure, axes):
        assert sum("image/png" in output["data"] for output in outputs) == 1
