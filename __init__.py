"""Makes `import dppo` right from the folder above a clone, where Python takes the clone for the package.

It is in no wheel, and whoever starts within the clone never imports it.
"""

import importlib.util
import sys
from pathlib import Path

if __name__ == "dppo":
    package = Path(__file__).with_name("dppo")
    found = importlib.util.spec_from_file_location(
        "dppo", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert found is not None and found.loader is not None
    sys.modules["dppo"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(sys.modules["dppo"])
