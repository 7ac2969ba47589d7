"""Makes a notebook of the guides in examples/README.md; test_notebook.py runs it in a kernel.

python tests/notebook.py guides.ipynb
"""

import json
import re
import sys
from pathlib import Path

GUIDES = Path(__file__).parent.parent.parent / "examples" / "README.md"


def blocks(text: str) -> list[str]:
    """The Python of a Markdown text, block by block."""
    return re.findall(r"```python\n(.*?)```", text, re.S)


def notebook(text: str) -> dict:
    """The text as a notebook: what stands between two blocks of Python is a cell of Markdown."""
    cells = []
    for i, part in enumerate(re.split(r"```python\n(.*?)```\n", text, flags=re.S)):
        cell = {"id": f"cell-{i}", "metadata": {}, "source": part.strip()}
        code = {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append({**cell, **(code if i % 2 else {"cell_type": "markdown"})})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    guides = GUIDES.read_text().split("# Guides")[1].split("# Measured")[0]
    Path(sys.argv[1]).write_text(json.dumps(notebook(guides), indent=1))
