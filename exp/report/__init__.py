"""From rows to statistics, tables, figures and pages; imports nothing of exp."""
