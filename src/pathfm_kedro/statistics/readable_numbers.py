"""Numbers as a person reads them aloud: in reasons, remarks, sentences and tables alike."""

from __future__ import annotations

#: Smaller p-values and rates are below what the approximations behind them can know.
_SMALLEST = 0.001


def number(value: float | None, digits: int = 2) -> str:
    """A number as one reads it aloud: two decimals, or as many significant digits where it is small.

    Examples
    --------
    >>> [number(value) for value in (0.5, -0.01234, 57.31, 110.0, 41234.0, 0.0, 0.000012, None)]
    ['0.50', '−0.012', '57.3', '110', '41,234', '0', '1.2e−05', 'n/a']
    """
    if value is None:
        return "n/a"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100:
        text = f"{value:,.0f}"
    elif size >= 10:
        text = f"{value:.{digits - 1}f}"
    else:
        text = f"{value:.{digits}f}" if size >= 0.1 else f"{value:#.{digits}g}"
    return text.replace("-", "−")


def p_value_text(p: float) -> str:
    """A p-value in a sentence.

    Examples
    --------
    >>> p_value_text(0.0564), p_value_text(0.00012)
    ('p = 0.056', 'p below 0.001')
    """
    return f"p below {_SMALLEST}" if p < _SMALLEST else f"p = {number(p)}"


def percent(share: float) -> str:
    """A share or a rate in percent.

    Examples
    --------
    >>> percent(0.0564), percent(0.732), percent(0.0001), percent(0)
    ('5.6%', '73%', 'below 0.1%', '0%')
    """
    if 0 < share < _SMALLEST:
        return f"below {100 * _SMALLEST:g}%"
    return f"{100 * share:.{0 if share >= 0.1 or share == 0 else 1}f}%"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A value with its interval.

    Examples
    --------
    >>> interval(0.512, 0.4, 0.61), interval(0.512, None, None)
    ('0.51 [0.40, 0.61]', '0.51 (no interval)')
    """
    if low is None or high is None:
        return f"{number(value)} (no interval)"
    return f"{number(value)} [{number(low)}, {number(high)}]"
