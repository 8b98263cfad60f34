"""What the tests of tracing share: the networks of `graph_nets.py` beside them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
