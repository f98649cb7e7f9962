"""Words of a caption, in the manner of the Penn Treebank, by rules of our own and without Java.

The official caption scorers pass raw captions through Stanford's PTBTokenizer (CoreNLP 3.4.1, lower case) and then drop
the tokens that are punctuation. `ptb_tokens` does the same by one regular expression. Text that is tokenized already,
words between single spaces, comes back unchanged (but for smileys, and for ``\\/``, which is ``/`` here, on both
sides), so that scores of it equal those of the official scorers.

Known differences on raw text, found by running both (`scripts/compare_with_official.py`):

- Smileys (``:-)``) and markup (``<b>``) are single tokens there; here they are cut at each sign.
- Versions and code (``v2.10.0``, ``3.14t``, ``U+007F``, words with digits at a slash), ``rock'n'roll`` and sentences
  without a space between them (``that?It``) are cut at other places.
- Words that keep their full stop are those of `ABBREVIATIONS`, single letters (``a`` at the end only), and runs of
  single letters (``u.s.``); the official tokenizer knows some more.
- Signs beyond the Basic Multilingual Plane, such as most emoji, are dropped one by one; there a few survive.

Easily taken for differences, but just as there: brackets count as words (``-lrb-``: the list of dropped tokens has them
in capitals only), and so do ``!!``, ``%``, ``$`` and ``&``; a hyphenated word is one word; a full stop between letters
joins them; ``don't`` is ``do n't``, ``cannot`` is ``can not``, ``gonna`` is ``gon na``; a euro is a ``$``.
"""

import re

ABBREVIATIONS = (
    "adm al apr ariz aug ave bldg blvd bros calif capt cf cmdr co col corp dec dept dr est etc feb fla fri ft gen gov "
    "hon inc jan jr jul jun lt ltd maj mar messrs mich minn mlle mme mon mr mrs ms mt nov oct penn ph.d pres prof rd "
    "rep reps rev sen sep sept sgt sr st tenn thu thurs tue tues univ v vs wed"
)
"""Words that keep a full stop."""

SPLIT_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
"""Words that the Treebank writes as two."""

SIGNS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SIGNS |= {"\u20ac": "$", "\u00a3": "#", "\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4"}
DROPPED = frozenset(
    ("''", "'", "``", "`", ",", ":", ";", ".", "?", "!", "-", '"', "\u2026", "\u2013", "\u2014")
    + ("\u2018", "\u2019", "\u201c", "\u201d")
)

TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)\S*[^\s.,;:!?)] | [\w.+-]+@\w[\w.-]*\.\w+  # addresses
    | -(?:[lr][rsc]b)-                                        # a bracket that was written out before
    | (?:\b[^\W\d_]\.){{2,}} | \b[b-z]\. | \ba\.(?=\s*\Z) | \bno\.(?=\s*\d)
    | \b(?:{ABBREVIATIONS.replace(" ", "|").replace(".", "[.]")})\.(?!\w)
    | ['\u2019](?:(?:tis|twas|s|m|d|re|ve|ll|t|em)\b | \d\ds?\b | n')    # clitics that stand alone, '90s
    | [@#][^\W\d_]\w* | \bc\+\+ | \b[^\W\d_]{{1,2}}&[^\W\d_]{{1,2}}\b
    | [+-]?\d+(?:[.,:]\d+)+ (?:[-.]?[^\W_]+)* | (?:\.\d+)+ | [+-]\d+
    | [^\W_]+ (?:(?:[-/._]|(?<=[^\W\d_])['\u2019](?=[^\W\d_]))[^\W_]+)*     # words, also with signs inside
    | \.{{2,}} | -{{2,}} | [!?]+ | `` | '' | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)
CLITIC = re.compile(r"(.+)(?:(n)['\u2019](t)|['\u2019](s|m|d|re|ve|ll))")


def ptb_tokens(text: str) -> list[str]:
    """The words of a caption, in lower case, without punctuation; see the file's docstring for the rules."""
    words: list[str] = []
    for found in TOKEN.findall(text.replace("\\/", "/")):
        words += _parts(SIGNS.get(found, found.lower()))
    return words


def _parts(token: str) -> tuple[str, ...]:
    if token in DROPPED or not token.strip(".-") or (len(token) == 1 and token > "\uffff"):
        return ()
    if token in SPLIT_WORDS:
        return SPLIT_WORDS[token]
    match = CLITIC.fullmatch(token)
    if match is None:
        return (token,)
    return (*_parts(match[1]), "n't" if match[2] else f"'{match[4]}")
