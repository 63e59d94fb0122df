"""How the pages write measured values into sentences and tables, the same everywhere."""

from IPython.display import HTML

from course_lib.plots import source

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(share: float) -> str:
    """A share in per cent, with a decimal where there is one.

    >>> percent(0.25), percent(0.123)
    ('25\\xa0%', '12.3\\xa0%')
    """
    return f"{100 * share:.1f}\u00a0%".replace(".0\u00a0", "\u00a0")


def between(low: float, high: float) -> str:
    """An interval of shares."""
    return f"{percent(low)} to {percent(high)}"


def number(x: float, digits: int = 2) -> str:
    """A number with a real minus sign.

    >>> number(-0.5)
    '−0.50'
    """
    return f"{x:.{digits}f}".replace("-", "\u2212")


def signed(x: float, digits: int = 2) -> str:
    """A difference: with its sign, also where it is a plus."""
    return f"{x:+.{digits}f}".replace("-", "\u2212")


def raised(exponent: int) -> str:
    """Ten to this power.

    >>> raised(-17)
    '10⁻¹⁷'
    """
    return f"10{str(exponent).translate(_RAISED)}"


def power(x: float) -> str:
    """A large number in scientific notation.

    >>> power(1.5e9)
    '1.5\\xa0×\\xa010⁹'
    """
    digits, exponent = f"{x:.1e}".split("e")
    return f"{digits}\u00a0×\u00a0{raised(int(exponent))}"


def duration(seconds: float) -> str:
    """A time: seconds, from a minute and a half on in minutes."""
    return f"{seconds / 60:.1f}\u00a0min" if seconds >= 90 else f"{seconds:.0f}\u00a0s"


def many(count: float) -> str:
    """A count: millions in words."""
    return f"{count / 1e6:.2f}\u00a0million" if count >= 1e6 else f"{count:,.0f}"


def show(*things) -> HTML:
    """The library's own source, printed by the page that talks about it."""
    return HTML(source(*things))
