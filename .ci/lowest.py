"""The lowest versions that pyproject.toml allows, as constraints for pip: a `==` for every `>=`."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for need in [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)]:
    if not need.startswith(f"{project['name']}["):
        found = re.match(r"([\w-]+)(?:\[.*?\])?>=([\d.]+)", need)
        assert found, f"{need!r} has no lowest version"
        print(f"{found[1]}=={found[2]}")
