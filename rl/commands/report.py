"""`uniar-rl report RUN [RUN…]`: one HTML file of a run, or of several compared, that opens anywhere.

uniar-rl report runs/quickstart                              writes runs/quickstart/report.html
uniar-rl report runs/one runs/two --output comparison.html
"""

import argparse
from pathlib import Path

from rl.checkpoint.layout import REPORT
from rl.report.page import write_report
from uniar.reading.files import require_writable, writing


def run(arguments: argparse.Namespace) -> None:
    alone = len(arguments.runs) == 1
    target = arguments.output or (arguments.runs[0] / REPORT if alone else Path(REPORT))
    require_writable(target.parent)
    with writing(target):
        write_report(arguments.runs, target)
    print(f"written to {target} ({target.stat().st_size / 1e6:.1f} MB)")
