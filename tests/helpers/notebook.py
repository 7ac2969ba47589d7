"""Convert a guide in examples/guides/ to a notebook.

python tests/helpers/notebook.py own_simulator own_simulator.ipynb
"""

import json
import re
import sys
from pathlib import Path

GUIDES = Path(__file__).parent.parent.parent / "examples" / "guides"


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the Python blocks of a Markdown text. Each comes with the text block that follows it, or with ""."""
    found = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", text, re.S)
    return [(code, output) for code, output in found]


def notebook(text: str) -> dict:
    """Return a notebook: Python blocks become code cells, and the text between them becomes Markdown cells."""
    cells = []
    for i, part in enumerate(re.split(r"```python\n(.*?)```\n", text, flags=re.S)):
        cell = {"id": f"cell-{i}", "metadata": {}, "source": part.strip()}
        code = {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append({**cell, **(code if i % 2 else {"cell_type": "markdown"})})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    guide, path = sys.argv[1:]
    Path(path).write_text(json.dumps(notebook((GUIDES / f"{guide}.md").read_text()), indent=1))
