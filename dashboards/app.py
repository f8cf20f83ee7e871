"""What `streamlit run` is given; the page itself is drawn by live.py."""

from __future__ import annotations

import sys
from pathlib import Path

PATH = __file__

if __name__ == "__main__":
    from automc.dashboards.live import draw

    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
