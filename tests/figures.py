"""Reading back what the book's figures and tables show."""

import re

import matplotlib.pyplot as plt


def texts(figure):
    """Every text that is visible in a figure."""
    figure.canvas.draw()
    return [t.get_text() for ax in figure.axes for t in ax.findobj(plt.Text) if t.get_text()]


def cells(html):
    """Rows of a table as lists of plain texts."""
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [[re.sub(r"<[^>]+>", "", c) for c in re.findall(r"<t[hd].*?</t[hd]>", r)] for r in rows]
