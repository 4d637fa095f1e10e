"""The report of a sweep: one HTML file that works offline, with everything that was measured.

Every text, table and trace of it is made here, by `words`, `tables` and `figures`; `page.html` is the template and
`page.js` only reacts to its reader. The page makes no request: scripts are named by their hash in its
Content-Security-Policy, and nothing else may run or load.
"""

from __future__ import annotations

from rlhf_lines.pareto.report.completions import Completions, evenly_spaced
from rlhf_lines.pareto.report.content import preferences, within_kl_of_picked
from rlhf_lines.pareto.report.page import MAX_BYTES, report_html


__all__ = ["MAX_BYTES", "Completions", "evenly_spaced", "preferences", "report_html", "within_kl_of_picked"]
