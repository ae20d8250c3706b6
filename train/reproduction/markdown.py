"""Tables in Markdown."""


def format_table(rows, columns=None):
    """Format rows as a Markdown table.

    Args:
        rows: Non-empty list of dicts. Floats get four decimals, or none above 1; `None` is an empty cell.
        columns: Keys of the columns; by default those of the first row.
    """
    columns = list(rows[0] if columns is None else columns)
    lines = [columns, ["---"] * len(columns), *([_format_cell(row[column]) for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _format_cell(value):
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) <= 1 else f"{value:.0f}"
    return "" if value is None else str(value)
