"""Reports: what a run showed, as one HTML file that works offline, or as Markdown with the results beside it."""

from interp.report.html import write_report
from interp.report.markdown import write_markdown

__all__ = ["write_markdown", "write_report"]
