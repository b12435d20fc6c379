"""The report: a study as one self-contained page."""

from lcalens.views.report.document import Report, report

__all__ = ["Report", "report"]
