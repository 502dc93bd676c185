"""Turn result rows into statistics, tables, figures and pages. Imports no other package of exp."""
