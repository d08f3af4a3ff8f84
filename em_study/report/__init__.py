"""Results as a self-contained page with transcripts, and as a table in the terminal."""

from em_study.report.html import write_report, write_reports
from em_study.report.terminal import print_table

__all__ = ["print_table", "write_report", "write_reports"]
