"""Tables, figures and one self-contained HTML page from a run's records (no torch)."""

from manticore.reports.page import write_report
from manticore.reports.records import combine_seeds, load_run
from manticore.reports.tables import markdown_table, text_table

__all__ = ["combine_seeds", "load_run", "markdown_table", "text_table", "write_report"]
