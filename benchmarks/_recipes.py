"""What the benchmarks take from the recipes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from _runs import at_least as at_least
from _runs import file_name as file_name
from _runs import whole as whole
