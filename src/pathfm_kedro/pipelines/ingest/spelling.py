"""Names that differ in spelling only, and words that programs write where there is nothing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

#: What programs write for a value that is not there, without case, blanks and the brackets around it:
#: R, pandas, Polars, spreadsheets (English, German, French, Spanish), SQL, MATLAB, laboratory systems
#: and registries (GDC).
_NOTHING = frozenset(
    {
        "na", "n/a", "n.a", "n\\a", "#na", "#n/a", "#n/an/a", "nat", "nan", "-nan", "+nan",
        "#nan", "1.#qnan", "-1.#qnan", "1.#ind", "-1.#ind", "none", "nonetype", "null", "#null",
        "#null!", "nil", "\\n", "#nv", "#n/v", "#nd", "#n/d", "k.a", "n/d", "n.d.", "n/k",
        "n/r", "notavailable", "notapplicable", "notspecified", "notgiven", "notreported",
        "notrecorded", "notevaluated", "notassessed", "notcollected", "notprovided",
        "notallowedtocollect", "nodata", "novalue", "keineangabe", "keineangaben", "ohneangabe",
    }
)  # fmt: skip
#: Words that stand for nothing in brackets alone: without, a class or a place may be called so.
_NOTHING_IN_BRACKETS = frozenset({"missing", "unknown", "empty", "blank"})
_BRACKETS = "()[]<>{}'\".:;,"
#: What spreadsheets show where a formula failed, in any language.
_FORMULA_ERROR = re.compile(r"#[^\W_][\w/]*[!?]|err:\d+")
#: What statistics programs write for a number that is not there.
_MISSING_NUMBER = re.compile(r"-9+(\.0+)?")
#: What people write where they do not know: a name like any other to the program, and seldom one name.
_UNKNOWN = frozenset(
    {"unknown", "unk", "notknown", "missing", "undefined", "undef", "tbd", "unbekannt", "inconnu"}
)
#: Letters and marks that are shown as nothing, beside those of Unicode's category Cf.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
#: Zeros before a whole number that stands alone or behind letters: 007, P007, MRN-007. Those of a
#: pseudonym such as a01b2, and those behind a decimal point, are part of it.
_LEADING_ZEROS = re.compile(r"(?<![^\W_])(?<!\d\.)([^\W\d_]*)0+(?=\d+(?![^\W_]))")
#: A separator between letters and the number behind them: MRN-12, MRN:12 and MRN 12 are MRN12.
_BEFORE_NUMBER = re.compile(r"(?<=[^\W\d_])[-_.:/#]+(?=\d)")
#: What a spreadsheet writes around an id so that it stays text: '007 or ="007".
_AROUND_ID = "='\"."
#: Separators in place of a blank: an underscore anywhere but between digits, a hyphen between letters.
_AS_BLANK = re.compile(r"(?<!\d)_|_(?!\d)"), re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
#: Quotation marks that word processors write for straight ones.
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "`": "'",
                         "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u201f": '"'})  # fmt: skip
#: Cyrillic and Greek letters that look like a Latin one as capital or small letter. No two of one
#: script stand for the same, so that names in one script never become equal by this.
_LOOK_ALIKE = str.maketrans(
    {
        "\u0430": "a", "\u0432": "b", "\u0441": "c", "\u0501": "d", "\u0435": "e", "\u050d": "g",
        "\u043d": "h", "\u0456": "i", "\u0458": "j", "\u043a": "k", "\u04cf": "l", "\u043c": "m",
        "\u043e": "o", "\u0440": "p", "\u051b": "q", "\u0455": "s", "\u0442": "t", "\u0475": "v",
        "\u051d": "w", "\u0445": "x", "\u0443": "y",
        "\u03b1": "a", "\u03b2": "b", "\u03b5": "e", "\u03b7": "h", "\u03b9": "i", "\u03f3": "j",
        "\u03ba": "k", "\u03bc": "m", "\u03bd": "n", "\u03bf": "o", "\u03c1": "p", "\u03c4": "t",
        "\u03c7": "x", "\u03c5": "y", "\u03b6": "z",
    }
)  # fmt: skip
#: A whole number as a program writes it that took a column of ids for numbers.
_FLOAT = re.compile(r"(\d+)\.0+")


def plain_name(text: str) -> str:
    """A name without what does not tell names apart: case, blanks, invisible characters, Unicode form.

    Dashes of any length count as hyphens and curly quotation marks as straight ones, since word
    processors write one for the other; underscores and hyphens between letters count as blanks; 1.0 is
    the number 1.

    Examples
    --------
    >>> plain_name("No\u00a0rth\u200b\u20131"), plain_name("NORTH-1")
    ('north-1', 'north-1')
    >>> plain_name("Site_A"), plain_name("site-a"), plain_name("1.0"), plain_name("1_1")
    ('sitea', 'sitea', '1', '1_1')
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    seen = (
        "-" if unicodedata.category(letter) == "Pd" or letter == "\u2212" else letter
        for letter in _INVISIBLE.sub("", folded)
        if not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf")
    )
    name = "".join(seen).translate(_QUOTES)
    for separator in _AS_BLANK:
        name = separator.sub("", name)
    # Another form can arise where a blank stood between two letters.
    name = unicodedata.normalize("NFKC", name)
    number = _FLOAT.fullmatch(name)
    return number[1] if number else name


def plain_patient(text: str) -> str:
    """A patient's id without what programs change in it: like a name, and zeros before a number.

    Examples
    --------
    >>> plain_patient("P-007"), plain_patient("p 7"), plain_patient("7.0"), plain_patient("a01b2")
    ('p7', 'p7', '7', 'a01b2')
    """
    name = plain_name(plain_name(text).strip(_AROUND_ID))
    return _LEADING_ZEROS.sub(r"\1", _BEFORE_NUMBER.sub("", name))


def latin_letters(plain: str) -> str:
    """A plain name with Latin letters in place of the Cyrillic and Greek ones that look like them.

    Examples
    --------
    >>> latin_letters(plain_name("\u0421entre A")), latin_letters("\u043d\u043e\u0440\u0434")
    ('centrea', 'hopд')
    """
    parts = unicodedata.normalize("NFD", plain)
    return unicodedata.normalize("NFKC", parts.translate(_LOOK_ALIKE))


def stands_for_nothing(text: str) -> bool:
    """Whether a cell is empty or holds what is written where there is nothing.

    Examples
    --------
    >>> [stands_for_nothing(text) for text in ("N/A", " none", "\u2014", "?", "[Null]", "+", "nano")]
    [True, True, True, True, True, False, False]
    """
    name = plain_name(text)
    bare = name.strip(_BRACKETS)
    return (
        name in _NOTHING
        or bare in _NOTHING
        or bool(_FORMULA_ERROR.fullmatch(name))
        or (bare != name and bare in _NOTHING_IN_BRACKETS)
        or all(unicodedata.category(letter)[0] == "P" for letter in name)
    )


def names_nothing(text: str) -> bool:
    """As :func:`stands_for_nothing`, of a cell for a name: a missing number is none either.

    Examples
    --------
    >>> [names_nothing(text) for text in ("-999", "-99.0", "999", "-1")]
    [True, True, False, False]
    """
    return stands_for_nothing(text) or bool(_MISSING_NUMBER.fullmatch(plain_name(text)))


def stands_for_unknown(text: str) -> bool:
    """Whether a name says that the name is not known.

    Examples
    --------
    >>> [stands_for_unknown(text) for text in ("Unknown", "not known", "unknown primary")]
    [True, True, False]
    """
    return plain_name(text) in _UNKNOWN


@dataclass(frozen=True)
class Spellings:
    """One name in several spellings.

    Attributes
    ----------
    rows
        Where each spelling stands, in the order of their first rows.
    """

    rows: dict[str, tuple[int, ...]]

    def written(self, text: str) -> str:
        r"""One of the spellings in quotation marks, with the letters that only look like Latin ones.

        Examples
        --------
        >>> print(Spellings({"\u0421entre": (2,), "Centre": (3,)}).written("\u0421entre"))
        '\u0421entre' with CYRILLIC CAPITAL LETTER ES
        """
        if len({plain_patient(spelt) for spelt in self.rows}) == 1:
            return f"'{visible(text)}'"
        letters = look_alikes(text)
        named = listed([unicodedata.name(letter, "") for letter in letters])
        written = f"'{visible(text, letters)}'"
        return f"{written} with {named}" if letters else written


def several_spellings(cells: Iterable[tuple[int, str]], patients: bool) -> list[Spellings]:
    """Names that are spelt in more than one way.

    Parameters
    ----------
    cells
        Row and text of each cell that is filled.
    patients
        Whether the names are ids of patients, see :func:`plain_patient`.

    Returns
    -------
    list of Spellings
        In the order of their first rows.

    Examples
    --------
    >>> several_spellings([(2, "North"), (3, "South"), (4, "north")], patients=False)
    [Spellings(rows={'North': (2,), 'north': (4,)})]
    """
    plain = plain_patient if patients else plain_name
    found: dict[str, dict[str, list[int]]] = {}
    for row, text in cells:
        found.setdefault(latin_letters(plain(text)), {}).setdefault(text, []).append(row)
    return [
        Spellings({text: tuple(rows) for text, rows in spelt.items()})
        for spelt in found.values()
        if len(spelt) > 1
    ]


def look_alikes(text: str) -> list[str]:
    """Letters of a text, each once, that only look like Latin ones.

    Examples
    --------
    >>> look_alikes("\u0421entre \u041d"), look_alikes("Köln")
    (['С', 'Н'], [])
    """
    plain = {letter: plain_name(letter) for letter in text}
    return [letter for letter, name in plain.items() if latin_letters(name) != name]


def visible(text: str, beside: Collection[str] = ()) -> str:
    r"""A text in which what cannot be seen is written out, so that two spellings can be distinguished.

    Parameters
    ----------
    text
        A name.
    beside
        Further letters to write out.

    Examples
    --------
    >>> print(visible("Nor\u200bth"), visible("Ko\u0308ln"), visible("Köln"))
    Nor\u200bth Ko\u0308ln Köln
    """

    def is_seen(letter: str) -> bool:
        visible = unicodedata.category(letter)[0] in "LNPS" and not _INVISIBLE.match(letter)
        return letter not in beside and (visible or letter == " ")

    return "".join(
        letter if is_seen(letter) else letter.encode("unicode_escape").decode() for letter in text
    )


def listed(things: Sequence[int | str], named: int = 5) -> str:
    """Rows or names as a person reads them, the first few in full.

    Examples
    --------
    >>> listed([2, 3, 4], named=2)
    '2, 3 and 1 more'
    """
    shown = ", ".join(str(thing) for thing in things[:named])
    return shown if len(things) <= named else f"{shown} and {len(things) - named} more"
